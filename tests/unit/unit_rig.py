"""Small real values for the unit tests, and answers as vLLM 0.32 writes them, plain and streamed."""

import json
from itertools import zip_longest
from typing import Any

from hypothesis import strategies as st

from extproc import chat, config
from extproc.admission import KeyRecord
from extproc.config import Catalogue, Endpoint
from extproc.decision import Ticket
from extproc.receipt import Receipt

CONFIG = b"""\
models:
  - name: llama2
    served_name: meta/llama
    context_tokens: 4096
    price: {input: 0.20, output: 0.60}
    fallbacks: [mistral]
  - name: mistral
    context_tokens: 8192
    price: {input: 0.10, output: 0.30, cached_input: 0.05}
    fallbacks: [llama2]
  - name: bge
    context_tokens: 512
    endpoints: [embeddings]
    price: {input: 0.01}
default_model: mistral
aliases:
  - {pattern: "*code*", model: mistral}
  - {pattern: "gpt-4*", model: llama2}
tasks: {chat: llama2, code: mistral}
"""
CATALOGUE = config.load(CONFIG, "llm-mesh.yaml")
LLAMA, MISTRAL, BGE = (CATALOGUE.models[name] for name in ("llama2", "mistral", "bge"))
MESSAGES = [{"role": "user", "content": "Hello"}]
USAGE = {"prompt_tokens": 13, "total_tokens": 17, "completion_tokens": 4, "prompt_tokens_details": None}
DONE = b"data: [DONE]\n\n"

Json = dict[str, Any]


def changed(**fields: Any) -> Catalogue:
    """CATALOGUE with other top-level fields."""
    import yaml

    return config.load(yaml.safe_dump({**yaml.safe_load(CONFIG), **fields}).encode(), "llm-mesh.yaml")


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def prompt(endpoint: Endpoint = "chat", **body: Any) -> chat.Prompt:
    """A request body, read; what its endpoint needs is put in if it is not given."""
    needed = {"chat": {"messages": MESSAGES}, "completions": {"prompt": "Hi"}}.get(endpoint, {"input": "Hi"})
    return chat.read_prompt(endpoint, compact({**needed, **body}))


def key(**fields: Any) -> KeyRecord:
    return KeyRecord(**{"key_id": "key_1", "tenant": "acme", "user": "ann", "models": ["*"], "created_ms": 0, **fields})


def ticket(**fields: Any) -> Ticket:
    usual = {"request_id": "r-1", "endpoint": "chat", "tenant": "acme", "user": "ann", "key_id": "key_1"}
    priced = {"model": "mistral", "input_price": 100_000, "output_price": 300_000, "cached_input_price": 50_000}
    sizes = {"prompt_bytes": 400, "prompt_tokens": 100, "max_completion_tokens": 256, "cache": "miss"}
    return Ticket(**{**usual, **priced, **sizes, **fields})


def receipt(ticket: Ticket, **fields: Any) -> Receipt:
    """A request that went well and whose usage was not seen."""
    usual: Json = {"status": 200, "start": 1.0, "duration": 2.0}
    answer: Json = {"first_byte": 0.5, "body_bytes": 1000, "upstream": "model-mistral"}
    flags: Json = {"unreachable": False, "client_left": False}
    return Receipt(ticket=ticket, **{**usual, **answer, **flags, **fields})


def pruned(value: Any) -> Any:
    """Without what says nothing: vLLM writes null, empty or nothing for it, by form and version."""
    if isinstance(value, dict):
        return {k: p for k, v in value.items() if (p := pruned(v)) not in (None, "", [], {})}
    return [pruned(v) for v in value] if isinstance(value, list) else value


# --- answers ----------------------------------------------------------------------------------------------------------

PIECES = st.lists(st.text(min_size=1, max_size=6), max_size=5)
TOKENS = st.sampled_from(["a", " b", "index", "token", "\n", "é"])


def event(value: Any) -> bytes:
    return b"data: " + compact(value) + b"\n\n"


@st.composite
def chat_choices(draw: st.DrawFn) -> Json:
    """One choice: its parts, each a list of pieces as a stream would bring them."""
    calls = draw(st.lists(st.tuples(st.sampled_from(["get", "put"]), PIECES), max_size=3))
    return {
        "content": draw(PIECES),
        "reasoning": draw(st.one_of(st.just([]), PIECES)),
        "calls": calls,
        "logprobs": draw(st.lists(TOKENS, max_size=4)),
        "finish": "tool_calls" if calls else draw(st.sampled_from(["stop", "length"])),
        "stop_reason": draw(st.sampled_from([None, 2, "\n"])),
    }


def _logprob(token: str) -> Json:
    one = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
    return {**one, "top_logprobs": [one]}


def _call(index: int, name: str) -> Json:
    return {"id": f"call-{index}", "type": "function", "function": {"name": name}}


def chat_plain(choices: list[Json]) -> bytes:
    return compact(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1795421256,
            "model": "m",
            "choices": [_plain_choice(at, choice) for at, choice in enumerate(choices)],
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0-61220b60",
            "usage": USAGE,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def _plain_choice(at: int, choice: Json) -> Json:
    calls = [_call(i, name) for i, (name, _) in enumerate(choice["calls"])]
    for call, (_, pieces) in zip(calls, choice["calls"], strict=True):
        call["function"]["arguments"] = "".join(pieces)
    message = {
        "role": "assistant",
        "content": "".join(choice["content"]) or None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": calls,
        "reasoning": "".join(choice["reasoning"]) or None,
    }
    logprobs = {"content": [_logprob(token) for token in choice["logprobs"]]} if choice["logprobs"] else None
    end = {"finish_reason": choice["finish"], "stop_reason": choice["stop_reason"], "token_ids": None}
    return {"index": at, "message": message, "logprobs": logprobs, **end}


def chat_stream(choices: list[Json], *, usage: bool = True) -> bytes:
    """All choices at the same time, a piece of each in turn."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1795421256, "model": "m"}
    events = []
    for at in range(len(choices)):
        first = {"index": at, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        events.append({**head, "choices": [first], "prompt_token_ids": None, "prompt_text": None})
    turns = [_chunks(at, choice) for at, choice in enumerate(choices)]
    events += [{**head, "choices": [chunk]} for turn in zip_longest(*turns) for chunk in turn if chunk is not None]
    counted = {name: value for name, value in USAGE.items() if value is not None}
    tail = {**head, "choices": [], "usage": counted, "system_fingerprint": "vllm-0.32.0-61220b60"}
    return b"".join(map(event, [*events, tail] if usage else events)) + DONE


def _chunks(at: int, choice: Json) -> list[Json]:
    deltas: list[Json] = [{"reasoning": piece} for piece in choice["reasoning"]]
    deltas += [{"content": piece} for piece in choice["content"]]
    for i, (name, pieces) in enumerate(choice["calls"]):
        call = _call(i, name)
        call["function"]["arguments"] = ""
        deltas.append({"tool_calls": [{**call, "index": i}]})
        deltas += [{"tool_calls": [{"index": i, "function": {"arguments": piece}}]} for piece in pieces]
    chunks = [
        {"index": at, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None} for delta in deltas
    ]
    chunks += [
        {"index": at, "delta": {"content": ""}, "logprobs": {"content": [_logprob(token)]}, "finish_reason": None}
        for token in choice["logprobs"]
    ]
    end = {"finish_reason": choice["finish"], "stop_reason": choice["stop_reason"]}
    return [*chunks, {"index": at, "delta": {"content": ""}, "logprobs": None, **end, "token_ids": None}]


@st.composite
def completion_choices(draw: st.DrawFn) -> Json:
    tokens = draw(st.lists(TOKENS, min_size=1, max_size=6))
    finish = draw(st.sampled_from(["stop", "length"]))
    return {"tokens": tokens, "logprobs": draw(st.booleans()), "finish": finish}


def _token_logprobs(tokens: list[str], offset: int = 0) -> Json:
    offsets = [offset + len("".join(tokens[:at])) for at in range(len(tokens))]
    tops = [{token: -0.25, "x": -1.5} for token in tokens]
    return {"text_offset": offsets, "token_logprobs": [-0.25] * len(tokens), "tokens": tokens, "top_logprobs": tops}


def completion_plain(choices: list[Json]) -> bytes:
    listed = [
        {
            "index": at,
            "text": "".join(c["tokens"]),
            "logprobs": _token_logprobs(c["tokens"]) if c["logprobs"] else None,
            "finish_reason": c["finish"],
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }
        for at, c in enumerate(choices)
    ]
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1795421256, "model": "m", "choices": listed}
    return compact({**head, "service_tier": None, "system_fingerprint": "f", "usage": USAGE, "metrics": None})


def completion_stream(choices: list[Json]) -> bytes:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1795421256, "model": "m"}
    turns = []
    for at, c in enumerate(choices):
        said = 0
        turn = []
        for token in c["tokens"]:
            logprobs = _token_logprobs([token], said) if c["logprobs"] else None
            said += len(token)
            nulls = {"finish_reason": None, "stop_reason": None, "prompt_token_ids": None, "token_ids": None}
            turn.append({"index": at, "text": token, "logprobs": logprobs, **nulls})
        turn[-1]["finish_reason"] = c["finish"]
        turns.append(turn)
    events = [{**head, "choices": [chunk]} for turn in zip_longest(*turns) for chunk in turn if chunk is not None]
    usage = {name: value for name, value in USAGE.items() if value is not None}
    tail = {**head, "choices": [], "usage": usage, "system_fingerprint": "f"}
    return b"".join(map(event, [*events, tail])) + DONE


@st.composite
def responses(draw: st.DrawFn) -> Json:
    """A whole object of /v1/responses: messages and function calls."""
    output: list[Json] = []
    for at, (text, is_call) in enumerate(draw(st.lists(st.tuples(st.text(max_size=9), st.booleans()), max_size=3))):
        if is_call:
            call = {"type": "function_call", "id": f"fc_{at}", "call_id": f"call_{at}", "name": "get"}
            output.append({**call, "arguments": text, "status": "completed"})
        else:
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
            item = {"type": "message", "id": f"msg_{at}", "role": "assistant", "status": "completed"}
            output.append({**item, "content": [part]})
    usage = {"input_tokens": 13, "output_tokens": 4, "total_tokens": 17, "input_tokens_details": {"cached_tokens": 0}}
    head = {"id": "resp_1", "object": "response", "created_at": 1795421256, "model": "m", "status": "completed"}
    return {**head, "output": output, "usage": usage, "incomplete_details": None, "tools": [], "error": None}


def response_stream(answer: Json) -> bytes:
    """The events that a fold needs: what was begun, and what was completed."""
    opening = {**answer, "status": "in_progress", "output": [], "usage": None}
    steps = [("response.created", opening), ("response.completed", answer)]
    return b"".join(
        b"event: " + name.encode() + b"\n" + event({"type": name, "response": response, "sequence_number": number})
        for number, (name, response) in enumerate(steps)
    )
