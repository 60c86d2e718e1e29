"""HTTP/1.1 on one connection: parse requests, write answers in order, close or reset when told to.

It owns framing, keep-alive and pipelining; it must not know what an answer means.
An asyncio.Protocol rather than a framework: a task per request would cost more than everything else here.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

import httptools
import msgspec

from extproc.sim import faults

_JSON = b"application/json"
_LEAVE_SECONDS = 0.002  # for the socket to take what was written
_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Request(msgspec.Struct):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]  # names in lower case
    body: bytes
    keep_alive: bool
    faults: faults.Faults

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")


class Handler(Protocol):
    """Who answers. Every request ends in `respond`, in `end`, or in the connection's loss."""

    def opened(self, connection: "Connection") -> None: ...

    def requested(self, connection: "Connection", request: Request) -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class _Clock:
    """The lines that every head repeats; the date changes once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = b""

    def lines(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._lines = b"date: %b\r\nserver: uvicorn\r\n" % formatdate(second, usegmt=True).encode()
        return self._lines


_clock = _Clock()


class Connection(asyncio.Protocol):
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else happens
        self._queue: deque[Request] = deque()
        self._busy = False
        self._draining = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._keep_alive = True
        self._bare = False  # a HEAD request: the answer has no body
        self._faulty = False
        self._last = False  # close after what is queued
        self._stuck = False  # a fault: no answer will come
        self._trickle: deque[bytes | Callable[[], None]] = deque()
        self.closed = False
        self.current: Any = None  # the handler's own state of the request in progress

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._handler.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError:
            self._refuse()
            return
        self._next()  # here, not in the parser's callback: an error of ours is no error of the client's

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed = True
        self._queue.clear()
        self._handler.lost(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._body = []
        self._faulty = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers.append((name, value))
        if name.startswith(faults.PREFIX):
            self._faulty = True
        elif name == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        parser = self._parser
        request = Request(
            parser.get_method().decode(),
            self._url.partition(b"?")[0].decode("latin-1"),
            self._headers,
            b"".join(self._body),
            parser.should_keep_alive(),
            faults.parse(self._headers) if self._faulty else faults.NONE,
        )
        self._queue.append(request)

    def _refuse(self) -> None:
        if self._busy:
            self._transport.abort()
            return
        self._keep_alive = False
        self.respond(400, b"Invalid HTTP request received.", b"text/plain; charset=utf-8")

    # What the handler calls.

    def respond(self, status: int, body: bytes, content_type: bytes = _JSON, extra: bytes = b"") -> None:
        """Answer the current request as a whole."""
        head = self._head(status, content_type, b"content-length: %d\r\n" % len(body), extra)
        self._transport.write(head if self._bare else head + body)
        self._finish()

    def respond_half(self, body: bytes) -> None:
        """Promise a body and reset the connection in the middle of it."""
        head = self._head(200, _JSON, b"content-length: %d\r\n" % len(body), b"")
        self._transport.write(head + body[: len(body) // 2])
        self.reset()

    def begin(self) -> None:
        """Begin an event stream."""
        kind = b"text/event-stream; charset=utf-8"
        self._transport.write(self._head(200, kind, b"", b"transfer-encoding: chunked\r\n"))

    def send(self, event: bytes) -> None:
        """Send one HTTP chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    def send_all(self, events: list[bytes], *, last: bool = False) -> None:
        """Send each as an HTTP chunk, in one write."""
        framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        if last:
            framed.append(_LAST_CHUNK)
        self._transport.write(b"".join(framed))
        if last:
            self._finish()

    def trickle(self, pieces: list[bytes], then: Callable[[], None] | None = None) -> None:
        """Send each piece as an HTTP chunk and a write of its own, a turn of the event loop apart."""
        idle = not self._trickle
        self._trickle += pieces
        if then is not None:
            self._trickle.append(then)
        if idle and self._trickle:
            self._drip()

    def _drip(self) -> None:
        if self.closed or not self._trickle:
            return
        piece = self._trickle[0]
        if callable(piece):
            piece()
        else:
            self.send(piece)
        self._trickle.popleft()
        if self._trickle:
            asyncio.get_running_loop().call_soon(self._drip)

    def stall(self) -> None:
        """Leave the request unanswered and the connection open."""
        self._stuck = True
        self._end_if_done()

    def reset(self) -> None:
        """Close with RST, once what was written has left: uvloop writes at the end of a turn."""
        asyncio.get_running_loop().call_later(_LEAVE_SECONDS, self._reset)

    def _reset(self) -> None:
        if self.closed:
            return
        if self._transport.get_write_buffer_size():
            self.reset()
            return
        plain = self._transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def retire(self) -> None:
        """Close as soon as nothing is under way."""
        self._last = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._last and (self._stuck or not (self._busy or self._queue)):
            self._transport.close()

    def _head(self, status: int, content_type: bytes, length: bytes, extra: bytes) -> bytes:
        kind = b"content-type: %b\r\n" % content_type if content_type else b""
        if self._last or not self._keep_alive:
            extra += b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b%bvary: Origin\r\n%b\r\n" % (
            status,
            _REASONS.get(status, b"Unknown"),
            _clock.lines(),
            length,
            kind,
            extra,
        )

    def _finish(self) -> None:
        self._busy = False
        self.current = None
        if not self._keep_alive or (self._last and not self._queue):
            self._transport.close()
        else:
            self._next()

    def _next(self) -> None:
        """Hand out what is queued, one after the other, without recursion."""
        if self._draining:
            return
        self._draining = True
        while self._queue and not self._busy and not self.closed:
            request = self._queue.popleft()
            self._busy = True
            self._keep_alive = request.keep_alive
            self._bare = request.method == "HEAD"
            self._handler.requested(self, request)
        self._draining = False
