"""The response cache: what is the same question, who may be answered from it, and in which form."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stack_rig import (
    SERVED,
    Caller,
    Json,
    MakeCaller,
    Platform,
    arrived,
    ask,
    events_of,
    eventually,
    running,
    said,
    unique,
    usage_events,
    write_config,
)

from extproc.local.stack import Settings

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
PATHS = {"chat": "/chat/completions", "completions": "/completions", "responses": "/responses"}


def status(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.headers["x-llm-cache"]
    return found


def hit(caller: Caller, path: str, body: Json) -> httpx.Response:
    """The answer of the cache, once the fills of this caller's earlier requests have arrived with their receipts."""
    eventually(lambda: caller.reserved() == 0)
    answer = caller.http.post(path, json=body)
    assert status(answer) == "hit"
    return answer


def body_of(endpoint: str, prompt: str, **fields: Any) -> Json:
    prompts: dict[str, Json] = {
        "chat": {"messages": [{"role": "user", "content": prompt}], "max_tokens": 30},
        "completions": {"prompt": prompt, "max_tokens": 30},
        "responses": {"input": prompt},
    }
    return {"model": "llama2", "temperature": 0, **prompts[endpoint], **fields}


def filled(caller: Caller, **fields: Any) -> Json:
    """A chat request whose answer is in the cache."""
    body = {**ask(temperature=0, max_tokens=5), **fields}
    assert status(caller.http.post("/chat/completions", json=body)) == "miss"
    hit(caller, "/chat/completions", body)
    return body


def chat(caller: Caller, body: Json, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return caller.http.post("/chat/completions", json=body, headers=names)


@pytest.mark.simulated("tells what reached it")
def test_the_same_question_is_answered_again_without_a_backend(platform: Platform, caller: Caller) -> None:
    marker = unique("again")
    body = ask(marker, temperature=0)
    first = chat(caller, body)
    assert status(first) == "miss"
    assert "age" not in first.headers
    second = hit(caller, PATHS["chat"], body)
    assert second.json() == first.json()
    assert second.headers["content-type"] == "application/json"
    assert second.headers["x-llm-model"] == "llama2"
    assert 0 <= int(second.headers["age"]) <= 10
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    before = len(arrived(platform, "llama2", marker))
    assert status(chat(caller, body)) == "hit"
    assert len(arrived(platform, "llama2", marker)) == before


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200},
        {"n": 2, "max_tokens": 6, "temperature": 1, "seed": 3},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 4},
        {"stop": ["."]},
    ],
)
def test_a_plain_chat_answer_is_replayed_as_a_stream(caller: Caller, fields: Json) -> None:
    body = {**body_of("chat", unique()), **fields}
    assert status(chat(caller, body)) == "miss"
    hit(caller, PATHS["chat"], body)
    plain = caller.openai.chat.completions.create(**body)
    with caller.openai.chat.completions.create(**body, stream=True) as stream:
        assert stream.response.headers["x-llm-cache"] == "hit"
        chunks = list(stream)
    assert {c.id for c in chunks} == {plain.id}
    assert {c.model for c in chunks} == {plain.model}
    for choice in plain.choices:
        parts = [p for c in chunks for p in c.choices if p.index == choice.index]
        assert "".join(p.delta.content or "" for p in parts) == (choice.message.content or "")
        assert parts[-1].finish_reason == choice.finish_reason
        calls = [call for p in parts for call in p.delta.tool_calls or []]
        arguments = "".join(call.function.arguments or "" for call in calls)
        assert arguments == "".join(call.function.arguments for call in choice.message.tool_calls or [])
        logprobs = [entry.token for p in parts if p.logprobs for entry in p.logprobs.content]
        assert logprobs == [entry.token for entry in (choice.logprobs.content if choice.logprobs else [])]


@pytest.mark.simulated("ends by itself")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200},
        {"n": 2, "max_tokens": 6, "temperature": 1, "seed": 3},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 4},
    ],
)
def test_a_streamed_chat_answer_is_replayed_as_the_plain_one(caller: Caller, fields: Json) -> None:
    """Asked plainly past the cache, the backend says what the cache made of its stream, field by field."""
    body = {**body_of("chat", unique()), **fields}
    streamed = chat(caller, {**body, "stream": True})
    assert status(streamed) == "miss"
    replayed = hit(caller, PATHS["chat"], body).json()
    fresh = chat(caller, body, cache_control="no-store").json()
    assert (replayed["object"], replayed["model"]) == ("chat.completion", SERVED["llama2"])
    assert replayed["usage"]["total_tokens"] == fresh["usage"]["total_tokens"]
    for mine, theirs in zip(replayed["choices"], fresh["choices"], strict=True):
        for side in (mine, theirs):
            for call in side["message"].get("tool_calls") or []:
                call.pop("id")
        for name in ("index", "finish_reason", "logprobs", "stop_reason"):
            assert mine.get(name) == theirs.get(name)
        for name in ("role", "content", "tool_calls"):
            assert (mine["message"].get(name) or None) == (theirs["message"].get(name) or None)


@pytest.mark.simulated("ends by itself")
@pytest.mark.parametrize("streamed_first", [False, True])
@pytest.mark.parametrize("endpoint", list(PATHS))
def test_plain_and_streamed_answers_share_an_entry_at_every_endpoint(
    caller: Caller, endpoint: str, streamed_first: bool
) -> None:
    path, body = PATHS[endpoint], body_of(endpoint, unique())
    streamed, plain = {**body, **({} if endpoint == "responses" else WITH_USAGE), "stream": True}, body
    first, second = (streamed, plain) if streamed_first else (plain, streamed)
    assert status(caller.http.post(path, json=first)) == "miss"
    other = hit(caller, path, second)
    same = hit(caller, path, first)
    plain_answer = (other if streamed_first else same).json()
    events = events_of((same if streamed_first else other).text)
    if endpoint == "responses":
        assert events[-1]["response"] == plain_answer
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        assert text == plain_answer["output"][0]["content"][0]["text"]
        assert len(text) > 0
    else:
        parts = [c for e in events[:-1] for c in e["choices"]]
        texts = [p["text"] if endpoint == "completions" else p["delta"].get("content") or "" for p in parts]
        choice = plain_answer["choices"][0]
        assert "".join(texts) == (choice["text"] if endpoint == "completions" else choice["message"]["content"])
        assert usage_events(events) == [plain_answer["usage"]]
        assert events[-1] == "[DONE]"


@pytest.mark.simulated("ends by itself")
def test_a_response_with_a_tool_call_is_replayed_in_both_forms(caller: Caller) -> None:
    tool = {"type": "function", "name": "weather", "parameters": TOOLS[0]["function"]["parameters"]}
    body = {**body_of("responses", unique()), "tools": [tool], "tool_choice": "required"}
    assert status(caller.http.post("/responses", json=body)) == "miss"
    plain = hit(caller, "/responses", body).json()
    events = events_of(hit(caller, "/responses", {**body, "stream": True}).text)
    assert plain["output"][0]["type"] == "function_call"
    assert events[-1]["response"] == plain
    arguments = "".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta")
    assert arguments == plain["output"][0]["arguments"]


@pytest.mark.simulated("embeds")
def test_embeddings_are_cached_whatever_their_temperature(caller: Caller) -> None:
    body = {"model": "bge-small", "input": unique()}
    first = caller.http.post("/embeddings", json=body)
    assert status(first) == "miss"
    assert hit(caller, "/embeddings", body).json() == first.json()
    assert status(caller.http.post("/embeddings", json={**body, "encoding_format": "base64"})) == "miss"


def test_a_replayed_stream_tells_usage_only_to_those_who_ask(caller: Caller) -> None:
    body = filled(caller)
    silent = events_of(chat(caller, {**body, "stream": True}).text)
    asked = events_of(chat(caller, {**body, **WITH_USAGE}).text)
    assert usage_events(silent) == []
    assert [u["completion_tokens"] for u in usage_events(asked)] == [5]
    assert asked[-2]["choices"] == []
    assert silent[-1] == asked[-1] == "[DONE]"


# --- what is the same question ----------------------------------------------------------------------------------------


def test_what_does_not_change_the_answer_does_not_change_the_entry(caller: Caller) -> None:
    body = filled(caller, top_p=1)
    variants: list[Json] = [
        dict(reversed(body.items())),
        {**body, "user": "somebody"},
        {**body, "model": SERVED["llama2"]},
        {**body, "model": "gpt-4o"},
        {**body, "temperature": 0.0},
        {**body, "top_p": 1.0},
        {**body, "seed": None},
        {**body, "stream": False},
        {**body, "stream": True},
        {**body, "metadata": {"trace": "1"}},
        {**body, "task": "code"},
    ]
    assert [status(chat(caller, v)) for v in variants] == ["hit"] * len(variants)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5, "seed": 1},
        {"seed": 1},
        {"max_tokens": 6},
        {"model": "mistral"},
        {"messages": [{"role": "user", "content": "another"}]},
        {"tools": TOOLS},
        {"tool_choice": "none"},
        {"stop": ["x"]},
        {"n": 2, "temperature": 1, "seed": 1},
        {"logprobs": True},
        {"top_p": 0.5},
        {"frequency_penalty": 0.5},
        {"response_format": {"type": "json_object"}},
        {"some_field_of_tomorrow": 1},
    ],
)
def test_what_may_change_the_answer_is_another_question(caller: Caller, change: Json) -> None:
    body = filled(caller)
    if "messages" in change:
        change = {"messages": [{"role": "user", "content": unique("another")}]}
    assert status(chat(caller, {**body, **change})) == "miss"


def test_messages_that_differ_by_role_or_order_are_another_question(caller: Caller) -> None:
    one, two = {"role": "system", "content": unique()}, {"role": "user", "content": "x"}
    body = filled(caller, messages=[one, two])
    assert status(chat(caller, {**body, "messages": [two, one]})) == "miss"
    assert status(chat(caller, {**body, "messages": [{**one, "role": "user"}, two]})) == "miss"
    assert status(chat(caller, body)) == "hit"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "bypass"),
        ({"temperature": 1}, "bypass"),
        ({"temperature": 0.01}, "bypass"),
        ({"temperature": 0}, "miss"),
        ({"seed": 0}, "miss"),
        ({"temperature": 1, "seed": 5}, "miss"),
    ],
)
def test_only_answers_that_would_be_the_same_again_are_kept(caller: Caller, fields: Json, expected: str) -> None:
    assert status(caller.chat(max_tokens=2, **fields)) == expected


# --- who decides ------------------------------------------------------------------------------------------------------


@pytest.mark.simulated("says exact words")
def test_no_cache_asks_the_backend_and_renews_the_entry(caller: Caller) -> None:
    body = {**body_of("chat", unique())}
    assert status(chat(caller, body, **said("old"))) == "miss"
    assert hit(caller, PATHS["chat"], body).json()["choices"][0]["message"]["content"] == "old"
    renewed = chat(caller, body, cache_control="no-cache", **said("new"))
    assert status(renewed) == "bypass"

    assert hit(caller, PATHS["chat"], body).json()["choices"][0]["message"]["content"] == "new"


@pytest.mark.simulated("says exact words")
def test_no_store_neither_reads_nor_writes(caller: Caller) -> None:
    body = body_of("chat", unique())
    assert status(chat(caller, body, cache_control="no-store", **said("secret"))) == "bypass"
    caller.settled(1)
    assert status(chat(caller, body, **said("open"))) == "miss"
    hit(caller, PATHS["chat"], body)
    fresh = chat(caller, body, cache_control="No-Store, max-age=0", **said("fresh"))
    assert status(fresh) == "bypass"
    assert fresh.json()["choices"][0]["message"]["content"] == "fresh"


def test_another_tenant_never_sees_an_answer_and_another_user_of_the_tenant_does(make_caller: MakeCaller) -> None:
    owner = make_caller(user="first")
    body = filled(owner)
    colleague = make_caller(tenant=owner.tenant, user="second")
    stranger = make_caller(user="first")
    assert status(chat(colleague, body)) == "hit"
    assert status(chat(stranger, body)) == "miss"


def test_a_key_without_the_model_gets_no_answer_from_the_cache(make_caller: MakeCaller) -> None:
    owner = make_caller()
    body = filled(owner)
    other = make_caller(tenant=owner.tenant, models=["mistral"])
    assert chat(other, body).status_code == 404


def test_a_hit_charges_a_request_and_no_tokens(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 60, "tokens_per_minute": 100_000})
    body = {**ask(temperature=0, max_tokens=5)}
    first = chat(caller, body)
    used = caller.settled(1)
    answer = hit(caller, PATHS["chat"], body)
    assert answer.headers["x-ratelimit-remaining-requests"] == "58"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 100_000 - first.json()["usage"]["total_tokens"]

    account = caller.settled(2)
    assert account == {**used, "requests": 2, "hits": 1}


# --- what is not kept -------------------------------------------------------------------------------------------------


def never_hit(caller: Caller, body: Json, requests: int) -> None:
    """All receipts are in, and the question is still open."""
    caller.settled(requests)
    assert status(chat(caller, body)) == "miss"


@pytest.mark.simulated("a fault on demand")
@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (False, {"x-sim-status": "500"}),
        (True, {"x-sim-status": "503"}),
        (False, {"x-sim-status": "400"}),
        (False, {"x-sim-cut-after": "1"}),
        (True, {"x-sim-cut-after": "3"}),
        (True, {"x-sim-error-after": "3"}),
    ],
)
def test_an_answer_that_failed_is_not_kept(caller: Caller, stream: bool, fault: dict[str, str]) -> None:
    body = body_of("chat", unique(), stream=stream)
    try:
        chat(caller, body, **fault)
    except httpx.RemoteProtocolError:
        assert "x-sim-cut-after" in fault
    never_hit(caller, body, 1)


def test_an_answer_that_the_client_left_is_not_kept(caller: Caller) -> None:
    body = body_of("chat", unique(), stream=True)
    headers = {"x-sim-stall-after": "6"}
    with caller.http.stream("POST", PATHS["chat"], json=body, headers=headers) as answer:
        next(answer.iter_lines())
    never_hit(caller, body, 1)


# --- policies and sizes, on a platform of its own ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """llama2 always, mistral never, entries of 2,000 bytes at most."""
    directory = tmp_path_factory.mktemp("policies")

    def change(config: Json) -> None:
        models = {m["name"]: m for m in config["models"]}
        models["llama2"]["cache"] = {"policy": "always"}
        models["mistral"]["cache"] = {"policy": "off"}
        models["codellama"]["cache"] = {"ttl_seconds": 1}
        config["cache"] = {"max_entry_bytes": 2_000}

    path = write_config(directory / "llm-mesh.yaml", change)
    with running(Settings(directory, config=path, workers=1, drain_seconds=0.1)) as platform:
        yield platform


def test_always_keeps_what_would_differ_the_next_time(policies: Platform) -> None:
    with Caller(policies) as caller:
        body = ask(max_tokens=5, temperature=1)
        first = chat(caller, body)
        assert status(first) == "miss"
        assert hit(caller, PATHS["chat"], body).json()["choices"] == first.json()["choices"]


def test_off_keeps_nothing(policies: Platform) -> None:
    with Caller(policies) as caller:
        body = ask(model="mistral", max_tokens=5, temperature=0)
        assert status(chat(caller, body)) == "bypass"
        caller.settled(1)
        assert status(chat(caller, body)) == "bypass"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_too_large_is_not_kept(policies: Platform, stream: bool) -> None:
    with Caller(policies) as caller:
        large, small = (body_of("chat", unique(), stream=stream, max_tokens=1_000) for _ in range(2))
        answer = chat(caller, large, **said("word " * 500))
        assert status(answer) == "miss"
        never_hit(caller, large, 1)
        assert status(chat(caller, small, **said("word"))) == "miss"
        hit(caller, PATHS["chat"], small)


def test_an_entry_is_gone_when_its_time_is_over(policies: Platform) -> None:
    with Caller(policies) as caller:
        body = body_of("chat", unique(), model="codellama")
        assert status(chat(caller, body)) == "miss"
        hit(caller, PATHS["chat"], body)
        eventually(lambda: status(chat(caller, body)) == "miss")
