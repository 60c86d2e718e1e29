"""Recording rules: what dashboards, alerts and autoscalers ask for again and again, computed once.

`model` is the platform's name of a model in all of them: the processor says it itself; on vLLM's and the GPUs' series
it is set where they are collected (collection/).
"""

from collections.abc import Iterator

from observability.prices import GPU_PRICES
from observability.rule import Group, Recorded

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_UPSTREAM_TOKENS = "llm_prompt_tokens_total", "llm_tokens_generated_total"


def groups() -> Iterator[Group]:
    yield Group("llm-traffic", list(_traffic()))
    yield Group("llm-latency", list(_latency()))
    yield Group("llm-cache", list(_cache()))
    yield Group("llm-saturation", list(_saturation()))
    yield Group("llm-cost", list(_cost()))


def _traffic() -> Iterator[Recorded]:
    yield Recorded("model:llm_requests:rate5m", "sum by (model) (rate(llm_requests_total[5m]))")
    failed = 'sum by (model) (rate(llm_requests_total{status=~"5.."}[5m]))'
    ended = 'sum by (model) (rate(llm_requests_total{status!="0"}[5m]))'
    yield Recorded("model:llm_requests_failed:ratio_rate5m", f"({failed} or 0 * {ended}) / {ended}")
    yield Recorded("model:llm_prompt_tokens:rate5m", "sum by (model) (rate(llm_prompt_tokens_total[5m]))")
    yield Recorded("model:llm_tokens_generated:rate5m", "sum by (model) (rate(llm_tokens_generated_total[5m]))")
    sent = "sum by (model, arm) (rate(llm_arm_requests_total[10m]))"
    lost = 'sum by (model, arm) (rate(llm_arm_requests_total{status=~"5.."}[10m]))'
    yield Recorded("arm:llm_requests:rate10m", sent)
    yield Recorded("arm:llm_requests_failed:ratio_rate10m", f"({lost} or 0 * {sent}) / {sent}")


def _latency() -> Iterator[Recorded]:
    for metric in (
        "llm_request_duration_seconds",
        "llm_time_to_first_token_seconds",
        "llm_time_per_output_token_seconds",
    ):
        for name, quantile in _QUANTILES.items():
            buckets = f"sum by (model, le) (rate({metric}_bucket[5m]))"
            yield Recorded(f"model:{metric}:{name}_rate5m", f"histogram_quantile({quantile}, {buckets})")
    for name, quantile in _QUANTILES.items():
        buckets = "sum by (le) (rate(llm_overhead_seconds_bucket[5m]))"
        yield Recorded(f"llm_overhead_seconds:{name}_rate5m", f"histogram_quantile({quantile}, {buckets})")


def _cache() -> Iterator[Recorded]:
    hits = 'rate(llm_cache_lookups_total{result="hit"}[$w])'
    asked = 'rate(llm_cache_lookups_total{result!="bypass"}[$w])'
    for w in ("5m", "30m"):
        yield Recorded(f"llm_cache_hits:ratio_rate{w}", f"sum({hits}) / sum({asked})".replace("$w", w))
    by_model = f"sum by (model) ({hits}) / sum by (model) ({asked})"
    yield Recorded("model:llm_cache_hits:ratio_rate5m", by_model.replace("$w", "5m"))
    yield Recorded(
        "model:vllm_prefix_cache_hits:ratio_rate5m",
        "sum by (model) (rate(vllm:prefix_cache_hits_total[5m]))"
        " / sum by (model) (rate(vllm:prefix_cache_queries_total[5m]))",
    )


def _saturation() -> Iterator[Recorded]:
    yield Recorded("model:vllm_requests_waiting:avg", "avg by (model) (vllm:num_requests_waiting)")
    yield Recorded("model:vllm_requests_running:sum", "sum by (model) (vllm:num_requests_running)")
    yield Recorded("model:vllm_kv_cache_usage:max", "max by (model) (vllm:kv_cache_usage_perc)")
    yield Recorded("model:gpu_utilisation:avg", 'avg by (model) (DCGM_FI_DEV_GPU_UTIL{exported_namespace="llm"}) / 100')
    yield Recorded("llm_worker_busy:max_rate5m", "max(rate(llm_worker_cpu_seconds_total[5m]))")


def _cost() -> Iterator[Recorded]:
    """By the price list: what tenants are charged. By GPU: what the machines cost. Dollars per million tokens, both."""
    for price in GPU_PRICES:
        labels = {"modelName": price.name}
        yield Recorded("gpu:dollars:per_hour", f"vector({price.dollars_per_hour})", labels)
    gpus = 'count by (model, modelName) (DCGM_FI_DEV_GPU_UTIL{exported_namespace="llm"})'
    yield Recorded("model:gpus:count", f"sum by (model) ({gpus})")
    yield Recorded(
        "model:gpu_dollars:per_hour", f"sum by (model) ({gpus} * on (modelName) group_left () gpu:dollars:per_hour)"
    )
    hourly = " + ".join(f"sum by (model) (rate({metric}[1h]))" for metric in _UPSTREAM_TOKENS)
    yield Recorded("model:llm_tokens:rate1h", hourly)
    yield Recorded(
        "model:llm_price_dollars:per_million_tokens",
        "sum by (model) (rate(llm_cost_micro_dollars_total[1h])) / (model:llm_tokens:rate1h > 0)",
    )
    yield Recorded(
        "model:gpu_dollars:per_million_tokens",
        "avg_over_time(model:gpu_dollars:per_hour[1h]) / 3600 * 1000000 / (model:llm_tokens:rate1h > 0)",
    )
    yield Recorded(
        "gpu_dollars:per_million_tokens",
        "sum(avg_over_time(model:gpu_dollars:per_hour[1h])) / 3600 * 1000000 / (sum(model:llm_tokens:rate1h) > 0)",
    )
