"""The bytes of /v1/responses, plain and as the event sequence of the Responses API, as vLLM writes them.

Pure. Usage is named input_tokens / output_tokens here and a stream carries it inside `response.completed`; every
event has a name line, a type and a running sequence_number, and no [DONE] follows.
"""

from typing import Any

import msgspec

from extproc.sim.answers import Head
from extproc.sim.asks import Ask
from extproc.sim.bodies import ResponsesRequest
from extproc.sim.text import Answer

_encode = msgspec.json.encode


class ResponsesWriter:
    def __init__(self, ask: Ask, answers: list[Answer], head: Head, request: ResponsesRequest, max_tokens: int) -> None:
        self._ask = ask
        self._answer = answers[0]
        self.head = head
        self._request = request
        self._max_tokens = max_tokens
        self._number = -1
        kind = "fc" if self._answer.tool is not None else "msg"
        self._item_id = f"{kind}_{head.id[-16:]}"
        name = (
            "response.function_call_arguments.delta" if self._answer.tool is not None else "response.output_text.delta"
        )
        self._before = b'event: %b\ndata: {%b"delta":"' % (
            name.encode(),
            b"" if self._answer.tool is not None else b'"content_index":0,',
        )
        self._after = b'","item_id":"%b",%b"output_index":0,"sequence_number":%%d,"type":"%b"}\n\n' % (
            self._item_id.encode(),
            b"" if self._answer.tool is not None else b'"logprobs":[],',
            name.encode(),
        )

    def plain(self) -> bytes:
        return _encode(self._response(done=True))

    def greeting(self) -> list[bytes]:
        """Events that come before any token exists."""
        started = self._response(done=False)
        return [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
        ]

    def opening(self) -> list[bytes]:
        events = [self._event("response.output_item.added", output_index=0, item=self._item("in_progress", ""))]
        if self._answer.tool is None:
            events.append(self._part_event("response.content_part.added", part=_part("")))
        return events

    def token(self, choice: int, at: int) -> bytes:  # noqa: ARG002  one choice only
        self._number += 1
        return self._before + self._answer.pieces[at] + self._after % self._number

    def closing(self) -> list[bytes]:
        text = self._answer.text
        if self._answer.tool is None:
            events = [
                self._part_event("response.output_text.done", text=text, logprobs=[]),
                self._part_event("response.content_part.done", part=_part(text)),
            ]
        else:
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    arguments=text,
                    item_id=self._item_id,
                    name=self._answer.tool,
                    output_index=0,
                )
            ]
        return [
            *events,
            self._event("response.output_item.done", output_index=0, item=self._item("completed", text)),
            self._event("response.completed", response=self._response(done=True)),
        ]

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        body = _encode(fields | {"sequence_number": self._number, "type": kind})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, content_index=0, item_id=self._item_id, output_index=0, **fields)

    def _item(self, status: str, text: str) -> dict[str, Any]:
        if self._answer.tool is not None:
            return {
                "arguments": text,
                "call_id": f"call_{self.head.id[-16:]}",
                "name": self._answer.tool,
                "type": "function_call",
                "id": self._item_id,
                "status": status,
            }
        content = [_part(text)] if status == "completed" else []
        return {"id": self._item_id, "content": content, "role": "assistant", "status": status, "type": "message"}

    def _usage(self) -> dict[str, Any]:
        output = len(self._answer.texts)
        return {
            "input_tokens": self.head.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.head.cached_tokens or 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.head.prompt_tokens + output,
        }

    def _response(self, *, done: bool) -> dict[str, Any]:
        request = self._request
        cut = done and self._answer.finish_reason == "length"
        ended = "incomplete" if cut else "completed"
        return {
            "id": self.head.id,
            "created_at": self.head.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": request.instructions,
            "metadata": request.metadata,
            "model": self.head.model,
            "object": "response",
            "output": [self._item("completed", self._answer.text)] if done else [],
            "parallel_tool_calls": bool(request.parallel_tool_calls),
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "background": False,
            "max_output_tokens": self._max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": ended if done else "in_progress",
            "text": request.text,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": request.user,
            "presence_penalty": None,
            "frequency_penalty": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
