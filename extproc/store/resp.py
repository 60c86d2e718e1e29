"""One socket to Redis while it lives: many commands under way, answers in order, one watch over all time-outs.

Must not know what the commands mean, nor how to connect. It exists because each await that suspends and each task
costs more here than the command itself: a command is one future in a queue, the writes of one turn of the event
loop leave together, and one timer watches the oldest command for all. A command that is not answered in time ends
the connection, because later answers could not be told apart.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import hiredis

from extproc.errors import StoreUnavailable, StoreUnsureError

Word = str | bytes | int | float
Reply = Any  # bytes | int | None | list of these, as hiredis gives them

GRACE_SECONDS = 0.005  # an answer may lie unread in the socket when the loop itself was late
CLOSED = "Redis closed the connection"
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
        self.closed: asyncio.Future[str] = self._loop.create_future()  # why

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
        self.closed.set_result(why)
        if self._transport is not None:
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(StoreUnsureError(why))

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"{CLOSED}: {exc or 'end of stream'}")

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
