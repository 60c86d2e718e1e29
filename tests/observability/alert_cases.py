"""For each alert: series on which it fires, with the labels that it carries then, and series on which it is silent, as
near to firing as a person would find it still right. promtool's notation: `a+bxn` is a, a+b, a+2b, … n times more; one
value a minute."""

import msgspec


class Case(msgspec.Struct, frozen=True):
    alert: str
    fires: dict[str, str]
    silent: dict[str, str]
    labels: dict[str, str] = {}
    at: str = "40m"


UP, DOWN = "1x60", "0x60"
_HOURS_30 = 1800
_HPA, _H = "kube_horizontalpodautoscaler", '{namespace="llm", horizontalpodautoscaler="h"}'
_ROUTE = 'envoy_http_conn_manager_prefix="gateway"'

_DROPPED = "envoy_access_logs_grpc_access_log_logs_dropped"
_UNSENT = "envoy_access_logs_grpc_access_log_grpc_entries_flush_failed"
CASES = (
    Case("LlmProcessorDown", {'up{job="processor", instance="a"}': DOWN}, {'up{job="processor", instance="a"}': UP}),
    Case(  # one of two is away: others serve
        "LlmProcessorDown",
        {'up{job="vllm"}': UP},
        {'up{job="processor", instance="a"}': DOWN, 'up{job="processor", instance="b"}': UP},
    ),
    Case(
        "LlmWorkersMissing",
        {'llm_workers{state="wanted"}': "2x60", 'llm_workers{state="serving"}': "1x60"},
        {'llm_workers{state="wanted"}': "2x60", 'llm_workers{state="serving"}': "2x37 1 2x20"},
    ),
    Case(
        "LlmWorkersRestarting",
        {"llm_worker_restarts_total": "0x30 1 2 3 4x40"},
        {"llm_worker_restarts_total": "0x30 1x40"},
    ),
    Case(
        "LlmWorkerSaturated",
        {'llm_worker_cpu_seconds_total{instance="a", worker="1"}': "0+57x60"},
        {'llm_worker_cpu_seconds_total{instance="a", worker="1"}': "0+50x60"},
        {"worker": "1", "instance": "a"},
    ),
    Case(
        "LlmDecisionsFailing",
        {
            f"envoy_http_ext_proc_streams_failed{{{_ROUTE}}}": "0+6x60",
            f"envoy_http_ext_proc_message_timeouts{{{_ROUTE}}}": "0x60",
        },
        {
            f"envoy_http_ext_proc_streams_failed{{{_ROUTE}}}": "0x30 1x60",
            f"envoy_http_ext_proc_message_timeouts{{{_ROUTE}}}": "0x60",
        },
    ),
    Case(
        "LlmTrafficGone",
        {f"envoy_http_downstream_rq_total{{{_ROUTE}}}": "0+600x150 90000x60"},
        {f"envoy_http_downstream_rq_total{{{_ROUTE}}}": "0+600x150 90000+120x60"},
        at="3h",
    ),
    Case(  # at night nothing comes, as an hour ago
        "LlmTrafficGone",
        {f"envoy_http_downstream_rq_total{{{_ROUTE}}}": "0+6000x150 900000+60x60"},
        {f"envoy_http_downstream_rq_total{{{_ROUTE}}}": "0+6x150 900x60"},
        at="3h",
    ),
    Case(
        "LlmStoreDown",
        {'llm_store_up{instance="a"}': DOWN},
        {'llm_store_up{instance="a"}': "1x39 0 1x20"},
        {"instance": "a"},
    ),
    Case("LlmConfigRefused", {'llm_config_refused{instance="a"}': UP}, {'llm_config_refused{instance="a"}': DOWN}),
    Case(
        "LlmCertificateExpiring",
        {'envoy_listener_ssl_certificate_expiration_unix_time_seconds{envoy_tls_certificate="x"}': "1200000x60"},
        {'envoy_listener_ssl_certificate_expiration_unix_time_seconds{envoy_tls_certificate="x"}': "1213000x60"},
    ),
    Case(
        "LlmWorkloadCertificateExpiring",
        {'istio_agent_cert_expiry_seconds{instance="a"}': "20000-60x60"},
        {'istio_agent_cert_expiry_seconds{instance="a"}': "86000-60x60"},
        {"instance": "a"},
    ),
    Case(
        "LlmWorkloadCertificateExpiring",
        {'llm_certificate_expiry_timestamp_seconds{certificate="client"}': "20000x60"},
        {'llm_certificate_expiry_timestamp_seconds{certificate="client"}': "30000x60"},
        {"certificate": "client"},
    ),
    Case(
        "LlmTargetDown",
        {'up{job="vllm", instance="a"}': DOWN, 'up{job="vllm", instance="b"}': UP},
        {'up{job="vllm", instance="a"}': "1x36 0x60", 'up{job="somebody-else"}': DOWN},
        {"job": "vllm", "instance": "a"},
    ),
    Case(  # the agent answers, its neighbour does not
        "LlmTargetDown",
        {'istio_agent_scrape_failures_total{type="application", job="vllm", instance="a"}': "0+12x60"},
        {'istio_agent_scrape_failures_total{type="application", job="vllm", instance="a"}': "0x20 3x60"},
        {"instance": "a"},
    ),
    Case("LlmLimitsFailOpen", {"llm_local_admissions_total": "0+1x60"}, {"llm_local_admissions_total": "0+1x25 25x60"}),
    Case("LlmReservationsUnsettled", {"llm_reservations_unsettled": "21x60"}, {"llm_reservations_unsettled": "20x60"}),
    Case(
        "LlmReceiptsDropped",
        {_DROPPED: "0x33 7x60", _UNSENT: "0x60"},
        {_DROPPED: "0x20 7x60", _UNSENT: "0x20 7x60"},
    ),
    Case(
        "LlmReceiptsDropped",
        {_DROPPED: "0x60", _UNSENT: "0x33 7x60"},
        {_DROPPED: "0x20 7x60", _UNSENT: "0x20 7x60"},
    ),
    Case(
        "LlmSettlementsDropped",
        {'llm_settlements_total{result="dropped"}': "0x33 1x60"},
        {'llm_settlements_total{result="dropped"}': "9x60", 'llm_settlements_total{result="duplicate"}': "0+5x60"},
    ),
    Case(
        "LlmSettlementBacklog",
        {'llm_settlement_backlog{instance="a"}': "3000x60", 'llm_settlement_backlog{instance="b"}': "3000x60"},
        {'llm_settlement_backlog{instance="a"}': "5000x60"},
    ),
    Case(
        "LlmEstimatesHigh",
        {'llm_estimated_total{model="m"}': "0+6x60", 'llm_requests_total{model="m", status="200"}': "0+100x60"},
        {'llm_estimated_total{model="m"}': "0+4x60", 'llm_requests_total{model="m", status="200"}': "0+100x60"},
    ),
    Case(
        "LlmRequestLogDropped",
        {"llm_request_log_dropped_total": "0x33 1x60"},
        {"llm_request_log_dropped_total": "5x60"},
    ),
    Case(
        "LlmCacheCollapsed",
        {
            'llm_cache_lookups_total{result="hit"}': f"0+50x{_HOURS_30} 90000+10x60",
            'llm_cache_lookups_total{result="miss"}': f"0+50x{_HOURS_30} 90000+90x60",
        },
        {
            'llm_cache_lookups_total{result="hit"}': f"0+50x{_HOURS_30} 90000+30x60",
            'llm_cache_lookups_total{result="miss"}': f"0+50x{_HOURS_30} 90000+70x60",
        },
        at="1855m",
    ),
    Case(
        "LlmCostHigh",  # an A10G for 66 tokens a second: $5.10 a million; for 70: $4.81
        {
            'DCGM_FI_DEV_GPU_UTIL{exported_namespace="llm", model="m", modelName="NVIDIA A10G"}': "50x300",
            'llm_prompt_tokens_total{model="m"}': "0+3360x300",
            'llm_tokens_generated_total{model="m"}': "0+600x300",
        },
        {
            'DCGM_FI_DEV_GPU_UTIL{exported_namespace="llm", model="m", modelName="NVIDIA A10G"}': "50x300",
            'llm_prompt_tokens_total{model="m"}': "0+3600x300",
            'llm_tokens_generated_total{model="m"}': "0+600x300",
        },
        at="5h",
    ),
    Case(
        "LlmModelDown",
        {'llm_model_up{model="m", instance="a"}': UP, 'llm_model_up{model="m", instance="b"}': DOWN},
        {'llm_model_up{model="m", instance="a"}': "1x39 0 1x60"},
        {"model": "m"},
    ),
    Case(
        "LlmQueueGrowing",
        {
            'vllm:num_requests_waiting{model="m", instance="a"}': "0+1x60",
            'vllm:num_requests_waiting{model="m", instance="b"}': "0+1x60",
        },
        {'vllm:num_requests_waiting{model="m", instance="a"}': "200-1x60"},
        {"model": "m"},
    ),
    Case(  # a replica that has just come takes half of the mean
        "LlmQueueGrowing",
        {'vllm:num_requests_waiting{model="m", instance="a"}': "11x60"},
        {
            'vllm:num_requests_waiting{model="m", instance="a"}': "18x60",
            'vllm:num_requests_waiting{model="m", instance="b"}': "0x60",
        },
        {"model": "m"},
    ),
    Case(
        "LlmModelFull",
        # callers are turned away, so it is seldom quite full
        {'llm_model_in_flight{model="m"}': "64 60 58 62 58 63 56 64 60 58x60", 'llm_model_room{model="m"}': "64x70"},
        {'llm_model_in_flight{model="m"}': "64 40 50x60", 'llm_model_room{model="m"}': "64x70"},
        {"model": "m"},
    ),
    Case(  # a model without a limit
        "LlmModelFull",
        {'llm_model_in_flight{model="m"}': "70x60", 'llm_model_room{model="m"}': "64x60"},
        {'llm_model_in_flight{model="m"}': "70x60", 'llm_model_room{model="m"}': "0x60"},
        {"model": "m"},
    ),
    Case(
        "LlmKvCacheFull",
        {'vllm:kv_cache_usage_perc{model="m"}': "0.99x60"},
        {'vllm:kv_cache_usage_perc{model="m"}': "0.9x60"},
        {"model": "m"},
    ),
    Case(
        "LlmPreemptions",
        {'vllm:num_preemptions_total{model="m"}': "0+6x60"},
        {'vllm:num_preemptions_total{model="m"}': "0+4x60"},
        {"model": "m"},
    ),
    Case(
        "LlmArmWorse",
        {
            'llm_arm_requests_total{model="m", arm="stable", status="200"}': "0+90x60",
            'llm_arm_requests_total{model="m", arm="canary", status="200"}': "0+9x60",
            'llm_arm_requests_total{model="m", arm="canary", status="500"}': "0+1x60",
        },
        {  # both arms fail alike: that is not the experiment
            'llm_arm_requests_total{model="m", arm="stable", status="200"}': "0+80x60",
            'llm_arm_requests_total{model="m", arm="stable", status="500"}': "0+10x60",
            'llm_arm_requests_total{model="m", arm="canary", status="200"}': "0+8x60",
            'llm_arm_requests_total{model="m", arm="canary", status="503"}': "0+1x60",
        },
        {"model": "m", "arm": "canary"},
    ),
    Case(
        "LlmGpuFault",
        {'DCGM_FI_DEV_XID_ERRORS{exported_namespace="llm", gpu="0"}': "0x33 79x60"},
        {'DCGM_FI_DEV_XID_ERRORS{exported_namespace="llm", gpu="0"}': "0x10 79x60"},
        {"gpu": "0"},
    ),
    Case(
        "LlmGpuHot",
        {'DCGM_FI_DEV_GPU_TEMP{exported_namespace="llm", gpu="0"}': "86x60"},
        {'DCGM_FI_DEV_GPU_TEMP{exported_namespace="llm", gpu="0"}': "85x60", "DCGM_FI_DEV_GPU_TEMP": "95x60"},
        {"gpu": "0"},
    ),
    Case(
        "LlmKeyAbuse",
        {'llm_keys_refused_total{why="unknown"}': "0+70x60"},
        {'llm_keys_refused_total{why="unknown"}': "0+50x60", 'llm_keys_refused_total{why="missing"}': "0+700x60"},
        {"why": "unknown"},
    ),
    Case(
        "LlmTenantHammering",
        {'llm_refused_total{tenant="t", reason="rate_limit_exceeded"}': "0+400x60"},
        {
            'llm_refused_total{tenant="t", reason="rate_limit_exceeded"}': "0+200x60",
            'llm_refused_total{tenant="t", reason="model_not_found"}': "0+900x60",
            'llm_refused_total{tenant="", reason="rate_limit_exceeded"}': "0+900x60",
        },
        {"tenant": "t"},
    ),
    Case(
        "LlmBudgetExhausted",
        {'llm_refused_total{tenant="t", reason="insufficient_quota"}': "0x33 2x60"},
        {'llm_refused_total{tenant="t", reason="insufficient_quota"}': "0x10 2x60"},
        {"tenant": "t"},
    ),
    Case(
        "LlmReplicasAtMaximum",
        {f"{_HPA}_status_current_replicas{_H}": "10x60", f"{_HPA}_spec_max_replicas{_H}": "10x60"},
        {f"{_HPA}_status_current_replicas{_H}": "9x60", f"{_HPA}_spec_max_replicas{_H}": "10x60"},
        {"horizontalpodautoscaler": "h"},
    ),
    Case(
        "LlmReplicasMissing",
        {
            'kube_deployment_spec_replicas{namespace="llm", deployment="d"}': "3x60",
            'kube_deployment_status_replicas_available{namespace="llm", deployment="d"}': "2x60",
        },
        {
            'kube_deployment_spec_replicas{namespace="llm", deployment="d"}': "3x60",
            'kube_deployment_status_replicas_available{namespace="llm", deployment="d"}': "3x20 2x60",
        },
        {"deployment": "d"},
    ),
    Case(
        "LlmPodsPending",
        {'kube_pod_status_phase{namespace="llm", phase="Pending", pod="p"}': UP},
        {
            'kube_pod_status_phase{namespace="llm", phase="Pending", pod="p"}': DOWN,
            'kube_pod_status_phase{namespace="other", phase="Pending", pod="q"}': UP,
        },
    ),
    Case("LlmValkeyDown", {'redis_up{instance="v"}': DOWN}, {'redis_up{instance="v"}': UP}, {"instance": "v"}),
    Case(
        "LlmValkeyFull",
        {"redis_memory_used_bytes": "91x60", "redis_memory_max_bytes": "100x60"},
        {"redis_memory_used_bytes": "89x60", "redis_memory_max_bytes": "100x60"},
    ),
    Case("LlmValkeyNotPersisting", {"redis_aof_last_write_status": DOWN}, {"redis_aof_last_write_status": UP}),
)
