"""Which model answers, and what of a request reaches its backend."""

import json
from typing import Any

import pytest
from stack_rig import (
    SERVED,
    Backend,
    Caller,
    Json,
    MakeCaller,
    Platform,
    StartPlatform,
    arrived,
    ask,
    error_of,
    eventually,
    unique,
)

HELLO = [{"role": "user", "content": "Hello"}]
LONG = " word" * 4_600  # fits mistral's 8,192 tokens, and not the 4,096 of the others


@pytest.mark.simulated("tells what reached it")
@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({"model": "llama2"}, "llama2"),
        ({"model": "mistral"}, "mistral"),
        ({"model": "codellama"}, "codellama"),
        ({"model": SERVED["llama2"]}, "llama2"),
        ({"model": SERVED["mistral"]}, "mistral"),
        ({"model": "gpt-3.5-turbo"}, "mistral"),
        ({"model": "gpt-3.5-turbo-16k-0613"}, "mistral"),
        ({"model": "gpt-4"}, "llama2"),
        ({"model": "gpt-4o-mini"}, "llama2"),
        ({"model": "code-davinci-002"}, "codellama"),
        ({"model": "gpt-4-code"}, "codellama"),  # the first alias that matches
        ({"task": "chat"}, "llama2"),
        ({"task": "summarization"}, "mistral"),
        ({"task": "code"}, "codellama"),
        ({}, "mistral"),
        ({"model": None}, "mistral"),
        ({"model": ""}, "mistral"),
        ({"model": "codellama", "task": "chat"}, "codellama"),  # a named model wins over the task
        ({"model": "gpt-3.5-turbo", "task": "code"}, "mistral"),  # an alias wins over the task
    ],
)
def test_the_model_is_named_aliased_meant_by_the_task_or_the_default(
    platform: Platform, caller: Caller, fields: Json, model: str
) -> None:
    marker = unique("route")
    body = {"messages": [{"role": "user", "content": marker}], "max_tokens": 2, **fields}
    answer = caller.http.post("/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-llm-model"] == model
    assert answer.json()["model"] == SERVED[model]
    (request,) = arrived(platform, model, marker)
    assert request["body"]["model"] == SERVED[model]
    assert "task" not in request["body"]


@pytest.mark.simulated("embeds")
@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/embeddings", {"model": "text-embedding-3-small", "input": "x"}, "bge-small"),
        ("/embeddings", {"model": "bge-small", "input": "x"}, "bge-small"),
        ("/embeddings", {"input": "x"}, "bge-small"),  # the default does not embed
        ("/completions", {"prompt": "x"}, "mistral"),
        ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "x"}, "mistral"),
        ("/responses", {"model": "gpt-4.1", "input": "x"}, "llama2"),
        ("/responses", {"task": "code", "input": "x"}, "codellama"),
    ],
)
def test_every_endpoint_chooses_alike(caller: Caller, path: str, body: Any, model: str) -> None:
    answer = caller.http.post(path, json=body)
    assert (answer.status_code, answer.headers["x-llm-model"]) == (200, model)


def test_the_model_named_in_an_answer_can_be_asked_for_again(caller: Caller) -> None:
    first = caller.openai.chat.completions.create(model="gpt-4o", messages=HELLO)
    again = caller.openai.chat.completions.create(model=first.model, messages=HELLO)
    assert again.model == first.model == SERVED["llama2"]


def test_the_default_of_a_restricted_key_is_a_model_that_it_permits(make_caller: MakeCaller) -> None:
    caller = make_caller(models=["codellama"])
    answer = caller.http.post("/chat/completions", json={"messages": HELLO})
    assert answer.headers["x-llm-model"] == "codellama"


# --- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.simulated("tells what reached it")
def test_a_prompt_too_long_for_its_model_is_answered_by_the_next_that_fits(platform: Platform, caller: Caller) -> None:
    marker = unique("long")
    answer = caller.chat(marker + LONG, model="gpt-4")
    assert answer.status_code == 200
    assert answer.headers["x-llm-model"] == "mistral"
    assert answer.json()["model"] == SERVED["mistral"]
    assert not arrived(platform, "llama2", marker)


def test_a_long_maximum_counts_when_the_model_is_chosen(caller: Caller) -> None:
    answer = caller.chat(max_tokens=4_090)
    assert (answer.status_code, answer.headers["x-llm-model"]) == (200, "mistral")


@pytest.mark.simulated("has this model's context")
def test_a_long_prompt_is_not_sent_to_a_model_that_the_key_does_not_permit(make_caller: MakeCaller) -> None:
    answer = make_caller(models=["llama2"]).chat("long" + LONG)
    assert (answer.status_code, answer.headers["x-llm-model"]) == (400, "llama2")
    assert error_of(answer)["code"] == "context_length_exceeded"


def test_many_short_requests_do_not_spoil_the_estimate_of_a_long_one(platform: Platform, caller: Caller) -> None:
    """Tokens per byte are learned from receipts. Short bodies are mostly JSON, long ones mostly words."""
    for _ in range(100):
        assert caller.chat("Hi", model="codellama", max_tokens=1).status_code == 200
    caller.settled(100)
    teach(platform, caller, "mistral")  # what was learned before it is shared by now
    answers = [caller.chat(unique("long") + LONG, model="codellama", max_tokens=1) for _ in range(4)]
    assert [(a.status_code, a.headers["x-llm-model"]) for a in answers] == [(200, "mistral")] * 4


def test_what_a_byte_makes_in_tokens_is_learned_and_shared(platform: Platform, caller: Caller) -> None:
    ratio = teach(platform, caller, "llama2")
    assert 0.15 < ratio < 0.4


def teach(platform: Platform, caller: Caller, model: str) -> float:
    """Move the model's tokens per byte; return them once all workers can know."""

    def ratio() -> float:
        learned: float = platform.do(platform.store.shared(1000)).tokens_per_byte.get(model, 0.0)
        return learned

    before = ratio()
    assert caller.chat(unique("words") + " word" * 600, model=model, max_tokens=1).status_code == 200

    def moved() -> float:
        now = ratio()
        return now if now != before else 0.0

    return eventually(moved)


# --- what reaches the backend -----------------------------------------------------------------------------------------


@pytest.mark.simulated("a fault on demand")
def test_private_and_steering_headers_do_not_reach_the_backend(platform: Platform, caller: Caller) -> None:
    marker = unique("headers")
    sent = {
        "cookie": "session=1",
        "x-llm-model": "codellama",
        "x-llm-tenant": "somebody-else",
        "x-llm-anything": "1",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-upstream-rq-per-try-timeout-ms": "1",
        "x-envoy-retry-on": "5xx,retriable-status-codes",
        "x-envoy-max-retries": "9",
        "x-envoy-upstream-alt-stat-name": "mine",
        "x-envoy-decorator-operation": "mine",
        "x-envoy-hedge-on-per-try-timeout": "true",
        "x-custom": "kept",
        "x-sim-delay-ms": "30",  # longer than the timeout asked for
    }
    answer = caller.chat(marker, headers=sent)
    assert answer.status_code == 200
    assert answer.headers["x-llm-model"] == "llama2"
    (request,) = arrived(platform, "llama2", marker)
    headers = request["headers"]
    assert headers["x-custom"] == "kept"
    assert headers["x-llm-model"] == "llama2"
    assert not {"authorization", "cookie", "accept-encoding"} & headers.keys()
    assert [name for name in headers if name.startswith("x-llm-")] == ["x-llm-model"]
    assert not headers.keys() & (sent.keys() - {"x-custom", "x-llm-model", "x-sim-delay-ms"})
    assert caller.key not in json.dumps(request)


@pytest.mark.simulated("tells what reached it")
def test_a_model_header_alone_chooses_nothing(platform: Platform, caller: Caller) -> None:
    marker = unique("spoof")
    body = {"messages": [{"role": "user", "content": marker}]}
    answer = caller.http.post("/chat/completions", json=body, headers={"x-llm-model": "codellama"})
    assert (answer.status_code, answer.headers["x-llm-model"]) == (200, "mistral")
    assert not arrived(platform, "codellama", marker)


@pytest.mark.simulated("tells what reached it")
@pytest.mark.parametrize("name", ["x-llm-model", "X-LLM-Model"])
@pytest.mark.parametrize("value", ["llama2", "no-such-model"])
def test_no_header_takes_a_request_to_a_backend_without_a_key(
    platform: Platform, caller: Caller, name: str, value: Any
) -> None:
    marker = unique("spoof")
    answer = caller.chat(marker, headers={name: value, "authorization": "Bearer sk-wrong"})
    assert answer.status_code == 401
    assert not [r for model in SERVED for r in arrived(platform, model, marker)]


@pytest.mark.simulated("a fault on demand")
def test_a_retry_that_the_client_orders_is_not_done(platform: Platform, caller: Caller) -> None:
    marker = unique("retry")
    orders = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "5", "x-sim-status": "500"}
    assert caller.chat(marker, headers=orders).status_code == 500
    assert len(arrived(platform, "llama2", marker)) == 1


@pytest.mark.simulated("tells what reached it")
def test_unknown_fields_reach_the_backend_untouched(platform: Platform, caller: Caller) -> None:
    marker = unique("fields")
    odd: Json = {
        "chat_template_kwargs": {"enable_thinking": False, "deep": [1, 2.5, None, {"ü": "\u2028\u0000"}]},
        "big": 12345678901234567890,
        "min_p": 0.05,
        "guided_regex": "[a-z]+\\d",
        "user": "someone",
        "metadata": {"k": "v"},
        "top_k": None,
    }
    for stream in (False, True):
        assert caller.chat(marker, **odd, stream=stream).status_code == 200
    for request in arrived(platform, "llama2", marker):
        assert {name: request["body"][name] for name in odd} == odd
        assert request["body"]["messages"] == [{"role": "user", "content": marker}]
    plain, streamed = arrived(platform, "llama2", marker)
    assert plain["body"].keys() == {"model", "messages", "stream", *odd}
    assert streamed["body"].keys() == {"model", "messages", "stream", "stream_options", *odd}
    assert streamed["body"]["stream_options"] == {"include_usage": True}


class Recorder(Backend):
    """A backend that keeps the bytes of what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__()

    def answer(self, method: str, _path: str, body: bytes) -> bytes:
        if method == "GET":
            return b'{"object":"list","data":[{"id":"the-model","object":"model","max_model_len":8192}]}'
        self.bodies.append(body)
        return b'{"id":"x","object":"chat.completion","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'


def test_a_body_that_needs_no_change_passes_byte_by_byte(start_platform: StartPlatform) -> None:
    bodies = []
    for fields in (
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}},
        {"odd": [1e2, "é", "a\\/b", 10**30], "temperature": 1.0},
    ):
        bodies.append(json.dumps(ask(model="the-model", **fields), indent=3).encode() + b" \n" * 50)
    with (
        Recorder() as backend,
        start_platform(backend=backend.url, workers=1, drain_seconds=0.1) as platform,
        Caller(platform) as caller,
    ):
        for body in bodies:
            answer = caller.http.post("/chat/completions", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 200
        account = caller.settled(len(bodies))
    assert backend.bodies == bodies
    assert (account["prompt_tokens"], account["completion_tokens"]) == (3 * len(bodies), 4 * len(bodies))


@pytest.mark.simulated("tells what reached it")
def test_the_backend_sees_the_path_and_query_as_sent(platform: Platform, caller: Caller) -> None:
    marker = unique("query")
    answer = caller.http.post("/chat/completions?api-version=1&x=%2F", json=ask(marker))
    assert answer.status_code == 200
    (request,) = arrived(platform, "llama2", marker)
    assert request["path"] == "/v1/chat/completions"
