"""Request bodies and usage objects as values."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import MESSAGES, Json, compact, prompt

from extproc import chat
from extproc.chat import Usage
from extproc.config import ENDPOINTS, Endpoint
from extproc.errors import ApiError


def refusal(endpoint: Endpoint, body: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        chat.read_prompt(endpoint, body if isinstance(body, bytes) else compact(body))
    assert error.value.status == 400
    return error.value


def sent(asked: chat.Prompt, served: str = "meta/llama") -> Json:
    body = chat.rewrite(asked, served)
    assert body is not None
    return dict(json.loads(body))


def test_every_endpoint_has_a_path() -> None:
    assert set(chat.PATHS.values()) == set(ENDPOINTS)


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        ("chat", {}, "messages"),
        ("chat", {"messages": None}, "messages"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": "Hi"}, "messages"),
        ("chat", {"previous_response_id": "r"}, "messages"),
        ("completions", {"prompt": None}, "prompt"),
        ("embeddings", {}, "input"),
        ("responses", {"previous_response_id": None}, "input"),
        ("responses", {"input": "Hi", "background": True}, "background"),
        ("chat", {"messages": MESSAGES, "model": 3}, "model"),
        ("chat", {"messages": MESSAGES, "task": ["a"]}, "task"),
        ("chat", {"messages": MESSAGES, "stream": "true"}, "stream"),
        ("chat", {"messages": MESSAGES, "stream": 1}, "stream"),
        ("chat", {"messages": MESSAGES, "stream_options": True}, "stream_options"),
        ("chat", {"messages": MESSAGES, "n": 0}, "n"),
        ("chat", {"messages": MESSAGES, "n": True}, "n"),
        ("chat", {"messages": MESSAGES, "n": 1.5}, "n"),
        ("chat", {"messages": MESSAGES, "n": 2**31}, "n"),
        ("chat", {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ("chat", {"messages": MESSAGES, "max_tokens": "5"}, "max_tokens"),
        ("chat", {"messages": MESSAGES, "max_completion_tokens": -1}, "max_completion_tokens"),
        ("responses", {"input": "Hi", "max_output_tokens": 0}, "max_output_tokens"),
        ("completions", {"prompt": "Hi", "max_tokens": -1}, "max_tokens"),
    ],
)
def test_a_wrong_parameter_is_named(endpoint: Endpoint, body: Json, param: str) -> None:
    assert refusal(endpoint, body).param == param


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b"null", b'"a"', b'{"a":\xff}', b'{"a":1e999}', b"{} {}", b'{"a":"\\ud800"}']
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    assert refusal("chat", raw).kind == "invalid_request_error"


def test_a_body_nested_too_deeply_is_refused() -> None:
    assert "nested" in refusal("chat", b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}").message


@given(st.sampled_from(ENDPOINTS), st.dictionaries(st.sampled_from(
    ["messages", "prompt", "input", "model", "task", "stream", "stream_options", "n", "best_of", "max_tokens", "seed",
     "temperature", "previous_response_id", "conversation", "background"]
), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(max_size=3), lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=3), x,
                                                                                          max_size=2))))  # fmt: skip
def test_any_object_is_read_or_refused(endpoint: Endpoint, body: Json) -> None:
    try:
        asked = chat.read_prompt(endpoint, compact(body))
    except ApiError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert asked.choices >= 1
        assert asked.prompts >= 1
        assert 0 <= asked.longest_bytes <= asked.size_bytes
        assert chat.rewrite(asked, "served") is not None


def test_null_is_as_good_as_absent() -> None:
    nulls = dict.fromkeys(["model", "task", "stream", "stream_options", "n", "best_of", "max_tokens", "seed"])
    asked, plain = prompt(**nulls), prompt()
    for name in ("model", "task", "stream", "include_usage", "max_tokens", "choices", "sampled", "stateful", "media"):
        assert getattr(asked, name) == getattr(plain, name)


def test_a_field_given_twice_counts_once_the_last_time() -> None:
    asked = chat.read_prompt("completions", b'{"prompt":"a","model":"x","model":"y"}')
    assert asked.model == "y"


@pytest.mark.parametrize(
    ("endpoint", "body", "most"),
    [
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ("chat", {"max_tokens": 5, "max_completion_tokens": None}, 5),
        ("completions", {"max_tokens": 5}, 5),
        ("completions", {"max_tokens": 0, "echo": True}, 1),
        ("completions", {"max_completion_tokens": 5}, 0),
        ("responses", {"max_output_tokens": 5, "max_tokens": 9}, 5),
        ("embeddings", {"max_tokens": 9}, 0),
        ("chat", {}, 0),
    ],
)
def test_each_endpoint_has_its_own_words_for_the_longest_answer(endpoint: Endpoint, body: Json, most: int) -> None:
    assert prompt(endpoint, **body).max_tokens == most


def test_choices_are_those_that_are_paid_for() -> None:
    assert prompt(n=3).choices == 3
    assert prompt("completions", n=2, best_of=4).choices == 4


@pytest.mark.parametrize(
    ("endpoint", "given", "prompts", "longest"),
    [
        ("completions", "abc", 1, None),
        ("completions", [1, 2, 3], 1, None),
        ("completions", ["abc", "abcdef"], 2, 6),
        ("completions", [[1, 2], [3]], 2, 2),
        ("embeddings", ["abc"], 1, 3),
        ("embeddings", [], 1, None),
        ("embeddings", [[1, 2, 3], [4]], 2, 3),
        ("embeddings", [None, 4.5], 2, 1),
        ("responses", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1, None),
    ],
)
def test_several_prompts_in_one_body_are_counted(
    endpoint: Endpoint, given: Any, prompts: int, longest: int | None
) -> None:
    field = "prompt" if endpoint == "completions" else "input"
    asked = prompt(endpoint, **{field: given})
    assert (asked.prompts, asked.longest_bytes) == (prompts, longest or asked.size_bytes)


def test_embeddings_are_never_streamed() -> None:
    assert not prompt("embeddings", stream=True).stream


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "x" * 1000}},
        {"type": "input_audio", "input_audio": {"data": "x" * 1000, "format": "wav"}},
        {"image_url": {"url": "http://x"}},
        {"type": "input_file", "file_data": "x" * 1000},
    ],
)
def test_media_are_seen(part: Json) -> None:
    text = {"type": "text", "text": "What is this?"}
    alone, both = (prompt(messages=[{"role": "user", "content": parts}]) for parts in ([text], [text, part]))
    assert both.media
    assert abs(both.size_bytes - alone.size_bytes) <= 1  # a comma


def test_text_about_pictures_is_text() -> None:
    """A word in the right place must not make a long prompt look short."""
    part = {"type": "text", "text": "image_url", "image_url": {}}
    asked = prompt(messages=[{"role": "user", "content": [part]}], x={"image_url": 1})
    assert not asked.media
    assert asked.size_bytes == len(compact(asked.body))


# --- what the backend gets --------------------------------------------------------------------------------------------


def test_the_clients_bytes_pass_when_there_is_nothing_to_change() -> None:
    assert chat.rewrite(prompt(model="m"), "m") is None
    assert chat.rewrite(prompt(model="m", stream=True, stream_options={"include_usage": True}), "m") is None
    assert chat.rewrite(prompt("responses", model="m", stream=True), "m") is None


def test_the_backends_name_goes_in_and_our_own_field_comes_out() -> None:
    body = sent(prompt(model="gpt-4", task="chat", seed=3))
    assert body == {"messages": MESSAGES, "model": "meta/llama", "seed": 3}
    assert sent(prompt(model="m", task="chat"), "m") == {"messages": MESSAGES, "model": "m"}


@pytest.mark.parametrize(
    ("options", "to_backend", "to_client"),
    [
        (None, {"include_usage": True}, False),
        ({}, {"include_usage": True}, False),
        ({"include_usage": False}, {"include_usage": True}, False),
        ({"include_usage": None}, {"include_usage": True}, False),
        ({"include_usage": True}, {"include_usage": True}, True),
        ({"include_usage": "false"}, {"include_usage": True}, True),
        ({"include_usage": 1}, {"include_usage": True}, True),
        ({"continuous_usage_stats": True}, {"include_usage": True, "continuous_usage_stats": True}, True),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}, False),
        ({"include_obfuscation": False}, {"include_usage": True, "include_obfuscation": False}, False),
    ],
)
def test_every_stream_is_asked_for_its_usage(options: Any, to_backend: Json, to_client: bool) -> None:
    asked = prompt(stream=True, stream_options=options)
    assert sent(asked)["stream_options"] == to_backend
    assert asked.include_usage is to_client


def test_a_plain_request_gets_no_stream_options() -> None:
    assert "stream_options" not in sent(prompt())


def test_numbers_and_text_survive_the_rewriting() -> None:
    odd = {
        "seed": 2**63,
        "logit_bias": {"1": -0.1},
        "big": 10**30,
        "text": "\u0000é😀\u2028",
        "order": {"b": 1, "a": 2},
    }
    body = sent(prompt(**odd))
    assert {name: body[name] for name in odd} == odd
    assert list(body["order"]) == ["b", "a"]


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ('{"prompt_tokens":13,"total_tokens":17,"completion_tokens":4}', Usage(13, 4, 0)),
        ('{"prompt_tokens":13,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}', Usage(13, 4, 8)),
        ('{"prompt_tokens":13,"completion_tokens":4,"prompt_tokens_details":null}', Usage(13, 4, 0)),
        ('{"prompt_tokens":13,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":null}}', Usage(13, 4)),
        ('{"prompt_tokens":5,"total_tokens":5,"completion_tokens":0}', Usage(5, 0, 0)),
        ('{"prompt_tokens":5,"total_tokens":5,"completion_tokens":null}', Usage(5, 0, 0)),
        ('{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":3}}', Usage(9, 2, 3)),
        ('{"prompt_tokens":1,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":1}}', Usage(1, 2)),
        ('{"prompt_tokens":-1}', None),
        ('{"prompt_tokens":"13"}', None),
        ('{"prompt_tokens":1.5}', None),
        ("[]", None),
        ("", None),
        (b"\xff", None),
    ],
)
def test_usage_is_read_from_any_endpoint(raw: Any, usage: Usage | None) -> None:
    assert chat.read_usage(raw) == usage
