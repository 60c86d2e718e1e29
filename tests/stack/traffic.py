"""Steady traffic for tests that break or change something under it, and what its clients saw of each request."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec
from raw_http import CHAT, reset
from stack_rig import Caller, eventually, unique

_PATIENCE_SECONDS = 20.0
_AFTER_A_BREAK_SECONDS = 0.02  # nobody asks a closed port in a tight loop


def body(text: str = "", model: str = "mistral", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text or unique()}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 5, **fields}).encode()


class Outcome(msgspec.Struct):
    """One request of the traffic. Status 0: the connection broke, or the answer was no JSON, or it had no end."""

    began: float
    took: float = 0.0
    status: int = 0
    model: str = ""
    why: str = ""
    user: str = ""
    request_id: str = ""
    cache: str = ""
    stream: bool = False
    begun: bool = False  # an answer of 200 had begun, whatever became of it
    staged: bool = False  # its lane makes it go wrong
    may_retry: bool = False  # the answer said when
    prompt_tokens: int = 0  # as the answer says
    completion_tokens: int = 0  # ditto; of a cut stream as many as were seen

    @property
    def ended(self) -> float:
        return self.began + self.took


class Lane(threading.Thread):
    """Asks one after the other on a kept connection until `end` is set. `ask` makes the body of the n-th request.

    With `leave_after` it resets the connection when so many events of a stream were seen.
    """

    def __init__(
        self,
        caller: Caller,
        ask: Callable[[int], bytes],
        *,
        user: str = "",
        headers: Mapping[str, str] | None = None,
        leave_after: int = 0,
        pause_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.outcomes: list[Outcome] = []
        self.end = threading.Event()
        self._caller, self._ask, self._user = caller, ask, user
        self._staged = bool(headers or leave_after)
        self._headers = {"authorization": f"Bearer {caller.key}", "content-type": "application/json", **(headers or {})}
        self._leave_after, self._pause_seconds = leave_after, pause_seconds
        self._link: http.client.HTTPConnection | None = None

    def run(self) -> None:
        for number in range(1 << 62):
            outcome = Outcome(time.monotonic(), user=self._user, staged=self._staged)
            try:
                self._exchange(self._ask(number), outcome)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._drop()
                outcome.status, outcome.why = 0, repr(error)
            outcome.took = time.monotonic() - outcome.began
            self.outcomes.append(outcome)
            if self.end.wait(self._pause_seconds if outcome.status else _AFTER_A_BREAK_SECONDS):
                break
        self._drop()

    def good(self) -> int:
        return sum(outcome.status == 200 for outcome in self.outcomes)

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None

    def _exchange(self, content: bytes, outcome: Outcome) -> None:
        port = self._caller.platform.stack.http_port
        link = self._link = self._link or http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        link.request("POST", CHAT, content, self._headers)
        answer = link.getresponse()
        outcome.begun = answer.status == 200
        outcome.model = answer.headers.get("x-llm-model") or ""
        outcome.cache = answer.headers.get("x-llm-cache") or ""
        outcome.request_id = answer.headers.get("x-request-id") or ""
        outcome.may_retry = "retry-after" in answer.headers
        outcome.stream = "event-stream" in (answer.headers.get("content-type") or "")
        if outcome.stream:
            self._read_events(answer, outcome)
        else:
            _read_answer(answer, outcome)

    def _read_events(self, answer: http.client.HTTPResponse, outcome: Outcome) -> None:
        """Raises ConnectionError for a stream that does not come to its end."""
        seen = 0
        for line in answer:
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                outcome.status = answer.status
            elif data:
                seen += 1
                _read_event(json.loads(data), outcome)
            if seen and seen == self._leave_after:
                raise self._left()
        if not outcome.status:
            raise ConnectionError("the stream has no end")

    def _left(self) -> ConnectionError:
        if self._link is not None and self._link.sock is not None:
            reset(self._link.sock)
        return ConnectionError("left")


def _read_answer(answer: http.client.HTTPResponse, outcome: Outcome) -> None:
    content = json.loads(answer.read())
    outcome.status = answer.status
    if answer.status == 200:
        _read_usage(content["usage"], outcome)
    else:
        outcome.why = str(content["error"]["code"])


def _read_event(event: Any, outcome: Outcome) -> None:
    if event.get("usage"):
        _read_usage(event["usage"], outcome)
    else:
        outcome.completion_tokens += sum("content" in each["delta"] for each in event.get("choices", ()))


def _read_usage(usage: Mapping[str, int], outcome: Outcome) -> None:
    outcome.prompt_tokens, outcome.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


class Lanes:
    """Lanes that run from `with` to its end."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = list(lanes)

    def __enter__(self) -> Self:
        for lane in self.lanes:
            lane.start()
        try:
            self.more(20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self.lanes:
            lane.end.set()
        for lane in self.lanes:
            lane.join()

    @property
    def outcomes(self) -> list[Outcome]:
        """In the order of their ends, nearly: those of a lane are."""
        return sorted((o for lane in self.lanes for o in list(lane.outcomes)), key=lambda o: o.ended)

    def more(self, count: int, seconds: float = 10.0) -> None:
        """Until so many more requests have ended well."""
        goal = self.good() + count
        eventually(lambda: self.good() >= goal, seconds)

    def good(self) -> int:
        return sum(lane.good() for lane in self.lanes)

    def failed(self, since: float = 0.0) -> list[Outcome]:
        return [o for o in self.outcomes if o.status != 200 and o.began >= since]

    def recovery_seconds(self, since: float) -> float:
        """From a moment to the end of the last request that failed after it."""
        return max((o.ended - since for o in self.failed()), default=0.0)


class Traffic(Lanes):
    """Threads that ask the same, for one caller."""

    def __init__(self, caller: Caller, threads: int = 4, **fields: Any) -> None:
        super().__init__([Lane(caller, lambda _: body(**fields)) for _ in range(threads)])
