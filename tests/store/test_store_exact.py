"""Limits hold exactly, and settlements count once, with several connections and processes at work."""

import asyncio
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from store_rig import PATIENT_SECONDS, START_MS, Rig, Valkey, claim, command, eventually, fill, settlement

from extproc import limits
from extproc.admission import KeyRecord, Limits, Outcome
from extproc.store import RedisStore, keyspace

DAY_MS = 86_400_000

SLOW_REFILL = Limits(requests_per_minute=1, burst_requests=100)
PROCESS = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from store_rig import claim
from extproc.admission import Limits, Outcome
from extproc.store import RedisStore

async def main():
    store = RedisStore(sys.argv[1], timeout_seconds=10)
    await store.start()
    limit = Limits(requests_per_minute=1, burst_requests=100)
    claims = [claim(request_id=f"{sys.argv[3]}-{n}", limits=limit) for n in range(100)]
    answers = await asyncio.gather(*map(store.admit, claims))
    print(sum(answer.outcome is Outcome.ADMITTED for answer in answers))
    await store.aclose()

asyncio.run(main())
"""


async def test_200_at_once_over_two_stores_admit_exactly_100(own_valkey: Valkey) -> None:
    stores = [RedisStore(own_valkey.url, timeout_seconds=PATIENT_SECONDS) for _ in range(2)]
    for store in stores:
        await store.start()
    admits = [stores[number % 2].admit(claim(limits=SLOW_REFILL)) for number in range(200)]
    answers = await asyncio.gather(*admits)
    assert sum(answer.outcome is Outcome.ADMITTED for answer in answers) == 100
    refused = {answer.outcome for answer in answers} - {Outcome.ADMITTED}
    assert refused == {Outcome.REQUESTS}
    for store in stores:
        await store.aclose()


def test_200_at_once_from_two_processes_admit_exactly_100(own_valkey: Valkey) -> None:
    here = str(pathlib.Path(__file__).parent)
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, own_valkey.url, here, name], stdout=subprocess.PIPE)
        for name in ("a", "b")
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == 100


async def test_concurrent_copies_of_a_settlement_charge_once(own_valkey: Valkey) -> None:
    stores = [RedisStore(own_valkey.url, timeout_seconds=PATIENT_SECONDS) for _ in range(3)]
    for store in stores:
        await store.start()
    limit = Limits(tokens_per_minute=1, burst_tokens=10_000, budget_micros=10_000)
    claims = [claim(limits=limit, tokens=100, cost_micros=100) for _ in range(50)]
    await asyncio.gather(*map(stores[0].admit, claims))
    sent = [settlement(one, tokens=40, cost_micros=40) for one in claims]
    answers = await asyncio.gather(*(store.settle(sent) for store in stores for _ in range(4)))
    assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 50
    left = await stores[0].admit(claim(limits=limit, tokens=8000, cost_micros=8000))
    assert (left.outcome, left.tokens.remaining) == (Outcome.ADMITTED, 0)
    for store in stores:
        await store.aclose()


async def test_slots_are_never_more_than_allowed(redis: Rig) -> None:
    limit = Limits(requests_per_minute=0, max_in_flight=7)
    claims = [claim(limits=limit) for _ in range(50)]
    answers = await asyncio.gather(*map(redis.store.admit, claims))
    assert sum(answer.outcome is Outcome.ADMITTED for answer in answers) == 7


async def test_a_key_is_revoked_in_the_form_that_it_has_then(redis: Rig) -> None:
    """A write that expects another record than there is does not happen."""
    assert isinstance(redis.store, RedisStore)
    record = KeyRecord("key-1", "acme", "ada", [], 5)
    await redis.store.put_key("aa", record)
    assert not await redis.store._put_key(b"aa", KeyRecord("key-1", "acme", "eve", [], 5), b"what it was before")
    assert await redis.store.find_key("aa") == record
    assert (await redis.store.shared(0)).keys_revision == 1


# What lies in Redis.


async def test_after_settlement_nothing_of_a_request_stays_but_marker_counters_and_ledger(redis: Rig) -> None:
    assert isinstance(redis.store, RedisStore)
    one = claim(limits=Limits(requests_per_minute=0, max_in_flight=5))
    await redis.store.admit(one)
    await redis.store.settle([settlement(one, tokens=7, arm="canary")])
    names = {name.decode() for name in await command(redis.store, "KEYS", "llm:{acme}:*")}
    start = "llm:{acme}:"
    assert names == {f"{start}settled:{one.request_id}", f"{start}usage:2025-11-24", f"{start}ledger"} | {
        f"{start}spent:2025-11"
    }
    for name in names - {f"{start}ledger"}:
        assert await command(redis.store, "PTTL", name) > 0
    ((_, (word, line)),) = await command(redis.store, "XRANGE", f"{start}ledger", "-", "+")
    assert word == b"line"
    assert (json.loads(line)["completion_tokens"], json.loads(line)["arm"]) == (7, "canary")


async def test_usage_from_before_arms_were_recorded_is_read_and_goes_on(redis: Rig) -> None:
    assert isinstance(redis.store, RedisStore)
    old = json.dumps(["ada", "key-1", "mistral"], separators=(",", ":"))
    await command(redis.store, "SADD", "llm:tenants", "acme")
    await command(redis.store, "HSET", "llm:{acme}:usage:2025-11-24", old, "[3,0,0,0,30,40,0,50]")
    (row,) = await redis.store.usage("2025-11-24", "2025-11-24")
    assert (row.model, row.arm, row.requests, row.cost_micros) == ("mistral", "", 3, 50)
    await redis.store.settle([settlement(claim(), cost_micros=1), settlement(claim(), arm="canary")])
    rows = await redis.store.usage("2025-11-24", "2025-11-24")
    assert [(row.arm, row.requests, row.cost_micros) for row in rows] == [("", 4, 51), ("canary", 1, 10)]


async def test_the_index_of_the_cache_does_not_drift(redis: Rig) -> None:
    """Through replacement, expiry and eviction, looked at after every fill."""
    assert isinstance(redis.store, RedisStore)
    for number in range(200):
        one = fill(f"f{number * number % 11}", b"x" * (10 + number * 37 % 300), ttl_ms=3000 + number % 5 * 1000)
        await redis.store.settle([settlement(claim(), fill=one)])
        names = await command(redis.store, "KEYS", "llm:{acme}:cache:*")
        sizes = [await command(redis.store, "STRLEN", name) - 26 for name in names]
        assert sum(sizes) == int(await command(redis.store, "GET", "llm:{acme}:cache.bytes")) <= 1000
        assert await command(redis.store, "ZCARD", "llm:{acme}:cache.index") == len(names)
        await redis.later(number % 7 * 200)


async def test_the_ledger_is_capped(valkey: Valkey) -> None:
    store = RedisStore(valkey.url, timeout_seconds=PATIENT_SECONDS, ledger_entries=100)
    await store.start()
    await command(store, "FLUSHALL")
    await store.settle([settlement(claim()) for _ in range(1000)])
    assert await command(store, "XLEN", "llm:{acme}:ledger") < 300
    await store.aclose()


async def test_the_keys_of_a_tenant_share_one_slot_and_no_other_tenants_prefix(redis: Rig) -> None:
    assert isinstance(redis.store, RedisStore)
    await redis.store.admit(claim(tenant="a}:{b", user="}{"))
    await redis.store.admit(claim(tenant="", user="{x}"))
    names = await command(redis.store, "KEYS", "llm:{*:*")
    assert {name.split(b"}")[0] for name in names} == {b"llm:{a%7D%3A%7Bb", b"llm:{%"}


async def test_the_calendar_of_the_scripts_is_that_of_python(redis: Rig) -> None:
    assert isinstance(redis.store, RedisStore)
    month_ends = [limits.month_ends_ms(START_MS + number * 27 * DAY_MS) for number in range(200)]
    times = [moment + shift for moment in month_ends for shift in (-DAY_MS, -1, 0, DAY_MS)]
    text = """
        local answers = {}
        for i, now in ipairs(ARGV) do answers[i] = {day_of(tonumber(now)), month_ends_ms(tonumber(now))} end
        return answers
    """
    script = (keyspace.LUA / "bucket.lua").read_text() + text
    answers = await command(redis.store, "EVAL", script, 0, *times)
    assert answers == [[limits.day(now).encode(), limits.month_ends_ms(now)] for now in times]


async def test_the_shipped_clock_is_the_servers_own(real_time: RedisStore) -> None:
    limit = Limits(requests_per_minute=6000, burst_requests=1)
    one = claim(limits=limit)
    await real_time.admit(one)
    await real_time.settle([settlement(one, fill=fill("f1", b"answer"))])
    seconds, _ = await command(real_time, "TIME")
    assert abs(int(seconds) - time.time()) < 60
    assert int(await command(real_time, "GET", f"llm:{{acme}}:spent:{limits.month(int(seconds) * 1000)}")) == 10

    async def refilled() -> bool:
        return (await real_time.admit(claim(limits=limit, fingerprint="f1"))).age_ms > 0

    await eventually(refilled)
    ttl = await command(real_time, "PTTL", "llm:{acme}:cache:f1")
    assert 0 < ttl <= 60_000


async def test_every_script_runs_on_a_cluster() -> None:
    """One node that owns all slots: it refuses a script whose keys are not all in the slot of the tenant."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            ports = [one.getsockname()[1], two.getsockname()[1]]
        options = ("--cluster-enabled", "yes", "--bind", "127.0.0.1", "--cluster-port", str(ports[1]))
        server = Valkey(pathlib.Path(folder), *options, port=ports[0])
        server.start()
        store = RedisStore(server.url, timeout_seconds=PATIENT_SECONDS)
        try:
            await store.start()
            await command(store, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await eventually(lambda: use_every_script(store))
        finally:
            await store.aclose()
            server.kill()


async def use_every_script(store: RedisStore) -> bool:
    limit = Limits(tokens_per_minute=60, burst_tokens=1000, budget_micros=1000, max_in_flight=5)
    one, two = [claim(tenant="a}:{b", limits=limit, fingerprint="f1") for _ in range(2)]
    await store.admit(one)
    await store.admit(two)
    for name in ("f1", "f2", "f3", "f4"):
        await store.settle([settlement(one, request_id=name, fill=fill(name, b"x" * 400))])
    assert await store.settle([settlement(one), settlement(one)]) == [True, False]
    assert (await store.admit(claim(tenant="a}:{b", fingerprint="f4"))).outcome is Outcome.HIT
    assert (await store.shared(0)).unsettled == 1
    assert await store.sweep(0) == 1
    await store.put_key("aa", KeyRecord("key-1", "a}:{b", "ada", [], 5))
    return await store.revoke_key("key-1", 1)
