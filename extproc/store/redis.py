"""The store in Redis. Every verb that must be atomic is one Lua script (`lua/`), one round trip.

Owns which command goes where and when. The names of keys are in `keyspace.py`, the shapes of arguments and answers
in `translate.py`, the sockets in `connection.py`. There are two of them: decisions and keys' look-ups on one,
settlements, the poll of shared state and reports on the other, so that a large cache fill never delays a decision.

It speaks to one node. A Cluster's MOVED comes back as StoreUnavailable; the scripts are ready for one.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from extproc import limits
from extproc.admission import Admission, Claim, KeyRecord, Settlement, Shared, UsageRow
from extproc.store import keyspace
from extproc.store.address import Address
from extproc.store.connection import Connection
from extproc.store.resp import NoScript, Reply, Word, pack
from extproc.store.translate import admission, chunks, encode, key_record, pairs, usage_rows, without_entry

SETTLE_TIMEOUT_FACTOR = 10  # nobody waits for a settlement, and a batch is larger than a decision
SWEEP_BATCH = 100
LOAD_MS = 3000  # a gateway that says nothing for so long has nothing under way
PIPELINE = 1000  # commands in one write
KNOWN_TENANTS = 10_000


class RedisStore:
    """`Store` in Redis. `start()` does not fail when Redis is away; every other method then raises at once."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.1,
        ledger_entries: int = 1_000_000,
        clock: str | None = None,
    ) -> None:
        address = Address.parse(url)
        self._fast = Connection(address, timeout_seconds=timeout_seconds)
        self._slow = Connection(address, timeout_seconds=SETTLE_TIMEOUT_FACTOR * timeout_seconds)
        self._ledger_entries = ledger_entries
        self._scripts = keyspace.Scripts(clock)
        self._prefixes: dict[str, bytes] = {}
        self._announced: set[str] = set()  # tenants in llm:tenants since the last poll
        self._polled: list[bytes] = []  # tenants of the last poll

    async def start(self) -> None:
        await asyncio.gather(self._fast.start(), self._slow.start())

    async def aclose(self) -> None:
        await self._fast.aclose()
        await self._slow.aclose()

    @property
    def up(self) -> bool:
        return self._fast.up

    # The hot path.

    async def admit(self, claim: Claim) -> Admission:
        script = self._scripts.admit
        rest = (b"1", self._prefix(claim.tenant), encode(claim))
        command = pack((b"EVALSHA", script.sha, *rest))
        try:
            if claim.tenant in self._announced:
                reply = await self._fast.send(command)
            else:
                reply = await self._announce(claim.tenant, command)
        except NoScript:
            reply = await self._fast.send(pack((b"EVAL", script.text, *rest)))
        return admission(claim.limits, reply)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """When it raises, some may have been applied: send all of them again."""
        if not settlements:
            return []
        new = {s.tenant for s in settlements} - self._announced
        if new:  # those that were only ever refused were not named by `admit`
            await self._slow.send(pack((b"SADD", keyspace.TENANTS, *new)))
            self._remember(new)
        applied = [False] * len(settlements)
        batches = list(self._batches(settlements))
        commands = [(b"1", self._prefix(tenant), *argv) for tenant, _, argv in batches]
        replies = await self._run_all(self._scripts.settle, commands)
        for (_, places, _), reply in zip(batches, replies, strict=True):
            for place, first in zip(places, reply, strict=True):
                applied[place] = first == 1
        return applied

    def _batches(self, settlements: Sequence[Settlement]) -> Iterator[tuple[str, list[int], list[Word]]]:
        """One script call each: tenant, places in the sequence, arguments."""
        by_tenant: dict[str, list[int]] = {}
        for place, settlement in enumerate(settlements):
            by_tenant.setdefault(settlement.tenant, []).append(place)
        for tenant, places in by_tenant.items():
            for chosen in chunks(settlements, places):
                some = [settlements[place] for place in chosen]
                entries = [one.fill.entry for one in some if one.fill is not None]
                yield tenant, chosen, [self._ledger_entries, encode([without_entry(one) for one in some]), *entries]

    # Keys.

    async def find_key(self, digest: str) -> KeyRecord | None:
        raw = await self._fast.send(pack((b"HGET", keyspace.KEYS, digest)))
        return None if raw is None else key_record(raw)

    async def list_keys(self) -> list[KeyRecord]:
        return [key_record(raw) for raw in await self._slow.send(pack((b"HVALS", keyspace.KEYS)))]

    async def put_key(self, digest: str, record: KeyRecord) -> None:
        await self._put_key(digest.encode(), record, expected=b"")

    async def revoke_key(self, key_id: str, now_ms: int) -> bool:
        """The record is written only if nobody changed it meanwhile, else read again."""
        while True:
            flat = await self._slow.send(pack((b"HGETALL", keyspace.KEYS)))
            found = [(digest, raw) for digest, raw in pairs(flat) if key_record(raw).key_id == key_id]
            if not found:
                return False
            digest, raw = found[0]
            if await self._put_key(digest, msgspec.structs.replace(key_record(raw), revoked_ms=now_ms), raw):
                return True

    async def _put_key(self, digest: bytes, record: KeyRecord, expected: bytes) -> bool:
        argv = (digest, msgspec.json.encode(record), expected)
        rest = (b"2", keyspace.KEYS, keyspace.KEYS_REVISION, *argv)
        return bool((await self._run_all(self._scripts.put_key, [rest]))[0])

    # What all workers share.

    async def shared(self, unsettled_age_ms: int) -> Shared:
        """One round trip, and a second one when a tenant is new: reservations are counted tenant by tenant."""
        revision, health, ratios, tenants, *counts = await self._pipeline(
            [
                pack((b"GET", keyspace.KEYS_REVISION)),
                pack((b"HGETALL", keyspace.HEALTH)),
                pack((b"HGETALL", keyspace.RATIOS)),
                pack((b"SMEMBERS", keyspace.TENANTS)),
                *self._count(self._polled, unsettled_age_ms),
            ]
        )
        counts += await self._pipeline(self._count(set(tenants).difference(self._polled), unsettled_age_ms))
        self._polled = tenants
        self._announced.clear()
        return Shared(
            keys_revision=int(revision or 0),
            down_until_ms={model.decode(): int(until) for model, until in pairs(health)},
            tokens_per_byte={model.decode(): float(ratio) for model, ratio in pairs(ratios)},
            unsettled=sum(counts),
        )

    def _count(self, tenants: Iterable[bytes], age_ms: int) -> list[bytes]:
        """With the text of the script: it is short, and never unknown."""
        text = self._scripts.unsettled.text
        return [pack((b"EVAL", text, b"1", self._prefix(name.decode()), age_ms)) for name in tenants]

    async def mark_down(self, model: str, until_ms: int) -> None:
        command = (b"HSET", keyspace.HEALTH, model, until_ms) if until_ms else (b"HDEL", keyspace.HEALTH, model)
        await self._slow.send(pack(command))

    async def share_ratio(self, model: str, tokens_per_byte: float) -> None:
        await self._slow.send(pack((b"HSET", keyspace.RATIOS, model, tokens_per_byte)))

    async def share_load(self, gateway: str, in_flight: dict[str, int]) -> dict[str, int]:
        rest = (b"1", keyspace.LOAD, gateway, encode(in_flight), LOAD_MS)
        (flat,) = await self._run_all(self._scripts.share_load, [rest])
        sums: dict[str, int] = {}
        for model, count in pairs(flat):
            sums[model.decode()] = sums.get(model.decode(), 0) + int(count)
        return sums

    # Housekeeping and reports.

    async def sweep(self, age_ms: int) -> int:
        closed = 0
        for tenant in await self._tenants():
            while True:
                rest = (b"1", self._prefix(tenant), self._ledger_entries, age_ms, SWEEP_BATCH)
                (count,) = await self._run_all(self._scripts.sweep, [rest])
                closed += count
                if count < SWEEP_BATCH:
                    break
        return closed

    async def usage(self, since_day: str, until_day: str) -> list[UsageRow]:
        """Both days included."""
        days = limits.days(since_day, until_day)
        rows: list[UsageRow] = []
        for tenant in await self._tenants() if days else []:
            prefix = self._prefix(tenant)
            found = await self._pipeline([pack((b"HGETALL", keyspace.usage_key(prefix, day))) for day in days])
            for day, flat in zip(days, found, strict=True):
                rows += usage_rows(tenant, day, flat)
        return rows

    def certificates(self) -> dict[str, float]:
        return self._fast.certificates()

    async def ping(self) -> None:
        await self._fast.send(pack((b"PING",)))

    # Inside.

    async def _announce(self, tenant: str, command: bytes) -> Reply:
        """Name the tenant once per poll, ahead of its command, so that the set comes back after Redis lost it."""
        _, reply = await self._fast.send_all([pack((b"SADD", keyspace.TENANTS, tenant)), command])
        self._remember({tenant})
        if isinstance(reply, NoScript):
            raise reply
        return reply

    def _remember(self, tenants: set[str]) -> None:
        if len(self._announced) >= KNOWN_TENANTS:
            self._announced.clear()
        self._announced |= tenants

    async def _tenants(self) -> list[str]:
        return sorted(name.decode() for name in await self._slow.send(pack((b"SMEMBERS", keyspace.TENANTS))))

    def _prefix(self, tenant: str) -> bytes:
        prefix = self._prefixes.get(tenant)
        if prefix is None:
            if len(self._prefixes) >= KNOWN_TENANTS:
                self._prefixes.clear()
            prefix = self._prefixes[tenant] = keyspace.tenant_prefix(tenant)
        return prefix

    async def _run_all(self, script: keyspace.Script, rests: list[tuple[Word, ...]]) -> list[Reply]:
        """One script, several calls, one write, one wait. Calls that Redis did not know are repeated, once."""
        replies = await self._pipeline([pack((b"EVALSHA", script.sha, *rest)) for rest in rests])
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScript)]
        if unknown:
            commands = [pack((b"EVAL", script.text, *rests[place])) for place in unknown]
            for place, reply in zip(unknown, await self._pipeline(commands), strict=True):
                replies[place] = reply
        return replies

    async def _pipeline(self, commands: list[bytes]) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(commands), PIPELINE):
            replies += await self._slow.send_all(commands[start : start + PIPELINE])
        return replies
