"""Redis killed, paused, slowed, emptied, read-only or not Redis at all: what a caller sees, and that it comes back."""

import asyncio
import signal
import ssl
import time
from collections.abc import AsyncIterator

import pytest
import trustme
from store_rig import PATIENT_SECONDS, Proxy, Valkey, claim, command, eventually, fill, settlement

from extproc.admission import Limits, Outcome
from extproc.errors import StoreUnavailable, StoreUnsureError
from extproc.store import RedisStore
from extproc.store.address import Address
from extproc.store.connection import Connection
from extproc.store.resp import pack

TIMEOUT_SECONDS = 0.2
SLACK_SECONDS = 0.5  # of a busy machine
TOKENS = Limits(tokens_per_minute=1, burst_tokens=1000)


@pytest.fixture
async def quick(own_valkey: Valkey) -> AsyncIterator[RedisStore]:
    """A store with a short time-out, up."""
    store = RedisStore(own_valkey.url, timeout_seconds=TIMEOUT_SECONDS)
    await store.start()
    await eventually(lambda: works(store))
    yield store
    await store.aclose()


async def works(store: RedisStore) -> bool:
    await store.settle([settlement(claim())])
    return (await store.admit(claim())).outcome is Outcome.ADMITTED


async def refused_at_once(store: RedisStore) -> None:
    began = time.perf_counter()
    for _ in range(100):
        with pytest.raises(StoreUnavailable):
            await store.admit(claim())
    assert time.perf_counter() - began < TIMEOUT_SECONDS


async def test_a_store_starts_without_redis_and_works_once_it_is_there(own_valkey: Valkey) -> None:
    own_valkey.kill()
    store = RedisStore(own_valkey.url, timeout_seconds=TIMEOUT_SECONDS)
    await store.start()
    assert not store.up
    await refused_at_once(store)
    for attempt in (store.settle([settlement(claim())]), store.find_key("aa"), store.shared(0), store.ping()):
        with pytest.raises(StoreUnavailable):
            await attempt
    own_valkey.start()
    assert await eventually(lambda: works(store))
    assert store.up
    await store.aclose()


async def test_a_killed_redis_fails_what_waits_and_comes_back_by_itself(quick: RedisStore, own_valkey: Valkey) -> None:
    own_valkey.send(signal.SIGSTOP)
    waiting = [asyncio.ensure_future(quick.admit(claim())) for _ in range(10)]
    await asyncio.sleep(0)
    own_valkey.kill()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnsureError}
    await refused_at_once(quick)
    own_valkey.start()  # empty: no scripts, no tenants
    assert await eventually(lambda: works(quick))


async def test_a_hung_redis_costs_one_time_out_and_then_nothing(quick: RedisStore, own_valkey: Valkey) -> None:
    own_valkey.send(signal.SIGSTOP)
    began = time.perf_counter()
    answers = await asyncio.gather(*(quick.admit(claim()) for _ in range(50)), return_exceptions=True)
    took = time.perf_counter() - began
    assert {type(answer) for answer in answers} == {StoreUnsureError}
    assert TIMEOUT_SECONDS * 0.9 < took < TIMEOUT_SECONDS + SLACK_SECONDS
    until = time.monotonic() + 3 * TIMEOUT_SECONDS  # a probe is sent meanwhile, and is not answered
    while time.monotonic() < until:
        await refused_at_once(quick)
        await asyncio.sleep(0.01)
    own_valkey.send(signal.SIGCONT)
    assert await eventually(lambda: works(quick))


async def test_each_command_has_its_own_time_out_under_steady_load(quick: RedisStore, own_valkey: Valkey) -> None:
    """Younger commands on the same connection do not put off the oldest one's end."""
    own_valkey.send(signal.SIGSTOP)
    took = []

    async def one() -> None:
        began = time.perf_counter()
        with pytest.raises(StoreUnavailable):
            await quick.admit(claim())
        took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(one())
            await asyncio.sleep(TIMEOUT_SECONDS / 20)
    assert max(took) < TIMEOUT_SECONDS + SLACK_SECONDS
    assert min(took) < TIMEOUT_SECONDS / 2
    own_valkey.send(signal.SIGCONT)


async def test_a_slow_network_is_a_time_out_and_a_fast_one_works_again(own_valkey: Valkey) -> None:
    async with Proxy(own_valkey.socket).running() as proxy:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", timeout_seconds=TIMEOUT_SECONDS)
        await eventually(lambda: started(store))
        proxy.delay_seconds = TIMEOUT_SECONDS / 10
        assert await eventually(lambda: works(store))
        proxy.delay_seconds = TIMEOUT_SECONDS * 3
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await store.admit(claim())
        await refused_at_once(store)
        proxy.delay_seconds = 0
        assert await eventually(lambda: works(store))
        await store.aclose()


async def started(store: RedisStore) -> bool:
    await store.start()
    return store.up


async def test_tls_is_spoken_and_an_unknown_authority_refused(own_valkey: Valkey, tmp_path: object) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Proxy(own_valkey.socket).running(context) as proxy:
        with authority.cert_pem.tempfile(dir=str(tmp_path)) as file:
            url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={file}"
            store = RedisStore(url, timeout_seconds=PATIENT_SECONDS)
            await store.start()
            assert await works(store)
            await store.aclose()
        stranger = RedisStore(f"rediss://127.0.0.1:{proxy.port}", timeout_seconds=TIMEOUT_SECONDS)
        await stranger.start()
        with pytest.raises(StoreUnavailable, match="certificate"):
            await stranger.ping()
        await stranger.aclose()


async def test_a_paused_redis_is_a_time_out(quick: RedisStore) -> None:
    await command(quick, "CLIENT", "PAUSE", int(TIMEOUT_SECONDS * 3000))
    with pytest.raises(StoreUnavailable):
        await quick.admit(claim())
    assert await eventually(lambda: works(quick))


async def test_scripts_that_redis_forgot_are_loaded_again(real_time: RedisStore) -> None:
    one = claim(limits=TOKENS, tokens=400)
    await real_time.admit(one)
    await command(real_time, "SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(real_time.admit(claim(limits=TOKENS, tokens=10)) for _ in range(20)))
    assert {answer.outcome for answer in answers} == {Outcome.ADMITTED}
    await command(real_time, "SCRIPT", "FLUSH")
    many = [settlement(claim(tenant=f"t{number}")) for number in range(40)]
    assert await real_time.settle([settlement(one, tokens=100), *many]) == [True] * 41
    await command(real_time, "SCRIPT", "FLUSH")
    assert (await real_time.shared(0)).unsettled == 20
    assert await real_time.sweep(0) == 20
    left = await real_time.admit(claim(limits=TOKENS, tokens=0))
    assert left.tokens.remaining == 1000 - 100 - 20 * 10


async def test_when_redis_lost_its_data_settlements_are_charged_in_full(real_time: RedisStore) -> None:
    one = claim(limits=TOKENS, tokens=400)
    await real_time.admit(one)
    await command(real_time, "FLUSHALL")
    assert await real_time.settle([settlement(one, tokens=300)]) == [True]
    assert (await real_time.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 700


async def test_tenants_are_found_again_after_redis_lost_them(real_time: RedisStore) -> None:
    await real_time.admit(claim())
    await command(real_time, "FLUSHALL")
    await real_time.shared(0)
    await real_time.admit(claim())
    assert (await real_time.shared(0)).unsettled == 1


async def test_a_replica_is_not_written_to(quick: RedisStore) -> None:
    await command(quick, "REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match=r"READONLY|MASTERDOWN"):
        await quick.admit(claim())
    with pytest.raises(StoreUnavailable):
        await quick.settle([settlement(claim())])

    async def promote() -> bool:
        return bool(await command(quick, "REPLICAOF", "NO", "ONE"))

    await eventually(promote)
    assert await eventually(lambda: works(quick))


async def test_a_key_of_the_wrong_type_is_unavailable_and_the_connection_lives(real_time: RedisStore) -> None:
    await command(real_time, "LPUSH", "llm:{acme}:user:ada", "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await real_time.admit(claim())
    await command(real_time, "HSET", "llm:{keys}", "aa", "not json")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await real_time.find_key("aa")
    assert (await real_time.admit(claim(user="bob"))).outcome is Outcome.ADMITTED


async def test_a_caller_that_went_away_does_not_shift_the_answers(real_time: RedisStore) -> None:
    await real_time.settle([settlement(claim(), fill=fill(f"f{number}", b"%d" % number)) for number in range(20)])
    tasks = [asyncio.create_task(real_time.admit(claim(fingerprint=f"f{number}"))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert not isinstance(answer, BaseException)
            assert answer.entry == b"%d" % number


async def test_commands_in_flight_are_bounded(own_valkey: Valkey) -> None:
    connection = Connection(Address.parse(own_valkey.url), timeout_seconds=PATIENT_SECONDS, max_in_flight=10)
    await connection.start()
    futures = [connection.send(pack(("PING",))) for _ in range(10)]
    with pytest.raises(StoreUnavailable, match="more than 10"):
        connection.send(pack(("PING",)))
    assert await asyncio.gather(*futures) == [b"PONG"] * 10
    assert await connection.send_all([pack(("ECHO", number)) for number in range(3)]) == [b"0", b"1", b"2"]
    await connection.aclose()


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n+PONG\r\n", b""])
async def test_what_is_not_redis_is_unavailable(nonsense: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonsense)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_seconds=TIMEOUT_SECONDS)
    await store.start()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.aclose()
    server.close()


async def test_password_and_database_of_the_url_are_used(real_time: RedisStore, own_valkey: Valkey) -> None:
    await command(real_time, "ACL", "SETUSER", "mesh", "on", ">p@ss/word", "~*", "+@all")
    await command(real_time, "CONFIG", "SET", "requirepass", "secret")
    for credentials, works_with_them in (
        ("mesh:p%40ss%2Fword@", True),
        (":secret@", True),
        ("", False),
        (":no@", False),
    ):
        store = RedisStore(f"unix://{credentials}{own_valkey.socket}?db=3", timeout_seconds=PATIENT_SECONDS)
        await store.start()
        assert store.up is works_with_them
        if works_with_them:
            await store.share_ratio("mistral", 0.5)
        else:
            with pytest.raises(StoreUnavailable, match=r"NOAUTH|WRONGPASS"):
                await store.ping()
        await store.aclose()
    await command(real_time, "SELECT", 3)
    assert await command(real_time, "HLEN", "llm:ratios") == 1


async def test_a_closed_store_is_unavailable(real_time: RedisStore) -> None:
    await real_time.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await real_time.ping()
