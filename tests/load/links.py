"""One connection of the load generator: asks, reads the answer as it comes, notes the times. No task a request.

It knows HTTP and event streams; what is due and where a figure goes is generator.py's.
"""

import asyncio
import re
import time
from typing import Any, Protocol

import httptools

clock = time.perf_counter  # CLOCK_MONOTONIC
_TEXT = re.compile(rb'"(?:content|text|arguments)":\s*"(?!")')  # an event that says something
_CODE = re.compile(rb'"code":\s*"?([\w.-]+)')
_PROMPT, _COMPLETION = (re.compile(rb'"%b_tokens":\s*(\d+)' % word) for word in (b"prompt", b"completion"))
_KEPT_BYTES = 1024  # of a stream's end: usage and [DONE] are in them


class Answer:
    """What is known of the answer to one request."""

    __slots__ = ("body", "events", "first", "head", "hit", "last", "news", "number", "status", "torn", "wait")

    def __init__(self, number: int) -> None:
        self.number = number  # of the request
        self.first = self.last = 0.0  # token
        self.head: bytes | None = b""  # what came before the first token
        self.hit = self.wait = self.torn = False
        self.status = self.events = self.news = 0
        self.body = bytearray()  # of a stream only the end

    def wrong(self, *, stream: bool) -> str:
        """Why it is no good answer, in words that are the same for all of the kind; "" if it is good."""
        if self.status != 200:
            found = _CODE.search(self.body)
            return f"HTTP {self.status}" + (f" {found[1].decode()}" if found and found[1] != b"null" else "")
        if stream and b"data: [DONE]" not in self.body:
            return "an error in the stream" if b'"error"' in self.body else "a stream without its end"
        return "" if stream or b'"usage"' in self.body else "an answer without usage"

    def tokens(self, *, stream: bool) -> tuple[int, int]:
        """Of prompt and completion; counted by events where a stream does not say."""
        prompt, completion = _PROMPT.findall(self.body), _COMPLETION.findall(self.body)
        if completion:
            return int(prompt[-1]), int(completion[-1])
        return 0, max(0, self.events - 2) if stream else 0  # the role, [DONE]


class Owner(Protocol):
    """Who is told what happened."""

    def connected(self, link: "Link") -> None: ...
    def began(self, link: "Link") -> None: ...
    def heard(self, events: int, gap: float) -> None: ...
    def ended(self, link: "Link", answer: Answer, now: float) -> None: ...
    def lost(self, link: "Link", answer: Answer | None) -> None: ...


class Link(asyncio.Protocol):
    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._stream = False
        self._now = 0.0
        self.answer: Answer | None = None

    def ask(self, number: int, request: bytes, *, stream: bool) -> None:
        self.answer = Answer(number)
        self._stream = stream
        self._transport.write(request)

    def abort(self) -> None:
        self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        self._now = clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()
            return
        if self.answer is not None and self.answer.news:
            self._read(self.answer)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._owner.lost(self, self.answer)
        self.answer = None

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.answer is None:
            return
        name = name.lower()
        if name == b"x-llm-cache":
            self.answer.hit = value == b"hit"
        elif name == b"retry-after":
            self.answer.wait = value.isdigit() and int(value) > 0

    def on_body(self, piece: bytes) -> None:
        answer = self.answer
        if answer is None:
            return
        answer.body += piece
        if self._stream:
            if len(answer.body) > 4 * _KEPT_BYTES:
                del answer.body[:-_KEPT_BYTES]
            answer.news += piece.count(b"\n\n") + (answer.torn and piece[0] == 10)
            answer.torn = piece[-1] == 10 and piece[-2:] != b"\n\n"
            if answer.head is not None:
                self._look(answer, piece)

    def _look(self, answer: Answer, piece: bytes) -> None:
        """For the first token."""
        answer.head = (answer.head or b"") + piece
        if _TEXT.search(answer.head):
            answer.head = None
            answer.first = self._now
            self._owner.began(self)

    def _read(self, answer: Answer) -> None:
        """Events came: the time since the last ones is a gap, however many they are."""
        self._owner.heard(answer.news, self._now - answer.last if answer.last else 0.0)
        answer.events += answer.news
        answer.news = 0
        if answer.first:
            answer.last = self._now

    def on_message_complete(self) -> None:
        answer, self.answer = self.answer, None
        if answer is None:
            return
        if answer.news:
            self._read(answer)
        answer.status = self._parser.get_status_code()
        stays = self._parser.should_keep_alive()
        self._owner.ended(self, answer, self._now)
        if not stays:
            self._transport.close()
