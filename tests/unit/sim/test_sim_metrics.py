"""/metrics shows vLLM's families, filled with what happened."""

import asyncio

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sim_rig import Connect, Scrape, Start, chat

from extproc.sim import Server
from extproc.sim.metrics import Histogram, one_two_five

# name -> (type, labels), as a real vLLM 0.32.0 server exposes them.
REAL = {
    "vllm:admission_rejections": ("counter", {"model_name", "reason"}),
    "vllm:generation_tokens": ("counter", {"engine", "model_name"}),
    "vllm:kv_cache_usage_perc": ("gauge", {"engine", "model_name"}),
    "vllm:num_preemptions": ("counter", {"engine", "model_name"}),
    "vllm:num_requests_running": ("gauge", {"engine", "model_name"}),
    "vllm:num_requests_waiting": ("gauge", {"engine", "model_name"}),
    "vllm:num_requests_waiting_by_reason": ("gauge", {"engine", "model_name", "reason"}),
    "vllm:prefix_cache_hits": ("counter", {"engine", "model_name"}),
    "vllm:prefix_cache_queries": ("counter", {"engine", "model_name"}),
    "vllm:prompt_tokens": ("counter", {"engine", "model_name"}),
    "vllm:prompt_tokens_by_source": ("counter", {"engine", "model_name", "source"}),
    "vllm:prompt_tokens_cached": ("counter", {"engine", "model_name"}),
    "vllm:prompt_tokens_cached_by_source": ("counter", {"engine", "model_name", "source"}),
    "vllm:request_success": ("counter", {"engine", "model_name", "finished_reason"}),
    "vllm:engine_sleep_state": ("gauge", {"engine", "model_name", "sleep_state"}),
    "vllm:estimated_flops_per_gpu": ("counter", {"engine", "model_name"}),
    "vllm:estimated_read_bytes_per_gpu": ("counter", {"engine", "model_name"}),
    "vllm:estimated_write_bytes_per_gpu": ("counter", {"engine", "model_name"}),
    "vllm:external_prefix_cache_hits": ("counter", {"engine", "model_name"}),
    "vllm:external_prefix_cache_queries": ("counter", {"engine", "model_name"}),
    "vllm:mm_cache_hits": ("counter", {"engine", "model_name"}),
    "vllm:mm_cache_queries": ("counter", {"engine", "model_name"}),
    "http_requests": ("counter", {"handler", "method", "status"}),
} | {
    f"vllm:{name}": ("histogram", {"engine", "model_name"})
    for name in (
        "e2e_request_latency_seconds",
        "inter_token_latency_seconds",
        "iteration_tokens_total",
        "request_decode_time_seconds",
        "request_generation_tokens",
        "request_inference_time_seconds",
        "request_max_num_generation_tokens",
        "request_num_preemptions",
        "request_params_max_tokens",
        "request_params_n",
        "request_prefill_kv_computed_tokens",
        "request_prefill_time_seconds",
        "request_prompt_tokens",
        "request_queue_time_seconds",
        "request_time_per_output_token_seconds",
        "time_to_first_token_seconds",
    )
}


@pytest.fixture
def scrape(connect: Connect) -> Scrape:
    async def read(server: Server) -> list[Metric]:
        raw = await connect(server)
        raw.send("/metrics", method="GET")
        status, _, body = await raw.answer()
        assert status == 200
        return list(text_string_to_metric_families(body.decode()))

    return read


def value(families: list[Metric], name: str, **labels: str) -> float:
    for family in families:
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(name)


async def test_names_types_and_labels_are_vllms(start: Start, connect: Connect, scrape: Scrape) -> None:
    server = await start("--served-model-name", "tiny")
    raw = await connect(server)
    raw.send("/v1/chat/completions", chat(max_tokens=3))
    await raw.answer()
    seen = {}
    for family in await scrape(server):
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        seen[family.name] = (family.type, labels)
    assert {name: seen.get(name) for name in REAL} == REAL
    config = seen["vllm:cache_config_info"]
    assert config[0] == "gauge"
    assert {"engine", "block_size", "num_gpu_blocks", "enable_prefix_caching"} <= config[1]
    extra = {name for name in seen if name.startswith("vllm:") and not name.endswith("_created")}
    assert extra == {name for name in REAL if name.startswith("vllm:")} | {"vllm:cache_config_info"}


async def test_tokens_and_ends_are_counted(start: Start, connect: Connect, scrape: Scrape) -> None:
    server = await start("--decode-ms-per-token", "1")
    raw = await connect(server)
    for stream in (False, True):
        raw.send("/v1/chat/completions", chat("word " * 40, max_tokens=5, stream=stream))
        if stream:
            await raw.head()
            await raw.chunks()
        else:
            await raw.answer()
    families = await scrape(server)
    assert value(families, "vllm:generation_tokens_total") == 10
    assert value(families, "vllm:prompt_tokens_total") == value(families, "vllm:prefix_cache_queries_total")
    assert value(families, "vllm:prefix_cache_hits_total") == 32
    assert value(families, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 32
    assert value(families, "vllm:request_success_total", finished_reason="length") == 2
    assert value(families, "vllm:time_to_first_token_seconds_count") == 2
    assert value(families, "vllm:inter_token_latency_seconds_count") <= 8
    assert value(families, "vllm:num_requests_running") == 0
    assert value(families, "vllm:kv_cache_usage_perc") == 0


async def test_gauges_show_who_runs_and_who_waits(start: Start, connect: Connect, scrape: Scrape) -> None:
    server = await start("--decode-ms-per-token", "1000", "--max-num-seqs", "1")
    for _ in range(3):
        raw = await connect(server)
        raw.send("/v1/chat/completions", chat(max_tokens=100, stream=True))
        await raw.head()
    families = await scrape(server)
    assert value(families, "vllm:num_requests_running") == 1
    assert value(families, "vllm:num_requests_waiting") == 2
    assert value(families, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(families, "vllm:kv_cache_usage_perc") > 0


async def test_a_client_that_leaves_aborts_its_request(start: Start, connect: Connect, scrape: Scrape) -> None:
    server = await start("--decode-ms-per-token", "1000")
    raw = await connect(server)
    raw.send("/v1/chat/completions", chat(max_tokens=100, stream=True))
    await raw.head()
    raw.writer.close()
    await raw.writer.wait_closed()
    families = await scrape(server)
    while value(families, "vllm:num_requests_running"):
        await asyncio.sleep(0)
        families = await scrape(server)
    assert value(families, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(families, "vllm:request_success_total", finished_reason="length") == 0


async def test_a_full_queue_answers_503_and_counts_it(start: Start, connect: Connect, scrape: Scrape) -> None:
    server = await start("--decode-ms-per-token", "1000", "--max-num-queued-reqs", "1")
    first, second = await connect(server), await connect(server)
    first.send("/v1/chat/completions", chat(max_tokens=100, stream=True))
    await first.head()
    second.send("/v1/chat/completions", chat(max_tokens=100, stream=True))
    assert (await second.answer())[0] == 503
    assert value(await scrape(server), "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1


def test_buckets_for_token_counts_are_one_two_five() -> None:
    assert one_two_five(4096) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    histogram = Histogram((1, 2))
    for observed in (1, 1.5, 2, 3):
        histogram.observe(observed)
    assert histogram.counts == [1, 2, 1]
