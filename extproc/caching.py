"""The response cache's rules: what one answer is the answer to, what may be stored, how it is played again.

An entry is the plain (not streamed) JSON answer. Streams are folded into it and unfolded from it, so both forms share
one entry. Whatever this module does not fully understand is not stored: a replay must be able to take either form
without losing a field. Tenants are kept apart by the store's keys, not here.
"""

import hashlib
from collections.abc import Iterator

import msgspec

from extproc.chat import Json, Prompt, encode
from extproc.config import Model

_FORMAT = 1  # of entries and of their replay: another one makes all old entries unknown
EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"

# Fields that can not change the answer. In /v1/responses `user` and `metadata` come back in the answer.
_NEUTRAL = {
    "chat": {"user", "stream", "stream_options", "model", "task", "metadata", "safety_identifier", "prompt_cache_key",
             "store", "priority", "request_id"},
    "completions": {"user", "stream", "stream_options", "model", "task", "priority", "request_id"},
    "embeddings": {"user", "stream", "stream_options", "model", "task", "priority", "request_id"},
    "responses": {"stream", "stream_options", "model", "task", "priority", "request_id"},
}  # fmt: skip
# vLLM's default for these is not null: absent and null ask for different answers.
_NULL_IS_NOT_ABSENT = {
    "chat": {"tool_choice"},
    "completions": {"max_tokens"},
    "embeddings": set[str](),
    "responses": {"tool_choice"},
}
_WHOLE = {"stop", "length", "tool_calls", "function_call"}  # not null, not "abort": the answer would be a torso


def may_cache(prompt: Prompt, model: Model) -> bool:
    """Whether the model's policy allows this request's answer to be stored and played again."""
    if model.cache_policy == "off" or prompt.stateful:
        return False
    return model.cache_policy == "always" or not prompt.sampled


def fingerprint(prompt: Prompt, model: Model) -> str:
    """256 bits (hex) over all that can change the answer: endpoint, model as served, every other field of the body.

    The order of the body's own fields says nothing; deeper down it does: answers follow a schema's order.
    """
    without, null_counts = _NEUTRAL[prompt.endpoint], _NULL_IS_NOT_ABSENT[prompt.endpoint]
    parts = [
        (name, _plain(value))
        for name, value in sorted(prompt.body.items())
        if name not in without and (value is not None or name in null_counts)
    ]
    text = encode((_FORMAT, prompt.endpoint, model.name, model.served_name, parts))
    return hashlib.sha256(text).hexdigest()


def _plain(value: object) -> object:
    """`1.0` and `1` ask for the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- what may be stored -----------------------------------------------------------------------------------------------


def entry_of(endpoint: str, streamed: bool, body: bytes) -> bytes | None:
    """The entry for a complete 200 answer; None if it is incomplete, failed, or has parts that we can not replay."""
    try:
        if not streamed:
            answer = msgspec.json.decode(body)
            return body if isinstance(answer, dict) and _replayable(endpoint, answer) else None
        answer = _FOLD[endpoint](list(_events(body)))
        return msgspec.json.encode(answer) if _replayable(endpoint, answer) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _NotUnderstoodError, LookupError, TypeError,
            AttributeError):  # fmt: skip
        return None


class _NotUnderstoodError(Exception):
    pass


def _replayable(endpoint: str, answer: Json) -> bool:
    if "error" in answer and answer["error"] is not None:
        return False
    if endpoint == "embeddings":
        return isinstance(answer.get("data"), list)
    if not isinstance(answer.get("usage"), dict):
        return False
    if endpoint != "responses":
        reasons = {choice["finish_reason"] for choice in answer["choices"]}
        if not reasons or not reasons <= _WHOLE:
            return False
    return sum(1 for _ in _UNFOLD[endpoint](answer, True)) > 0


def _events(body: bytes) -> Iterator[Json]:
    """The `data:` objects of a stream; nothing may be missing at its end."""
    if not body.endswith(b"\n\n"):
        raise _NotUnderstoodError
    for event in body.split(b"\n\n"):
        data = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if data and data[0] != b"[DONE]":
            value = msgspec.json.decode(b"\n".join(data))
            if not isinstance(value, dict) or (value.get("error") is not None and "choices" not in value):
                raise _NotUnderstoodError
            yield value


def _expect(value: Json, *known: str) -> None:
    """All other fields must be null or empty: what we do not know we do not drop."""
    for name, field in value.items():
        if name not in known and field not in (None, [], {}):
            raise _NotUnderstoodError


def _fold_chunks(events: list[Json], kind: str) -> Json:
    """Chunks of chat.completion or text_completion -> the plain answer."""
    answer: Json = {}
    choices: dict[int, Json] = {}
    for event in events:
        _expect(event, "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier")
        for name in ("id", "created", "model", "system_fingerprint", "service_tier", "usage"):
            if event.get(name) is not None:
                answer[name] = event[name]
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"index": part["index"], "logprobs": None})
            _expect(part, "index", "delta", "text", "logprobs", "finish_reason", "stop_reason")
            for name in ("finish_reason", "stop_reason"):
                if part.get(name) is not None:
                    choice[name] = part[name]
            _merge(choice, {"logprobs": part.get("logprobs")})
            _merge(choice, {"text": part.get("text")} if kind == "text_completion" else {"message": part.get("delta")})
    if not choices or any(c.get("finish_reason") is None for c in choices.values()):
        raise _NotUnderstoodError
    ordered = [_finished(choices[i], kind) for i in sorted(choices)]
    head = {"id": answer.pop("id"), "object": kind, "created": answer.pop("created"), "model": answer.pop("model")}
    return {**head, "choices": ordered, **answer}


def _finished(choice: Json, kind: str) -> Json:
    if kind == "chat.completion":
        message = choice["message"]
        message.setdefault("role", "assistant")
        message.setdefault("content", None)
        for call in message.get("tool_calls") or []:
            call.pop("index", None)
        if message.get("tool_calls") and message["content"] == "":
            message["content"] = None
    else:
        choice.setdefault("text", "")
    return choice


_INDEXED = {"tool_calls"}  # by name: a list of dictionaries under the token "index" would look the same


def _merge(into: Json, part: Json) -> None:
    """Delta rules: strings are appended, lists of indexed objects merged by index, other lists joined."""
    for name, value in part.items():
        old = into.get(name)
        if value is None:
            continue
        if old is None:
            into[name] = value if name not in _INDEXED else []
            if name in _INDEXED:
                _merge_indexed(into[name], value)
        elif isinstance(value, str) and isinstance(old, str) and name not in ("role", "id", "type"):
            into[name] = old + value
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif isinstance(value, list) and isinstance(old, list):
            if name in _INDEXED:
                _merge_indexed(old, value)
            else:
                old.extend(value)
        elif value != old:
            raise _NotUnderstoodError


def _merge_indexed(old: list[Json], parts: list[Json]) -> None:
    for part in parts:
        mine = next((x for x in old if x["index"] == part["index"]), None)
        if mine is None:
            mine = {"index": part["index"]}
            old.append(mine)
        _merge(mine, {k: v for k, v in part.items() if k != "index"})


def _fold_response(events: list[Json]) -> Json:
    last = events[-1]
    if last.get("type") != "response.completed":
        raise _NotUnderstoodError
    response = last["response"]
    if not isinstance(response, dict):
        raise _NotUnderstoodError
    return response


_FOLD = {
    "chat": lambda events: _fold_chunks(events, "chat.completion"),
    "completions": lambda events: _fold_chunks(events, "text_completion"),
    "responses": _fold_response,
}


# --- how it is played again -------------------------------------------------------------------------------------------


def replay(prompt: Prompt, entry: bytes) -> tuple[str, bytes]:
    """(content type, body) in the form that this request asked for."""
    if not prompt.stream:
        return JSON, entry
    events = _UNFOLD[prompt.endpoint](msgspec.json.decode(entry), prompt.include_usage)
    if prompt.endpoint == "responses":
        return EVENT_STREAM, b"".join(b"event: " + e["type"].encode() + b"\n" + _data(e) for e in events)
    return EVENT_STREAM, b"".join(map(_data, events)) + b"data: [DONE]\n\n"


def _data(event: Json) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _head(answer: Json, kind: str) -> Json:
    """What every chunk of a stream repeats."""
    head = {"id": answer["id"], "object": kind, "created": answer["created"], "model": answer["model"]}
    marks = ("system_fingerprint", "service_tier")
    return {**head, **{name: answer[name] for name in marks if answer.get(name) is not None}}


def _unfold_chat(answer: Json, include_usage: bool) -> Iterator[Json]:
    head = _head(answer, "chat.completion.chunk")
    _expect(answer, *head, "choices", "usage", "system_fingerprint", "service_tier")
    for choice in answer["choices"]:
        _expect(choice, "index", "message", "logprobs", "finish_reason", "stop_reason")
        message = choice["message"]
        _expect(message, "role", "content", "tool_calls", "reasoning", "reasoning_content", "refusal")
        first = {"index": choice["index"], "delta": {"role": message["role"], "content": ""}, "logprobs": None}
        yield {**head, "choices": [{**first, "finish_reason": None}]}
        delta = {k: v for k, v in message.items() if k not in ("role", "tool_calls") and v not in (None, "", [])}
        if message.get("tool_calls"):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
        last = {"index": choice["index"], "delta": delta, "logprobs": choice.get("logprobs")}
        end = {"finish_reason": choice["finish_reason"], "stop_reason": choice.get("stop_reason")}
        yield {**head, "choices": [{**last, **end}]}
    if include_usage:
        yield {**head, "choices": [], "usage": answer["usage"]}


def _unfold_completion(answer: Json, include_usage: bool) -> Iterator[Json]:
    head = _head(answer, "text_completion")
    _expect(answer, *head, "choices", "usage", "system_fingerprint", "service_tier")
    for choice in answer["choices"]:
        _expect(choice, "index", "text", "logprobs", "finish_reason", "stop_reason")
        kept = ("index", "text", "logprobs", "finish_reason", "stop_reason")
        yield {**head, "choices": [{k: choice.get(k) for k in kept}]}
    if include_usage:
        yield {**head, "choices": [], "usage": answer["usage"]}


def _unfold_response(answer: Json, _include_usage: bool) -> Iterator[Json]:
    """The events of /v1/responses, each with its whole text in one delta."""
    if answer.get("status") != "completed":
        raise _NotUnderstoodError
    steps: list[Json] = []
    opening = {**answer, "status": "in_progress", "output": [], "usage": None}
    steps += [{"type": "response.created", "response": opening}, {"type": "response.in_progress", "response": opening}]
    for index, item in enumerate(answer["output"]):
        steps += _item_steps(index, item)
    steps.append({"type": "response.completed", "response": answer})
    for number, step in enumerate(steps):
        yield {**step, "sequence_number": number}


def _item_steps(index: int, item: Json) -> Iterator[Json]:
    at = {"output_index": index, "item_id": item["id"]}
    if item["type"] == "message":
        yield _added(index, {**item, "status": "in_progress", "content": []})
        for k, part in enumerate(item["content"]):
            if part["type"] != "output_text":
                raise _NotUnderstoodError
            here = {**at, "content_index": k}
            yield {"type": "response.content_part.added", **here, "part": {**part, "text": ""}}
            text = {"logprobs": part.get("logprobs") or []}
            yield {"type": "response.output_text.delta", **here, **text, "delta": part["text"]}
            yield {"type": "response.output_text.done", **here, **text, "text": part["text"]}
            yield {"type": "response.content_part.done", **here, "part": part}
    elif item["type"] == "function_call":
        yield _added(index, {**item, "status": "in_progress", "arguments": ""})
        yield {"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]}
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **at, **done}
    else:
        raise _NotUnderstoodError
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _added(index: int, item: Json) -> Json:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


_UNFOLD = {"chat": _unfold_chat, "completions": _unfold_completion, "responses": _unfold_response}
