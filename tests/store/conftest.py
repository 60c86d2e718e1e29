import asyncio
import pathlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import uvloop
from store_rig import PATIENT_SECONDS, START_MS, Rig, Valkey, redis_rig

from extproc.store import RedisStore

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 - the hook's own names
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production; what breaks is tried on both: they order timers and sockets differently."""
    return LOOPS if item.path.stem in {"test_store_faults", "test_store_tls"} else {"uvloop": LOOPS["uvloop"]}


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A server that all tests share. Its folder is short: a Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(pathlib.Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server that the test may kill."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(pathlib.Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Rig]:
    rig = await redis_rig(valkey.url)
    yield rig
    await rig.store.aclose()


@pytest.fixture(params=["memory", "redis"])
async def rig(request: pytest.FixtureRequest, valkey: Valkey) -> AsyncIterator[Rig]:
    """Either store; the test holds the time."""
    rig = Rig() if request.param == "memory" else await redis_rig(valkey.url)
    assert rig.now_ms == START_MS
    yield rig
    await rig.store.aclose()


@pytest.fixture
async def real_time(own_valkey: Valkey) -> AsyncIterator[RedisStore]:
    """Redis with its own clock and the shipped scripts, on a server of its own."""
    store = RedisStore(own_valkey.url, timeout_seconds=PATIENT_SECONDS)
    await store.start()
    yield store
    await store.aclose()
