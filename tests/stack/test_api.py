"""The API as the official client and plain HTTP see it: every endpoint, both transports, every error's shape."""

import asyncio
import base64
import json
import ssl
import struct
import time
from typing import Any

import httpx
import openai
import pytest
from stack_rig import (
    NO_TLS,
    SERVED,
    Caller,
    Json,
    MakeCaller,
    Platform,
    arrived,
    ask,
    error_of,
    events_of,
    said,
    unique,
)

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.simulated("says exact words")
def test_a_chat_completion_says_what_the_backend_said_and_what_it_used(caller: Caller) -> None:
    answer = caller.openai.chat.completions.create(model="llama2", messages=HELLO, extra_headers=said("Good day."))
    assert answer.choices[0].message.content == "Good day."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0


def test_a_completion_echoes_its_prompt_when_asked(caller: Caller) -> None:
    answer = caller.openai.completions.create(model="llama2", prompt="Once upon", max_tokens=5, echo=True)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.startswith("Once upon")
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.simulated("embeds")
def test_embeddings_are_the_same_as_floats_and_as_base64(caller: Caller) -> None:
    texts = ["first", "second"]
    decoded = caller.openai.embeddings.create(model="bge-small", input=texts)  # the client asks for base64
    floats = caller.openai.embeddings.create(model="bge-small", input=texts, encoding_format="float")
    assert [len(d.embedding) for d in floats.data] == [384, 384]
    assert [d.embedding for d in decoded.data] == [pytest.approx(d.embedding, abs=1e-6) for d in floats.data]
    assert floats.data[0].embedding != floats.data[1].embedding
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0
    raw = caller.http.post(
        "/embeddings", json={"model": "bge-small", "input": "first", "encoding_format": "base64"}
    ).json()
    numbers = struct.unpack("<384f", base64.b64decode(raw["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(floats.data[0].embedding, abs=1e-6)


@pytest.mark.simulated("says exact words")
def test_a_response_carries_its_text_and_usage(caller: Caller) -> None:
    answer = caller.openai.responses.create(model="llama2", input="Hello", extra_headers=said("Good day."))
    assert answer.output_text == "Good day."
    assert answer.status == "completed"
    assert answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.simulated("says exact words")
async def test_the_async_client_gets_many_answers_at_once_each_its_own(platform: Platform) -> None:
    async with openai.AsyncOpenAI(base_url=platform.stack.base_url, api_key=platform.key(), max_retries=0) as client:

        async def one(number: int) -> str:
            answer = await client.chat.completions.create(
                model="llama2", messages=HELLO, extra_headers=said(f"answer {number}")
            )
            return answer.choices[0].message.content

        assert await asyncio.gather(*map(one, range(40))) == [f"answer {n}" for n in range(40)]
        embeddings = await client.embeddings.create(model="bge-small", input="x")
        assert len(embeddings.data[0].embedding) == 384
        assert (await client.completions.create(model="llama2", prompt="x", max_tokens=3)).usage.completion_tokens == 3
        assert (await client.responses.create(model="llama2", input="x")).output_text
        assert [m.id async for m in client.models.list()] == list(SERVED)


@pytest.mark.simulated("calls a tool once")
def test_a_tool_is_called_with_arguments_of_its_schema(caller: Caller) -> None:
    answer = caller.openai.chat.completions.create(model="llama2", messages=HELLO, tools=[TOOL], tool_choice="required")
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments).keys() == {"city", "days"}


@pytest.mark.simulated("fills in what a schema leaves open")
def test_an_answer_follows_the_json_schema_of_response_format(caller: Caller) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    answer = caller.openai.chat.completions.create(
        model="llama2",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    person = json.loads(answer.choices[0].message.content)
    assert person.keys() == {"name", "age"}
    assert isinstance(person["age"], int)


def test_two_choices_and_log_probabilities_pass_through(caller: Caller) -> None:
    answer = caller.openai.chat.completions.create(
        model="llama2", messages=HELLO, n=2, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
        assert [len(t.top_logprobs) for t in choice.logprobs.content] == [2, 2, 2, 2]
    assert answer.usage.completion_tokens == 8


@pytest.mark.simulated("says exact words")
@pytest.mark.parametrize(("http2", "version"), [(True, "HTTP/2"), (False, "HTTP/1.1")])
def test_https_is_served_with_both_versions_of_http(
    platform: Platform, caller: Caller, http2: bool, version: str
) -> None:
    client = httpx.Client(
        base_url=platform.stack.https_url,
        http2=http2,
        verify=ssl.create_default_context(cafile=platform.stack.ca_file),
        headers={"authorization": f"Bearer {caller.key}"},
    )
    with client:
        answer = client.post("/chat/completions", json=ask("Hello"), headers=said("over TLS"))
        assert (answer.status_code, answer.http_version) == (200, version)
        assert answer.json()["choices"][0]["message"]["content"] == "over TLS"
        streamed = client.post("/chat/completions", json=ask("Hello", stream=True), headers=said("over TLS"))
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert events_of(streamed.text)[-1] == "[DONE]"
        refused = client.post("/chat/completions", json=ask(model="no-such-model"))
        assert (refused.status_code, refused.http_version) == (404, version)
        assert error_of(refused)["code"] == "model_not_found"
        assert client.get("/models").json()["data"][0]["id"] == "llama2"


def test_the_models_are_listed_in_the_order_of_the_configuration(caller: Caller) -> None:
    models = caller.openai.models.list().data
    assert [m.id for m in models] == list(SERVED)
    assert all(m.object == "model" for m in models)
    assert caller.openai.models.retrieve("mistral").id == "mistral"
    assert caller.openai.models.retrieve(SERVED["mistral"]).id == "mistral"  # a name with a slash
    with pytest.raises(openai.NotFoundError) as caught:
        caller.openai.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_only_permitted_models_are_listed(make_caller: MakeCaller) -> None:
    caller = make_caller(models=["mistral", "bge-small"])
    assert [m.id for m in caller.openai.models.list()] == ["mistral", "bge-small"]
    with pytest.raises(openai.NotFoundError):
        caller.openai.models.retrieve("llama2")


# --- request ids ------------------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_of_its_own(caller: Caller) -> None:
    answers = [
        caller.chat(),
        caller.chat(stream=True),
        caller.chat(temperature=-1),
        caller.chat(model="no-such-model"),
        caller.chat(headers={"authorization": ""}),
        caller.http.get("/models"),
        caller.http.get("/nothing"),
    ]
    assert [a.status_code for a in answers] == [200, 200, 400, 404, 401, 200, 404]
    ids = [a.headers["x-request-id"] for a in answers]
    assert len(set(ids)) == len(ids)


@pytest.mark.simulated("tells what reached it")
def test_the_backend_sees_the_request_id_that_the_client_sees_and_nobody_can_choose_it(
    platform: Platform, caller: Caller
) -> None:
    raw = caller.openai.chat.completions.with_raw_response.create(
        model="llama2", messages=HELLO, extra_headers={"x-request-id": "chosen"}
    )
    name = raw.headers["x-request-id"]
    assert name == raw.parse()._request_id
    assert name != "chosen"
    assert [r["headers"]["x-request-id"] for r in arrived(platform, "llama2", name)] == [name]


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    error = error_of(response)
    return response.status_code, error["type"], error["code"], error["param"]


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses", "embeddings"])
def test_an_unknown_model_is_not_found(caller: Caller, endpoint: str) -> None:
    body = {"model": "no-such-model", "messages": HELLO, "prompt": "x", "input": "x"}
    answer = caller.http.post(f"/{endpoint}", json=body)
    assert refusal(answer) == (404, "invalid_request_error", "model_not_found", "model")
    assert "no-such-model" in error_of(answer)["message"]


def test_a_model_that_the_key_does_not_permit_is_not_found(make_caller: MakeCaller) -> None:
    caller = make_caller(models=["mistral"])
    assert refusal(caller.chat()) == (404, "invalid_request_error", "model_not_found", "model")
    assert caller.chat(model="gpt-3.5-turbo").status_code == 200
    assert refusal(caller.chat(model="gpt-4o"))[:3] == (404, "invalid_request_error", "model_not_found")
    assert refusal(caller.chat(model=None, task="code"))[:3] == (404, "invalid_request_error", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nothing"),
        ("GET", "/"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/V1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions"),
        ("PUT", "/v1/embeddings"),
        ("POST", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/sim/requests"),
    ],
)
def test_an_unknown_url_or_a_wrong_method_is_not_found(
    platform: Platform, caller: Caller, method: str, path: str
) -> None:
    url = f"http://127.0.0.1:{platform.stack.http_port}{path}"
    answer = caller.http.request(method, url, json=ask() if method in {"POST", "PUT"} else None)
    assert refusal(answer) == (404, "invalid_request_error", "unknown_url", None)
    assert f"{method} {path}" in error_of(answer)["message"]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic abc", "Bearer sk-other", "Bearer sk-llm-" + "x" * 43])
def test_without_a_valid_key_nothing_is_answered(platform: Platform, caller: Caller, authorization: str) -> None:
    for path in ("/chat/completions", "/nothing"):
        answer = caller.http.post(path, json=ask(), headers={"authorization": authorization})
        assert refusal(answer) == (401, "invalid_request_error", "invalid_api_key", None)
    with httpx.Client(base_url=platform.stack.base_url, verify=NO_TLS) as client:
        assert refusal(client.get("/models")) == (401, "invalid_request_error", "invalid_api_key", None)


def test_a_key_is_refused_from_the_moment_it_expires(make_caller: MakeCaller) -> None:
    expired = make_caller(expires_ms=int(time.time() * 1000) - 1)
    assert refusal(expired.chat()) == (401, "invalid_request_error", "invalid_api_key", None)
    assert "expired" in error_of(expired.chat())["message"]
    valid = make_caller(expires_ms=int(time.time() * 1000) + 60_000)
    assert valid.chat().status_code == 200


def test_a_revoked_key_is_told_so(make_caller: MakeCaller) -> None:
    revoked = make_caller(revoked_ms=int(time.time() * 1000) - 1)
    assert refusal(revoked.chat()) == (401, "invalid_request_error", "invalid_api_key", None)
    assert "revoked" in error_of(revoked.chat())["message"]


def test_the_official_client_raises_its_own_errors(platform: Platform, caller: Caller) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        caller.openai.chat.completions.create(model="no-such-model", messages=HELLO)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    assert not_found.value.request_id
    with platform.client("sk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as wrong:
        caller.openai.chat.completions.create(model="llama2", messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        ("chat/completions", {"model": "llama2"}, "messages"),
        ("chat/completions", {"model": "llama2", "messages": []}, "messages"),
        ("chat/completions", {"model": 5, "messages": HELLO}, "model"),
        ("chat/completions", {"messages": HELLO, "task": "juggling"}, "task"),
        ("chat/completions", {"messages": HELLO, "stream": "yes"}, "stream"),
        ("chat/completions", {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": HELLO, "n": 0}, "n"),
        ("completions", {"model": "llama2"}, "prompt"),
        ("embeddings", {"model": "bge-small"}, "input"),
        ("embeddings", {"model": "llama2", "input": "x"}, "model"),
        ("chat/completions", {"model": "bge-small", "messages": HELLO}, "model"),
        ("responses", {"model": "llama2"}, "input"),
        ("responses", {"model": "llama2", "input": "x", "background": True}, "background"),
    ],
)
def test_a_body_that_can_not_be_decided_names_its_wrong_parameter(
    caller: Caller, endpoint: str, body: Any, param: str | None
) -> None:
    answer = caller.http.post(f"/{endpoint}", json=body)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b"\xff\xfe", b"null"])
def test_a_body_that_is_no_json_object_is_refused(caller: Caller, body: Any) -> None:
    answer = caller.http.post("/chat/completions", content=body, headers={"content-type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert "JSON" in error["message"]


def test_an_empty_body_and_a_foreign_content_type_are_refused(caller: Caller) -> None:
    empty = caller.http.post("/chat/completions", headers={"content-type": "application/json"})
    assert (empty.status_code, error_of(empty)["type"]) == (400, "invalid_request_error")
    form = caller.http.post("/chat/completions", data={"model": "llama2"})
    assert refusal(form) == (415, "invalid_request_error", "unsupported_media_type", None)
    packed = caller.http.post(
        "/chat/completions", content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"}
    )
    assert refusal(packed) == (415, "invalid_request_error", "unsupported_media_type", None)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "temperature must be non-negative"),
        ({"top_p": 2}, "top_p", "top_p must be in (0, 1]"),
        ({"top_logprobs": 2}, "top_logprobs", "`logprobs` must be set"),
        ({"messages": [{"content": "no role"}]}, None, "role"),
    ],
)
def test_what_the_backend_refuses_comes_back_in_its_own_words_and_our_shape(
    caller: Caller, fields: Json, param: str | None, words: str
) -> None:
    for stream in (False, True):
        answer = caller.http.post("/chat/completions", json={**ask(), **fields, "stream": stream})
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert words in error["message"]
        assert error["code"] is None
        if param:
            assert error["param"] == param


@pytest.mark.simulated("tells what reached it")
def test_a_prompt_that_no_model_can_hold_is_refused_before_a_backend_sees_it(
    platform: Platform, caller: Caller
) -> None:
    marker = unique("hopeless")
    answer = caller.chat(marker + " word" * 100_000)
    assert refusal(answer) == (400, "invalid_request_error", "context_length_exceeded", "messages")
    assert "8192" in error_of(answer)["message"]
    assert not [r for model in SERVED for r in arrived(platform, model, marker)]
    prompt = caller.http.post("/completions", json={"model": "llama2", "prompt": "word " * 100_000})
    assert refusal(prompt) == (400, "invalid_request_error", "context_length_exceeded", "prompt")
    text = caller.http.post("/embeddings", json={"model": "bge-small", "input": "word " * 100_000})
    assert refusal(text) == (400, "invalid_request_error", "context_length_exceeded", "input")


@pytest.mark.simulated("tells what reached it")
def test_a_prompt_that_is_just_too_long_is_refused_by_the_backend_and_reshaped(
    platform: Platform, caller: Caller
) -> None:
    marker = unique("too-long")
    for stream in (False, True):
        answer = caller.chat(marker + " word" * 12_000, stream=stream)
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 8192 tokens" in error["message"]
        assert answer.headers["x-llm-model"] == "mistral"
    assert len(arrived(platform, "mistral", marker)) == 2


def test_a_maximum_beyond_the_context_is_the_backends_to_refuse(caller: Caller) -> None:
    answer = caller.chat(model="mistral", max_tokens=1_000_000)
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == "max_tokens"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(
    platform: Platform, caller: Caller, streamed: bool
) -> None:
    limit = platform.stack.catalogue.config.max_body_bytes

    def of_size(size: int) -> bytes:
        """An image: its bytes say nothing about its tokens, so only the backend can refuse it."""
        head = (
            b'{"model":"llama2","stream":true,"messages":[{"role":"user","content":[{"type":"image_url","image_url":"'
        )
        tail = b'"}]}]}'
        return head + b"A" * (size - len(head) - len(tail)) + tail

    def post(size: int) -> httpx.Response:
        body = of_size(size)
        pieces = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
        content = pieces if streamed else body
        return caller.http.post("/chat/completions", content=content, headers={"content-type": "application/json"})

    whole = post(limit)
    assert whole.status_code == 400
    assert "image" in error_of(whole)["message"]
    assert refusal(post(limit + 1)) == (413, "invalid_request_error", "request_too_large", None)


def test_the_platform_serves_while_a_caller_waits(platform: Platform, caller: Caller) -> None:
    """A request that its backend holds back keeps no other one waiting."""
    with platform.client(caller.key, timeout=0.3) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="llama2", messages=HELLO, extra_headers={"x-sim-hang": "1"})
    assert caller.chat().status_code == 200
