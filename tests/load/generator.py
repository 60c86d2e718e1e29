"""The load generator, a process of its own: reads an Order from stdin, writes a line of JSON a second to stdout.

An open loop. Each request is sent when it is due, on a connection that is free or a new one; where the most
connections are open it waits, and its time counts from when it was due.
"""

import asyncio
import resource
import signal
import ssl
import sys
from collections import deque
from pathlib import Path

import msgspec
import uvloop

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import timer
from agenda import Agenda
from links import Answer, Link, clock
from orders import Line, Order, Progress, Result
from quantiles import spread
from records import GOOD, REFUSALS, REFUSED
from sums import summary

_AHEAD_SECONDS = 0.05  # from the plan's making to its start
_CONNECT_SECONDS = 10.0


class Run:
    """What is due is asked; what comes is recorded."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.agenda = Agenda(order)
        self.records = self.agenda.records
        self.total = len(self.records.due)
        self.next = 0
        self.done = 0
        self.waiting: deque[int] = deque()  # due, and no connection is free
        self.free: list[Link] = []
        self.asking: set[Link] = set()
        self.connections = self.opened = self.held = self.streaming = 0
        self.most_asking = self.most_streaming = 0
        self.chunks = self.good = self.refused = 0
        self.recent: list[float] = []  # times to first token since the last progress
        self.tasks: set[asyncio.Task[None]] = set()
        self.finished = asyncio.Event()
        self.context = _context(order)
        self.timer = timer.create()
        self.start = self.cpu = 0.0

    # --- asking -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.start, self.cpu = clock() + _AHEAD_SECONDS, _cpu()
        asyncio.get_running_loop().add_reader(self.timer, self.tick)
        self.arm()

    def arm(self) -> None:
        if self.next < self.total:
            timer.arm(self.timer, self.start + self.records.due[self.next])
        elif self.done == self.total:
            self.finished.set()

    def tick(self) -> None:
        timer.expired(self.timer)
        now = clock() - self.start
        while self.next < self.total and self.records.due[self.next] <= now:
            self.next += 1
            self.dispatch(self.next - 1)
        self.arm()

    def dispatch(self, number: int) -> None:
        if self.free:
            self.ask(self.free.pop(), number)
            return
        self.waiting.append(number)
        if self.connections < self.order.most_connections:
            self.open()
        else:
            self.held += 1

    def ask(self, link: Link, number: int) -> None:
        self.records.sent[number] = clock() - self.start
        self.asking.add(link)
        self.most_asking = max(self.most_asking, len(self.asking))
        link.ask(number, self.agenda.request(number), stream=self.agenda.stream(number))

    def open(self) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._open())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _open(self) -> None:
        """A task a connection, not a request."""
        try:
            connecting = asyncio.get_running_loop().create_connection(
                lambda: Link(self), self.order.host, self.order.port, ssl=self.context
            )
            await asyncio.wait_for(connecting, _CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            self.connections -= 1
            if self.waiting:
                self.fail(self.waiting.popleft(), f"no connection: {type(error).__name__}")

    # --- what a link tells --------------------------------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        self.opened += 1
        self.freed(link)

    def freed(self, link: Link) -> None:
        if self.waiting:
            self.ask(link, self.waiting.popleft())
        else:
            self.free.append(link)

    def began(self, link: Link) -> None:
        answer = link.answer
        if answer is not None:
            self.streaming += 1
            self.most_streaming = max(self.most_streaming, self.streaming)
            self.records.first[answer.number] = answer.first - self.start
            self.recent.append(answer.first - self.start - self.records.due[answer.number])

    def heard(self, events: int, gap: float) -> None:
        self.chunks += events
        if gap:
            self.records.gaps.add(gap)

    def ended(self, link: Link, answer: Answer, now: float) -> None:
        number, records = answer.number, self.records
        self.asking.discard(link)
        self.streaming -= bool(answer.first)
        stream = self.agenda.stream(number)
        wrong = answer.wrong(stream=stream)
        if not wrong:
            self.good += 1
            records.first[number] = records.first[number] or now - self.start
            records.hit[number] = answer.hit
            records.prompt_tokens[number], records.completion_tokens[number] = answer.tokens(stream=stream)
            self.end(number, GOOD)
        elif answer.status in REFUSALS and self.agenda.traffics[records.traffic[number]].may_be_refused:
            self.refused += 1
            records.told_to_wait[number] = answer.wait
            self.end(number, REFUSED)
        else:
            self.fail(number, wrong)
        self.freed(link)

    def lost(self, link: Link, answer: Answer | None) -> None:
        self.connections -= 1
        self.asking.discard(link)
        if link in self.free:
            self.free.remove(link)
        if answer is not None:
            self.streaming -= bool(answer.first)
            self.fail(answer.number, "connection lost " + ("within a stream" if answer.first else "before an answer"))
        if self.waiting and not self.free and self.connections < self.order.most_connections:
            self.open()

    def drop(self, link: Link, why: str) -> None:
        answer, link.answer = link.answer, None
        if answer is not None:
            self.streaming -= bool(answer.first)
            self.fail(answer.number, why)
        link.abort()

    def fail(self, number: int, why: str) -> None:
        self.end(number, self.records.kind(why))

    def end(self, number: int, outcome: int) -> None:
        self.records.outcome[number] = outcome
        self.records.ended[number] = clock() - self.start
        self.done += 1
        if self.done == self.total:
            self.finished.set()

    # --- once a second ------------------------------------------------------------------------------------------------

    def look(self) -> Progress:
        """Give up what takes too long, and say how it stands."""
        now = clock() - self.start
        late = now - self.order.patience_seconds
        for link in [each for each in self.asking if each.answer and self.records.due[each.answer.number] < late]:
            self.drop(link, "no whole answer in time")
        while self.waiting and self.records.due[self.waiting[0]] < late:
            self.fail(self.waiting.popleft(), "no free connection in time")
        recent, self.recent = spread(self.recent), []
        failed = self.done - self.good - self.refused
        return Progress(
            now, self.next, self.good, self.refused, failed, len(self.asking), self.streaming, self.connections,
            self.chunks, _cpu() - self.cpu, recent.p95 if recent else None,
        )  # fmt: skip

    async def drive(self) -> None:
        self.begin()
        while not self.finished.is_set():
            try:
                await asyncio.wait_for(self.finished.wait(), 1.0)
            except TimeoutError:
                say(self.look())
        say(self.look())


def _context(order: Order) -> ssl.SSLContext | None:
    if not order.tls:
        return None
    return ssl.create_default_context(cafile=order.ca_file or None)


def say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def drive(order: Order) -> Result:
    run = Run(order)
    await run.drive()
    cpu = _cpu() - run.cpu
    return Result(summary(run.records), cpu, run.opened, run.held, run.most_asking, run.most_streaming)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked for the load ends it
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    say(uvloop.run(drive(order)))


if __name__ == "__main__":
    main()
