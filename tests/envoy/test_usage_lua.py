"""What mesh/lua/usage.lua does to an answer on its way back, in a real Envoy."""

import asyncio
import base64
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from envoy_runner import Answer, Gateway, Script, answer, lua_filter, metadata_filter, running, stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILL_BYTES = 400_000
SMALL_FILL_BYTES = 100
HEADERS = {"x-ratelimit-remaining-tokens": "41", "x-llm-model": "mistral"}
# At once on the way; more would only wait in queues.
IN_FLIGHT = 48
HEADER_LINES = "".join(f"{name}: {value}\n" for name, value in HEADERS.items())

USAGE = {
    "prompt_tokens": 13,
    "total_tokens": 17,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Any, blank: bytes = b"\n\n") -> bytes:
    return b"data: " + compact(value) + blank


def chunk(content: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return event({"id": "chatcmpl-1", "model": "m", "choices": [choice], **more})


def usage_chunk(**more: Any) -> bytes:
    return event({"id": "chatcmpl-1", "model": "m", "choices": [], "usage": USAGE, "system_fingerprint": "f", **more})


DONE = b"data: [DONE]\n\n"
WORDS = [chunk("VC"), chunk(" m"), chunk("ed")]
ASKED = b"".join([*WORDS, usage_chunk(), DONE])
NOT_ASKED = b"".join([*WORDS, DONE])


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def cut(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def usage(receipt: dict[str, Any]) -> Any:
    return receipt["usage"]["usage"]


def kept(receipt: dict[str, Any]) -> bytes:
    return base64.b64decode(receipt["fill"]["body"], validate=True)


def held_open(script: Script, until: asyncio.Event) -> Script:
    async def write(writer: asyncio.StreamWriter) -> None:
        await script(writer)
        await until.wait()

    return write


async def all_of(gateway: Gateway, chain: str, scripts: list[Script]) -> list[tuple[Answer, dict[str, Any]]]:
    places = asyncio.Semaphore(IN_FLIGHT)

    async def one(script: Script) -> tuple[Answer, dict[str, Any]]:
        async with places:
            return await gateway.get(chain, script)

    return await asyncio.gather(*map(one, scripts))


HTTP2_ANSWERS = {b"POST": (b"200", ASKED, True), b"PUT": (b"200", ASKED[:-2], False), b"DELETE": (b"404", ASKED, True)}


async def http2_upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The method picks status, body and whether the answer ends in trailers."""
    peer = H2Connection(H2Configuration(client_side=False))
    peer.initiate_connection()
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            for seen in peer.receive_data(data):
                if isinstance(seen, RequestReceived):
                    status, body, trailers = HTTP2_ANSWERS[dict(seen.headers)[b":method"]]
                    peer.send_headers(seen.stream_id, [(b":status", status), (b"content-type", b"text/event-stream")])
                    peer.send_data(seen.stream_id, body, end_stream=not trailers)
                    if trailers:
                        peer.send_headers(seen.stream_id, [(b"x-end", b"1")], end_stream=True)
            writer.write(peer.data_to_send())
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    def forwarded(**values: Any) -> list[dict[str, Any]]:
        return [metadata_filter({"forward": True, "model": "m", **values}), lua_filter()]

    chains = {
        "asked": forwarded(),
        "strip": forwarded(strip_usage=True),
        "fill": forwarded(strip_usage=True, fill=FILL_BYTES, headers=HEADER_LINES),
        "small fill": forwarded(fill=SMALL_FILL_BYTES),
        "not forwarded": [metadata_filter({"headers": HEADER_LINES, "fill": 1000, "strip_usage": True}), lua_filter()],
        "no metadata": [lua_filter()],
        "http2": forwarded(strip_usage=True),
        "nowhere": forwarded(),
    }
    http2 = await asyncio.start_server(http2_upstream, "127.0.0.1", 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        clusters = {"http2": http2.sockets[0].getsockname()[1], "nowhere": closed.getsockname()[1]}
        folder: Path = tmp_path_factory.mktemp("envoy")
        async with running(folder, chains, clusters) as envoy:
            yield envoy
        http2.close()
    assert "script log" not in (folder / "envoy.log").read_text()


# Streams


@pytest.mark.parametrize("ends", [bytes, crlf], ids=["LF", "CRLF"])
async def test_the_usage_event_is_taken_out_wherever_the_stream_is_split(
    gateway: Gateway, ends: Callable[[bytes], bytes]
) -> None:
    sent, expected = ends(ASKED), ends(NOT_ASKED)
    first = len(ends(b"".join(WORDS[:-1])))
    scripts = [stream(*cut(sent, place)) for place in range(first - 2, len(sent))]
    for got, receipt in await all_of(gateway, "fill", scripts):
        assert got.body == expected
        assert got.whole
        assert kept(receipt) == sent
        assert usage(receipt) == USAGE
        assert receipt["usage"] | {"events": 5, "bytes": len(sent), "done": True} == receipt["usage"]


async def test_events_split_and_joined_at_random_come_out_the_same(gateway: Gateway) -> None:
    dice = random.Random(7)
    pieces = [cut(ASKED, *dice.choices(range(len(ASKED)), k=dice.randrange(9))) for _ in range(250)]
    for chain, expected in ("strip", NOT_ASKED), ("asked", ASKED):
        for got, receipt in await all_of(gateway, chain, [stream(*each) for each in pieces]):
            assert got.body == expected
            assert usage(receipt) == USAGE
            assert receipt["usage"]["events"] == 5


async def test_a_stream_that_comes_byte_by_byte_is_stripped(gateway: Gateway) -> None:
    sent = usage_chunk() + DONE
    got, receipt = await gateway.get("strip", stream(*(sent[i : i + 1] for i in range(len(sent)))))
    assert got.body == DONE
    assert usage(receipt) == USAGE


async def test_what_the_client_asked_for_passes_byte_for_byte(gateway: Gateway) -> None:
    got, receipt = await gateway.get("asked", stream(ASKED))
    assert got.body == ASKED
    assert usage(receipt) == USAGE
    assert receipt["fill"] is None


@pytest.mark.parametrize(
    "odd",
    [
        usage_chunk()[:-2] + b"\n",
        b": a comment\n\n",
        b"event: x\nid: 1\ndata: {}\n\n",
        b"data: \xff\xfe\x00\n\n",
        b"data: [",
        event({"choices": [], "prompt_filter_results": []}),
        event({"choices": [], "usage": None}),
        chunk("x", usage=USAGE),
        chunk("", token_ids=[]),
    ],
)
async def test_only_a_whole_usage_event_is_taken_out(gateway: Gateway, odd: bytes) -> None:
    sent = chunk("a") + odd + chunk("b") + usage_chunk() + DONE
    for place in 0, len(chunk("a")), len(chunk("a")) + 5:
        got, _ = await gateway.get("strip", stream(*cut(sent, place)))
        assert got.body == chunk("a") + odd + chunk("b") + DONE


async def test_usage_written_with_spaces_is_found_and_taken_out(gateway: Gateway) -> None:
    spaced = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    got, receipt = await gateway.get("strip", stream(chunk("a"), spaced, DONE))
    assert got.body == chunk("a") + DONE
    assert usage(receipt) == USAGE


async def test_usage_told_in_the_words_of_the_answer_is_not_usage(gateway: Gateway) -> None:
    fake = chunk('{"choices":[],"usage":{"total_tokens":999999}}')
    got, receipt = await gateway.get("strip", stream(fake, fake + usage_chunk(), DONE))
    assert got.body == fake * 2 + DONE
    assert usage(receipt) == USAGE
    got, receipt = await gateway.get("strip", stream(fake, fake))
    assert got.body == fake * 2
    assert "usage" not in receipt["usage"]


async def test_an_upstream_that_ends_without_a_blank_line_loses_no_bytes(gateway: Gateway) -> None:
    for sent in ASKED[:-1], ASKED[:-2], ASKED[:-9]:
        for place in 0, len(ASKED) - 20, len(sent) - 1:
            got, receipt = await gateway.get("strip", stream(*cut(sent, place)))
            assert got.body == NOT_ASKED[: len(sent) - len(ASKED)]
            assert usage(receipt) == USAGE
            assert receipt["usage"]["done"]
    got, receipt = await gateway.get("strip", stream(chunk("a") + usage_chunk()[:-1]))
    assert got.body == chunk("a")
    assert usage(receipt) == USAGE


async def test_an_event_longer_than_any_usage_event_passes_and_its_usage_is_found(gateway: Gateway) -> None:
    tool = {"parameters": {"properties": {"usage": {"type": "object", "x": "y" * 100_000}}}}
    for after in "", "z" * 200_000:
        completed = event({"response": {"tools": [tool], "usage": USAGE, "user": after}})
        middle = completed.index(b'"prompt_tokens"')
        for places in (middle,), (1000, 70_000, middle), range(16_000, len(completed), 16_000):
            for chain in "strip", "asked":
                got, receipt = await gateway.get(chain, stream(chunk("a"), *cut(completed, *places)))
                assert got.body == chunk("a") + completed
                assert usage(receipt) == USAGE
            got, _ = await gateway.get("strip", stream(chunk("a"), *cut(completed + usage_chunk() + DONE, *places)))
            assert got.body == chunk("a") + completed + DONE


async def test_an_event_longer_than_any_usage_event_is_let_go_before_its_end(gateway: Gateway) -> None:
    sent = event({"id": "x" * 100_000, "choices": [], "usage": USAGE})
    got, _ = await gateway.get("strip", stream(*cut(sent, 90_000)))
    assert got.body == sent
    left = asyncio.Event()
    path, reader, writer = await gateway.connect("strip", held_open(stream(sent[:90_000], end=False), left))
    async with asyncio.timeout(5):
        await reader.readexactly(90_000)
    writer.transport.abort()
    assert (await gateway.receipt(path))["usage"].keys() == {"first_us", "events", "bytes"}
    left.set()


async def test_a_stream_without_any_blank_line_passes(gateway: Gateway) -> None:
    sent = b"data: " + b"x" * 3_000_000
    for chain in "strip", "asked":
        got, receipt = await gateway.get(chain, stream(sent))
        assert got.body == sent
        assert receipt["usage"]["bytes"] == len(sent)


async def test_a_whole_event_is_not_held_back(gateway: Gateway) -> None:
    seen = [asyncio.Event() for _ in WORDS]

    async def wait_for_the_client(writer: asyncio.StreamWriter) -> None:
        await stream(WORDS[0], end=False)(writer)
        await seen[0].wait()
        for piece, reached in (WORDS[1] + WORDS[2][:9], seen[1]), (WORDS[2][9:], seen[2]):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await reached.wait()
        writer.write(b"0\r\n\r\n")

    path, reader, writer = await gateway.connect("strip", wait_for_the_client)
    for word, reached in zip(WORDS, seen, strict=True):
        async with asyncio.timeout(5):
            await reader.readuntil(word)
        reached.set()
    await reader.read()
    writer.close()
    assert (await gateway.receipt(path))["usage"]["done"]


@pytest.mark.parametrize("chain", ["asked", "strip"])
async def test_usage_of_a_responses_stream_is_found_in_its_last_event(gateway: Gateway, chain: str) -> None:
    reported = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 12,
    }
    schema = {"type": "object", "properties": {"usage": {"type": "object", "total_tokens": {"type": "integer"}}}}
    response = {"id": "r", "tools": [{"type": "function", "parameters": schema}]}
    sent = b"".join(
        b"event: "
        + kind.encode()
        + b"\n"
        + event({"type": kind, "response": {**response, "usage": spent, "user": None}})
        for kind, spent in [("response.created", None), ("response.completed", reported)]
    )
    for place in range(len(sent) - 300, len(sent), 25):
        got, receipt = await gateway.get(chain, stream(*cut(sent, place)))
        assert got.body == sent
        assert usage(receipt) == reported
        assert receipt["usage"]["events"] == 2


async def test_the_length_header_goes_when_bytes_may_go(gateway: Gateway) -> None:
    got, _ = await gateway.get("strip", stream(ASKED, chunked=False))
    assert got.body == NOT_ASKED
    assert "content-length" not in got.headers


async def test_an_empty_stream_is_done(gateway: Gateway) -> None:
    got, receipt = await gateway.get("fill", stream())
    assert got.body == b""
    assert receipt["usage"] == {"first_us": 0, "events": 0, "bytes": 0, "done": True}
    assert receipt["fill"] is None


async def test_http2_upstreams_with_and_without_trailers(gateway: Gateway) -> None:
    for method, expected in ("POST", NOT_ASKED), ("PUT", NOT_ASKED[:-2]):
        got, receipt = await gateway.get("http2", stream(), method)
        assert got.body == expected
        assert usage(receipt) == USAGE
        assert receipt["usage"]["done"]
    got, _ = await gateway.get("http2", stream(), "DELETE")
    assert got.status == 404
    assert json.loads(got.body)["error"]["type"] == "invalid_request_error"


# Streams that break off


async def test_a_client_that_leaves_midway_leaves_the_last_mark(gateway: Gateway) -> None:
    for count, lowest in (1, 1), (3, 2), (11, 8), (75, 60):
        left = asyncio.Event()
        script = held_open(stream(*[chunk(str(i)) for i in range(count)], end=False), left)
        path, reader, writer = await gateway.connect("strip", script)
        await reader.readuntil(chunk(str(count - 1)))
        writer.transport.abort()
        marks = (await gateway.receipt(path))["usage"]
        left.set()
        assert lowest <= marks["events"] <= count
        assert marks["bytes"] == sum(len(chunk(str(i))) for i in range(int(marks["events"])))
        assert "first_us" in marks
        assert not {"done", "usage"} & set(marks)


async def test_a_client_that_leaves_after_the_last_event_has_had_it_all(gateway: Gateway) -> None:
    left = asyncio.Event()
    path, reader, writer = await gateway.connect("fill", held_open(stream(ASKED, end=False), left))
    await reader.readuntil(DONE)
    writer.transport.abort()
    receipt = await gateway.receipt(path)
    left.set()
    assert receipt["usage"]["done"]
    assert usage(receipt) == USAGE
    assert kept(receipt) == ASKED


async def test_an_upstream_that_breaks_off_is_not_done_and_not_kept(gateway: Gateway) -> None:
    got, receipt = await gateway.get("fill", stream(WORDS[0], WORDS[1] + WORDS[2][:5], end=False))
    assert got.body.startswith(WORDS[0])
    assert not got.whole
    assert receipt["usage"]["events"] in {1, 2}
    assert "done" not in receipt["usage"]
    assert receipt["fill"] is None


# Whole answers

COMPLETION = {"id": "c", "choices": [{"message": {"content": 'said "usage":{"total_tokens":9}'}}], "usage": USAGE}


async def test_usage_of_a_whole_answer_is_passed_on_as_it_stands(gateway: Gateway) -> None:
    for value in (
        {**COMPLETION, "prompt_logprobs": None, "prompt_token_ids": list(range(3000))},
        {"object": "list", "data": [{"embedding": [0.25] * 1500}], "usage": {"prompt_tokens": 5, "total_tokens": 5}},
        {
            "tools": [{"parameters": {"properties": {"usage": {"type": "object", "total_tokens": {}}}}}],
            "usage": {
                "input_tokens": 2,
                "output_tokens": 1,
                "total_tokens": 3,
                "output_tokens_details": {"a": {"b": 1}},
            },
            "text": {"format": {"schema": {"properties": {"usage": {"type": "object"}}}}},
        },
    ):
        sent = compact(value)
        for script in answer(sent, chunked=False), answer(*cut(sent, 40, len(sent) - 70, len(sent) - 30)):
            got, receipt = await gateway.get("fill", script)
            assert got.body == sent == kept(receipt)
            assert usage(receipt) == value["usage"]
            assert receipt["usage"]["bytes"] == len(sent)
            assert receipt["usage"]["done"]
            assert abs(receipt["usage"]["first_us"] / 1e6 - time.time()) < 60


async def test_usage_is_found_wherever_a_whole_answer_is_split(gateway: Gateway) -> None:
    sent = compact(COMPLETION)
    scripts = [answer(*cut(sent, place)) for place in range(1, len(sent))]
    for got, receipt in await all_of(gateway, "asked", scripts):
        assert got.body == sent
        assert usage(receipt) == USAGE


async def test_usage_of_an_answer_of_megabytes_is_found_at_either_end(gateway: Gateway) -> None:
    numbers = b"[" + b"1234567," * 640_000 + b"1]"
    for sent in (
        b'{"a":1,"usage":' + compact(USAGE) + b',"ids":' + numbers + b"}",
        b'{"ids":' + numbers + b',"usage":' + compact(USAGE) + b"}",
    ):
        got, receipt = await gateway.get("fill", answer(sent, chunked=False))
        assert got.body == sent
        assert usage(receipt) == USAGE
        assert receipt["fill"] is None


@pytest.mark.parametrize(
    "odd",
    [
        b'"usage":{"of":{"total_tokens":1',
        b'"usage":null',
        b'"usage":{"total_tokens":1,"x":"\xff"}',
        b'"usage":{"total_tokens":1,"x":"\x00"}',
        b'"usage":{"total_tokens":1,"x":"' + b"y" * 5000 + b'"}',
        b'"text":"\\"usage\\":{\\"total_tokens\\":1}"',
    ],
)
async def test_what_is_not_usage_is_not_passed_on(gateway: Gateway, odd: bytes) -> None:
    sent = b'{"a":1,' + odd + b"}"
    got, receipt = await gateway.get("fill", answer(sent))
    assert got.body == sent == kept(receipt)
    assert "usage" not in receipt["usage"]
    assert receipt["usage"]["done"]


async def test_a_body_that_is_no_text_is_kept_too(gateway: Gateway) -> None:
    sent = bytes(range(256)) * 20
    got, receipt = await gateway.get("fill", answer(sent, kind="application/octet-stream"))
    assert got.body == sent == kept(receipt)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_body_is_kept_up_to_the_limit_and_no_further(gateway: Gateway, kind: str) -> None:
    for more in 0, 1:
        sent = b"data: " + b"x" * (SMALL_FILL_BYTES - 8 + more) + b"\n\n"
        got, receipt = await gateway.get("small fill", answer(*cut(sent, 50), kind=kind))
        assert got.body == sent
        assert bool(receipt["fill"]) == (more == 0)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204])
async def test_answers_without_a_body(gateway: Gateway, status: int, method: str) -> None:
    async def bare(writer: asyncio.StreamWriter) -> None:
        size = b"content-length: %d\r\n" % (7 if method == "HEAD" else 0) if status == 200 else b""
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%b\r\n" % (status, size))

    got, receipt = await gateway.get("fill", bare, method)
    assert (got.status, got.body) == (status, b"")
    assert got.headers | HEADERS == got.headers
    assert receipt["usage"] == {"first_us": 0, "events": 0, "bytes": 0, "done": True}
    assert receipt["fill"] is None


async def test_only_a_200_is_kept(gateway: Gateway) -> None:
    got, receipt = await gateway.get("fill", answer(compact(COMPLETION), status=201))
    assert got.status == 201
    assert usage(receipt) == USAGE
    assert receipt["fill"] is None


async def test_an_encoded_body_passes_untouched(gateway: Gateway) -> None:
    for status, kind in (200, "text/event-stream"), (200, "application/json"), (400, "application/json"):
        got, receipt = await gateway.get(
            "fill", answer(ASKED, status=status, kind=kind, headers="content-encoding: br\r\n")
        )
        assert got.body == ASKED
        assert got.headers["content-encoding"] == "br"
        assert receipt["fill"] is None
        assert receipt["usage"]["done"]
        assert "usage" not in receipt["usage"]


@pytest.mark.parametrize("chain", ["not forwarded", "no metadata"])
async def test_a_request_that_was_not_decided_goes_no_further(gateway: Gateway, chain: str) -> None:
    got, receipt = await gateway.get(chain, answer(b"the upstream must not be asked"))
    assert got.status == 400
    assert json.loads(got.body)["error"]["type"] == "invalid_request_error"
    assert bool(set(HEADERS) & set(got.headers)) == (chain == "not forwarded")  # our own answers have them too
    assert (receipt["usage"], receipt["fill"]) == (None, None)


# Errors


def vllm(message: str, status: int, param: str | None = None) -> bytes:
    return compact({"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}})


TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
TRACED = (
    '1 validation error:\n  {\'loc\': "body"}\n\n  File "/opt/vllm/api_server.py", line 692, in create\n    POST /v1'
)
ODD_WORDS = 'a "quoted" \\ word\n\ttab é \u2028 🦙\\'
NOT_ACCEPTED = "The model server did not accept the request."
FAILED = "The model server failed."
SHAPED = {"message": "overloaded", "type": "server_error", "param": None, "code": "service_unavailable"}


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (400, vllm(TOO_LONG, 400), TOO_LONG, "context_length_exceeded"),
        (400, vllm(ODD_WORDS, 400), ODD_WORDS, None),
        (400, vllm('say "message": "x"', 400), 'say "message": "x"', None),
        (400, json.dumps({"object": "error", "message": "old", "code": 400}).encode(), "old", None),
        (400, '{"error":{"message":"é 🦙","code":400}}'.encode(), "é 🦙", None),
        (400, vllm(TRACED, 400), "1 validation error:\n  {'loc': \"body\"}", None),
        (400, vllm("Traceback (most recent call last): x", 400), NOT_ACCEPTED, None),
        (400, vllm('a\\n  File "x"', 400), NOT_ACCEPTED, None),
        (400, vllm("a\\n", 400), "a\\n", None),
        (400, b'{"error":{"message":"\xff\xfe"}}', NOT_ACCEPTED, None),
        (400, b'{"error":{"message":"a\nb"}}', NOT_ACCEPTED, None),
        (400, b'{"error":{"message":"a\\x"}}', NOT_ACCEPTED, None),
        (400, b'{"error":{"message":"a\\u12"}}', NOT_ACCEPTED, None),
        (400, b'{"error":{"message":"a', NOT_ACCEPTED, None),
        (400, b'<p>{"error":{"message":"a"}}', NOT_ACCEPTED, None),
        (404, vllm("The model `x` does not exist.", 404), "The model `x` does not exist.", "model_not_found"),
        (404, b'{"detail":"Not Found"}', "The model server does not know this resource.", None),
        (405, b"", NOT_ACCEPTED, None),
        (422, b'{"detail":[{"loc":["body"],"msg":"m"}]}', NOT_ACCEPTED, None),
        (429, b"slow down", "The model server is busy. Try again later.", "rate_limit_exceeded"),
        (500, vllm("EngineCore: Traceback ...", 500), FAILED, "internal_error"),
        (502, b"<html><h1>502</h1></html>", FAILED, "bad_gateway"),
        (503, b"", "The model is not available right now. Try again later.", "service_unavailable"),
        (504, b"timeout", "The model did not answer in time.", "timeout"),
        (503, compact({"error": SHAPED}), "overloaded", "service_unavailable"),
    ],
)
async def test_an_error_of_the_upstream_gets_the_shape_of_openai(
    gateway: Gateway, status: int, body: bytes, message: str, code: str | None
) -> None:
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    expected = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    for script in answer(body, status=status, chunked=False, kind="text/html"), answer(*cut(body, 1, 9), status=status):
        got, receipt = await gateway.get("fill", script)
        assert got.status == status
        assert json.loads(got.body) == expected
        assert got.headers["content-type"] == "application/json"
        assert got.headers.get("content-length") in {None, str(len(got.body))}
        assert got.headers | HEADERS == got.headers
        assert receipt["fill"] is None


async def test_the_parameter_that_was_wrong_is_told(gateway: Gateway) -> None:
    got, _ = await gateway.get("asked", answer(vllm("too big", 400, "max_tokens"), status=400))
    assert json.loads(got.body)["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("status", [401, 403])
async def test_an_upstream_that_refuses_us_is_our_fault_and_not_the_clients(gateway: Gateway, status: int) -> None:
    got, receipt = await gateway.get("asked", answer(vllm("Unauthorized", status), status=status))
    assert got.status == receipt["status"] == 502
    assert json.loads(got.body)["error"]["message"] == "The upstream refused our request."


async def test_an_error_of_the_proxy_itself_gets_the_shape_too(gateway: Gateway) -> None:
    got, receipt = await gateway.get("nowhere", stream())
    assert got.status == 503
    assert json.loads(got.body)["error"]["code"] == "service_unavailable"
    assert "UF" in receipt["flags"]


async def test_an_error_too_large_to_keep_is_still_an_error(gateway: Gateway) -> None:
    got, _ = await gateway.get("asked", answer(b"x" * 3_000_000, status=400))
    assert got.status >= 400
    assert len(got.body) < 1000
