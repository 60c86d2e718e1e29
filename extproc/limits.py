"""Token-bucket arithmetic, in integers; the twin of `store/lua/bucket.lua`.

Owns the numbers of a bucket and the names of months and days. Knows no Redis, no clock and no request: `now_ms` is
an argument. What must stay in sync with the Lua: every function here that has a namesake there; `tests/store`
holds both to the same sequences.

A bucket is what is *missing* from it, so a bucket that nobody has seen is full and needs no record. The unit is
the drop, 1/60,000 of a request or token: a rate of R a minute is R drops a millisecond, so nothing is ever rounded.
More can be missing than the bucket holds: that is debt, left by a settlement that was larger than its reservation.
Exact up to 2**53 drops (1.5e11 tokens), because Lua counts in doubles.
"""

import datetime as dt
import time

import msgspec

from extproc.admission import Level

DROPS = 60_000  # of one request or token


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """`missing` drops at the time `at_ms`."""

    missing: int = 0
    at_ms: int = 0


FULL = Bucket()
NO_LIMIT = Level(0, 0, 0)


def size(per_minute: int, burst: int) -> int:
    """What the bucket holds, in units; a burst of 0 means one minute's worth."""
    return burst or per_minute


def refill(bucket: Bucket, per_minute: int, now_ms: int) -> Bucket:
    """A clock that steps back gives nothing, and takes nothing away."""
    gained = max(0, now_ms - bucket.at_ms) * per_minute
    return Bucket(max(0, bucket.missing - gained), now_ms)


def wait_ms(bucket: Bucket, units: int, per_minute: int, burst: int) -> int:
    """0 when `units` can be taken now, else when they can. More than the bucket holds waits for a full bucket."""
    allowed = max(0, (size(per_minute, burst) - units) * DROPS)
    return -(-max(0, bucket.missing - allowed) // per_minute)


def take(bucket: Bucket, units: int) -> Bucket:
    """Take without asking; `units` < 0 gives back, and a bucket never overflows."""
    return Bucket(max(0, bucket.missing + units * DROPS), bucket.at_ms)


def level(missing: int, per_minute: int, burst: int) -> Level:
    """As the response headers show it: whole units, never negative, and the time until the bucket is full."""
    if per_minute == 0:
        return NO_LIMIT
    left = ((burst or per_minute) * DROPS - missing) // DROPS
    return Level(per_minute, max(left, 0), -(-missing // per_minute))


def month(now_ms: int) -> str:
    """UTC, "2026-11"."""
    return day(now_ms)[:7]


def day(now_ms: int) -> str:
    """UTC, "2026-11-23"."""
    return time.strftime("%Y-%m-%d", time.gmtime(now_ms // 1000))


def month_ends_ms(now_ms: int) -> int:
    """Epoch ms of the next month's first moment."""
    days = now_ms // 86_400_000
    date = time.gmtime(days * 86_400)
    first_of_month = days - date.tm_mday + 1
    some_day_of_next = time.gmtime((first_of_month + 31) * 86_400)
    return (first_of_month + 31 - some_day_of_next.tm_mday + 1) * 86_400_000


def days(since: str, until: str) -> list[str]:
    """The names of all days from one to the other, both included."""
    first, last = dt.date.fromisoformat(since), dt.date.fromisoformat(until)
    return [(first + dt.timedelta(n)).isoformat() for n in range((last - first).days + 1)]
