"""What the console's API says, as values. The page and `llm-mesh top` read the same.

Names carry units. `None` means that there is nothing to measure: no stream in the window has no time to first token.
Rates are over the last 10 s, quantiles, ratios and money over the last minute; both are named in `Live`. Nothing here
is prompt or answer text: all comes from the metrics and the usage counters, which have none.
"""

from typing import Literal

import msgspec

By = Literal["tenant", "user", "model", "arm", "key"]
NO_MODEL = "(no model chosen)"  # the scope of requests for which no model was chosen
Span = Literal["today", "week", "month", "30d"]
DIMENSIONS: dict[By, tuple[str, ...]] = {
    "tenant": ("tenant",),
    "user": ("tenant", "user"),
    "model": ("model",),
    "arm": ("model", "arm"),
    "key": ("tenant", "key"),
}


class Figures(msgspec.Struct, frozen=True):
    """One model, one arm or everything, at one moment."""

    requests_per_second: float = 0.0
    failed_per_second: float = 0.0  # 5xx
    refused_per_second: float = 0.0  # 429: limits and budgets
    rejected_per_second: float = 0.0  # other 4xx
    left_per_second: float = 0.0  # the client went before an answer
    prompt_tokens_per_second: float = 0.0
    completion_tokens_per_second: float = 0.0
    usd_per_hour: float = 0.0
    failed_ratio: float | None = None  # of the requests that were answered
    hit_ratio: float | None = None  # of the requests that looked into the cache
    ttft_p50_seconds: float | None = None
    ttft_p95_seconds: float | None = None
    ttft_p99_seconds: float | None = None
    ttft_streams: int = 0  # on which they stand
    token_p50_seconds: float | None = None  # between two tokens of a stream
    duration_p50_seconds: float | None = None
    duration_p95_seconds: float | None = None
    overhead_p50_seconds: float | None = None  # what the platform adds
    overhead_p95_seconds: float | None = None


class Totals(msgspec.Struct, frozen=True):
    """Since the processor's start."""

    requests: int = 0
    failed: int = 0
    hits: int = 0
    lookups: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


class Model(msgspec.Struct, frozen=True):
    name: str  # "" = requests for which no model was chosen
    state: str  # as /health says it; "" = not configured any more
    now: Figures
    totals: Totals
    in_flight: int = 0  # requests under way, of all gateways
    room: int = 0  # for so many at once; 0 = no limit


class Arm(msgspec.Struct, frozen=True):
    model: str
    arm: str
    share: float | None  # of the model's requests in the last minute that went to a backend
    now: Figures
    totals: Totals


class Refusals(msgspec.Struct, frozen=True):
    reason: str  # the error's code word
    per_minute: float
    total: int


class Busy(msgspec.Struct, frozen=True):
    worker: str
    cpu_ratio: float  # of one core


class History(msgspec.Struct, frozen=True):
    """Columns: `scopes[name][field][i]` is the figure at `time_ms[i]`. The scope "" is everything together,
    NO_MODEL what no model was chosen for."""

    time_ms: list[int]
    scopes: dict[str, dict[str, list[float | None]]]


class Workers(msgspec.Struct, frozen=True):
    wanted: int
    alive: int
    pids: list[int] = []


class Settings(msgspec.Struct, frozen=True):
    revisions: list[str] = []
    errors: list[str] = []


class Health(msgspec.Struct, frozen=True):
    """As /health says it."""

    status: str
    redis: str
    models: dict[str, str]
    workers: Workers
    config: Settings
    settlement_backlog: int


class Live(msgspec.Struct, frozen=True):
    time_ms: int
    started_ms: int  # since when /metrics counts
    instance: str
    version: str
    rate_seconds: int
    ratio_seconds: int
    history_seconds: int
    health: Health
    total: Figures
    totals: Totals
    models: list[Model]
    arms: list[Arm]
    refused: list[Refusals]
    workers: list[Busy]
    unsettled: int  # reservations whose receipt is overdue
    history: History


class Line(msgspec.Struct, frozen=True):
    """Sums of the usage counters; `names` as the dimensions, empty for totals."""

    names: list[str]
    requests: int = 0
    hits: int = 0
    errors: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    usd: float = 0.0
    usd_per_million_tokens: float | None = None


class Usage(msgspec.Struct, frozen=True):
    time_ms: int  # when the store was asked
    since: str  # day, UTC
    until: str
    by: list[str]
    lines: list[Line]  # the dearest first
    others: Line | None  # the rest of them together
    count: int  # of lines, the rest included
    total: Line


class Budget(msgspec.Struct, frozen=True):
    tenant: str
    spent_usd: float  # of this month, reservations of requests under way included
    budget_usd: float  # 0 = none
    used_ratio: float | None


class Level(msgspec.Struct, frozen=True):
    per_minute: int
    size: int  # of the bucket: so many at once
    left: int
    used_ratio: float  # of the bucket; more than 1 = debt


class Caller(msgspec.Struct, frozen=True):
    """One key or token caller that asked today."""

    tenant: str
    user: str
    key_id: str
    requests: Level | None  # None = no such limit
    tokens: Level | None
    in_flight: int
    max_in_flight: int  # 0 = no such limit
    used_ratio: float  # the highest of the three


class Limits(msgspec.Struct, frozen=True):
    time_ms: int
    month: str
    month_ratio: float  # of the month that has gone
    budgets: list[Budget]  # the fullest first
    budgets_count: int
    callers: list[Caller]  # the fullest first
    callers_count: int  # of those that were looked at
