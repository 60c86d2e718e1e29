"""Every alert besides the promises of slo.py. Each has its heading in docs/runbook.md and its cases in the tests.

critical: users are hurt or will be within the hour. warning: look at it today. info: somebody may want to know.
"""

from collections.abc import Iterator

from observability.rule import Alert, Group
from observability.slo import API

JOBS = "processor|envoy|vllm|valkey|dcgm"
_ASKED = f"envoy_http_downstream_rq_total{{{API}}}"


def groups() -> Iterator[Group]:
    yield Group("llm-alerts-platform", PLATFORM)
    yield Group("llm-alerts-metering", METERING)
    yield Group("llm-alerts-models", MODELS)
    yield Group("llm-alerts-callers", CALLERS)
    yield Group("llm-alerts-cluster", CLUSTER)


PLATFORM = (
    Alert(
        "LlmProcessorDown",
        'sum(up{job="processor"}) == 0 or absent(up{job="processor"})',
        "1m",
        "critical",
        "No processor answers its admin port: without one every request gets 503.",
    ),
    Alert(
        "LlmWorkersMissing",
        'llm_workers{state="wanted"} - ignoring (state) llm_workers{state="serving"} > 0',
        "2m",
        "warning",
        "{{ $value }} workers of {{ $labels.instance }} do not serve.",
    ),
    Alert(
        "LlmWorkersRestarting",
        "increase(llm_worker_restarts_total[15m]) > 2",
        "0s",
        "warning",
        "Workers of {{ $labels.instance }} were started again {{ $value | humanize }} times in 15 minutes.",
    ),
    Alert(
        "LlmWorkerSaturated",
        "max by (instance, worker) (rate(llm_worker_cpu_seconds_total[5m])) > 0.9",
        "10m",
        "warning",
        "Worker {{ $labels.worker }} of {{ $labels.instance }} uses {{ $value | humanizePercentage }} of its core.",
    ),
    Alert(
        "LlmDecisionsFailing",
        "sum(rate(envoy_http_ext_proc_streams_failed[5m]))"
        " + sum(rate(envoy_http_ext_proc_message_timeouts[5m])) > 0.05",
        "2m",
        "critical",
        "Envoy gets no decision for {{ $value | humanize }} requests a second, which end with 503.",
    ),
    Alert(
        "LlmTrafficGone",
        f"sum(rate({_ASKED}[10m])) < 0.1 * sum(rate({_ASKED}[1h] offset 1h)) and sum(rate({_ASKED}[1h] offset 1h)) > 1",
        "10m",
        "critical",
        "{{ $value | humanize }} requests a second, less than a tenth of what came an hour ago.",
    ),
    Alert(
        "LlmStoreDown",
        "llm_store_up == 0",
        "1m",
        "critical",
        "A worker of {{ $labels.instance }} does not reach Redis: local limits, no cache, no new keys.",
    ),
    Alert(
        "LlmConfigRefused",
        "llm_config_refused == 1",
        "1m",
        "warning",
        "{{ $labels.instance }} does not take its configuration file and goes on with the last good one.",
    ),
    Alert(
        "LlmCertificateExpiring",
        "min(envoy_listener_ssl_certificate_expiration_unix_time_seconds) - time() < 14 * 86400",
        "10m",
        "warning",
        "The certificate that clients see expires in {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "LlmWorkloadCertificateExpiring",
        "istio_agent_cert_expiry_seconds < 6 * 3600 or llm_certificate_expiry_timestamp_seconds - time() < 6 * 3600",
        "10m",
        "critical",
        "A certificate of {{ $labels.instance }} inside the mesh expires in {{ $value | humanizeDuration }} and was not"
        " renewed.",
    ),
    Alert(
        "LlmTargetDown",
        f'up{{job=~"{JOBS}"}} == 0 or increase(istio_agent_scrape_failures_total{{type="application"}}[5m]) > 0',
        "5m",
        "warning",
        "{{ $labels.job }} {{ $labels.instance }} does not answer Prometheus: what it says is missing everywhere.",
    ),
)

METERING = (
    Alert(
        "LlmLimitsFailOpen",
        "sum(rate(llm_local_admissions_total[5m])) > 0",
        "5m",
        "warning",
        "{{ $value | humanize }} requests a second are admitted by each worker's own share of the limits; budgets are"
        " not checked.",
    ),
    Alert(
        "LlmReservationsUnsettled",
        "max(llm_reservations_unsettled) > 20",
        "15m",
        "warning",
        "{{ $value }} reservations wait for a receipt that is overdue; their users are charged the estimate.",
    ),
    Alert(
        "LlmReceiptsDropped",
        "sum(increase(envoy_access_logs_grpc_access_log_logs_dropped[10m])"
        " + increase(envoy_access_logs_grpc_access_log_grpc_entries_flush_failed[10m])) > 0",
        "0s",
        "warning",
        "Envoy lost {{ $value | humanize }} receipts in 10 minutes: their requests are charged the estimate.",
    ),
    Alert(
        "LlmSettlementsDropped",
        'sum(increase(llm_settlements_total{result="dropped"}[10m])) > 0',
        "0s",
        "warning",
        "{{ $value | humanize }} settlements were given up in 10 minutes: usage and refunds are lost.",
    ),
    Alert(
        "LlmSettlementBacklog",
        "sum(llm_settlement_backlog) > 5000",
        "5m",
        "warning",
        "{{ $value }} settlements wait for the store; a worker keeps 100,000 and loses them when it ends.",
    ),
    Alert(
        "LlmEstimatesHigh",
        "sum(rate(llm_estimated_total[15m])) / sum(rate(llm_requests_total[15m])) > 0.05",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the requests are charged by estimate: their answers are cut.",
    ),
    Alert(
        "LlmRequestLogDropped",
        "sum(increase(llm_request_log_dropped_total[10m])) > 0",
        "0s",
        "warning",
        "{{ $value | humanize }} lines of the request log were dropped in 10 minutes.",
    ),
    Alert(
        "LlmCacheCollapsed",
        "llm_cache_hits:ratio_rate30m < 0.5 * avg_over_time(llm_cache_hits:ratio_rate30m[1d] offset 1h)"
        " and avg_over_time(llm_cache_hits:ratio_rate30m[1d] offset 1h) > 0.1"
        ' and sum(rate(llm_cache_lookups_total{result!="bypass"}[30m])) > 0.1',
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the look-ups hit the cache, less than half of the last day's share.",
    ),
    Alert(
        "LlmCostHigh",
        "gpu_dollars:per_million_tokens > 5",
        "2h",
        "warning",
        "A million tokens cost {{ $value | humanize }} dollars of GPU time; the target is 5.",
    ),
)

MODELS = (
    Alert(
        "LlmModelDown",
        "min by (model) (llm_model_up) == 0",
        "1m",
        "critical",
        "{{ $labels.model }} has no healthy upstream; requests go to its fallback, or fail.",
    ),
    Alert(
        "LlmQueueGrowing",
        "model:vllm_requests_waiting:avg > 10 and deriv(model:vllm_requests_waiting:avg[10m]) >= 0",
        "5m",
        "warning",
        "{{ $value | humanize }} requests wait at each replica of {{ $labels.model }}, and they do not get fewer.",
    ),
    Alert(
        "LlmModelFull",
        "max by (model) (avg_over_time(llm_model_in_flight[2m])) >= 0.9 * (max by (model) (llm_model_room) > 0)",
        "2m",
        "warning",
        "{{ $labels.model }} has {{ $value | humanize }} requests under way and takes no more: callers get 503.",
    ),
    Alert(
        "LlmKvCacheFull",
        "model:vllm_kv_cache_usage:max > 0.95",
        "10m",
        "warning",
        "A replica of {{ $labels.model }} has {{ $value | humanizePercentage }} of its KV cache in use.",
    ),
    Alert(
        "LlmPreemptions",
        "60 * sum by (model) (rate(vllm:num_preemptions_total[10m])) > 5",
        "10m",
        "warning",
        "{{ $labels.model }} throws out {{ $value | humanize }} requests a minute and computes them again.",
    ),
    Alert(
        "LlmArmWorse",
        'arm:llm_requests_failed:ratio_rate10m{arm!="stable"} > on (model) group_left ()'
        ' 2 * arm:llm_requests_failed:ratio_rate10m{arm="stable"} + 0.01'
        ' and arm:llm_requests:rate10m{arm!="stable"} > 0.05',
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the requests fail in arm {{ $labels.arm }} of {{ $labels.model }}, twice"
        " as many as in stable.",
    ),
    Alert(
        "LlmGpuFault",
        'DCGM_FI_DEV_XID_ERRORS{exported_namespace="llm"} > 0'
        ' and changes(DCGM_FI_DEV_XID_ERRORS{exported_namespace="llm"}[15m]) > 0',
        "0s",
        "warning",
        "GPU {{ $labels.gpu }} on {{ $labels.Hostname }} reports XID {{ $value }}.",
    ),
    Alert(
        "LlmGpuHot",
        'DCGM_FI_DEV_GPU_TEMP{exported_namespace="llm"} > 85',
        "10m",
        "warning",
        "GPU {{ $labels.gpu }} on {{ $labels.Hostname }} has {{ $value }} °C and will slow down.",
    ),
)

CALLERS = (
    Alert(
        "LlmKeyAbuse",
        'sum by (why) (rate(llm_keys_refused_total{why!="missing"}[5m])) > 1',
        "10m",
        "warning",
        "{{ $value | humanize }} requests a second come with keys that are {{ $labels.why }}.",
    ),
    Alert(
        "LlmTenantHammering",
        'sum by (tenant) (rate(llm_refused_total{tenant!="", reason="rate_limit_exceeded"}[5m])) > 5',
        "10m",
        "warning",
        "Tenant {{ $labels.tenant }} is refused {{ $value | humanize }} times a second by its limits.",
    ),
    Alert(
        "LlmBudgetExhausted",
        'sum by (tenant) (increase(llm_refused_total{reason="insufficient_quota"}[15m])) > 0',
        "0s",
        "info",
        "Tenant {{ $labels.tenant }} has used up a budget: {{ $value | humanize }} requests refused in 15 minutes.",
    ),
)

CLUSTER = (
    Alert(
        "LlmReplicasAtMaximum",
        'kube_horizontalpodautoscaler_status_current_replicas{namespace="llm"}'
        ' >= kube_horizontalpodautoscaler_spec_max_replicas{namespace="llm"}',
        "15m",
        "warning",
        "{{ $labels.horizontalpodautoscaler }} has run at its maximum of {{ $value }} replicas for 15 minutes.",
    ),
    Alert(
        "LlmReplicasMissing",
        'kube_deployment_spec_replicas{namespace="llm"}'
        ' - kube_deployment_status_replicas_available{namespace="llm"} > 0',
        "30m",
        "warning",
        "{{ $value }} replicas of {{ $labels.deployment }} are not available.",
    ),
    Alert(
        "LlmPodsPending",
        'count by (namespace) (kube_pod_status_phase{namespace="llm", phase="Pending"} == 1) > 0',
        "30m",
        "warning",
        "{{ $value }} pods have waited half an hour for a node, or for their weights.",
    ),
    Alert(
        "LlmValkeyDown",
        "redis_up == 0",
        "1m",
        "critical",
        "Valkey at {{ $labels.instance }} does not answer its exporter.",
    ),
    Alert(
        "LlmValkeyFull",
        "redis_memory_used_bytes / redis_memory_max_bytes > 0.9",
        "10m",
        "critical",
        "Valkey at {{ $labels.instance }} uses {{ $value | humanizePercentage }} of its memory; what is full refuses"
        " writes.",
    ),
    Alert(
        "LlmValkeyNotPersisting",
        "redis_aof_last_write_status == 0",
        "1m",
        "critical",
        "Valkey at {{ $labels.instance }} can not write its append-only file: keys, budgets and usage would be lost.",
    ),
)
