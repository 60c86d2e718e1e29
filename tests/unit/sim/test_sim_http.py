"""The simulator on the wire: framing, errors, scripted faults, shutdown."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

import pytest
from sim_rig import Connect, Start, chat

SAMPLE = [
    (
        '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","choices":[{"index":0,"delta":'
        '{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,'
        '"prompt_text":null}'
    ),
    (
        '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","choices":[{"index":0,"delta":'
        '{"content":"one"},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
    ),
    (
        '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","choices":[{"index":0,"delta":'
        '{"content":" two"},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
    ),
    (
        '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","choices":[{"index":0,"delta":'
        '{},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}]}'
    ),
    (
        '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","choices":[],"usage":'
        '{"prompt_tokens":11,"total_tokens":14,"completion_tokens":3},"system_fingerprint":"vllm-0.32.0-61220b60"}'
    ),
    "[DONE]",
]


async def test_a_stream_has_the_bytes_of_the_real_server(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send(
        "/v1/chat/completions",
        chat(stream=True, stream_options={"include_usage": True}),
        x_request_id="ID",
        x_sim_text="b25lIHR3bw==",
    )
    status, headers = await raw.head()
    assert status == 200
    assert list(headers) == ["date", "server", "content-type", "vary", "transfer-encoding"]
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    events = await raw.chunks()
    created = json.loads(events[0].removeprefix(b"data: "))["created"]
    texts = [
        event.decode().replace(f'"created":{created}', '"created":0').replace("chatcmpl-ID", "ID") for event in events
    ]
    assert texts == [f"data: {line}\n\n" for line in SAMPLE]


async def test_running_usage_counts_with_every_chunk(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    options = {"include_usage": True, "continuous_usage_stats": True}
    raw.send("/v1/chat/completions", chat(max_tokens=3, stream=True, stream_options=options))
    await raw.head()
    events = [json.loads(event.removeprefix(b"data: ")) for event in (await raw.chunks())[:-1]]
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 3, 3]


async def test_without_usage_the_last_content_chunk_carries_the_fingerprint(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=2, stream=True))
    await raw.head()
    chunks = await raw.chunks()
    assert len(chunks) == 4
    assert json.loads(chunks[2].removeprefix(b"data: "))["system_fingerprint"] == "vllm-0.32.0-61220b60"


@pytest.mark.parametrize(
    ("path", "body", "kind", "param", "words"),
    [
        ("/v1/chat/completions", {}, "Bad Request", "body.messages", "Field required"),
        ("/v1/chat/completions", {"messages": []}, "BadRequestError", None, "at least one message"),
        ("/v1/chat/completions", {"messages": 3}, "BadRequestError", None, "not iterable"),
        (
            "/v1/chat/completions",
            {"messages": [{"content": "x"}]},
            "Bad Request",
            "body.messages.0.ChatCompletionDeveloperMessageParam.role",
            "required",
        ),
        ("/v1/chat/completions", {"max_tokens": 0}, "BadRequestError", "max_tokens", "must be at least 1, got 0"),
        ("/v1/chat/completions", {"max_tokens": "many"}, "Bad Request", "body.max_tokens", "valid integer"),
        ("/v1/chat/completions", {"temperature": -1}, "BadRequestError", "temperature", "non-negative"),
        ("/v1/chat/completions", {"top_p": 2}, "BadRequestError", "top_p", "(0, 1]"),
        ("/v1/chat/completions", {"n": 0}, "BadRequestError", None, "at least 1"),
        ("/v1/chat/completions", {"top_logprobs": 2}, "BadRequestError", "top_logprobs", "logprobs"),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}, "BadRequestError", "logprobs", "max allowed: 20"),
        (
            "/v1/chat/completions",
            {"stream_options": {"include_usage": True}},
            "BadRequestError",
            "stream_options",
            "stream",
        ),
        ("/v1/chat/completions", {"tool_choice": "required"}, "BadRequestError", "tool_choice", "`tools` must be set"),
        ("/v1/chat/completions", {"max_tokens": 64}, "BadRequestError", "max_tokens", "cannot be greater than"),
        (
            "/v1/chat/completions",
            {"max_completion_tokens": 64},
            "BadRequestError",
            "max_completion_tokens",
            "cannot be",
        ),
        ("/v1/chat/completions", {"temperature": 0, "n": 2}, "BadRequestError", None, "greedy sampling"),
        ("/v1/chat/completions", {"temperature": 3}, "BadRequestError", "temperature", "in [0, 2]"),
        ("/v1/completions", {"prompt": ""}, "BadRequestError", "prompt", "must be provided"),
        ("/v1/completions", {"prompt": ["x", 1]}, "Bad Request", "body.prompt.0", "valid integer"),
        ("/v1/completions", {"prompt": [-1]}, "Bad Request", "body.prompt.0", "greater than or equal to 0"),
        ("/v1/responses", {}, "Bad Request", "body.input", "Field required"),
    ],
)
async def test_what_vllm_refuses_is_refused_in_its_shape(
    start: Start, connect: Connect, path: str, body: dict[str, Any], kind: str, param: str | None, words: str
) -> None:
    raw = await connect(await start("--max-model-len", "32"))
    full = body if not body or "messages" in body or "prompt" in body else chat() | body
    raw.send(path, full)
    status, _, answer = await raw.answer()
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["type"], error["param"]) == (400, 400, kind, param)
    assert words in error["message"]


async def test_a_prompt_beyond_the_context_is_refused_with_vllms_words(start: Start, connect: Connect) -> None:
    raw = await connect(await start("--max-model-len", "100"))
    raw.send("/v1/chat/completions", chat("word " * 200, max_tokens=20))
    assert json.loads((await raw.answer())[2])["error"]["message"] == (
        "This model's maximum context length is 100 tokens. However, your prompt contains at least 101 input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value=101)"
    )


async def test_an_answer_is_shortened_to_the_room_that_the_prompt_leaves(start: Start, connect: Connect) -> None:
    raw = await connect(await start("--max-model-len", "100"))
    raw.send("/v1/chat/completions", chat("word " * 70, max_tokens=90))
    answer = json.loads((await raw.answer())[2])
    assert answer["usage"]["total_tokens"] == 100
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_broken_json_and_other_media_types_are_refused(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{"
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}"
    )
    for words in ("JSON decode error", "Unsupported Media Type"):
        status, _, body = await raw.answer()
        assert status == 400
        assert words in json.loads(body)["error"]["message"]


async def test_unknown_routes_and_methods_answer_as_fastapi_does(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/nowhere", method="GET")
    raw.send("/v1/models", {})
    assert (await raw.answer())[::2] == (404, b'{"detail":"Not Found"}')
    assert (await raw.answer())[::2] == (405, b'{"detail":"Method Not Allowed"}')
    raw.send("/v1/models", method="HEAD")
    assert (await raw.head())[0] == 405  # and no body: the next answer begins at once
    raw.send("/v1/models/", method="GET")
    status, headers, _ = await raw.answer()
    assert (status, headers["location"]) == (307, "http://sim/v1/models")


async def test_pipelined_requests_are_answered_in_order(start: Start, connect: Connect) -> None:
    raw = await connect(await start("--decode-ms-per-token", "1"))
    raw.send("/v1/chat/completions", chat(max_tokens=20), x_request_id="slow")
    for at in range(2000):
        raw.send("/health", method="GET")
        if at % 100 == 0:
            raw.send("/v1/chat/completions", chat(max_tokens=1), x_request_id=str(at))
    assert json.loads((await raw.answer())[2])["id"] == "chatcmpl-slow"
    for at in range(2000):
        assert (await raw.answer())[2] == b""
        if at % 100 == 0:
            assert json.loads((await raw.answer())[2])["id"] == f"chatcmpl-{at}"


async def test_chunked_bodies_and_expect_continue_are_understood(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
    )
    assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    body = json.dumps(chat(max_tokens=2)).encode()
    raw.writer.write(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert (await raw.answer())[0] == 200


async def test_noise_gets_400_and_a_closed_connection(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.writer.write(b"nonsense\r\n\r\n")
    assert (await raw.answer())[0] == 400
    assert await raw.reader.read() == b""


async def test_tokens_go_there_and_back(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    text = "Grüße, 東京!  12345 \\ done"
    raw.send("/tokenize", {"prompt": text, "return_token_strs": True})
    found = json.loads((await raw.answer())[2])
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    raw.send("/detokenize", {"tokens": found["tokens"][1:]})
    assert json.loads((await raw.answer())[2]) == {"prompt": text}


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/load", "/v1/models", "/metrics"])
async def test_plain_routes_answer(start: Start, connect: Connect, path: str) -> None:
    raw = await connect(await start())
    raw.send(path, method="GET")
    assert (await raw.answer())[0] == 200


async def test_requests_are_recorded_until_deleted(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat("remember me"), x_mine="yes")
    await raw.answer()
    raw.send("/sim/requests", method="GET")
    seen = json.loads((await raw.answer())[2])
    assert [each["path"] for each in seen] == ["/v1/chat/completions"]
    assert seen[0]["headers"]["x-mine"] == "yes"
    assert seen[0]["body"]["messages"][0]["content"] == "remember me"
    raw.send("/sim/requests", method="DELETE")
    assert (await raw.answer())[2] == b"[]"


# Scripted faults.


async def test_a_scripted_status_comes_as_vllms_error_or_as_a_page(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(), x_sim_status="503")
    status, _, body = await raw.answer()
    assert (status, json.loads(body)["error"]["code"]) == (503, 503)
    raw.send("/v1/chat/completions", chat(), x_sim_status="502 html")
    status, headers, body = await raw.answer()
    assert (status, headers["content-type"]) == (502, "text/html")
    assert b"<h1>502</h1>" in body


async def test_a_delay_holds_back_the_first_byte(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    began = asyncio.get_running_loop().time()
    raw.send("/v1/chat/completions", chat(max_tokens=1), x_sim_delay_ms="60")
    await raw.answer()
    assert asyncio.get_running_loop().time() - began >= 0.06


async def test_a_hanging_request_gets_nothing_while_others_are_served(start: Start, connect: Connect) -> None:
    server = await start()
    hung, other = await connect(server), await connect(server)
    hung.send("/v1/chat/completions", chat(), x_sim_hang="1")
    other.send("/v1/chat/completions", chat(max_tokens=1))
    await other.answer()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hung.reader.read(1), 0.05)


@pytest.mark.parametrize("split", [{}, {"x_sim_split": "7"}])
async def test_a_cut_stream_ends_in_a_reset_after_its_chunks(
    start: Start, connect: Connect, split: dict[str, str]
) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=9, stream=True), x_sim_cut_after="3", **split)
    await raw.head()
    assert (await raw.until_reset()).count(b"data: {") == 3


async def test_a_cut_plain_answer_ends_inside_its_body(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=9), x_sim_cut_after="0")
    _, headers = await raw.head()
    with pytest.raises(ConnectionResetError):
        await raw.reader.readexactly(int(headers["content-length"]))


async def test_a_split_stream_has_the_same_bytes_in_small_chunks(start: Start, connect: Connect) -> None:
    raw = await connect(await start("--decode-ms-per-token", "1"))
    raw.send("/v1/chat/completions", chat(max_tokens=5, stream=True, seed=1), x_request_id="a")
    await raw.head()
    whole = b"".join(await raw.chunks())
    raw.send("/v1/chat/completions", chat(max_tokens=5, stream=True, seed=1), x_request_id="a", x_sim_split="10")
    await raw.head()
    pieces = await raw.chunks()
    assert {len(piece) for piece in pieces[:-1]} == {10}
    assert _uncreated(b"".join(pieces)) == _uncreated(whole)


def _uncreated(stream: bytes) -> list[object]:
    events = [event.removeprefix("data: ") for event in stream.decode().split("\n\n") if event]
    return [json.loads(event) | {"created": 0} if event != "[DONE]" else event for event in events]


async def test_joined_events_share_http_chunks(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=6, stream=True), x_sim_join="4")
    await raw.head()
    assert [chunk.count(b"data: ") for chunk in await raw.chunks()] == [4, 4]


async def test_a_stalled_stream_stays_open_and_silent(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=6, stream=True), x_sim_stall_after="2")
    await raw.head()
    assert len([await raw.chunk(), await raw.chunk()]) == 2
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(raw.reader.read(1), 0.05)


async def test_an_error_in_a_stream_is_an_event_before_done(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    raw.send("/v1/chat/completions", chat(max_tokens=6, stream=True), x_sim_error_after="2")
    await raw.head()
    chunks = await raw.chunks()
    assert len(chunks) == 4
    assert json.loads(chunks[2].removeprefix(b"data: "))["error"]["code"] == 500
    assert chunks[3] == b"data: [DONE]\n\n"
    raw.send("/health", method="GET")
    assert (await raw.answer())[0] == 200


async def test_forced_completion_lengths_end_with_stop_below_the_limit(start: Start, connect: Connect) -> None:
    raw = await connect(await start())
    for limit, reason in ((50, "stop"), (5, "length")):
        raw.send("/v1/chat/completions", chat(max_tokens=limit), x_sim_tokens="9")
        answer = json.loads((await raw.answer())[2])
        assert answer["usage"]["completion_tokens"] == min(limit, 9)
        assert answer["choices"][0]["finish_reason"] == reason


async def test_a_backend_that_went_down_comes_back_on_its_port(start: Start, connect: Connect) -> None:
    server = await start()
    raw = await connect(server)
    raw.send("/sim/down", {"seconds": 0.05})
    await raw.answer()
    with pytest.raises(OSError):
        await connect(server)
    while True:
        with contextlib.suppress(OSError):
            again = await connect(server)
            break
        await asyncio.sleep(0.005)
    again.send("/health", method="GET")
    assert (await again.answer())[0] == 200


async def test_sigterm_lets_running_streams_end_and_exits_0() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "extproc.sim", "--model", "m", "--port", "0", "--decode-ms-per-token", "10",
        stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONWARNINGS": "error"},
    )  # fmt: skip
    line = (await process.stdout.readline()).decode()
    port = int(line.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(chat(max_tokens=30, stream=True)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    await reader.readuntil(b"data: ")
    process.send_signal(signal.SIGTERM)
    assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert await process.wait() == 0
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.close()
