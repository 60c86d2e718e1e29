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

    def caches(self, cached_tokens: int, created_tokens: int) -> None:
        self.head.cached_tokens, self.head.created_cache_tokens = cached_tokens, created_tokens

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
        events = [self._event("response.output_item.added", item=self._item("in_progress", ""), output_index=0)]
        if self._answer.tool is None:
            events.append(self._part_event("response.content_part.added", output_index=0, part=_part("", [])))
        return events

    def token(self, choice: int, at: int) -> bytes:  # noqa: ARG002  one choice only
        if not self._answer.pieces[at]:
            return b""
        self._number += 1
        return self._before + self._answer.pieces[at] + self._after % self._number

    def closing(self) -> list[bytes]:
        text = self._answer.text
        if self._answer.tool is None:
            events = [
                self._part_event(
                    "response.output_text.done", logprobs=[], output_index=0, sequence_number=0, text=text
                ),
                self._part_event("response.content_part.done", output_index=0, part=_part(text)),
            ]
        else:
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    arguments=text,
                    item_id=self._item_id,
                    output_index=0,
                    sequence_number=0,
                    type="",
                    name=self._answer.tool,
                )
            ]
        return [
            *events,
            self._event("response.output_item.done", item=self._item("completed", text), output_index=0),
            self._event("response.completed", response=self._response(done=True)),
        ]

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        body = _encode(fields | {"sequence_number": self._number, "type": kind})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, **{"content_index": 0, "item_id": self._item_id, **fields})

    def _item(self, status: str, text: str) -> dict[str, Any]:
        if self._answer.tool is not None:
            return {
                "arguments": text,
                "call_id": f"chatcmpl-tool-{self.head.id[-16:]}",
                "name": self._answer.tool,
                "type": "function_call",
                "id": self._item_id,
                "async": None,
                "caller": None,
                "namespace": None,
                "status": status,
            }
        return {
            "id": self._item_id,
            "content": [_part(text)] if text else [],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _usage(self) -> dict[str, Any]:
        output = len(self._answer.texts)
        return {
            "input_tokens": self.head.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.head.cached_tokens,
                "cache_write_tokens": self.head.created_cache_tokens or 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": output,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
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
            "tool_choice": _choice(request),
            "tools": [_tool(tool) for tool in request.tools or []],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "background": False,
            "max_output_tokens": self._max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": ended if done else "in_progress",
            "text": _text(request.text),
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": request.user,
            "presence_penalty": request.presence_penalty or 0.0,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _choice(request: ResponsesRequest) -> Any:
    if not request.tools:
        return "none"
    choice = request.tool_choice
    return {"name": choice["name"], "type": "function"} if isinstance(choice, dict) else choice or "auto"


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    optional = ("allowed_callers", "async", "defer_loading", "description", "output_schema")
    return {
        "name": tool.get("name"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict"),
        "type": tool.get("type"),
        **{name: tool.get(name) for name in optional},
    }


def _text(text: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what vLLM makes of `text`: all of its fields, asked for or not."""
    if text is None:
        return None
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        names = ("name", "schema", "type", "description", "strict")
        form = {name: form.get(name) for name in names}
    return {"format": form, "verbosity": text.get("verbosity")}
