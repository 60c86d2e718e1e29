"""What stands in the store, read with another client than the platform's own."""

import time
from datetime import UTC, datetime

import msgspec
from accounts import Book, Line
from stack_rig import Caller

from extproc.limits import DROPS

REFILL_PER_MINUTE = 1
_SETTLE_SECONDS = 4.0  # for receipts on their way; what is reserved then has lost its own


def settle(callers: list[Caller], good: int) -> None:
    """Wait until every good answer is in the ledger and nothing is reserved; then sweep what was lost."""
    platform = callers[0].platform
    deadline = time.monotonic() + _SETTLE_SECONDS
    tenants = {caller.tenant: caller for caller in callers}
    while time.monotonic() < deadline:
        if not sum(c.reserved() for c in tenants.values()) and sum(map(_lines, tenants.values())) >= good:
            return
        time.sleep(0.05)
    platform.do(platform.store.sweep(0))


def _lines(caller: Caller) -> int:
    return int(caller.platform.redis.xlen(_key(caller, "ledger")))


def read(caller: Caller, users: list[str], began: float) -> Book:
    """Of the caller's tenant, whose first request came at `began`."""
    redis = caller.platform.redis
    entries = redis.xrange(_key(caller, "ledger"))
    month = datetime.now(UTC).strftime("%Y-%m")
    return Book(
        tenant=caller.tenant,
        lines=[msgspec.json.decode(fields["line"], type=Line) for _, fields in entries],
        counters=caller.account(),
        spent_micros=int(redis.get(_key(caller, f"spent:{month}")) or 0),
        bucket_tokens={user: _missing(redis.get(_key(caller, f"user:{user}"))) for user in users},
        refilled_tokens=(time.monotonic() - began) / 60 * REFILL_PER_MINUTE,
        reserved=caller.reserved() // 2,
        in_flight=sum(int(redis.zcard(key)) for key in redis.scan_iter(_key(caller, "flight:*"), count=1000)),
    )


def _missing(record: str | None) -> float:
    """As bucket.lua keeps it: missing requests, at, missing tokens, at."""
    return int(record.split()[2]) / DROPS if record else 0.0


def _key(caller: Caller, name: str) -> str:
    return f"llm:{{{caller.tenant}}}:{name}"
