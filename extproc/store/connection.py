"""One pipelined connection to Redis, for the path that every request takes.

Owns a socket, the order of answers on it, time-outs and reconnection. Must not know what the commands mean. It
exists because each await that suspends and each task costs more here than the command itself: a command is one
future in a queue, the writes of one turn of the event loop leave together, and one timer watches the oldest
command for all.

While the connection is down every call fails at once with StoreUnavailable; a background task tries again after
50 ms, doubling to 1 s, and a connection counts as up when it has answered a PING within the commands' time-out. A
command that is not answered in time ends the connection, because later answers could not be told apart.
"""

import asyncio
import contextlib
import ssl
import urllib.parse
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, cast

import hiredis
import msgspec

from extproc.errors import ConfigError, StoreUnavailable

Word = str | bytes | int | float
Reply = Any  # bytes | int | None | list of these, as hiredis gives them

CONNECT_SECONDS = 1.0  # name look-up, TCP, TLS
GRACE_SECONDS = 0.005  # an answer may lie unread in the socket when the loop itself was late
FIRST_BACKOFF_SECONDS = 0.05
LAST_BACKOFF_SECONDS = 1.0
MOVED_AWAY = ("READONLY", "MASTERDOWN", "LOADING")  # another server may be the right one by now: connect again

# hiredis's own annotation allows a tuple of one only
pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class NoScript(Exception):  # noqa: N818  Redis's own word, caught beside the call that meets it
    """The script is not in Redis's cache."""


class Waiter(Protocol):
    """What a queue of answers holds: a future, or something that collects several answers for one."""

    def done(self) -> bool: ...
    def set_result(self, result: Reply, /) -> None: ...
    def set_exception(self, exception: Exception, /) -> None: ...


class Batch:
    """One future for several commands: its result is the list of their answers. NoScript is an answer here, so
    that only those commands are repeated which did not run; any other error ends the batch."""

    def __init__(self, future: "asyncio.Future[list[Reply]]", size: int) -> None:
        self.future = future
        self._size = size
        self._replies: list[Reply] = []

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, result: Reply) -> None:
        self._replies.append(result)
        if len(self._replies) == self._size:
            self.future.set_result(self._replies)

    def set_exception(self, exception: Exception) -> None:
        if isinstance(exception, NoScript):
            self.set_result(exception)
        else:
            self.future.set_exception(exception)


class Address(msgspec.Struct, frozen=True):
    """Where Redis is. `path` for a Unix socket, else host and port."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    user: str = ""
    password: str = ""
    database: int = 0
    tls: bool = False
    ca_file: str = ""  # "" = the system's

    @classmethod
    def parse(cls, url: str) -> "Address":
        """redis://[user:password@]host[:port][/database], rediss://…[?ssl_ca_certs=file], unix://[…@]/path[?db=n]."""
        try:
            return cls._parse(urllib.parse.urlsplit(url))
        except ValueError as error:
            raise ConfigError(f"not a Redis URL ({error}): {url.rpartition('@')[2]}") from None

    @classmethod
    def _parse(cls, parts: urllib.parse.SplitResult) -> "Address":
        options = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        unix = parts.scheme == "unix"
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("the scheme must be redis, rediss or unix")
        database = options.pop("db", "") or ("" if unix else parts.path.strip("/")) or "0"
        address = cls(
            host=parts.hostname or "127.0.0.1",
            port=(not unix and parts.port) or 6379,
            path=urllib.parse.unquote(parts.path) if unix else "",
            user=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
            database=int(database),
            tls=parts.scheme == "rediss",
            ca_file=options.pop("ssl_ca_certs", ""),
        )
        if options:
            raise ValueError("unknown option " + ", ".join(options))
        if unix and not address.path:
            raise ValueError("no path")
        return address

    def greeting(self) -> list[bytes]:
        """The commands to send first on a new connection."""
        credentials = [self.user, self.password] if self.user else [self.password]
        auth = [pack(("AUTH", *credentials))] if self.password else []
        return auth + ([pack(("SELECT", self.database))] if self.database else [])


class Wire(asyncio.Protocol):
    """One socket while it lives: writes, answers in order, and the watch over the oldest command."""

    def __init__(self, timeout_seconds: float, max_in_flight: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = timeout_seconds
        self._max_in_flight = max_in_flight
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, Waiter]] = deque()
        self._out: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # What a caller does.

    def send(self, packed: bytes) -> "asyncio.Future[Reply]":
        """Queue one command; the answer is the future's. Raises at once when it cannot be sent."""
        self._admit(1)
        future = self._loop.create_future()
        self._waiting.append((self._loop.time(), future))
        self._write(packed)
        return future

    def send_all(self, commands: list[bytes]) -> "asyncio.Future[list[Reply]]":
        """Queue several commands, answered together."""
        self._admit(len(commands))
        batch = Batch(self._loop.create_future(), len(commands))
        self._waiting.extend([(self._loop.time(), batch)] * len(commands))
        self._write(b"".join(commands))
        return batch.future

    def end(self, why: str) -> None:
        """Drop the socket and fail everything that still waits for an answer."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._transport is not None:
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(StoreUnavailable(why))

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"Redis closed the connection: {exc or 'end of stream'}")

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        waiting = self._waiting
        try:
            while (reply := self._reader.gets()) is not False:
                waiter = waiting.popleft()[1]
                if isinstance(reply, hiredis.ReplyError):
                    self._refused(waiter, str(reply))
                elif not waiter.done():
                    waiter.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.end("Redis sent something that is not an answer")

    # Inside.

    def _admit(self, commands: int) -> None:
        if self.closed.done():
            raise StoreUnavailable("Redis is not connected")
        if len(self._waiting) + commands > self._max_in_flight:
            raise StoreUnavailable(f"more than {self._max_in_flight} commands wait for Redis")

    def _write(self, packed: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_seconds, self._look, False)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(out))

    def _look(self, again: bool) -> None:
        """The one timer: is the oldest command overdue? If so, once more after the loop has read its sockets."""
        self._watch = None
        if not self._waiting:
            return
        left = self._waiting[0][0] + self._timeout_seconds - self._loop.time()
        if left > 0.001:
            self._watch = self._loop.call_later(left, self._look, False)
        elif not again:
            self._watch = self._loop.call_later(GRACE_SECONDS, self._look, True)
        else:
            self.end(f"Redis did not answer in time ({self._timeout_seconds:g} s)")

    def _refused(self, waiter: Waiter, message: str) -> None:
        if message.startswith("NOSCRIPT"):
            error: Exception = NoScript(message)
        else:
            error = StoreUnavailable(f"Redis: {message}")
        if not waiter.done():
            waiter.set_exception(error)
        if message.startswith(MOVED_AWAY):
            self.end(f"Redis: {message}")


class Connection:
    """A wire that comes back. Start it once; `send` and `send_all` raise StoreUnavailable while it is down."""

    def __init__(
        self,
        address: Address,
        *,
        timeout_seconds: float,
        max_in_flight: int = 8192,
    ) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._max_in_flight = max_in_flight
        self._task: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self.send: Callable[[bytes], asyncio.Future[Reply]] = self._down
        self.send_all: Callable[[list[bytes]], asyncio.Future[list[Reply]]] = self._down
        self.up = False
        self._why = "Redis is not connected yet"

    async def start(self) -> None:
        """Return after the first attempt, whatever came of it."""
        if self._task is None:
            self._settled = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._keep_up(), name="redis connection")
        if self._settled is not None:
            await asyncio.shield(self._settled)

    async def aclose(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._why = "the store is closed"

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                wire = await self._connect()
            except (OSError, StoreUnavailable, NoScript) as error:
                self._why = str(error) or type(error).__name__
                self._first_attempt_ended()
            else:
                came_up = loop.time()
                await self._serve(wire)
                if loop.time() - came_up > LAST_BACKOFF_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    async def _serve(self, wire: Wire) -> None:
        """Calls go straight to the wire for as long as it lives."""
        self.send, self.send_all = wire.send, wire.send_all
        self.up = True
        self._first_attempt_ended()
        try:
            await asyncio.shield(wire.closed)
        finally:
            self.send = self.send_all = self._down
            self._why = "the connection to Redis was lost"
            self.up = False
            wire.end("the store is closed")

    async def _connect(self) -> Wire:
        """A wire that has proved to answer in time."""
        address, loop = self._address, asyncio.get_running_loop()

        def wire() -> Wire:
            return Wire(self._timeout_seconds, self._max_in_flight)

        async with asyncio.timeout(CONNECT_SECONDS):
            if address.path:
                _, made = await loop.create_unix_connection(wire, address.path)
            else:
                tls = ssl.create_default_context(cafile=address.ca_file or None) if address.tls else None
                _, made = await loop.create_connection(wire, address.host, address.port, ssl=tls)
        try:
            await made.send_all([*address.greeting(), pack(("PING",))])
        except BaseException:
            made.end("Redis does not answer")
            raise
        return made

    def _first_attempt_ended(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _down(self, _: object) -> NoReturn:
        raise StoreUnavailable(self._why)
