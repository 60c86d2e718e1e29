"""Service: is it well, for users and inside. The first one to open at night."""

from typing import Any

from observability.dashboards.panels import HALF, QUARTER, SIXTH, THIRD, Limit, Query, figure, plot, spread
from observability.dashboards.panels import board as make
from observability.slo import API, SLOS

_API = f"{{{API}}}"


def board() -> Any:
    return make(
        "service",
        "llm-mesh / Service",
        "What users get, and whether the parts under it are well.",
        ("Promises", [*_promises(), *_now()]),
        ("Requests", _requests()),
        ("Latency", _latency()),
        ("The platform's parts", _parts()),
        models_variable=False,
    )


def _promises() -> list[Any]:
    steps = (None, "red"), (0.0, "orange"), (0.25, "green")
    return [
        figure(
            f"Error budget: {slo.name}",
            "percentunit",
            f"slo_{slo.name}:error_budget:remaining",
            *steps,
            about=f"What is left over the last three days. Promised: {slo.promise}.",
            width=SIXTH,
        )
        for slo in SLOS
    ]


def _now() -> list[Any]:
    return [
        figure("Requests/s", "reqps", "sum(model:llm_requests:rate5m)", width=SIXTH),
        figure(
            "TTFT p95",
            "s",
            "histogram_quantile(0.95, sum by (le) (rate(llm_time_to_first_token_seconds_bucket[5m])))",
            (None, "green"),
            (0.3, "red"),
            width=SIXTH,
        ),
        figure("Cache hits", "percentunit", "llm_cache_hits:ratio_rate5m", width=SIXTH),
    ]


def _requests() -> list[Any]:
    answered = f"rate(envoy_http_downstream_rq_xx{_API}[$__rate_interval])"
    by_class = f"sum by (envoy_response_code_class) ({answered})"
    return [
        plot("By model", "reqps", Query("model:llm_requests:rate5m", "{{model}}"), stacked=True),
        plot(
            "By status class, as Envoy answers",
            "reqps",
            Query(by_class, "{{envoy_response_code_class}}xx"),
            stacked=True,
            about="Counts what never reached a processor too.",
        ),
        plot(
            "Refused, by reason",
            "reqps",
            Query("sum by (reason) (rate(llm_refused_total[$__rate_interval]))", "{{reason}}"),
            width=THIRD,
        ),
        plot(
            "Keys refused, by why",
            "reqps",
            Query("sum by (why) (rate(llm_keys_refused_total[$__rate_interval]))", "{{why}}"),
            width=THIRD,
        ),
        plot(
            "In flight",
            "short",
            Query(f"sum(envoy_http_downstream_rq_active{_API})", "requests"),
            Query(f"sum(envoy_http_downstream_cx_active{_API})", "connections"),
            width=THIRD,
        ),
    ]


def _latency() -> list[Any]:
    ttft, whole = "llm_time_to_first_token_seconds", "llm_request_duration_seconds"
    phases = "sum by (phase, le) (rate(llm_phase_duration_seconds_bucket[$__rate_interval]))"
    return [
        plot(
            "Time to first token, p95",
            "s",
            Query(f"model:{ttft}:p95_rate5m", "{{model}}", exemplars=True),
            limit=Limit(0.3),
            about="Streamed answers: from the request's first byte to the answer's first. Promised: 300 ms.",
        ),
        spread("Time to first token", f"sum by (le) (increase({ttft}_bucket[$__rate_interval]))"),
        plot("Whole requests, p95", "s", Query(f"model:{whole}:p95_rate5m", "{{model}}", exemplars=True), width=THIRD),
        plot(
            "What the platform adds",
            "s",
            *(Query(f"llm_overhead_seconds:{p}_rate5m", p) for p in ("p50", "p95", "p99")),
            limit=Limit(0.01),
            width=THIRD,
        ),
        plot(
            "In the processor, p95",
            "s",
            Query(f"histogram_quantile(0.95, {phases})", "{{phase}}"),
            about="decision: all of it; store: of that, waiting for Redis.",
            width=THIRD,
        ),
    ]


def _parts() -> list[Any]:
    return [
        plot("Workers", "short", Query("sum by (state) (llm_workers)", "{{state}}"), width=QUARTER),
        plot(
            "Cores used by a worker",
            "percentunit",
            Query("rate(llm_worker_cpu_seconds_total[$__rate_interval])", "{{instance}} {{worker}}"),
            limit=Limit(0.9),
            width=QUARTER,
        ),
        plot("Event loop lag", "s", Query("llm_worker_lag_seconds", "{{instance}}"), width=QUARTER),
        plot(
            "Redis and models reachable",
            "short",
            Query("min(llm_store_up)", "Redis"),
            Query("min by (model) (llm_model_up)", "{{model}}"),
            width=QUARTER,
        ),
        plot(
            "Receipts",
            "short",
            Query("sum(rate(envoy_access_logs_grpc_access_log_logs_written[$__rate_interval]))", "sent/s"),
            Query("sum(rate(envoy_access_logs_grpc_access_log_logs_dropped[$__rate_interval]))", "dropped/s"),
            Query(
                "sum(rate(envoy_access_logs_grpc_access_log_grpc_entries_flush_failed[$__rate_interval]))", "unsent/s"
            ),
            Query("sum by (result) (rate(llm_settlements_total[$__rate_interval]))", "{{result}}/s"),
            width=THIRD,
        ),
        plot(
            "Waiting to be settled",
            "short",
            Query("sum(llm_settlement_backlog)", "settlements"),
            Query("max(llm_reservations_unsettled)", "reservations overdue"),
            width=THIRD,
        ),
        plot(
            "Limits failing open",
            "reqps",
            Query("sum(rate(llm_local_admissions_total[$__rate_interval]))", "admitted by local limits"),
            Query("sum by (operation) (rate(llm_store_errors_total[$__rate_interval]))", "store: {{operation}} failed"),
            width=THIRD,
        ),
        plot(
            "Certificates: time left",
            "s",
            Query("min(envoy_listener_ssl_certificate_expiration_unix_time_seconds) - time()", "gateway"),
            Query("min(istio_agent_cert_expiry_seconds)", "workloads"),
            width=HALF,
        ),
        plot(
            "Configuration refused",
            "short",
            Query("max(llm_config_refused)", "refused now"),
            Query("sum by (result) (increase(llm_config_reloads_total[1h]))", "{{result}} in an hour"),
            width=HALF,
        ),
    ]
