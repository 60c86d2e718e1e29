"""What vLLM 0.32 shows at GET /metrics, as far as a simulator can fill it truthfully.

It owns names, types, labels and buckets. The hot path adds to plain integers and lists; prometheus_client only
writes the text when somebody asks. `engine` is "0", as in a server with one engine. Left out: how long requests took
and how large they were as the web framework counts them (http_request_duration_*, http_*_size_bytes), when histograms
began (*_created), the tool parser's counter, and labels of cache_config_info that nobody reads.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from extproc.sim.engine import Engine, Job, Timing

F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)
REASONS = ("stop", "length", "abort", "error", "repetition")
_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
            960.0, 1920.0, 7680.0)  # fmt: skip
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
         80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_N = (1, 2, 5, 10, 20)
_BY_REASON = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
    "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
    "vllm:num_requests_waiting."
)
_BY_TIER = (
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, "
    "p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
    "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
)
_SLEEP = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
    "means sleep level 1; discard_all = 1 means sleep level 2."
)
_COMPUTED = "Histogram of new KV tokens computed during prefill (excluding cached tokens)."
_EXTERNAL = "External prefix cache {} from KV connector cross-instance cache sharing, in terms of number of {} tokens."
_EXTERNAL_QUERIES = _EXTERNAL.format("queries", "queried")
_EXTERNAL_HITS = _EXTERNAL.format("hits", "cached")
_NEVER = (  # what a simulator never does
    (
        "external_prefix_cache_queries",
        _EXTERNAL_QUERIES,
    ),
    (
        "external_prefix_cache_hits",
        _EXTERNAL_HITS,
    ),
    ("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
    ("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
    (
        "estimated_flops_per_gpu",
        "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
    ),
    (
        "estimated_read_bytes_per_gpu",
        "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
    ),
    (
        "estimated_write_bytes_per_gpu",
        "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
    ),
)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)


def one_two_five(limit: int) -> tuple[int, ...]:
    """Return vLLM's buckets for token counts: 1, 2, 5, 10, … up to the limit."""
    found = [mantissa * 10**power for power in range(len(str(limit))) for mantissa in (1, 2, 5)]
    return tuple(bucket for bucket in found if bucket <= limit)


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class About(msgspec.Struct, frozen=True):
    """What the labels say."""

    model_name: str
    max_model_len: int
    timing: "Timing"


class Metrics:
    """Counts what the engine reports, and collects for prometheus_client."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._created = time.time()
        self._engine: Engine | None = None
        tokens = one_two_five(about.max_model_len)
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = 0
        self._queries = self._hits = self._rejections = 0
        self._finished = dict.fromkeys(REASONS, 0)
        self.http_requests: dict[tuple[str, str, str], int] = {}  # handler, method, status class
        self._ttft = Histogram(_TTFT)
        self._itl = Histogram(_ITL)
        self._iteration = Histogram(_ITERATION)
        self._e2e, self._queue, self._inference, self._prefill, self._decode = (Histogram(_LATENCY) for _ in range(5))
        self._per_token = Histogram(_ITL)
        self._prompt_size, self._answer_size, self._max_answer, self._max_param, self._computed = (
            Histogram(tokens) for _ in range(5)
        )
        self._n = Histogram(_N)
        self._preemptions = Histogram(_PREEMPTIONS)
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def watch(self, engine: "Engine") -> None:
        """Read the gauges off this engine."""
        self._engine = engine

    def queried(self, prompt_tokens: int, cached_tokens: int) -> None:
        if self._about.timing.prefix_caching:
            self._queries += prompt_tokens
            self._hits += cached_tokens

    def stepped(self, job: "Job", now: float) -> None:
        before, due = job.emitted, job.due
        if not before:
            self._ttft.observe(job.first_at - job.arrived)
            self._prompt_tokens += job.prompt_tokens
            self._cached_tokens += job.cached_tokens
            self._iteration.observe(job.prompt_tokens - job.cached_tokens + 1)
            gaps = due - 1
            gap = self._about.timing.decode_s
        else:
            gaps, gap = 1, now - job.last_at
        if gaps > 0:
            self._itl.observe(gap, gaps)
        self._generation_tokens += job.tokens(due) - job.tokens(before)

    def ended(self, job: "Job", now: float, *, aborted: bool) -> None:
        if aborted:
            self._finished["abort"] += job.width
        for reason in () if aborted else job.reasons:
            self._finished[reason] += 1
        tokens = job.tokens(job.due)
        started = job.started or now
        first_at = min(job.first_at or now, now)
        decode = now - first_at
        self._e2e.observe(now - job.arrived)
        self._queue.observe(started - job.arrived)
        self._inference.observe(now - started)
        self._prefill.observe(first_at - started)
        self._decode.observe(decode)
        if job.due > 1:
            self._per_token.observe(decode / (job.due - 1))
        self._prompt_size.observe(job.prompt_tokens)
        self._answer_size.observe(tokens)
        self._max_answer.observe(job.longest)
        self._computed.observe(job.prompt_tokens - job.cached_tokens)
        self._max_param.observe(job.max_tokens)
        self._n.observe(job.n)
        self._preemptions.observe(0)

    def rejected(self) -> None:
        self._rejections += 1

    def served(self, handler: str, method: str, status: int) -> None:
        key = (handler, method, f"{status // 100}xx")
        self.http_requests[key] = self.http_requests.get(key, 0) + 1

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Everything under vLLM's own names."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        http = CounterMetricFamily(
            "http_requests",
            "Total number of requests by method, status and handler.",
            None,
            ("handler", "method", "status"),
        )
        for labels, count in self.http_requests.items():
            http.add_metric(labels, count, created=self._created)
        yield http

    def _gauges(self) -> Iterator[Metric]:
        engine = self._engine
        running, waiting, usage = (engine.running, engine.waiting, engine.kv_usage) if engine else (0, 0, 0.0)
        yield self._gauge("vllm:num_requests_running", "Number of requests in model execution batches.", running)
        yield self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        by_reason = self._family(GaugeMetricFamily, "vllm:num_requests_waiting_by_reason", _BY_REASON, "reason")
        by_reason.add_metric(self._labels("capacity"), waiting)
        by_reason.add_metric(self._labels("deferred"), 0)
        yield by_reason
        yield self._gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage)
        sleep = self._family(GaugeMetricFamily, "vllm:engine_sleep_state", _SLEEP, "sleep_state")
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.add_metric(self._labels(state), float(state == "awake"))
        yield sleep
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        timing = self._about.timing
        labels = {
            "block_size": "16",
            "cache_dtype": "auto",
            "enable_prefix_caching": str(timing.prefix_caching),
            "engine": "0",
            "gpu_memory_utilization": "0.9",
            "kv_cache_size_tokens": str(timing.num_gpu_blocks * 16),
            "num_gpu_blocks": str(timing.num_gpu_blocks),
            "num_gpu_blocks_override": "None",
            "prefix_caching_hash_algo": "sha256",
            "sliding_window": "None",
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", None, list(labels)
        )
        family.add_metric(list(labels.values()), 1)
        return family

    def _counters(self) -> Iterator[Metric]:
        for name, text, value in (
            ("num_preemptions", "Cumulative number of preemption from the engine.", 0),
            ("prompt_tokens", "Number of prefill tokens processed.", self._prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", self._generation_tokens),
            ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", self._queries),
            ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", self._hits),
            ("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", self._cached_tokens),
        ):
            family = self._family(CounterMetricFamily, f"vllm:{name}", text)
            family.add_metric(self._labels(), value, created=self._created)
            yield family
        computed = self._prompt_tokens - self._cached_tokens
        sources = {"local_compute": computed, "local_cache_hit": self._cached_tokens, "external_kv_transfer": 0}
        yield self._by("vllm:prompt_tokens_by_source", "Number of prompt tokens by source.", "source", sources)
        tiers = {"device": self._cached_tokens, "host": 0, "p2p": 0, "disk": 0, "external_unspecified": 0}
        yield self._by("vllm:prompt_tokens_cached_by_source", _BY_TIER, "source", tiers)
        for name, text in _NEVER:
            family = self._family(CounterMetricFamily, f"vllm:{name}", text)
            family.add_metric(self._labels(), 0, created=self._created)
            yield family
        text = "Count of successfully processed requests."
        yield self._by("vllm:request_success", text, "finished_reason", self._finished)
        rejections = CounterMetricFamily(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            None,
            ("model_name", "reason"),
        )
        for reason, count in (("max_num_queued_reqs", self._rejections), ("max_num_queued_tokens", 0)):
            rejections.add_metric((self._about.model_name, reason), count, created=self._created)
        yield rejections

    def _histograms(self) -> Iterator[Metric]:
        for name, text, histogram in (
            ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", self._iteration),
            ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", self._ttft),
            ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", self._itl),
            (
                "request_time_per_output_token_seconds",
                "Histogram of time_per_output_token_seconds per request.",
                self._per_token,
            ),
            ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", self._e2e),
            ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", self._queue),
            (
                "request_inference_time_seconds",
                "Histogram of time spent in RUNNING phase for request.",
                self._inference,
            ),
            ("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", self._prefill),
            ("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", self._decode),
            ("request_prompt_tokens", "Number of prefill tokens processed.", self._prompt_size),
            ("request_generation_tokens", "Number of generation tokens processed.", self._answer_size),
            (
                "request_max_num_generation_tokens",
                "Histogram of maximum number of requested generation tokens.",
                self._max_answer,
            ),
            ("request_prefill_kv_computed_tokens", _COMPUTED, self._computed),
            ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", self._max_param),
            ("request_params_n", "Histogram of the n request parameter.", self._n),
            ("request_num_preemptions", "Histogram of the number of times a request was preempted.", self._preemptions),
        ):
            yield self._histogram(f"vllm:{name}", text, histogram)

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        buckets, total = [], 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        family = HistogramMetricFamily(name, text, None, None, ("model_name", "engine"))
        family.add_metric(self._labels(), buckets, histogram.sum)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = self._family(GaugeMetricFamily, name, text)
        family.add_metric(self._labels(), value)
        return family

    def _by(self, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
        family = self._family(CounterMetricFamily, name, text, label)
        for key, value in values.items():
            family.add_metric(self._labels(key), value, created=self._created)
        return family

    def _family(self, kind: type[F], name: str, text: str, *more: str) -> F:
        return kind(name, text, None, ("model_name", "engine", *more))

    def _labels(self, *more: str) -> tuple[str, ...]:
        return (self._about.model_name, "0", *more)
