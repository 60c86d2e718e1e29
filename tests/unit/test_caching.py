"""What one answer is the answer to, what may be stored, and how it is played again."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from unit_rig import (
    BGE,
    DONE,
    LLAMA,
    MESSAGES,
    MISTRAL,
    USAGE,
    Json,
    changed,
    chat_choices,
    chat_plain,
    chat_stream,
    compact,
    completion_choices,
    completion_plain,
    completion_stream,
    event,
    prompt,
    pruned,
    response_stream,
    responses,
)

from extproc import caching
from extproc.chat import Prompt
from extproc.config import Endpoint, Model

CHATS = st.lists(chat_choices(), min_size=1, max_size=3)
COMPLETIONS = st.lists(completion_choices(), min_size=1, max_size=3)
WORD = {"content": ["Hi", "!"], "reasoning": [], "calls": [], "logprobs": [], "finish": "stop", "stop_reason": None}
ALWAYS = changed(models=[{"name": "m", "context_tokens": 512, "price": {"input": 1}, "cache": {"policy": "always"}}],
                 default_model="m", aliases=[], tasks={}).default  # fmt: skip


def entry(endpoint: str, body: bytes, *, streamed: bool) -> Any:
    stored = caching.entry_of(endpoint, streamed, body)
    assert stored is not None
    return json.loads(stored)


def events(body: bytes) -> list[Json]:
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def replayed(endpoint: Endpoint, stored: bytes, **body: Any) -> bytes:
    content_type, answer = caching.replay(prompt(endpoint, stream=True, **body), stored)
    assert content_type == "text/event-stream; charset=utf-8"
    return answer


# --- a stream and a plain answer are one entry ------------------------------------------------------------------------


@given(CHATS)
def test_a_chat_stream_folds_into_the_plain_answer(choices: list[Json]) -> None:
    folded = entry("chat", chat_stream(choices), streamed=True)
    assert pruned(folded) == pruned(json.loads(chat_plain(choices)))


@given(CHATS)
def test_a_stored_chat_survives_being_streamed_and_folded_again(choices: list[Json]) -> None:
    stored = caching.entry_of("chat", False, chat_plain(choices))
    assert stored is not None
    stream = replayed("chat", stored, stream_options={"include_usage": True})
    assert pruned(entry("chat", stream, streamed=True)) == pruned(json.loads(stored))


@given(CHATS)
def test_the_openai_client_reads_a_replay_as_it_reads_the_stream_it_came_from(choices: list[Json]) -> None:
    stream = chat_stream(choices)
    stored = caching.entry_of("chat", True, stream)
    assert stored is not None
    assert said(replayed("chat", stored)) == said(stream)


def said(stream: bytes) -> list[Any]:
    """Content, tool calls and ends, put together by the official client's own accumulator."""
    state = ChatCompletionStreamState()
    for value in events(stream):
        state.handle_chunk(ChatCompletionChunk.model_validate(value))
    snapshot = state.current_completion_snapshot
    found = []
    for choice in snapshot.choices:
        calls = [(c.id, c.function.name, c.function.arguments or "") for c in choice.message.tool_calls or []]
        found.append((choice.message.role, choice.message.content or "", calls, choice.finish_reason))
    return found


@given(COMPLETIONS)
def test_a_completion_stream_folds_into_the_plain_answer(choices: list[Json]) -> None:
    folded = entry("completions", completion_stream(choices), streamed=True)
    assert pruned(folded) == pruned(json.loads(completion_plain(choices)))


@given(COMPLETIONS)
def test_a_stored_completion_survives_being_streamed_and_folded_again(choices: list[Json]) -> None:
    stored = caching.entry_of("completions", False, completion_plain(choices))
    assert stored is not None
    stream = replayed("completions", stored, stream_options={"include_usage": True})
    assert pruned(entry("completions", stream, streamed=True)) == pruned(json.loads(stored))


@given(responses())
def test_a_response_is_the_same_plain_streamed_and_replayed(answer: Json) -> None:
    stored = caching.entry_of("responses", False, compact(answer))
    assert stored == compact(answer)
    assert entry("responses", response_stream(answer), streamed=True) == answer
    assert entry("responses", replayed("responses", stored), streamed=True) == answer


@given(responses())
def test_the_events_of_a_replayed_response_are_numbered_and_bring_all_text(answer: Json) -> None:
    found = events(replayed("responses", compact(answer)))
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    assert [e["type"] for e in found[:2]] == ["response.created", "response.in_progress"]
    text = "".join(e["delta"] for e in found if e["type"].endswith(".delta"))
    assert text == "".join(item.get("arguments", "") or "".join(p["text"] for p in item.get("content", []))
                           for item in answer["output"])  # fmt: skip


def test_tokens_that_look_like_indexes_do_not_confuse_the_fold() -> None:
    choices = [{"tokens": ["index", "index"], "logprobs": True, "finish": "stop"}]
    folded = entry("completions", completion_stream(choices), streamed=True)
    assert folded["choices"][0]["logprobs"]["top_logprobs"] == [{"index": -0.25, "x": -1.5}] * 2


def test_several_choices_are_replayed_each_whole() -> None:
    stored = caching.entry_of("chat", False, chat_plain([WORD, {**WORD, "content": ["Bye"], "finish": "length"}]))
    assert stored is not None
    assert said(replayed("chat", stored)) == [
        ("assistant", "Hi!", [], "stop"),
        ("assistant", "Bye", [], "length"),
    ]


def test_the_usage_event_comes_only_when_it_was_asked_for() -> None:
    stored = chat_plain([WORD])
    assert not [e for e in events(replayed("chat", stored)) if "usage" in e]
    last = events(replayed("chat", stored, stream_options={"include_usage": True}))[-1]
    assert last["choices"] == []
    assert last["usage"] == USAGE


def test_a_replayed_stream_ends_like_any_other_and_keeps_the_system_fingerprint() -> None:
    stream = replayed("chat", chat_plain([WORD]))
    assert stream.endswith(DONE)
    assert {e["system_fingerprint"] for e in events(stream)} == {"vllm-0.32.0-61220b60"}


def test_a_plain_entry_is_replayed_byte_for_byte() -> None:
    assert caching.replay(prompt(), chat_plain([WORD])) == ("application/json", chat_plain([WORD]))


# --- what is not stored -----------------------------------------------------------------------------------------------

PLAIN = json.loads(chat_plain([WORD]))
CHOICE = PLAIN["choices"][0]


@pytest.mark.parametrize("reason", [None, "abort", "error", "", ["stop"]])
def test_an_answer_that_did_not_end_by_itself_is_not_stored(reason: Any) -> None:
    for endpoint, plain in ("chat", PLAIN), ("completions", json.loads(completion_plain([completion()]))):
        body = {**plain, "choices": [{**plain["choices"][0], "finish_reason": reason}]}
        assert caching.entry_of(endpoint, False, compact(body)) is None


def completion() -> Json:
    return {"tokens": ["a"], "logprobs": False, "finish": "stop"}


@pytest.mark.parametrize(
    "change",
    [
        {"choices": []},
        {"choices": None},
        {"usage": None},
        {"error": {"message": "no"}},
        {"prompt_token_ids": [1, 2]},
        {"kv_transfer_params": {"a": 1}},
        {"choices": [{**CHOICE, "token_ids": [1]}]},
        {"choices": [{**CHOICE, "message": {"content": "no role"}}]},
        {"choices": [{**CHOICE, "message": {**CHOICE["message"], "audio": {"id": "a"}}}]},
        {"choices": [{**CHOICE, "message": None}]},
        {"choices": [3]},
        {"id": ...},
    ],
)
def test_a_plain_answer_with_parts_that_no_stream_could_show_is_not_stored(change: Json) -> None:
    body = {name: value for name, value in {**PLAIN, **change}.items() if value is not ...}
    assert caching.entry_of("chat", False, compact(body)) is None


WHOLE = chat_stream([WORD])
OPENING, FIRST, *_ = WHOLE.split(b"\n\n")


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        DONE,
        WHOLE[:-1],
        WHOLE.replace(b'"finish_reason":"stop"', b'"finish_reason":null'),
        WHOLE.replace(b'"finish_reason":"stop"', b'"finish_reason":"abort"'),
        chat_stream([WORD], usage=False),
        WHOLE.replace(b"\n\n", b"\r\n\r\n"),
        WHOLE.replace(b"\n\n", b'\n\ndata: {"error":{"message":"boom","type":"x","code":500}}\n\n', 1),
        WHOLE.replace(b'"content":"Hi"', b'"content":"Hi","novel":1'),
        WHOLE.replace(b'"content":"Hi"', b'"content":"Hi","role":"user"'),
        WHOLE.replace(b'"token_ids":null', b'"token_ids":[7]'),
        WHOLE.replace(b'{"id"', b'["id"'),
        b"data: \xff\n\n" + WHOLE,
        b"data: 3\n\n" + WHOLE,
    ],
)
def test_a_stream_that_is_cut_failed_or_odd_is_not_stored(stream: bytes) -> None:
    assert caching.entry_of("chat", True, stream) is None


@pytest.mark.parametrize(
    "extra",
    [
        b": ping\n\n",
        event({"id": "chatcmpl-1", "created": 1, "model": "m", "choices": [], "usage": None}),
        FIRST.replace(b"Hi", b"") + b"\n\n",
    ],
)
def test_comments_null_usage_and_empty_pieces_change_nothing(extra: bytes) -> None:
    stream = WHOLE.replace(FIRST, extra + FIRST)
    assert said_text(stream) == "Hi!"


def said_text(stream: bytes) -> Any:
    return entry("chat", stream, streamed=True)["choices"][0]["message"]["content"]


def test_running_usage_is_replaced_by_the_last() -> None:
    running = FIRST[:-1] + b',"usage":{"prompt_tokens":13,"total_tokens":14,"completion_tokens":1}}'
    folded = entry("chat", WHOLE.replace(FIRST, running), streamed=True)
    assert folded["usage"]["completion_tokens"] == USAGE["completion_tokens"]


@pytest.mark.parametrize("status", ["incomplete", "failed", "in_progress", None])
def test_only_a_completed_response_is_stored(status: str | None) -> None:
    answer = {"id": "resp_1", "status": status, "output": [], "usage": {"input_tokens": 1}}
    assert caching.entry_of("responses", False, compact(answer)) is None
    assert caching.entry_of("responses", True, response_stream(answer)) is None


def test_a_response_with_items_that_we_can_not_replay_is_not_stored() -> None:
    answer = {"id": "r", "status": "completed", "output": [{"type": "reasoning", "id": "x"}], "usage": {"a": 1}}
    assert caching.entry_of("responses", False, compact(answer)) is None


def test_embeddings_are_stored_plain_and_only_whole() -> None:
    body = compact({"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 2}})
    assert caching.entry_of("embeddings", False, body) == body
    assert caching.entry_of("embeddings", False, b'{"object": "list"}') is None
    assert caching.entry_of("embeddings", True, body) is None


@given(st.binary(max_size=200), st.sampled_from(["chat", "completions", "responses", "embeddings"]), st.booleans())
def test_noise_is_never_stored(body: bytes, endpoint: str, streamed: bool) -> None:
    assert caching.entry_of(endpoint, streamed, body) is None


@given(CHATS, st.data())
def test_no_part_of_a_stream_is_taken_for_all_of_it(choices: list[Json], data: st.DataObject) -> None:
    parts = chat_stream(choices).split(b"\n\n")[:-2]  # without [DONE]
    kept = data.draw(st.integers(0, len(parts) - 1))
    assert caching.entry_of("chat", True, b"".join(part + b"\n\n" for part in parts[:kept])) is None


# --- whether to look and store at all ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": "0"}, False),
        ({"seed": None}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": -0.0}, True),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1}, True),
    ],
)
def test_by_default_only_what_comes_out_the_same_again_is_cached(body: Json, allowed: bool) -> None:
    assert caching.may_cache(prompt(**body), MISTRAL) is allowed
    assert caching.may_cache(prompt(**body), ALWAYS)


def test_embeddings_always_come_out_the_same() -> None:
    assert caching.may_cache(prompt("embeddings"), BGE)


@pytest.mark.parametrize(
    "body",
    [{"previous_response_id": "resp_1"}, {"conversation": "c"}, {"stream_options": {"include_obfuscation": True}}],
)
def test_what_refers_to_a_backends_state_or_changes_the_events_is_never_cached(body: Json) -> None:
    assert not caching.may_cache(prompt("responses", seed=1, **body), ALWAYS)


def test_running_usage_is_never_replayed_but_saying_no_to_it_changes_nothing() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert not caching.may_cache(prompt(seed=1, stream=True, stream_options=options), ALWAYS)
    for no in (None, False):
        options = {"include_usage": True, "continuous_usage_stats": no}
        assert caching.may_cache(prompt(seed=1, stream=True, stream_options=options), ALWAYS)


def test_a_model_whose_policy_is_off_is_never_cached() -> None:
    off = changed(models=[{"name": "m", "context_tokens": 512, "price": {"input": 1}, "cache": {"policy": "off"}}],
                  default_model="m", aliases=[], tasks={}).default  # fmt: skip
    assert not caching.may_cache(prompt(seed=1), off)


# --- the fingerprint --------------------------------------------------------------------------------------------------


def mark(asked: Prompt, model: Model = MISTRAL) -> str:
    return caching.fingerprint(asked, model)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}}]
TOOLS_TURNED = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"b": {}, "a": {}}}}}]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "gpt-4"},
        {"task": "chat"},
        {"user": "ann"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stop": None},
        {"max_tokens": None},
        {"response_format": None},
        {"request_id": "x"},
    ],
)
def test_what_can_not_change_the_answer_does_not_change_the_fingerprint(body: Json) -> None:
    assert mark(prompt(temperature=0, **body)) == mark(prompt(temperature=0))


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0.1},
        {"seed": 0},
        {"seed": 1},
        {"top_p": 0.5},
        {"n": 2},
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"stop": "\n"},
        {"stop": ["\n"]},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS_TURNED},
        {"tools": TOOLS, "tool_choice": None},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logit_bias": {"5": 1}},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": [*MESSAGES, *MESSAGES]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"cache_salt": "s"},
        {"something_new": 0},
        {"something_new": False},
        {"something_new": 1e300},
    ],
)
def test_all_that_can_change_the_answer_changes_the_fingerprint(body: Json) -> None:
    others = [prompt(temperature=0, **other) for other in ({}, {"tools": TOOLS}) if other != body]
    assert mark(prompt(**{"temperature": 0, **body})) not in [mark(other) for other in others]


def test_null_is_not_absent_where_the_backend_has_another_default() -> None:
    """Without max_tokens /v1/completions gives 16 tokens; with null as many as fit."""
    assert mark(prompt("completions", max_tokens=None)) != mark(prompt("completions"))
    assert mark(prompt("completions", stop=None)) == mark(prompt("completions"))


def test_a_response_that_repeats_user_and_metadata_is_kept_apart_by_them() -> None:
    assert mark(prompt("responses", user="a")) != mark(prompt("responses", user="b"))
    assert mark(prompt("responses", metadata={"a": "1"})) != mark(prompt("responses"))


def test_models_and_endpoints_are_kept_apart() -> None:
    same = prompt("completions", prompt="Hi", input="Hi"), prompt("embeddings", prompt="Hi", input="Hi")
    assert len({mark(p, model) for p in same for model in (LLAMA, MISTRAL, BGE)}) == 6


def test_two_ways_to_write_a_number_are_one() -> None:
    assert mark(prompt(temperature=1.0)) == mark(prompt(temperature=1))


def test_the_kinds_of_completion_prompts_are_kept_apart() -> None:
    kinds = ["12", [1, 2], [12], ["12"], [[1, 2]], [[1], [2]], ["1", "2"]]
    assert len({mark(prompt("completions", prompt=kind)) for kind in kinds}) == len(kinds)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans())), st.randoms())
def test_the_order_of_fields_says_nothing(extra: Json, dice: Any) -> None:
    reserved = ("model", "task", "stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens")
    fields = [(k, v) for k, v in {"messages": MESSAGES, **extra}.items() if k not in reserved]
    turned = fields[:]
    dice.shuffle(turned)
    assert mark(prompt(**dict(turned))) == mark(prompt(**dict(fields)))
