"""The load client, a process of its own: reads a Load from stdin, writes a Tally to stdout.

One asyncio.Protocol a connection and no task a request, so that it takes little of the machine that it measures.
"""

import asyncio
import resource
import sys
import time
from array import array
from collections import deque
from typing import Any

import httptools
import msgspec
import timer
import uvloop
from load import Load, Tally

_PATIENCE_SECONDS = 20.0
_clock = time.perf_counter  # CLOCK_MONOTONIC


class Connection(asyncio.Protocol):
    """Asks one request at a time; `run` says what comes next."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.parser: Any = httptools.HttpResponseParser(self)
        self.transport: Any = None
        self.busy = False
        self.began = 0.0
        self.pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.run.connected(self)

    def ask(self, due: float) -> None:
        self.busy = True
        self.began = due
        self.transport.write(self.run.request())

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        now = _clock()
        body = b"".join(self.pieces)
        self.pieces.clear()
        self.busy = False
        self.run.answered(self, now, self.parser.get_status_code(), body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.lost(self, exc)


class StreamConnection(Connection):
    """Counts events as they pass and keeps only the end."""

    def ask(self, due: float) -> None:
        self.silent = True
        self.cut = False  # the last piece ended in the middle of an event's end
        super().ask(due)

    def on_body(self, piece: bytes) -> None:
        if self.silent:
            self.silent = False
            self.run.first_bytes.append(_clock() - self.began)
        self.run.events += piece.count(b"\n\n") + (self.cut and piece[0] == 10)
        self.cut = piece[-1] == 10 and piece[-2:] != b"\n\n"
        self.pieces[:-1] = ()
        self.pieces.append(piece)


class Run:
    """A closed loop: a connection that is answered asks again."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.connections: list[Connection] = []
        self.sent = 0
        self.outstanding = 0
        self.events = 0
        self.failed = 0
        self.failure = ""
        self.latencies = array("d")
        self.first_bytes = array("d")
        self.ready = asyncio.Event()
        self.finished = asyncio.Event()
        self.until = 0.0
        self.steady = [(0.0, 0)]
        self.ended = 0.0

    # What a connection calls.

    def connected(self, connection: Connection) -> None:
        self.connections.append(connection)
        if len(self.connections) == self.load.connections:
            self.ready.set()

    def request(self) -> bytes:
        load = self.load
        number = load.first + (self.sent % load.pool if load.pool else self.sent)
        self.sent += 1
        self.outstanding += 1
        return b"%b%016d%b" % (load.head, number, load.tail)

    def answered(self, connection: Connection, now: float, status: int, body: bytes) -> None:
        self.outstanding -= 1
        self.ended = now
        if status == self.load.status and self.load.needle in body:
            self.latencies.append(now - connection.began)
        else:
            self.fail(f"{status}: {body[:200]!r}")
        self.freed(connection, now)

    def lost(self, connection: Connection, exc: Exception | None) -> None:
        if not self.finished.is_set():
            self.outstanding -= connection.busy
            if connection.busy or self.more(_clock()):  # else it has nothing to do any more: servers close what idles
                self.fail(f"connection lost: {exc}")
            self.end_if_done(_clock())

    def fail(self, words: str) -> None:
        self.failed += 1
        self.failure = self.failure or words

    # The loop.

    def freed(self, connection: Connection, now: float) -> None:
        if self.more(now):
            connection.ask(now)
        else:
            self.end_if_done(now)

    def more(self, now: float) -> bool:
        return self.sent < self.load.count if self.load.count else now < self.until

    def end_if_done(self, now: float) -> None:
        if not self.outstanding and (not self.more(now) or all(c.transport.is_closing() for c in self.connections)):
            self.finished.set()

    def begin(self, start: float) -> None:
        """Set the first requests off."""
        load, loop = self.load, asyncio.get_running_loop()
        self.until = start + load.ramp_seconds + load.seconds
        for at, connection in enumerate(self.connections):
            wait = load.ramp_seconds * at / load.connections
            loop.call_later(wait, lambda each=connection: self.freed(each, _clock()))
        for wait in (load.ramp_seconds, load.ramp_seconds + load.seconds):
            loop.call_later(wait, lambda: self.steady.append((_clock(), self.events)))


class OpenRun(Run):
    """An open loop: requests are due at fixed times, answered or not."""

    def begin(self, start: float) -> None:
        self.start = start + 0.01
        self.due = 0
        self.total = round(self.load.seconds * self.load.rate)
        self.idle = deque(self.connections)
        self.late: deque[float] = deque()
        self.timer = timer.create()
        timer.arm(self.timer, self.start, 1 / self.load.rate)
        asyncio.get_running_loop().add_reader(self.timer, self.tick)

    def tick(self) -> None:
        for _ in range(min(timer.expired(self.timer), self.total - self.due)):
            self.late.append(self.start + self.due / self.load.rate)
            self.due += 1
        if self.due == self.total:
            asyncio.get_running_loop().remove_reader(self.timer)
        while self.late and self.idle:
            self.idle.popleft().ask(self.late.popleft())

    def freed(self, connection: Connection, now: float) -> None:
        if self.late:
            connection.ask(self.late.popleft())
        else:
            self.idle.append(connection)
            self.end_if_done(now)

    def more(self, _now: float) -> bool:
        return self.due < self.total or bool(self.late)


def quantile(values: array, share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))] * 1000 if ordered else 0.0


async def drive(load: Load) -> Tally:
    run = OpenRun(load) if load.rate else Run(load)
    kind = StreamConnection if load.stream else Connection
    loop = asyncio.get_running_loop()
    for _ in range(load.connections):
        await loop.create_connection(lambda: kind(run), "127.0.0.1", load.port)
    await run.ready.wait()
    cpu, start = _cpu(), _clock()
    run.begin(start)
    try:
        await asyncio.wait_for(run.finished.wait(), load.ramp_seconds + load.seconds + _PATIENCE_SECONDS)
    except TimeoutError:
        run.failed += run.outstanding
        run.failure = run.failure or "no answer came"
    return tally(run, start, _cpu() - cpu)


def tally(run: Run, start: float, cpu: float) -> Tally:
    (began, before), (ended, after) = run.steady[1:] if len(run.steady) == 3 else [(0.0, 0), (1.0, 0)]
    return Tally(
        requests=run.sent,
        failed=run.failed,
        failure=run.failure,
        per_second=len(run.latencies) / max(run.ended - start, 1e-9),
        p50=quantile(run.latencies, 0.5),
        p99=quantile(run.latencies, 0.99),
        cpu_us=cpu / max(run.sent, 1) * 1e6,
        events=run.events,
        events_per_second=(after - before) / (ended - began),
        ttft_p50=quantile(run.first_bytes, 0.5),
        ttft_p95=quantile(run.first_bytes, 0.95),
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(drive(load))))


if __name__ == "__main__":
    main()
