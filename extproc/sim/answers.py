"""What chat and completion answers share: the head, usage, the events around the tokens, as vLLM 0.32 writes them.

Pure: it gets an `Ask`, its `Answer`s and the head of the answer, and gives bytes. The usual chunk is three byte
strings joined; logprobs, token ids and running usage take the slower path. Field order is vLLM's.
"""

from typing import Any, Protocol

import msgspec

from extproc.sim.asks import Ask
from extproc.sim.text import Answer, Vocabulary, escape

FINGERPRINT = "vllm-0.32.0-61220b60"
DONE = b"data: [DONE]\n\n"
NULL = b"null"
encode = msgspec.json.encode


class Head(msgspec.Struct):
    """What all parts of one answer repeat."""

    id: str
    created: int
    model: str
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: --enable-prompt-tokens-details is off


class Writer(Protocol):
    """One dialect of answering. `head` is filled in as its figures become known, before they are written."""

    head: Head

    def plain(self) -> bytes: ...

    def greeting(self) -> list[bytes]:
        """Events that come before any token exists."""

    def opening(self) -> list[bytes]: ...

    def token(self, choice: int, at: int) -> bytes: ...

    def closing(self) -> list[bytes]: ...


def usage(head: Head, completion_tokens: int) -> dict[str, Any]:
    total = head.prompt_tokens + completion_tokens
    details = None if head.cached_tokens is None else {"cached_tokens": head.cached_tokens}
    return {
        "prompt_tokens": head.prompt_tokens,
        "total_tokens": total,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details,
    }


def logprob(token: str, rank: int = 0) -> float:
    """Return a plausible log probability, the same each time."""
    return -round((len(token) * 7 + sum(token.encode()) % 13) / 50 + rank * 0.9, 4)


def alternatives(token: str, top: int) -> list[str]:
    return [token, *(f" alt{rank}" for rank in range(1, top))][:top]


class EventWriter:
    """What the two dialects share: finding a choice, its usage, its end."""

    object_name = b""

    def __init__(self, ask: Ask, answers: list[Answer], head: Head, vocabulary: Vocabulary) -> None:
        self._ask = ask
        self._answers = answers
        self.head = head
        self._vocabulary = vocabulary
        self._slow = ask.logprobs is not None or ask.token_ids or ask.continuous_usage
        self._prefix = (
            b'data: {"id":"%b","object":"%b","created":%d,"model":%b,"choices":['
            % (escape(head.id), self.object_name, head.created, encode(head.model))
        )  # fmt: skip
        self._starts = [self._prefix + self._start(at) for at in range(len(answers))]
        self._sent = 0

    def _start(self, choice: int) -> bytes:
        raise NotImplementedError

    def _running_usage(self, at: int) -> bytes:
        if not self._ask.continuous_usage:
            return b""
        return b',"usage":' + encode(usage(self.head, at) | {}).replace(b',"prompt_tokens_details":null', b"")

    def _final_tail(self) -> bytes:
        return b"}\n\n" if self._ask.include_usage else b',"system_fingerprint":"%b"}\n\n' % FINGERPRINT.encode()

    def _total(self) -> int:
        return sum(len(answer.texts) for answer in self._answers)

    def greeting(self) -> list[bytes]:
        return []

    def closing(self) -> list[bytes]:
        if not self._ask.include_usage:
            return [DONE]
        counted = {key: value for key, value in usage(self.head, self._total()).items() if value is not None}
        tail = b'],"usage":%b,"system_fingerprint":"%b"}\n\n' % (encode(counted), FINGERPRINT.encode())
        return [self._prefix + tail, DONE]
