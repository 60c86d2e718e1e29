"""The bytes of /v1/completions, plain and as chunks, field by field in vLLM's order. Pure."""

import itertools
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
        self._offsets = [0] * len(self._answers)  # of the text that went out
        return []

    def token(self, choice: int, at: int) -> bytes:
        answer = self._answers[choice]
        last = at + 1 == len(answer.pieces)
        if not last and not self._slow and not (self._ask.echo and at == 0):
            return self._starts[choice] + answer.pieces[at] + self._plain_tail
        token = answer.texts[at]
        echoed = escape(_said(self._prompt(choice))) if self._ask.echo and at == 0 else b""
        first_ids = (self._ask.token_ids or self._ask.echo) and at == 0
        piece = b"" if self._ask.echo_only else answer.pieces[at]
        return b"".join(
            (
                self._starts[choice],
                echoed,
                piece,
                b'","logprobs":',
                encode(self._streamed_logprobs(choice, at, token)) if self._ask.logprobs is not None else NULL,
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

    def _streamed_logprobs(self, choice: int, at: int, token: str) -> dict[str, Any]:
        """Those of one event: of the prompt too where the first one echoes it."""
        offset = self._offsets[choice]
        if self._ask.echo and at == 0:
            found = self._logprobs(self._prompt(choice), [] if self._ask.echo_only else [token])
        else:
            found = self._logprobs([], [token], offset)
        self._offsets[choice] = offset + sum(map(len, found["tokens"]))
        return found

    def _logprobs(self, prompt: list[str], tokens: list[str], offset: int = 0) -> dict[str, Any]:
        shown = [*prompt, *tokens]
        top = max(1, self._ask.logprobs or 0)  # the token itself is always there
        values: list[float | None] = [logprob(token) for token in shown]
        tops: list[dict[str, float] | None] = [
            {each: logprob(each, rank) for rank, each in enumerate(alternatives(token, top))} for token in shown
        ]
        if prompt:
            values[0] = tops[0] = None  # nothing comes before the first token
        return {
            "text_offset": list(itertools.accumulate(map(len, shown[:-1]), initial=offset)),
            "token_logprobs": values,
            "tokens": shown,
            "top_logprobs": tops,
        }

    def _prompt_logprobs(self, prompt: list[str]) -> list[dict[str, Any] | None]:
        """The same once more, by token id."""
        top = max(1, self._ask.logprobs or 0)
        return [None, *(self._by_id(alternatives(token, top)) for token in prompt[1:])]

    def _by_id(self, tokens: list[str]) -> dict[str, Any]:
        ids = self._vocabulary.ids(tokens)
        return {
            str(number): {"logprob": logprob(token, rank), "rank": rank + 1, "decoded_token": token}
            for rank, (number, token) in enumerate(zip(ids, tokens, strict=True))
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
        ask, prompt = self._ask, self._prompt(at)
        texts = [] if ask.echo_only else answer.texts
        echoed = prompt if ask.echo else []
        scored = ask.logprobs is not None
        return (
            b'{"index":%d,"text":"%b%b","logprobs":%b,"finish_reason":"%b","stop_reason":%b,"token_ids":%b,'
            b'"prompt_logprobs":%b,"prompt_token_ids":%b,"routed_experts":null}'
            % (
                at,
                escape(_said(echoed)),
                b"" if ask.echo_only else b"".join(answer.pieces),
                encode(self._logprobs(echoed, texts)) if scored else NULL,
                answer.finish_reason.encode(),
                encode(answer.stop_reason),
                encode(self._vocabulary.ids(texts)) if ask.token_ids else NULL,
                encode(self._prompt_logprobs(prompt)) if scored and echoed else NULL,
                encode(self._vocabulary.ids(prompt)) if ask.token_ids else NULL,
            )
        )


def _said(prompt: list[str]) -> str:
    return "".join(prompt).removeprefix("<s>")
