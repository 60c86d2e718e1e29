"""The bytes of chat and completion answers, plain and as events, exactly as vLLM 0.32 writes them.

Pure: it gets an `Ask`, its `Answer`s and the head of the answer, and gives bytes. The usual chunk is three byte
strings joined; logprobs, token ids and running usage take the slower path. Field order is vLLM's.
"""

from typing import Any, Protocol

import msgspec

from extproc.sim.asks import Ask
from extproc.sim.text import Answer, Vocabulary, escape

FINGERPRINT = "vllm-0.32.0-61220b60"
DONE = b"data: [DONE]\n\n"
_NULL = b"null"
_encode = msgspec.json.encode


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


def _alternatives(token: str, top: int) -> list[str]:
    return [token, *(f" alt{rank}" for rank in range(1, top))][:top]


class _Base:
    """What the two dialects share: finding a choice, its usage, its end."""

    _event_object = b""
    _kind = ""

    def __init__(self, ask: Ask, answers: list[Answer], head: Head, vocabulary: Vocabulary) -> None:
        self._ask = ask
        self._answers = answers
        self.head = head
        self._vocabulary = vocabulary
        self._slow = ask.logprobs is not None or ask.token_ids or ask.continuous_usage
        self._prefix = (
            b'data: {"id":"%b","object":"%b","created":%d,"model":%b,"choices":['
            % (escape(head.id), self._event_object, head.created, _encode(head.model))
        )  # fmt: skip
        self._starts = [self._prefix + self._start(at) for at in range(len(answers))]
        self._sent = 0

    def _start(self, choice: int) -> bytes:
        raise NotImplementedError

    def _running_usage(self, at: int) -> bytes:
        if not self._ask.continuous_usage:
            return b""
        return b',"usage":' + _encode(usage(self.head, at) | {}).replace(b',"prompt_tokens_details":null', b"")

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
        tail = b'],"usage":%b,"system_fingerprint":"%b"}\n\n' % (_encode(counted), FINGERPRINT.encode())
        return [self._prefix + tail, DONE]


class ChatWriter(_Base):
    _event_object = b"chat.completion.chunk"
    _plain_tail = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def _start(self, choice: int) -> bytes:
        if self._answers[choice].tool is not None:
            return b'{"index":%d,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"' % choice
        return b'{"index":%d,"delta":{"content":"' % choice

    def opening(self) -> list[bytes]:
        prompt_ids = _encode(self._vocabulary.ids(self._ask.prompts[0])) if self._ask.token_ids else _NULL
        tail = b'],%b"prompt_token_ids":%b,"prompt_text":null}\n\n' % (
            self._running_usage(0)[1:] + b"," if self._ask.continuous_usage else b"",
            prompt_ids,
        )
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return [self._prefix + role % at + tail for at in range(len(self._answers))]

    def token(self, choice: int, at: int) -> bytes:
        answer = self._answers[choice]
        last = at + 1 == len(answer.pieces)
        if not last and not self._slow and answer.tool is None:
            return self._starts[choice] + answer.pieces[at] + self._plain_tail
        return self._slow_token(choice, at, answer, last=last)

    def _slow_token(self, choice: int, at: int, answer: Answer, *, last: bool) -> bytes:
        token = answer.texts[at]
        found = _encode(self._logprobs([token])) if self._ask.logprobs is not None else _NULL
        ids = _encode(self._vocabulary.ids([token])) if self._ask.token_ids else _NULL
        end = b""
        if last:
            end = b',"stop_reason":' + _encode(answer.stop_reason)
        return b"".join(
            (
                self._first_of_tool(choice, answer) if answer.tool is not None and at == 0 else self._starts[choice],
                answer.pieces[at],
                b'"}}]},"logprobs":' if answer.tool is not None else b'"},"logprobs":',
                found,
                b',"finish_reason":',
                _encode(_finish(answer)) if last else _NULL,
                end,
                b',"token_ids":',
                ids,
                b"}]",
                self._running_usage(at + 1),
                self._final_tail() if last else b"}\n\n",
            )
        )

    def _first_of_tool(self, choice: int, answer: Answer) -> bytes:
        return self._prefix + (
            b'{"index":%d,"delta":{"tool_calls":[{"id":%b,"type":"function","index":0,"function":{"name":%b,'
            b'"arguments":"' % (choice, _encode(_call_id(self.head, choice)), _encode(answer.tool))
        )

    def _logprobs(self, tokens: list[str]) -> dict[str, Any]:
        return {"content": [self._content_logprob(token) for token in tokens]}

    def _content_logprob(self, token: str) -> dict[str, Any]:
        top = _alternatives(token, self._ask.logprobs or 0)
        return _logprob(token, 0) | {"top_logprobs": [_logprob(each, rank) for rank, each in enumerate(top)]}

    def plain(self) -> bytes:
        ids = self._vocabulary.ids(self._ask.prompts[0]) if self._ask.token_ids else None
        return (
            b'{"id":"%b","object":"chat.completion","created":%d,"model":%b,"choices":[%b],"service_tier":null,'
            b'"system_fingerprint":"%b","usage":%b,"prompt_logprobs":null,"prompt_token_ids":%b,"prompt_text":null,'
            b'"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
            % (
                escape(self.head.id),
                self.head.created,
                _encode(self.head.model),
                b",".join(self._choice(at, answer) for at, answer in enumerate(self._answers)),
                FINGERPRINT.encode(),
                _encode(usage(self.head, self._total())),
                _encode(ids),
            )
        )

    def _choice(self, at: int, answer: Answer) -> bytes:
        text = b"".join(answer.pieces)
        calls = b"[]"
        content = b'"' + text + b'"'
        if answer.tool is not None:
            content = _NULL
            calls = b'[{"id":%b,"type":"function","function":{"name":%b,"arguments":"%b"}}]' % (
                _encode(_call_id(self.head, at)),
                _encode(answer.tool),
                text,
            )
        return (
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":null,"audio":null,'
            b'"function_call":null,"tool_calls":%b,"reasoning":null},"logprobs":%b,"finish_reason":"%b",'
            b'"stop_reason":%b,"token_ids":%b}'
            % (
                at,
                content,
                calls,
                _encode(self._logprobs(answer.texts)) if self._ask.logprobs is not None else _NULL,
                _finish(answer).encode(),
                _encode(answer.stop_reason),
                _encode(self._vocabulary.ids(answer.texts)) if self._ask.token_ids else _NULL,
            )
        )


def _finish(answer: Answer) -> str:
    return "tool_calls" if answer.tool is not None and answer.finish_reason == "stop" else answer.finish_reason


def _call_id(head: Head, choice: int) -> str:
    return f"chatcmpl-tool-{head.id[-16:]}{choice or ''}"


def _logprob(token: str, rank: int) -> dict[str, Any]:
    return {"token": token, "logprob": logprob(token, rank), "bytes": list(token.encode())}


class CompletionWriter(_Base):
    _event_object = b"text_completion"
    _plain_tail = (
        b'","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'
    )

    def _start(self, choice: int) -> bytes:
        return b'{"index":%d,"text":"' % choice

    def _prompt(self, choice: int) -> list[str]:
        return self._ask.prompts[choice // self._ask.n]

    def opening(self) -> list[bytes]:
        return []

    def token(self, choice: int, at: int) -> bytes:
        answer = self._answers[choice]
        last = at + 1 == len(answer.pieces)
        if not last and not self._slow and not (self._ask.echo and at == 0):
            return self._starts[choice] + answer.pieces[at] + self._plain_tail
        token = answer.texts[at]
        echoed = escape(_said(self._prompt(choice))) if self._ask.echo and at == 0 else b""
        first_ids = self._ask.token_ids and at == 0
        return b"".join(
            (
                self._starts[choice],
                echoed,
                answer.pieces[at],
                b'","logprobs":',
                _encode(self._logprobs([token], at)) if self._ask.logprobs is not None else _NULL,
                b',"finish_reason":',
                _encode(answer.finish_reason) if last else _NULL,
                b',"stop_reason":',
                _encode(answer.stop_reason) if last else _NULL,
                b',"prompt_token_ids":',
                _encode(self._vocabulary.ids(self._prompt(choice))) if first_ids else _NULL,
                b',"token_ids":',
                _encode(self._vocabulary.ids([token])) if self._ask.token_ids else _NULL,
                b"}]",
                self._running_usage(at + 1),
                self._final_tail() if last else b"}\n\n",
            )
        )

    def _logprobs(self, tokens: list[str], offset: int = 0) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        top = self._ask.logprobs or 0
        return {
            "text_offset": offsets,
            "token_logprobs": [logprob(token) for token in tokens],
            "tokens": tokens,
            "top_logprobs": [
                {each: logprob(each, rank) for rank, each in enumerate(_alternatives(token, top))} for token in tokens
            ],
        }

    def plain(self) -> bytes:
        return (
            b'{"id":"%b","object":"text_completion","created":%d,"model":%b,"choices":[%b],"service_tier":null,'
            b'"system_fingerprint":"%b","usage":%b,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
            % (
                escape(self.head.id),
                self.head.created,
                _encode(self.head.model),
                b",".join(self._choice(at, answer) for at, answer in enumerate(self._answers)),
                FINGERPRINT.encode(),
                _encode(usage(self.head, self._total())),
            )
        )

    def _choice(self, at: int, answer: Answer) -> bytes:
        ids = self._ask.token_ids
        return (
            b'{"index":%d,"text":"%b%b","logprobs":%b,"finish_reason":"%b","stop_reason":%b,"token_ids":%b,'
            b'"prompt_logprobs":null,"prompt_token_ids":%b}'
            % (
                at,
                escape(_said(self._prompt(at))) if self._ask.echo else b"",
                b"".join(answer.pieces),
                _encode(self._logprobs(answer.texts)) if self._ask.logprobs is not None else _NULL,
                answer.finish_reason.encode(),
                _encode(answer.stop_reason),
                _encode(self._vocabulary.ids(answer.texts)) if ids else _NULL,
                _encode(self._vocabulary.ids(self._prompt(at))) if ids else _NULL,
            )
        )


def _said(prompt: list[str]) -> str:
    return "".join(prompt).removeprefix("<s>")
