"""The bytes of /v1/chat/completions, plain and as chunks, field by field in vLLM's order. Pure."""

from typing import Any, ClassVar

from extproc.sim.answers import FINGERPRINT, NULL, EventWriter, Head, alternatives, encode, logprob, usage
from extproc.sim.text import Answer, escape


class ChatWriter(EventWriter):
    object_name = b"chat.completion.chunk"
    running_details: ClassVar[dict[str, Any]] = {"completion_tokens_details": None}
    _plain_tail = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def caches(self, cached_tokens: int, created_tokens: int) -> None:
        self.head.cached_tokens, self.head.created_cache_tokens = cached_tokens, created_tokens

    def _start(self, choice: int) -> bytes:
        return b'{"index":%d,"delta":{"content":"' % choice

    def opening(self) -> list[bytes]:
        prompt_ids = encode(self._vocabulary.ids(self._ask.prompts[0])) if self._ask.token_ids else NULL
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
        found = encode(self._logprobs([token])) if self._ask.logprobs is not None else NULL
        ids = encode(self._vocabulary.ids([token])) if self._ask.token_ids else NULL
        end = b""
        if last:
            end = b',"stop_reason":' + encode(answer.stop_reason)
        return b"".join(
            (
                self._prefix + b'{"index":%d,"delta":' % choice,
                self._delta(choice, at, answer),
                b',"logprobs":',
                found,
                b',"finish_reason":',
                encode(self._finish(answer)) if last else NULL,
                end,
                b',"token_ids":',
                ids,
                b"}]",
                self._running_usage(at + 1),
                self._final_tail() if last else b"}\n\n",
            )
        )

    def _finish(self, answer: Answer) -> str:
        called = answer.tool is not None and answer.finish_reason == "stop" and not self._ask.named_tool
        return "tool_calls" if called else answer.finish_reason

    def _delta(self, choice: int, at: int, answer: Answer) -> bytes:
        if answer.tool is None:
            ends_empty = not answer.pieces[at] and at + 1 == len(answer.pieces)
            return b"{}" if ends_empty else b'{"content":"%b"}' % answer.pieces[at]
        if at == 0:
            call = b'{"id":%b,"type":"function","index":0,"function":{"name":%b}}' % (
                encode(_call_id(self.head, choice)),
                encode(answer.tool),
            )
        elif answer.pieces[at]:
            call = b'{"index":0,"function":{"arguments":"%b"}}' % answer.pieces[at]
        else:
            return b"{}"
        return b'{"content":null,"tool_calls":[%b]}' % call

    def _logprobs(self, tokens: list[str]) -> dict[str, Any]:
        return {"content": [self._content_logprob(token) for token in tokens]}

    def _content_logprob(self, token: str) -> dict[str, Any]:
        top = alternatives(token, self._ask.logprobs or 0)
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
                encode(self.head.model),
                b",".join(self._choice(at, answer) for at, answer in enumerate(self._answers)),
                FINGERPRINT.encode(),
                encode(usage(self.head, self._total())),
                encode(ids),
            )
        )

    def _choice(self, at: int, answer: Answer) -> bytes:
        text = b"".join(answer.pieces)
        calls = b""
        content = b'"' + text + b'"'
        if answer.tool is not None:
            content = b'""'
            calls = b'"tool_calls":[{"id":%b,"type":"function","function":{"name":%b,"arguments":"%b"}}],' % (
                encode(_call_id(self.head, at)),
                encode(answer.tool),
                text,
            )
        return (
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":null,"audio":null,'
            b'"function_call":null,%b"reasoning":null},"logprobs":%b,"finish_reason":"%b",'
            b'"stop_reason":%b,"token_ids":%b,"routed_experts":null}'
            % (
                at,
                content,
                calls,
                encode(self._logprobs(answer.texts)) if self._ask.logprobs is not None else NULL,
                self._finish(answer).encode(),
                encode(answer.stop_reason),
                encode(self._vocabulary.ids(answer.texts)) if self._ask.token_ids else NULL,
            )
        )


def _call_id(head: Head, choice: int) -> str:
    return f"chatcmpl-tool-{head.id[-16:]}{choice or ''}"


def _logprob(token: str, rank: int) -> dict[str, Any]:
    token = token or "</s>"
    return {"token": token, "logprob": logprob(token, rank), "bytes": list(token.encode())}
