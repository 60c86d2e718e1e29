"""What the console asks of Redis: how much of limits and budgets is used. Reads only, never on a request's path."""

from collections.abc import Sequence

import msgspec

from extproc.limits import FULL, Bucket
from extproc.store.redis import RedisStore
from extproc.store.resp import pack


class Standing(msgspec.Struct, frozen=True):
    """How one caller stands: both buckets as they were left, and the requests under way (counted where capped)."""

    requests: Bucket = FULL
    tokens: Bucket = FULL
    in_flight: int = 0


class ReportStore(RedisStore):
    async def now_ms(self) -> int:
        """Redis's clock, which the buckets' times are of."""
        ((seconds, micros),) = await self._pipeline([pack((b"TIME",))])
        return int(seconds) * 1000 + int(micros) // 1000

    async def spent(self, month: str) -> dict[str, int]:
        """Micro-dollars of the month by tenant, reservations included. Every tenant that was ever admitted."""
        tenants = await self._tenants()
        keys = [self._prefix(tenant) + b"spent:" + month.encode() for tenant in tenants]
        found = await self._pipeline([pack((b"GET", key)) for key in keys])
        return {tenant: int(micros or 0) for tenant, micros in zip(tenants, found, strict=True)}

    async def standings(self, who: Sequence[tuple[str, str, str]], now_ms: int) -> list[Standing]:
        """Of (tenant, user, key id) each."""
        commands = []
        for tenant, user, key_id in who:
            prefix = self._prefix(tenant)
            flight = prefix + b"flight:" + f"{key_id}:{user}".encode()
            commands += [pack((b"GET", prefix + b"user:" + user.encode())), pack((b"ZCOUNT", flight, now_ms, b"+inf"))]
        replies = await self._pipeline(commands)
        return [_standing(raw, count) for raw, count in zip(replies[::2], replies[1::2], strict=True)]


def _standing(raw: bytes | None, in_flight: int) -> Standing:
    if raw is None:
        return Standing(in_flight=in_flight)
    missing_requests, requests_at, missing_tokens, tokens_at = map(int, raw.split())
    return Standing(Bucket(missing_requests, requests_at), Bucket(missing_tokens, tokens_at), in_flight)
