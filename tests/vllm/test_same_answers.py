"""The simulator answers as a real vLLM does, field by field: what it must not lie about.

Known and left so: the words of one model in another's vocabulary; how pydantic lists everything that a value of several
possible types might have been (the first entry and `param` agree); what no client of ours sends (`prompt_logprobs`,
`echo` of a chat, `stop_token_ids`, broken grammars); log probabilities beside tool calls.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tools.vllm import compare

Json = dict[str, Any]
HELLO = [{"role": "user", "content": "Hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": WEATHER}
FLAT_TOOL = {"type": "function", **WEATHER}
NAMED = {"type": "function", "function": {"name": "weather"}}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
STREAM = {"stream": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
RUNNING = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
LONG = "z9 " * 9000
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
_NOT_SIMULATED = (  # metrics.py says why
    "http_request_duration",
    "http_request_size_bytes",
    "http_response_size_bytes",
    "vllm:tool_call_parser_invocations",
    "python_",
    "process_",
)


def body(path: str, fields: Json) -> Json:
    least: dict[str, Json] = {
        CHAT: {"messages": HELLO, "max_tokens": 8},
        COMPLETIONS: {"prompt": "Once upon a time", "max_tokens": 8},
        RESPONSES: {"input": "Hello there", "max_output_tokens": 8},
    }
    return {**least.get(path, {}), **fields}


def ask(client: httpx.Client, path: str, fields: Any, model: str) -> httpx.Response:
    if isinstance(fields, bytes):
        return client.post(path, content=fields, headers={"content-type": "application/json"})
    return client.post(path, json={"model": model, **body(path, fields)} if isinstance(fields, dict) else fields)


def in_as_many_events(
    client: httpx.Client, path: str, fields: Json, model: str, like: httpx.Response
) -> httpx.Response:
    """An answer whose tokens came one by one: a busy server puts several into an event, even all of them."""
    wanted = compare.stream(like.content).count("\n")
    for _ in range(10):
        answer = ask(client, path, fields, model)
        if answer.status_code != 200 or compare.stream(answer.content).count("\n") >= wanted:
            break
    return answer


def same(simulated: httpx.Response, real: httpx.Response, *, exact: bool = True) -> None:
    assert simulated.status_code == real.status_code, real.text[:300]
    assert compare.head(simulated.headers.multi_items()) == compare.head(real.headers.multi_items())
    streamed = real.headers.get("content-type", "").startswith("text/event-stream")
    sketch = compare.stream if streamed else compare.plain
    assert sketch(simulated.content, exact=exact) == sketch(real.content, exact=exact)


@pytest.fixture(autouse=True)
def warm(real: httpx.Client, simulated: httpx.Client, model: str) -> None:
    """Neither answers its first request here."""
    for client in (simulated, real):
        assert ask(client, COMPLETIONS, {"max_tokens": 1}, model).status_code == 200


@pytest.mark.parametrize("streamed", [{}, STREAM, USAGE, RUNNING], ids=["plain", "stream", "usage", "running-usage"])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"n": 2}),
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (CHAT, {"logprobs": True}),
        (CHAT, {"return_token_ids": True}),
        (CHAT, {"tools": [TOOL]}),
        (CHAT, {"tools": [TOOL], "tool_choice": "none"}),
        (COMPLETIONS, {}),
        (COMPLETIONS, {"n": 2}),
        (COMPLETIONS, {"prompt": ["one", "two words"]}),
        (COMPLETIONS, {"echo": True}),
        (COMPLETIONS, {"echo": True, "max_tokens": 0}),
        (COMPLETIONS, {"logprobs": 2}),
        (COMPLETIONS, {"logprobs": 0}),
        (COMPLETIONS, {"logprobs": 2, "echo": True}),
        (COMPLETIONS, {"return_token_ids": True}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_answer_has_the_same_fields_plain_and_streamed(
    simulated: httpx.Client, real: httpx.Client, model: str, path: str, fields: Json, streamed: Json
) -> None:
    asked = {**fields, **streamed}
    answer = ask(simulated, path, asked, model)
    same(answer, in_as_many_events(real, path, asked, model, answer) if streamed else ask(real, path, asked, model))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_completion_tokens": 3}),
        (CHAT, {"max_tokens": "3"}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}),
        (CHAT, {"messages": [{"role": "user"}]}),
        (CHAT, {"messages": [{"role": "user", "content": LONG[:300]}]}),
        (CHAT, {"messages": HELLO, "model": ""}),
        (CHAT, {"stop": None, "colour": "red", "user": "someone", "response_format": {"type": "text"}}),
        (CHAT, {"stop": []}),
        (COMPLETIONS, {"prompt": [5, 6, 7]}),
        (COMPLETIONS, {"prompt": [[5, 6, 7], [8, 9]]}),
        (COMPLETIONS, {"prompt": [""]}),
        (COMPLETIONS, {"stream_options": {}}),
        (COMPLETIONS, {"max_tokens": None}),
        (RESPONSES, {}),
        (RESPONSES, STREAM),
        (RESPONSES, {"instructions": "be brief"}),
        (RESPONSES, {"input": [{"role": "user", "content": "Hello"}]}),
        (
            RESPONSES,
            {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
        ),
        (RESPONSES, {"tools": [FLAT_TOOL]}),
        (RESPONSES, {"temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"}, "user": "u"}),
        (RESPONSES, {"presence_penalty": 0.5, "parallel_tool_calls": False, "store": False}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_may_be_said_in_several_ways_is_read_the_same(
    simulated: httpx.Client, real: httpx.Client, model: str, path: str, fields: Json
) -> None:
    same(ask(simulated, path, fields, model), ask(real, path, fields, model))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": AS_SCHEMA}),
        (CHAT, {"response_format": AS_SCHEMA, **USAGE}),
        (CHAT, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}),
        (CHAT, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **USAGE}),
        (CHAT, {"tools": [TOOL], "tool_choice": NAMED}),
        (CHAT, {"tools": [TOOL], "tool_choice": NAMED, **STREAM}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}, **STREAM}),
        (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": "required", "parallel_tool_calls": False}),
        (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "weather"}}),
        (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "weather"}, **STREAM}),
    ],
    ids=lambda value: str(value)[:90],
)
def test_an_answer_in_a_given_form_has_the_same_fields(
    simulated: httpx.Client, real: httpx.Client, model: str, path: str, fields: Json
) -> None:
    room = {"max_output_tokens" if path == RESPONSES else "max_tokens": 250, "temperature": 0}
    asked = {**room, **fields}
    same(ask(simulated, path, asked, model), ask(real, path, asked, model), exact=False)


@pytest.mark.parametrize("streamed", [{}, STREAM], ids=["plain", "stream"])
def test_a_stop_string_ends_an_answer_the_same(
    simulated: httpx.Client, real: httpx.Client, model: str, streamed: Json
) -> None:
    """Each server's own: what a token of its answer begins with and nothing before it holds."""

    def stopped(client: httpx.Client) -> httpx.Response:
        fixed: Json = {"temperature": 0, "max_tokens": 40}
        found = ask(client, CHAT, {**fixed, "logprobs": True}, model).json()["choices"][0]["logprobs"]["content"]
        tokens = [each["token"] for each in found]
        stop = next(t[0] for at, t in enumerate(tokens) if at > 1 and t[0] not in "".join(tokens[:at]))
        answer = ask(client, CHAT, {**fixed, "stop": [stop], **streamed}, model)
        assert answer.text.count(f'"stop_reason":{httpx.Response(200, json=stop).text}') == 1
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            content=answer.content.replace(b'"stop_reason":"', b'"reason":"'),
        )

    one, other = stopped(simulated), stopped(real)
    sketch = compare.stream if streamed else compare.plain
    texts = [sketch(each.content, exact=False).split('"reason":')[0] for each in (one, other)]
    assert texts[0] == texts[1]


REFUSED: list[tuple[str, Any]] = [
    (CHAT, {"messages": []}),
    (CHAT, {"messages": 3}),
    (CHAT, {"messages": None}),
    (CHAT, {"messages": ["x"]}),
    (CHAT, {"messages": [{"content": "x"}]}),
    (CHAT, {"messages": [{"role": 3, "content": "x"}]}),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
    (CHAT, {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    (CHAT, {"model": "nothing"}),
    (CHAT, {"model": "nothing", "stream": True}),
    (CHAT, {"model": 5}),
    *((CHAT, {"max_tokens": value}) for value in (0, -1, 9000, "many", 1.5, [1])),
    *((CHAT, {"max_completion_tokens": value}) for value in (0, 9000)),
    *((CHAT, {"temperature": value}) for value in (-1, 3, "hot")),
    *((CHAT, {"top_p": value}) for value in (0, 2)),
    *((CHAT, {"n": value}) for value in (0, -1, 100_000)),
    (CHAT, {"n": 2, "temperature": 0}),
    (CHAT, {"top_logprobs": 2}),
    (CHAT, {"top_logprobs": 21, "logprobs": True}),
    (CHAT, {"top_logprobs": -2, "logprobs": True}),
    (CHAT, {"logprobs": "x"}),
    (CHAT, {"seed": "x"}),
    (CHAT, {"stream": "maybe"}),
    (CHAT, {"stream": True, "temperature": -1}),
    (CHAT, {"stream_options": {"include_usage": True}}),
    (CHAT, {"stream": True, "stream_options": {"include_usage": "maybe"}}),
    (CHAT, {"stream": True, "stream_options": "x"}),
    (CHAT, {"tool_choice": "required"}),
    (CHAT, {"tool_choice": NAMED}),
    (CHAT, {"tools": [TOOL], "tool_choice": "often"}),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nothing"}}}),
    (CHAT, {"tools": 3}),
    (CHAT, {"tools": []}),
    (CHAT, {"tools": [{"type": "function", "function": {}}]}),
    (CHAT, {"response_format": {"type": "xml"}}),
    (CHAT, {"response_format": {"type": "json_schema"}}),
    (CHAT, {"response_format": "json"}),
    (CHAT, {"stop": 3}),
    (CHAT, {"stop": ""}),
    (CHAT, {"stop": ["a"] * 5}),
    (CHAT, {"presence_penalty": 3}),
    (CHAT, {"frequency_penalty": -3}),
    (CHAT, {"repetition_penalty": -1}),
    (CHAT, {"top_k": -2}),
    (CHAT, {"min_p": 2}),
    (CHAT, {"min_tokens": 9}),
    (CHAT, {"logit_bias": {"x": 1}}),
    *((CHAT, value) for value in (b"[]", b'"x"', b"null", b"{", b"", b"{}", b'{"model": "x",}', b'{"a": "\xff"}')),
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt": ""}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": 3}),
    (COMPLETIONS, {"prompt": ["a", 1]}),
    (COMPLETIONS, {"prompt": [-1]}),
    (COMPLETIONS, {"prompt": [99_999]}),
    (COMPLETIONS, {"prompt": LONG}),
    (COMPLETIONS, {"suffix": "x"}),
    (COMPLETIONS, {"logprobs": 21}),
    (COMPLETIONS, {"logprobs": -2}),
    (COMPLETIONS, {"max_tokens": 0}),
    (COMPLETIONS, {"max_tokens": 9000}),
    (COMPLETIONS, {"model": "nothing"}),
    (RESPONSES, {"input": None}),
    (RESPONSES, {"input": 3}),
    (RESPONSES, {"input": []}),
    (RESPONSES, {"input": [{"type": "nothing"}]}),
    (RESPONSES, {"input": LONG}),
    (RESPONSES, {"max_output_tokens": 0}),
    (RESPONSES, {"max_output_tokens": 9000}),
    (RESPONSES, {"temperature": -1}),
    (RESPONSES, {"model": "nothing"}),
    (RESPONSES, {"previous_response_id": "resp_x"}),
    (RESPONSES, {"background": True}),
    (RESPONSES, {"tools": 3}),
    (RESPONSES, {"tool_choice": "required"}),
    (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "nothing"}}),
    ("/v1/embeddings", {"input": "x"}),
    ("/tokenize", {}),
    ("/detokenize", {}),
    ("/detokenize", {"tokens": "x"}),
    ("/detokenize", {"tokens": [-1]}),
]


@pytest.mark.parametrize(("path", "fields"), REFUSED, ids=lambda value: str(value)[:70])
def test_what_is_refused_is_refused_with_the_same_status_shape_and_words(
    simulated: httpx.Client, real: httpx.Client, model: str, path: str, fields: Any
) -> None:
    answer = ask(real, path, fields, model)
    assert answer.status_code >= 400
    same(ask(simulated, path, fields, model), answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/v1/models", "/health", "/ping", "/version", "/load", "/nowhere", "/v1/models/")),
        *(("GET", path) for path in ("/v1/models/x", CHAT, "/")),
        *((method, CHAT) for method in ("PUT", "DELETE", "OPTIONS")),
        ("POST", "/v1/models"),
        ("POST", "/ping"),
        ("HEAD", "/v1/models"),
        ("DELETE", "/health"),
    ],
)
def test_paths_that_need_no_model_answer_the_same(
    simulated: httpx.Client, real: httpx.Client, method: str, path: str
) -> None:
    same(simulated.request(method, path), real.request(method, path))


@pytest.mark.parametrize(
    "kind",
    ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ; charset=utf-8", "text/plain", ""],
)
def test_the_same_media_types_are_read(simulated: httpx.Client, real: httpx.Client, model: str, kind: str) -> None:
    asked = json.dumps({"model": model, **body(CHAT, {})}).encode()
    answers = [client.post(CHAT, content=asked, headers={"content-type": kind}) for client in (simulated, real)]
    same(*answers)


def test_text_becomes_tokens_and_text_again_in_the_same_fields(
    simulated: httpx.Client, real: httpx.Client, model: str
) -> None:
    for fields in ({"prompt": "Hello there", "return_token_strs": True}, {"prompt": "Hello"}, {"messages": HELLO}):
        answers = [ask(client, "/tokenize", fields, model) for client in (simulated, real)]
        same(*answers)
        tokens = [{"tokens": answer.json()["tokens"]} for answer in answers]
        same(ask(simulated, "/detokenize", tokens[0], model), ask(real, "/detokenize", tokens[1], model))


def families(client: httpx.Client) -> Iterator[Metric]:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        if not family.name.startswith(_NOT_SIMULATED) and not family.name.endswith("_created"):
            yield family


def about(family: Metric) -> Json:
    """Everything but the values; of a histogram also where its buckets end."""
    names: dict[str, set[str]] = {}
    for sample in family.samples:
        names.setdefault(sample.name, set()).update(sample.labels)
    ends = sorted({float(s.labels["le"]) for s in family.samples if "le" in s.labels})
    return {"type": family.type, "help": family.documentation, "labels": names, "buckets": ends}


def test_metrics_have_the_same_names_types_labels_and_buckets(simulated: httpx.Client, real: httpx.Client) -> None:
    ours = {family.name: about(family) for family in families(simulated)}
    theirs = {family.name: about(family) for family in families(real)}
    settings = "vllm:cache_config_info"  # of its labels only those that somebody reads
    assert ours.pop(settings)["labels"][settings] < theirs.pop(settings)["labels"][settings]
    assert ours == theirs
