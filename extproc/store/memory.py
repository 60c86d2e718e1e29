"""The store in one process: for tests, for one machine without Redis, and as the fallback while Redis is away.

Owns the same meanings as the Lua in `lua/`, over `limits.py`; the clock is an argument. Nothing survives the
process and nothing is shared with another. Memory is bounded: every table holds `max_entries` and forgets its
oldest, which for a bucket means full, for a reservation: charged for good.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from extproc import limits
from extproc.admission import FULL_RETRY_MS, Admission, Claim, KeyRecord, Outcome, Settlement, Shared, UsageRow
from extproc.limits import FULL, Bucket
from extproc.store.bounded import Bounded, Cache, Entry

FLIGHT_MS = 3_600_000
FLIGHT_RETRY_MS = 1000
LOAD_MS = 3000
SETTLED_MS = 600_000
SWEPT_MS = 86_400_000


class Reservation(msgspec.Struct, frozen=True):
    claim: Claim
    at_ms: int
    month: str


class MemoryStore:
    """`Store` in memory."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        *,
        max_entries: int = 100_000,
        max_tenants: int = 1000,
        ledger_entries: int = 10_000,
    ) -> None:
        self._now_ms = now_ms
        self._max_entries = max_entries
        self._requests: Bounded[tuple[str, str], Bucket] = Bounded(max_entries)
        self._tokens: Bounded[tuple[str, str], Bucket] = Bounded(max_entries)
        self._spent: Bounded[tuple[str, str], int] = Bounded(max_entries)
        self._flights: Bounded[tuple[str, str, str], dict[str, int]] = Bounded(max_entries)
        self._reserved: Bounded[tuple[str, str], Reservation] = Bounded(max_entries)
        self._settled: Bounded[tuple[str, str], int] = Bounded(max_entries)
        self._caches: Bounded[str, Cache] = Bounded(max_tenants)
        self._usage: Bounded[tuple[str, str, str, str, str, str], UsageRow] = Bounded(max_entries)
        self.ledger: deque[Settlement] = deque(maxlen=ledger_entries)
        self._keys: dict[str, KeyRecord] = {}
        self._keys_revision = 0
        self._down_until_ms: dict[str, int] = {}
        self._ratios: dict[str, float] = {}
        self._loads: dict[str, tuple[int, dict[str, int]]] = {}

    # Admission.

    async def admit(self, claim: Claim) -> Admission:
        return self.decide(claim)

    def decide(self, claim: Claim) -> Admission:
        """`admit` for a caller that cannot wait."""
        now = self._now_ms()
        owner = (claim.tenant, claim.user)
        rate = claim.limits
        requests = self._refilled(self._requests, owner, rate.requests_per_minute, now)
        tokens = self._refilled(self._tokens, owner, rate.tokens_per_minute, now)
        waits = []
        if rate.requests_per_minute:
            wait = limits.wait_ms(requests, 1, rate.requests_per_minute, rate.burst_requests)
            waits.append((wait, Outcome.REQUESTS))
        entry = self._cached(claim, now)
        if entry is None:
            waits += self._other_waits(claim, tokens, now)
        wait, outcome = max(waits, key=lambda one: one[0], default=(0, Outcome.ADMITTED))
        if wait:
            return self._admission(claim, outcome, requests, tokens, retry_after_ms=wait)
        requests = self._take(self._requests, owner, requests, 1, rate.requests_per_minute)
        spent_tokens = claim.tokens if entry is None else 0
        tokens = self._take(self._tokens, owner, tokens, spent_tokens, rate.tokens_per_minute)
        if entry is not None:
            return self._admission(
                claim, Outcome.HIT, requests, tokens, entry=entry.body, age_ms=max(0, now - entry.stored_ms)
            )
        self._reserve(claim, now)
        return self._admission(claim, Outcome.ADMITTED, requests, tokens)

    def _other_waits(self, claim: Claim, tokens: Bucket, now: int) -> list[tuple[int, Outcome]]:
        rate = claim.limits
        waits = [(FULL_RETRY_MS, Outcome.FULL)] if claim.cached_only else []
        if rate.tokens_per_minute:
            wait = limits.wait_ms(tokens, claim.tokens, rate.tokens_per_minute, rate.burst_tokens)
            waits.append((wait, Outcome.TOKENS))
        spent = self._spent.items.get((claim.tenant, limits.month(now)), 0)
        if rate.budget_micros and spent + claim.cost_micros > rate.budget_micros:
            waits.append((limits.month_ends_ms(now) - now, Outcome.BUDGET))
        if rate.max_in_flight and len(self._flight(claim, now)) >= rate.max_in_flight:
            waits.append((FLIGHT_RETRY_MS, Outcome.IN_FLIGHT))
        return waits

    def _reserve(self, claim: Claim, now: int) -> None:
        month = limits.month(now)
        self._spend(claim.tenant, month, claim.cost_micros)
        if claim.limits.max_in_flight:
            flight = self._flight(claim, now)
            flight[claim.request_id] = now + FLIGHT_MS
            self._flights.put((claim.tenant, claim.key_id, claim.user), flight)
        self._reserved.put((claim.tenant, claim.request_id), Reservation(claim, now, month))

    def _flight(self, claim: Claim, now: int) -> dict[str, int]:
        flight = self._flights.items.get((claim.tenant, claim.key_id, claim.user), {})
        return {request_id: until for request_id, until in flight.items() if until > now}

    def _cached(self, claim: Claim, now: int) -> Entry | None:
        cache = self._caches.items.get(claim.tenant)
        return cache.find(claim.fingerprint, now) if cache is not None and claim.fingerprint else None

    @staticmethod
    def _refilled(table: Bounded[tuple[str, str], Bucket], owner: tuple[str, str], per_minute: int, now: int) -> Bucket:
        bucket = table.items.get(owner, FULL)
        return limits.refill(bucket, per_minute, now) if per_minute else bucket

    @staticmethod
    def _take(
        table: Bounded[tuple[str, str], Bucket], owner: tuple[str, str], bucket: Bucket, units: int, per_minute: int
    ) -> Bucket:
        if per_minute:
            bucket = limits.take(bucket, units)
            table.put(owner, bucket)
        return bucket

    @staticmethod
    def _admission(
        claim: Claim,
        outcome: Outcome,
        requests: Bucket,
        tokens: Bucket,
        *,
        retry_after_ms: int = 0,
        entry: bytes = b"",
        age_ms: int = 0,
    ) -> Admission:
        rate = claim.limits
        return Admission(
            outcome,
            limits.level(requests.missing, rate.requests_per_minute, rate.burst_requests),
            limits.level(tokens.missing, rate.tokens_per_minute, rate.burst_tokens),
            retry_after_ms,
            entry,
            age_ms,
        )

    # Settlement.

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return [self._settle(settlement) for settlement in settlements]

    def _settle(self, settlement: Settlement) -> bool:
        now = self._now_ms()
        if settlement.refused:
            self._record(settlement, now)
            return True
        marker = (settlement.tenant, settlement.request_id)
        if self._settled.items.get(marker, 0) > now:
            return False
        self._settled.put(marker, now + SETTLED_MS)
        self._balance(settlement, now)
        self._record(settlement, now)
        if settlement.fill is not None:
            cache = self._caches.items.get(settlement.tenant) or Cache(self._max_entries)
            self._caches.put(settlement.tenant, cache)
            cache.put(settlement.fill, now)
        return True

    def _balance(self, settlement: Settlement, now: int) -> None:
        used = settlement.prompt_tokens + settlement.completion_tokens
        reservation = self._unreserve(settlement.tenant, settlement.request_id)
        if reservation is not None:
            claim = reservation.claim
            if claim.limits.tokens_per_minute:
                self._charge_tokens(settlement, used - claim.tokens, now)
            self._spend(settlement.tenant, reservation.month, settlement.cost_micros - claim.cost_micros)
        elif not settlement.hit:
            self._charge_tokens(settlement, used, now)
            self._spend(settlement.tenant, limits.month(now), settlement.cost_micros)

    def _charge_tokens(self, settlement: Settlement, units: int, now: int) -> None:
        per_minute = settlement.limits.tokens_per_minute
        if per_minute and units:
            owner = (settlement.tenant, settlement.user)
            bucket = self._refilled(self._tokens, owner, per_minute, now)
            self._take(self._tokens, owner, bucket, units, per_minute)

    def _unreserve(self, tenant: str, request_id: str) -> Reservation | None:
        reservation = self._reserved.items.pop((tenant, request_id), None)
        if reservation is not None:
            claim = reservation.claim
            self._flights.items.get((tenant, claim.key_id, claim.user), {}).pop(request_id, None)
        return reservation

    def _spend(self, tenant: str, month: str, micros: int) -> None:
        if micros:
            self._spent.put((tenant, month), self._spent.items.get((tenant, month), 0) + micros)

    def _record(self, settlement: Settlement, now: int) -> None:
        if not settlement.refused:
            self.ledger.append(msgspec.structs.replace(settlement, fill=None))
        group = (
            limits.day(now),
            settlement.tenant,
            settlement.user,
            settlement.key_id,
            settlement.model,
            settlement.arm,
        )
        row = self._usage.items.get(group) or UsageRow(*group)
        self._usage.put(group, counted(row, settlement))

    # Keys.

    async def find_key(self, digest: str) -> KeyRecord | None:
        return self._keys.get(digest)

    async def put_key(self, digest: str, record: KeyRecord) -> None:
        self._keys[digest] = record
        self._keys_revision += 1

    async def list_keys(self) -> list[KeyRecord]:
        return list(self._keys.values())

    async def revoke_key(self, key_id: str, now_ms: int) -> bool:
        for digest, record in self._keys.items():
            if record.key_id == key_id:
                await self.put_key(digest, msgspec.structs.replace(record, revoked_ms=now_ms))
                return True
        return False

    # What all workers share.

    async def shared(self, unsettled_age_ms: int) -> Shared:
        return Shared(
            self._keys_revision,
            dict(self._down_until_ms),
            dict(self._ratios),
            len(self._older(unsettled_age_ms)),
        )

    async def mark_down(self, model: str, until_ms: int) -> None:
        if until_ms:
            self._down_until_ms[model] = until_ms
        else:
            self._down_until_ms.pop(model, None)

    async def share_ratio(self, model: str, tokens_per_byte: float) -> None:
        self._ratios[model] = tokens_per_byte

    async def share_load(self, gateway: str, in_flight: dict[str, int]) -> dict[str, int]:
        now = self._now_ms()
        self._loads = {name: told for name, told in self._loads.items() if now - told[0] <= LOAD_MS}
        self._loads[gateway] = (now, in_flight)
        sums: dict[str, int] = {}
        for name, (_, counts) in self._loads.items():
            for model, count in counts.items() if name != gateway else ():
                sums[model] = sums.get(model, 0) + count
        return sums

    # Housekeeping and reports.

    async def sweep(self, age_ms: int) -> int:
        now = self._now_ms()
        old = self._older(age_ms)
        for tenant, request_id in old:
            reservation = self._unreserve(tenant, request_id)
            if reservation is not None:
                self._settled.put((tenant, request_id), now + SWEPT_MS)
                self._record(as_reserved(reservation.claim), now)
        return len(old)

    def _older(self, age_ms: int) -> list[tuple[str, str]]:
        until = self._now_ms() - age_ms
        by_age = self._reserved.items.items()  # the order in which they were made
        return [owner for owner, _ in itertools.takewhile(lambda item: item[1].at_ms <= until, by_age)]

    async def usage(self, since_day: str, until_day: str) -> list[UsageRow]:
        rows = [row for row in self._usage.items.values() if since_day <= row.day <= until_day]
        return sorted(rows, key=lambda row: (row.tenant, row.day, row.user, row.key_id, row.model, row.arm))

    def certificates(self) -> dict[str, float]:
        return {}

    async def ping(self) -> None:
        return

    async def aclose(self) -> None:
        return


def counted(row: UsageRow, settlement: Settlement) -> UsageRow:
    return msgspec.structs.replace(
        row,
        requests=row.requests + 1,
        hits=row.hits + settlement.hit,
        errors=row.errors + (settlement.status >= 400 or settlement.status == 0),
        estimated=row.estimated + settlement.estimated,
        prompt_tokens=row.prompt_tokens + settlement.prompt_tokens,
        completion_tokens=row.completion_tokens + settlement.completion_tokens,
        cached_tokens=row.cached_tokens + settlement.cached_tokens,
        cost_micros=row.cost_micros + settlement.cost_micros,
    )


def as_reserved(claim: Claim) -> Settlement:
    """What a sweep records: the tokens count as prompt tokens."""
    return Settlement(
        request_id=claim.request_id,
        tenant=claim.tenant,
        user=claim.user,
        key_id=claim.key_id,
        model="",
        endpoint="",
        status=0,
        prompt_tokens=claim.tokens,
        completion_tokens=0,
        cached_tokens=0,
        cost_micros=claim.cost_micros,
        limits=claim.limits,
        estimated=True,
    )
