"""Every metric name of the processor. How receipts count into them: counting.py.

Workers share one Prometheus multiprocess directory (PROMETHEUS_MULTIPROC_DIR); the admin port adds them up. No label
is a user, a key or a request: those have their own counters in the store (`llm-mesh usage`) and their line in the
request log. Tenants are labels only where money and limits are concerned. Nothing here holds prompt or answer text.
"""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series each, of no use; of the workers there are none

# Seconds; from OpenTelemetry's GenAI semantic conventions.
_REQUEST_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5)
_PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)

# What requests did. Model and endpoint are empty where Envoy ended a request before it was decided on.
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
OVERHEAD = Histogram(
    "llm_overhead_seconds",
    "What the platform adds to a request that an upstream answered: until it is asked, and from its first byte to ours",
    ["model"],
    buckets=_OVERHEAD_BUCKETS,
)

# The same by arm of an experiment, of requests that were sent to an upstream.
ARM_REQUESTS = Counter("llm_arm_requests_total", "Requests sent to an arm that ended", ["model", "arm", "status"])
ARM_DURATION = Histogram(
    "llm_arm_request_duration_seconds",
    "From the request's first byte to the answer's last, by arm",
    ["model", "arm"],
    buckets=_REQUEST_BUCKETS,
)
ARM_TTFT = Histogram(
    "llm_arm_time_to_first_token_seconds",
    "Streamed answers: from the request's first byte to the first byte of the answer's body, by arm",
    ["model", "arm"],
    buckets=_TTFT_BUCKETS,
)
ARM_GENERATED = Counter("llm_arm_tokens_generated_total", "Completion tokens by arm", ["model", "arm"])
ARM_COST = Counter("llm_arm_cost_micro_dollars_total", "Cost by price list and arm, in micro-dollars", ["model", "arm"])

# How the processor does.
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
IN_FLIGHT = Gauge(
    "llm_model_in_flight", "Requests under way at a model, of all gateways", ["model"], multiprocess_mode="livemax"
)
ROOM = Gauge(
    "llm_model_room",
    "Requests that a model takes at once; 0 = no limit",
    ["model"],
    multiprocess_mode="livemax",
)
CONFIG_RELOADS = Counter("llm_config_reloads_total", "Configuration reloads by result", ["result"])
CONFIG_REFUSED = Gauge(
    "llm_config_refused", "1 while the configuration file can not be used", multiprocess_mode="livemax"
)
KEYS_REFUSED = Counter(
    "llm_keys_refused_total",
    "Callers not let in: missing, malformed, unknown, revoked or expired key, or a token of no use",
    ["why"],
)
CERTIFICATE_EXPIRY = Gauge(
    "llm_certificate_expiry_timestamp_seconds",
    "When a certificate of the connection to the store expires: client, authority, store",
    ["certificate"],
    multiprocess_mode="livemin",
)
LOG_DROPPED = Counter("llm_request_log_dropped_total", "Lines of the request log that standard output did not take")
WORKER_CPU = Counter("llm_worker_cpu_seconds_total", "CPU time of a worker, which can use one core", ["worker"])
WORKER_LAG = Gauge(
    "llm_worker_lag_seconds", "How late the busiest worker was for its last second", multiprocess_mode="livemax"
)

# Of the supervisor, which shows them itself: with labels, so that workers, who import them too, have none of them.
WORKERS = Gauge("llm_workers", "Workers: wanted, alive, serving", ["state"])
WORKER_RESTARTS = Counter(
    "llm_worker_restarts_total", "Workers that ended by themselves and were started again", ["worker"]
)
