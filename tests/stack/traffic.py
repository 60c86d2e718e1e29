"""Steady traffic for tests that break or change something under it."""

import http.client
import json
import threading
import time
from typing import Any, Self

import msgspec
from raw_http import CHAT
from stack_rig import Caller, eventually, unique


def body(text: str = "", model: str = "mistral", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text or unique()}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 5, **fields}).encode()


class Outcome(msgspec.Struct):
    """One request of the traffic. Status 0: the connection broke, or the answer was no JSON."""

    began: float
    took: float
    status: int
    model: str = ""
    why: str = ""


class Traffic:
    """Threads that ask one after the other on kept connections, from `with` to its end."""

    def __init__(self, caller: Caller, threads: int = 4, **fields: Any) -> None:
        self.outcomes: list[Outcome] = []
        self._caller = caller
        self._fields = fields
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int, seconds: float = 10.0) -> None:
        """Until so many more requests have ended well."""
        goal = self.good() + count
        eventually(lambda: self.good() >= goal, seconds)

    def good(self) -> int:
        return sum(outcome.status == 200 for outcome in self.outcomes)

    def failed(self, since: float = 0.0) -> list[Outcome]:
        return [o for o in list(self.outcomes) if o.status != 200 and o.began >= since]

    def recovery_seconds(self, since: float) -> float:
        """From a moment to the end of the last request that failed after it."""
        return max((o.began + o.took - since for o in self.failed()), default=0.0)

    def _run(self) -> None:
        link: http.client.HTTPConnection | None = None
        headers = {"authorization": f"Bearer {self._caller.key}", "content-type": "application/json"}
        while not self._end.is_set():
            link = link or http.client.HTTPConnection("127.0.0.1", self._caller.platform.stack.http_port, timeout=20)
            began = time.monotonic()
            try:
                link.request("POST", CHAT, body(**self._fields), headers)
                answer = link.getresponse()
                content = json.loads(answer.read())
                model, status = answer.headers.get("x-llm-model") or "", answer.status
                why = "" if status == 200 else str(content["error"]["code"])
            except (OSError, http.client.HTTPException, ValueError) as error:
                link.close()
                link, status, model, why = None, 0, "", repr(error)
            self.outcomes.append(Outcome(began, time.monotonic() - began, status, model, why))
        if link is not None:
            link.close()
