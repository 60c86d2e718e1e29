"""Models: each one as its callers see it, as vLLM sees it, and its arms against each other."""

from typing import Any

from observability.dashboards.panels import QUARTER, THIRD, Limit, Query, plot, spread
from observability.dashboards.panels import board as make
from observability.dashboards.reasons import OURS as _OURS
from observability.dashboards.reasons import gpu_utilisation, waiting

_ARMS = '{model=~"$model", arm!=""}'


def board() -> Any:
    return make(
        "models",
        "llm-mesh / Models",
        "Each model as its callers see it, as vLLM sees it, and its arms against each other.",
        ("As callers see it", _callers()),
        ("As vLLM sees it", _engine()),
        ("GPUs", _gpus()),
        ("Experiments: arms of a model", _arms()),
    )


def _vllm_p95(metric: str) -> str:
    return f"histogram_quantile(0.95, sum by (model, le) (rate(vllm:{metric}_bucket{_OURS}[$__rate_interval])))"


def _callers() -> list[Any]:
    ttft, each = "llm_time_to_first_token_seconds", "llm_time_per_output_token_seconds"
    return [
        plot("Requests", "reqps", Query(f"model:llm_requests:rate5m{_OURS}", "{{model}}"), width=THIRD),
        plot(
            "Answered with 5xx",
            "percentunit",
            Query(f"model:llm_requests_failed:ratio_rate5m{_OURS}", "{{model}}"),
            width=THIRD,
        ),
        plot(
            "Tokens/s",
            "short",
            Query(f"model:llm_prompt_tokens:rate5m{_OURS}", "{{model}} prompt"),
            Query(f"model:llm_tokens_generated:rate5m{_OURS}", "{{model}} answer"),
            width=THIRD,
        ),
        plot(
            "Time to first token",
            "s",
            *(
                Query(f"model:{ttft}:{p}_rate5m{_OURS}", "{{model}} " + p, exemplars=p == "p95")
                for p in ("p50", "p95", "p99")
            ),
            limit=Limit(0.3),
        ),
        spread("Time to first token", f"sum by (le) (increase({ttft}_bucket{_OURS}[$__rate_interval]))"),
        plot("Time per token, p95", "s", Query(f"model:{each}:p95_rate5m{_OURS}", "{{model}}")),
        spread(
            "Whole requests",
            f"sum by (le) (increase(llm_request_duration_seconds_bucket{_OURS}[$__rate_interval]))",
        ),
    ]


def _engine() -> list[Any]:
    return [
        plot("Running", "short", Query(f"model:vllm_requests_running:sum{_OURS}", "{{model}}"), width=QUARTER),
        waiting(QUARTER),
        plot(
            "KV cache in use, fullest replica",
            "percentunit",
            Query(f"model:vllm_kv_cache_usage:max{_OURS}", "{{model}}"),
            limit=Limit(0.95),
            width=QUARTER,
        ),
        plot(
            "Preempted/min",
            "short",
            Query(f"60 * sum by (model) (rate(vllm:num_preemptions_total{_OURS}[$__rate_interval]))", "{{model}}"),
            about="Thrown out for want of KV cache, and computed again.",
            width=QUARTER,
        ),
        plot(
            "Where the time goes, p95",
            "s",
            Query(_vllm_p95("request_queue_time_seconds"), "{{model}} queue"),
            Query(_vllm_p95("request_prefill_time_seconds"), "{{model}} prefill"),
            Query(_vllm_p95("request_decode_time_seconds"), "{{model}} decode"),
        ),
        plot(
            "Why answers end",
            "reqps",
            Query(
                f"sum by (model, finished_reason) (rate(vllm:request_success_total{_OURS}[$__rate_interval]))",
                "{{model}} {{finished_reason}}",
            ),
        ),
    ]


def _gpus() -> list[Any]:
    ours = '{exported_namespace="llm", model=~"$model"}'
    return [
        gpu_utilisation(THIRD),
        plot(
            "GPU memory in use",
            "percentunit",
            Query(
                f"DCGM_FI_DEV_FB_USED{ours} / (DCGM_FI_DEV_FB_USED{ours} + DCGM_FI_DEV_FB_FREE{ours})",
                "{{exported_pod}}",
            ),
            width=THIRD,
        ),
        plot(
            "GPU temperature and power",
            "short",
            Query(f"DCGM_FI_DEV_GPU_TEMP{ours}", "{{exported_pod}} °C"),
            Query(f"DCGM_FI_DEV_POWER_USAGE{ours}", "{{exported_pod}} W"),
            width=THIRD,
        ),
    ]


def _arms() -> list[Any]:
    """Only what each arm was asked: answers from the cache belong to none."""
    by = "by (model, arm)"
    ttft = f"sum by (model, arm, le) (rate(llm_arm_time_to_first_token_seconds_bucket{_ARMS}[$__rate_interval]))"
    whole = f"sum by (model, arm, le) (rate(llm_arm_request_duration_seconds_bucket{_ARMS}[$__rate_interval]))"
    share = f"sum {by} (rate(llm_arm_requests_total{_ARMS}[$__rate_interval]))"
    tokens = f"sum {by} (rate(llm_arm_tokens_generated_total{_ARMS}[$__rate_interval]))"
    cost = f"sum {by} (rate(llm_arm_cost_micro_dollars_total{_ARMS}[$__rate_interval]))"
    name = "{{model}} {{arm}}"
    return [
        plot("Requests by arm", "reqps", Query(share, name), stacked=True, width=THIRD),
        plot(
            "Failed, by arm", "percentunit", Query(f"arm:llm_requests_failed:ratio_rate10m{_OURS}", name), width=THIRD
        ),
        plot("Tokens/s by arm", "short", Query(tokens, name), width=THIRD),
        plot("TTFT p95 by arm", "s", Query(f"histogram_quantile(0.95, {ttft})", name), width=THIRD),
        plot("Whole requests, p95 by arm", "s", Query(f"histogram_quantile(0.95, {whole})", name), width=THIRD),
        plot(
            "Dollars per 1 M answer tokens, by arm",
            "currencyUSD",
            Query(f"{cost} / ({tokens} > 0)", name),
            about="By the price list: prompt and answer, over the tokens of the answer.",
            width=THIRD,
        ),
    ]
