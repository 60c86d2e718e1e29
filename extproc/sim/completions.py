"""The bytes of /v1/completions, plain and as chunks, field by field in vLLM's order. Pure."""

from typing import Any

from extproc.sim.answers import FINGERPRINT, NULL, EventWriter, alternatives, encode, logprob, usage
from extproc.sim.text import Answer, escape


class CompletionWriter(EventWriter):
    object_name = b"text_completion"
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
                encode(self._logprobs([token], at)) if self._ask.logprobs is not None else NULL,
                b',"finish_reason":',
                encode(answer.finish_reason) if last else NULL,
                b',"stop_reason":',
                encode(answer.stop_reason) if last else NULL,
                b',"prompt_token_ids":',
                encode(self._vocabulary.ids(self._prompt(choice))) if first_ids else NULL,
                b',"token_ids":',
                encode(self._vocabulary.ids([token])) if self._ask.token_ids else NULL,
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
                {each: logprob(each, rank) for rank, each in enumerate(alternatives(token, top))} for token in tokens
            ],
        }

    def plain(self) -> bytes:
        return (
            b'{"id":"%b","object":"text_completion","created":%d,"model":%b,"choices":[%b],"service_tier":null,'
            b'"system_fingerprint":"%b","usage":%b,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
            % (
                escape(self.head.id),
                self.head.created,
                encode(self.head.model),
                b",".join(self._choice(at, answer) for at, answer in enumerate(self._answers)),
                FINGERPRINT.encode(),
                encode(usage(self.head, self._total())),
            )
        )

    def _choice(self, at: int, answer: Answer) -> bytes:
        ids = self._ask.token_ids
        return (
            b'{"index":%d,"text":"%b%b","logprobs":%b,"finish_reason":"%b","stop_reason":%b,"token_ids":%b,'
            b'"prompt_logprobs":null,"prompt_token_ids":%b,"routed_experts":null}'
            % (
                at,
                escape(_said(self._prompt(at))) if self._ask.echo else b"",
                b"".join(answer.pieces),
                encode(self._logprobs(answer.texts)) if self._ask.logprobs is not None else NULL,
                answer.finish_reason.encode(),
                encode(answer.stop_reason),
                encode(self._vocabulary.ids(answer.texts)) if ids else NULL,
                encode(self._vocabulary.ids(self._prompt(at))) if ids else NULL,
            )
        )


def _said(prompt: list[str]) -> str:
    return "".join(prompt).removeprefix("<s>")
