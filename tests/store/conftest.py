import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from store_rig import PATIENT_SECONDS, START_MS, Rig, Valkey, redis_rig

from extproc.store import RedisStore


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
