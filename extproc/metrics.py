"""Every metric name of the processor, and how receipts count into them.

Workers share one Prometheus multiprocess directory (PROMETHEUS_MULTIPROC_DIR); the admin port adds them up. No label
is a user, a key or a request: those have their own counters in the store (`llm-mesh usage`). Tenants are labels only
where money and limits are concerned. Nothing here holds prompt or answer text.
"""

from bisect import bisect_left
from functools import cache
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

from extproc.receipt import Charge, Receipt, time_per_output_token

# Seconds; from OpenTelemetry's GenAI semantic conventions.
_REQUEST_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)

REQUESTS = Counter("llm_requests_total", "Requests that ended", ["model", "endpoint", "status"])
DURATION = Histogram(
    "llm_request_duration_seconds",
    "From the request's first byte to the answer's last",
    ["model", "endpoint"],
    buckets=_REQUEST_BUCKETS,
)
TTFT = Histogram(
    "llm_time_to_first_token_seconds",
    "Streamed answers: from the request's first byte to the first byte of the answer's body",
    ["model"],
    buckets=_TTFT_BUCKETS,
)
TPOT = Histogram(
    "llm_time_per_output_token_seconds",
    "Streamed answers: time between two tokens after the first",
    ["model"],
    buckets=_TOKEN_BUCKETS,
)
GENERATED = Counter("llm_tokens_generated_total", "Completion tokens", ["model"])
PROMPT = Counter("llm_prompt_tokens_total", "Prompt tokens", ["model"])
PROMPT_CACHED = Counter(
    "llm_prompt_tokens_cached_total", "Prompt tokens found in the backend's prefix cache", ["model"]
)
COST = Counter("llm_cost_micro_dollars_total", "Cost by price list, in micro-dollars", ["tenant", "model"])
CACHE_HITS = Counter("llm_cache_hits_total", "Requests answered from the response cache", ["model"])
CACHE_LOOKUPS = Counter("llm_cache_lookups_total", "Requests by cache result: hit, miss, bypass", ["model", "result"])
CACHE_FILLS = Counter("llm_cache_fills_total", "Answers stored in the response cache", ["model"])
REFUSED = Counter("llm_refused_total", "Requests refused by the processor, by error code", ["tenant", "reason"])
ESTIMATED = Counter("llm_estimated_total", "Requests charged by estimate: their answer was cut", ["model"])
PHASE = Histogram(
    "llm_phase_duration_seconds",
    "Time in the processor per request: decision (all of it) and store (of it, waiting for Redis)",
    ["phase"],
    buckets=_PHASE_BUCKETS,
)
SETTLEMENTS = Counter("llm_settlements_total", "Settlements: applied, duplicate, or dropped", ["result"])
BACKLOG = Gauge("llm_settlement_backlog", "Settlements that wait for the store", multiprocess_mode="livesum")
UNSETTLED = Gauge(
    "llm_reservations_unsettled",
    "Reservations whose receipt is overdue",
    multiprocess_mode="livemax",
)
SWEPT = Counter("llm_reservations_swept_total", "Reservations closed without a receipt, as charged")
STORE_UP = Gauge("llm_store_up", "1 if every worker reaches the store", multiprocess_mode="livemin")
STORE_ERRORS = Counter("llm_store_errors_total", "Store operations that failed", ["operation"])
LOCAL_ADMISSIONS = Counter("llm_local_admissions_total", "Requests admitted by local limits while the store was away")
MODEL_UP = Gauge("llm_model_up", "0 while a model has no healthy upstream", ["model"], multiprocess_mode="livemin")
CONFIG_RELOADS = Counter("llm_config_reloads_total", "Configuration reloads by result", ["result"])

_M = TypeVar("_M", Counter, Histogram)


@cache
def _child(metric: _M, *labels: str) -> _M:
    return metric.labels(*labels)


class Tally:
    """One batch of receipts, summed up before it is written: each write into the shared directory costs a microsecond
    or more, and an observation is two of them."""

    def __init__(self) -> None:
        self._sums: dict[tuple[Counter, tuple[str, ...]], int] = {}
        self._observed: dict[tuple[Histogram, tuple[str, ...]], list[float]] = {}

    def add(self, amount: int, metric: Counter, *labels: str) -> None:
        key = (metric, labels)
        self._sums[key] = self._sums.get(key, 0) + amount

    def observe(self, value: float, metric: Histogram, *labels: str) -> None:
        self._observed.setdefault((metric, labels), []).append(value)

    def write(self) -> None:
        for (counter, labels), amount in self._sums.items():
            _child(counter, *labels).inc(amount)
        for (histogram, labels), values in self._observed.items():
            _observe_all(_child(histogram, *labels), values)


def _observe_all(child: Histogram, values: list[float]) -> None:
    """What `observe` does, for many at once: the library has no such call."""
    buckets = [0] * len(child._upper_bounds)  # noqa: SLF001
    for value in values:
        buckets[bisect_left(child._upper_bounds, value)] += 1  # noqa: SLF001
    for bucket, amount in zip(child._buckets, buckets, strict=True):  # noqa: SLF001
        if amount:
            bucket.inc(amount)
    child._sum.inc(sum(values))  # noqa: SLF001


def count(receipt: Receipt, charge: Charge, cost_micros: int, filled: bool, tally: Tally) -> None:
    """One receipt into all metrics."""
    ticket = receipt.ticket
    model, endpoint = ticket.model, ticket.endpoint
    tally.add(1, REQUESTS, model, endpoint, str(receipt.status))
    tally.observe(receipt.duration, DURATION, model, endpoint)
    if ticket.reason:
        tally.add(1, REFUSED, ticket.tenant, ticket.reason)
        return
    if endpoint == "models":
        return
    if ticket.cache == "hit":
        tally.add(1, CACHE_HITS, model)
    tally.add(1, CACHE_LOOKUPS, model, ticket.cache)
    if ticket.decided_us:
        tally.observe(ticket.decided_us / 1e6, PHASE, "decision")
        tally.observe(ticket.store_us / 1e6, PHASE, "store")
    _count_tokens(receipt, charge, cost_micros, tally)
    if filled:
        tally.add(1, CACHE_FILLS, model)
    if ticket.stream and receipt.first_byte:
        tally.observe(receipt.first_byte, TTFT, model)
        each = time_per_output_token(receipt, charge.usage)
        if each is not None:
            tally.observe(each, TPOT, model)


def _count_tokens(receipt: Receipt, charge: Charge, cost_micros: int, tally: Tally) -> None:
    usage, model = charge.usage, receipt.ticket.model
    if usage.prompt_tokens:
        tally.add(usage.prompt_tokens, PROMPT, model)
        tally.add(usage.completion_tokens, GENERATED, model)
        tally.add(cost_micros, COST, receipt.ticket.tenant, model)
    if usage.cached_tokens:
        tally.add(usage.cached_tokens, PROMPT_CACHED, model)
    if charge.estimated:
        tally.add(1, ESTIMATED, model)
