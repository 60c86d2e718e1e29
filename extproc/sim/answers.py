"""What chat and completion answers share: the head, usage, the events around the tokens, as vLLM 0.32 writes them.

Pure: it gets an `Ask`, its `Answer`s and the head of the answer, and gives bytes. The usual chunk is three byte
strings joined; logprobs, token ids and running usage take the slower path. Field order is vLLM's.
"""

from typing import Any, ClassVar, Protocol

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
    details: bool = False  # --enable-prompt-tokens-details
    cached_tokens: int = 0
    created_cache_tokens: int | None = None  # put into the prefix cache; None where the dialect does not say


class Writer(Protocol):
    """One dialect of answering. `head` is filled in as its figures become known, before they are written."""

    head: Head

    def caches(self, cached_tokens: int, created_tokens: int) -> None:
        """Take what the prefix cache held of the prompt, and what was put into it."""

    def plain(self) -> bytes: ...

    def greeting(self) -> list[bytes]:
        """Events that come before any token exists."""

    def opening(self) -> list[bytes]: ...

    def token(self, choice: int, at: int) -> bytes: ...

    def closing(self) -> list[bytes]: ...


def usage(head: Head, completion_tokens: int) -> dict[str, Any]:
    details = {
        "cached_tokens": head.cached_tokens,
        "created_cache_tokens": head.created_cache_tokens,
        "multimodal_tokens": None,
    }
    return {
        **_counts(head, completion_tokens),
        "prompt_tokens_details": details if head.details else None,
        "completion_tokens_details": None,
    }


def _counts(head: Head, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": head.prompt_tokens,
        "total_tokens": head.prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null, at every depth: the last event of a stream does."""
    return {
        key: _said(value) if isinstance(value, dict) else value for key, value in values.items() if value is not None
    }


def logprob(token: str, rank: int = 0) -> float:
    """Return a plausible log probability, the same each time."""
    return -round((len(token) * 7 + sum(token.encode()) % 13) / 50 + rank * 0.9, 4)


def alternatives(token: str, top: int) -> list[str]:
    return [token, *(f" alt{rank}" for rank in range(1, top))][:top]


class EventWriter:
    """What the two dialects share: finding a choice, its usage, its end."""

    object_name = b""
    running_details: ClassVar[dict[str, Any]] = {}  # of the usage in every event

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

    def caches(self, cached_tokens: int, created_tokens: int) -> None:  # noqa: ARG002  as Writer says
        self.head.cached_tokens = cached_tokens

    def _start(self, choice: int) -> bytes:
        raise NotImplementedError

    def _running_usage(self, at: int) -> bytes:
        if not self._ask.continuous_usage:
            return b""
        return b',"usage":' + encode(_counts(self.head, at) | self.running_details)

    def _final_tail(self) -> bytes:
        return b"}\n\n" if self._ask.include_usage else b',"system_fingerprint":"%b"}\n\n' % FINGERPRINT.encode()

    def _total(self) -> int:
        return sum(len(answer.texts) for answer in self._answers)

    def greeting(self) -> list[bytes]:
        return []

    def closing(self) -> list[bytes]:
        if not self._ask.include_usage:
            return [DONE]
        counted = encode(_said(usage(self.head, self._total())))
        tail = b'],"usage":%b,"system_fingerprint":"%b"}\n\n' % (counted, FINGERPRINT.encode())
        return [self._prefix + tail, DONE]
