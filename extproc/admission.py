"""The values that pass between a decision, the store and a settlement.

A request claims what it may use (`Claim`), the store answers in one round trip (`Admission`), and when the
access log says what was really used, the difference is given back or charged (`Settlement`). All three are
plain values: no Redis, no Envoy, no clock. Money is integer micro-dollars, times are integer milliseconds,
sizes are bytes. `store/` implements them twice, in Redis and in memory, with the same arithmetic (`limits.py`).
"""

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """What one caller may use. 0 means: no such limit.

    The two rates are token buckets per tenant and user: they hold `burst_*` at most and refill at
    `*_per_minute` ÷ 60 a second. The budget is per tenant and calendar month (UTC), the cap on requests in
    flight per key and user: a key has one user, but all callers with tokens share one key id.
    """

    requests_per_minute: int = 100
    burst_requests: int = 100
    tokens_per_minute: int = 0
    burst_tokens: int = 0
    budget_micros: int = 0
    max_in_flight: int = 0


class Claim(msgspec.Struct, frozen=True):
    """What one request asks of the store before its upstream is called."""

    request_id: str  # ours, unique; never the client's
    tenant: str
    user: str
    key_id: str
    tokens: int  # prompt estimate + allowed completion, reserved until settlement
    cost_micros: int  # the same in money
    limits: Limits
    fingerprint: str = ""  # hex; "" = do not look into the cache
    cached_only: bool = False  # the model is full: only a stored answer will do


class Outcome(enum.IntEnum):
    """What the store decided. The numbers are those that admit.lua returns."""

    ADMITTED = 0
    HIT = 1
    REQUESTS = 2  # requests per minute are used up
    TOKENS = 3  # tokens per minute are used up
    BUDGET = 4  # the tenant's money for this month is used up
    IN_FLIGHT = 5  # too many of this key's and user's requests are under way
    FULL = 6  # the model is full


class Level(msgspec.Struct, frozen=True):
    """A bucket after the decision, as the x-ratelimit-* headers show it."""

    limit: int  # the bucket's per-minute rate; 0 = no such limit
    remaining: int  # whole units, never negative
    reset_ms: int  # until the bucket is full again


class Admission(msgspec.Struct, frozen=True):
    """The store's answer. Nothing is charged unless the outcome is ADMITTED, or HIT (one request, no tokens)."""

    outcome: Outcome
    requests: Level
    tokens: Level
    retry_after_ms: int = 0  # for refusals: when the same claim can succeed
    entry: bytes = b""  # for HIT: what a settlement stored
    age_ms: int = 0  # for HIT: since it was stored
    local: bool = False  # the store was away: nothing is reserved there, and nothing can be cached


_NO_LEVEL = Level(limit=0, remaining=0, reset_ms=0)
FULL_RETRY_MS = 2000  # as in admit.lua; callers come back as spread out as they came
TURNED_AWAY = Admission(Outcome.FULL, _NO_LEVEL, _NO_LEVEL, FULL_RETRY_MS)  # needs no store: nothing could be cached


class Fill(msgspec.Struct, frozen=True):
    """A cache entry to store with a settlement."""

    fingerprint: str
    entry: bytes
    ttl_ms: int
    max_tenant_bytes: int  # oldest entries of the tenant make room beyond this


class Settlement(msgspec.Struct, frozen=True):
    """What one request really used. Applied exactly once per request_id, however often it is sent."""

    request_id: str
    tenant: str
    user: str
    key_id: str
    model: str  # "" when none was chosen (a refusal)
    endpoint: str  # "chat" | "completions" | "embeddings" | "responses"
    status: int  # the HTTP status that the client saw; 0 = none was sent
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt tokens, those that vLLM's prefix cache held
    cost_micros: int
    limits: Limits  # to keep the refunded buckets within their size
    hit: bool = False  # answered from the response cache
    estimated: bool = False  # the stream was cut: tokens are an estimate
    refused: bool = False  # by us: counted, but it leaves no ledger line, and counts again if it is sent again
    arm: str = ""  # the subset of the model's route that was asked; "" = none
    fill: Fill | None = None


class KeyRecord(msgspec.Struct, frozen=True):
    """An API key as stored: never the key, only its SHA-256 (hex) as the field's name."""

    key_id: str
    tenant: str
    user: str
    models: list[str]  # public model names; ["*"] = all
    created_ms: int
    limits: dict[str, int] = {}  # fields of Limits that differ from the configuration's
    expires_ms: int = 0  # 0 = never
    revoked_ms: int = 0  # 0 = valid
    name: str = ""  # a person's note
    priority: str = ""  # low, normal, high; "" = the tenant's


class Shared(msgspec.Struct, frozen=True):
    """What all workers share, read once a second in one round trip."""

    keys_revision: int
    down_until_ms: dict[str, int]  # model -> epoch ms until which it is passed over
    tokens_per_byte: dict[str, float]  # model -> prompt tokens per request byte, learned from receipts
    unsettled: int  # reservations older than the age that the caller asked about


class UsageRow(msgspec.Struct, frozen=True):
    """One line of the usage report: sums over one day (UTC), tenant, user, key, model and arm."""

    day: str  # "2026-11-23"
    tenant: str
    user: str
    key_id: str
    model: str
    arm: str = ""  # "" = none was asked, or it was not recorded
    requests: int = 0
    hits: int = 0
    errors: int = 0  # status >= 400 or none sent
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_micros: int = 0


class Store(Protocol):
    """Everything that outlives a request. Every method raises errors.StoreUnavailable when it cannot answer."""

    async def admit(self, claim: Claim) -> Admission: ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Apply each; True where it was the first with its request_id."""

    async def find_key(self, digest: str) -> KeyRecord | None: ...

    async def put_key(self, digest: str, record: KeyRecord) -> None: ...

    async def list_keys(self) -> list[KeyRecord]: ...

    async def revoke_key(self, key_id: str, now_ms: int) -> bool:
        """Mark it revoked and raise the keys' revision; False if there is no such key."""

    async def shared(self, unsettled_age_ms: int) -> Shared: ...

    async def mark_down(self, model: str, until_ms: int) -> None:
        """Pass the model over on every worker; until_ms = 0 takes the mark off."""

    async def share_ratio(self, model: str, tokens_per_byte: float) -> None: ...

    async def share_load(self, gateway: str, in_flight: dict[str, int]) -> dict[str, int]:
        """Tell the requests under way by model in one gateway; return the sums of all others of the last seconds."""

    async def sweep(self, age_ms: int) -> int:
        """Close reservations older than age_ms: they stay charged as reserved, marked estimated, in ledger and
        counters. Returns how many. A settlement that comes later still is a duplicate."""

    async def usage(self, since_day: str, until_day: str) -> list[UsageRow]: ...

    def certificates(self) -> dict[str, float]:
        """When those of the connection expire, in epoch seconds: `client`, `authority`, `store`. None without TLS."""

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...
