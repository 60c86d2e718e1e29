"""Memory is bounded, whatever comes."""

from collections.abc import Sized

from store_rig import START_MS, claim, fill, settlement

from extproc.admission import KeyRecord, Limits, Outcome
from extproc.store import MemoryStore
from extproc.store.bounded import Bounded, Cache

LIMITS = Limits(tokens_per_minute=1, burst_tokens=1000, budget_micros=10**9, max_in_flight=3)


def sizes(store: MemoryStore) -> dict[str, int]:
    tables = {name: value for name, value in vars(store).items() if isinstance(value, Bounded)}
    return {name: len(table.items) for name, table in tables.items()} | {"ledger": len(store.ledger)}


async def test_every_table_forgets_its_oldest() -> None:
    store = MemoryStore(lambda: START_MS, max_entries=10, max_tenants=4, ledger_entries=5)
    for number in range(100):
        one = claim(tenant=f"t{number}", user=f"u{number}", key_id=f"k{number}", limits=LIMITS)
        await store.admit(one)
        if number % 2:
            await store.settle([settlement(one, fill=fill("f1", b"x"))])
    assert max(sizes(store).values()) == 10
    assert sizes(store)["_caches"] == 4
    assert sizes(store)["ledger"] == 5


async def test_a_forgotten_reservation_frees_its_slot_after_an_hour_all_the_same() -> None:
    now = START_MS
    store = MemoryStore(lambda: now, max_entries=2)
    limit = Limits(requests_per_minute=0, max_in_flight=1)
    for key_id in ("a", "b", "c"):
        await store.admit(claim(key_id=key_id, limits=limit))
    assert (await store.shared(0)).unsettled == 2
    assert (await store.admit(claim(key_id="c", limits=limit))).outcome is Outcome.IN_FLIGHT
    now += 3_600_000
    assert (await store.admit(claim(key_id="c", limits=limit))).outcome is Outcome.ADMITTED


def heap_of(cache: Cache) -> Sized:
    return cache._by_expiry


def test_an_entry_that_is_replaced_for_ever_does_not_grow_the_cache() -> None:
    cache = Cache(max_entries=10)
    for now in range(1000):
        cache.put(fill("f1", b"x" * 10), now)
        cache.put(fill("f2", b"x" * 10), now)
    assert len(heap_of(cache)) <= 10
    assert cache.size_bytes == 20


async def test_a_decision_needs_no_waiting() -> None:
    store = MemoryStore(lambda: START_MS)
    assert store.decide(claim()).outcome is Outcome.ADMITTED
    await store.put_key("aa", KeyRecord("key-1", "acme", "ada", [], 5))
    await store.aclose()
