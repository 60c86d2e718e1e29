"""The request log: one JSON line a request, made from its receipt, on the worker's standard output.

For the questions that metrics can not answer: which request, of whom, to which replica, and why it failed. No prompt
text, no answer text, no header and no path of a client: only what the decision and Envoy know of a request.

Lines are written a batch of receipts at a time and never waited for: standard output is a pipe to a container runtime,
and one that reads no more must not stop the requests. What it does not take at once is dropped, and counted.
"""

import os
import select
from datetime import UTC, datetime

import msgspec

from extproc import tracing
from extproc.receipt import Charge, Receipt

_PIPE_BYTES = 4096  # PIPE_BUF: up to it lines of two workers do not mix, and a pipe that takes any takes all
_LAST_SECOND = 253_402_300_799.0  # of the year 9999
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True):
    """Times in `_ms` are milliseconds, null where there is none."""

    kind: str
    time: datetime  # of the end
    request_id: str
    trace_id: str
    tenant: str
    user: str
    key_id: str
    model: str
    arm: str
    endpoint: str
    stream: bool
    status: int
    reason: str
    cache: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    estimated: bool
    cost_micros: int
    ttft_ms: float | None
    duration_ms: float
    overhead_ms: float | None
    upstream: str
    attempts: int
    flags: str
    details: str


def line(receipt: Receipt, charged: Charge, cost_micros: int) -> bytes:
    ticket, usage = receipt.ticket, charged.usage
    ended = min(max(0.0, receipt.start + receipt.duration), _LAST_SECOND)
    return _encode(
        Line(
            "request",
            datetime.fromtimestamp(ended, UTC),
            receipt.request_id,
            tracing.trace_id(ticket.trace),
            ticket.tenant,
            ticket.user,
            ticket.key_id,
            ticket.model,
            receipt.arm,
            ticket.endpoint,
            ticket.stream,
            receipt.status,
            ticket.reason,
            ticket.cache,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            charged.estimated,
            cost_micros,
            _ms(receipt.first_byte) if ticket.stream and receipt.first_byte else None,
            _ms(receipt.duration),
            None if receipt.overhead is None else _ms(receipt.overhead),
            receipt.peer,
            receipt.attempts,
            receipt.flags,
            receipt.details,
        )
    )


def _ms(seconds: float) -> float:
    """To the microsecond."""
    return int(seconds * 1e6) / 1e3


class RequestLog:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)

    def write(self, lines: list[bytes]) -> int:
        """Returns how many were dropped."""
        begin, size = 0, 0
        for end, each in enumerate(lines):
            if end > begin and size + len(each) + 1 > _PIPE_BYTES:
                if not self._put(lines[begin:end]):
                    return len(lines) - begin
                begin, size = end, 0
            size += len(each) + 1
        return 0 if not lines or self._put(lines[begin:]) else len(lines) - begin

    def _put(self, lines: list[bytes]) -> bool:
        try:
            if not self._room.poll(0):
                return False
            os.write(self._fd, b"\n".join(lines) + b"\n")
        except OSError:  # nobody reads any more
            return False
        return True
