"""Scaling: how many replicas there are and should be, and for which of its reasons."""

from typing import Any

from observability.dashboards.panels import HALF, THIRD, Limit, Query, plot
from observability.dashboards.panels import board as make
from observability.dashboards.reasons import OURS as _OURS
from observability.dashboards.reasons import gpu_utilisation, waiting
from observability.slo import API


def board() -> Any:
    return make(
        "scaling",
        "llm-mesh / Scaling",
        "How many replicas there are and should be, and why.",
        ("Replicas", _replicas()),
        ("Why: the reasons to scale a model", _reasons()),
        ("What a replica carries", _load()),
        ("The gateway", _gateway()),
    )


def _replicas() -> list[Any]:
    hpa = "kube_horizontalpodautoscaler"
    return [
        plot(
            "Replicas: now, wanted, at most",
            "short",
            Query(f'{hpa}_status_current_replicas{{namespace="llm"}}', "{{horizontalpodautoscaler}} now"),
            Query(f'{hpa}_status_desired_replicas{{namespace="llm"}}', "{{horizontalpodautoscaler}} wanted"),
            Query(f'{hpa}_spec_max_replicas{{namespace="llm"}}', "{{horizontalpodautoscaler}} at most"),
            width=THIRD,
        ),
        plot(
            "Replicas missing",
            "short",
            Query(
                'kube_deployment_spec_replicas{namespace="llm"}'
                ' - kube_deployment_status_replicas_available{namespace="llm"}',
                "{{deployment}}",
            ),
            width=THIRD,
        ),
        plot(
            "Pods by phase",
            "short",
            Query('sum by (phase) (kube_pod_status_phase{namespace="llm"})', "{{phase}}"),
            stacked=True,
            width=THIRD,
        ),
    ]


def _reasons() -> list[Any]:
    return [
        gpu_utilisation(THIRD),
        waiting(THIRD),
        plot(
            "Requests under way, and room for them",
            "short",
            Query("max by (model) (llm_model_in_flight)", "{{model}}"),
            Query("max by (model) (llm_model_room) > 0", "{{model}} room"),
            width=THIRD,
        ),
    ]


def _load() -> list[Any]:
    replicas = f"count by (model) (vllm:num_requests_running{_OURS})"
    return [
        plot(
            "Requests/s at each replica",
            "reqps",
            Query(
                f"sum by (model) (rate(vllm:request_success_total{_OURS}[$__rate_interval])) / {replicas}", "{{model}}"
            ),
            width=THIRD,
        ),
        plot(
            "Answer tokens/s at each replica",
            "short",
            Query(
                f"sum by (model) (rate(vllm:generation_tokens_total{_OURS}[$__rate_interval])) / {replicas}",
                "{{model}}",
            ),
            width=THIRD,
        ),
        plot(
            "KV cache, fullest replica",
            "percentunit",
            Query(f"model:vllm_kv_cache_usage:max{_OURS}", "{{model}}"),
            limit=Limit(0.95),
            width=THIRD,
        ),
    ]


def _gateway() -> list[Any]:
    return [
        plot(
            "Cores used by the busiest worker",
            "percentunit",
            Query("llm_worker_busy:max_rate5m", "worker"),
            limit=Limit(0.8, "orange"),
            width=HALF,
        ),
        plot(
            "Requests in flight at each gateway",
            "short",
            Query(f"sum by (instance) (envoy_http_downstream_rq_active{{{API}}})", "{{instance}}"),
            width=HALF,
        ),
    ]
