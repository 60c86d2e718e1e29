"""Whatever bytes come in, only our own errors come out. FUZZ_SECONDS is the time for all of it (default 20)."""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import pytest
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from extproc import caching, chat, config, keys, models_api, receipt, request_log, routing, wire
from extproc.config import ENDPOINTS
from extproc.counting import Batch
from extproc.decision import Ticket
from extproc.errors import ApiError, ConfigError
from extproc.exemplars import Exemplars
from extproc.local.stack import ROOT

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
SHARES = 10  # tests that share the time
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20")) / SHARES
TEXT = (ROOT / "overlays" / "base" / "llm-mesh.yaml").read_bytes()
CATALOGUE = config.load(TEXT, "llm-mesh.yaml")
MISTRAL = CATALOGUE.models["mistral"]

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 1.0, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e308, -0.0]),
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4))
_FIELDS = [
    "model",
    "messages",
    "prompt",
    "input",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "temperature",
    "seed",
    "task",
    "user",
    "tools",
    "tool_choice",
    "stop",
    "previous_response_id",
    "conversation",
    "background",
    "store",
    "response_format",
    "metadata",
    "echo",
    "logprobs",
]
_KNOWN = st.sampled_from(
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]}],
        "mistral",
        "gpt-4o",
        "code",
        "summarization",
        {"include_usage": True},
        {"continuous_usage_stats": True},
        ["a", "b"],
        [[1, 2], [3]],
        [1, 2],
    ]
)
bodies = st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), _KNOWN | values, max_size=10)


def fuzzed(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run the property on examples until its time is over; a failure is shrunk and told as hypothesis does."""

    def wrap(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            deadline = time.monotonic() + SECONDS
            rounds = 0
            while time.monotonic() < deadline:
                run = settings(
                    max_examples=100,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink],
                )(given(*strategies)(check))
                seed(rounds or 20_260_101)(run)()
                rounds = random.SystemRandom().getrandbits(32)

        test.__name__ = test.__qualname__ = check.__name__
        test.__doc__ = check.__doc__
        return test

    return wrap


_PIECES = [*b'  null {} [] "" -1 1e999 \xff \0 &a *a !!int { } , :'.split(b" "), b"[" * 300]


def mangled(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Good input with some of it changed, cut, doubled or put elsewhere; and noise."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(samples)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            to = min(len(data), at + draw(st.integers(0, 12)))
            piece = draw(st.just(bytes(data[at:to] * 2)) | st.sampled_from(_PIECES) | st.binary(max_size=4))
            data[at:to] = piece
        return bytes(data)

    return build() | st.binary(max_size=200)


ANSWERS = {
    "chat": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 1},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi", "tool_calls": []},
                     "logprobs": None, "finish_reason": "stop"}],
    },
    "completions": {
        "id": "c", "object": "text_completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 1},
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}],
    },
    "embeddings": {"data": [{"index": 0, "embedding": [0.1]}], "usage": {"prompt_tokens": 1}},
    "responses": {
        "id": "r", "status": "completed", "usage": {"input_tokens": 1},
        "output": [{"type": "message", "id": "m", "content": [{"type": "output_text", "text": "hi"}]},
                   {"type": "function_call", "id": "f", "name": "g", "arguments": "{}"}],
    },
}  # fmt: skip
_ENCODED = [json.dumps(answer).encode() for answer in ANSWERS.values()]
_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_DELTAS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "x", "function": {"arguments": "{"}}]}}]},
    {"choices": [{"index": 0, "delta": {"content": "hi"}, "logprobs": {"content": [{"token": "hi"}]}}]},
    {"choices": [{"index": 0, "text": "hi", "finish_reason": "length"}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
]
_EVENTS = [b"data: " + json.dumps({**_CHUNK, **delta}).encode() + b"\n\n" for delta in _DELTAS]
_STREAMS = [
    b"".join(_EVENTS) + b"data: [DONE]\n\n",
    b"".join(_EVENTS[:1] + _EVENTS[2:]) + b"data: [DONE]\n\n",
    b'event: response.completed\ndata: {"type":"response.completed","response":' + _ENCODED[3] + b"}\n\n",
]
_SAMPLES = [json.dumps(body).encode() for body in (
    {"model": "mistral", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5, "n": 2},
    {"prompt": ["a", "b"], "echo": True, "temperature": 0, "stream_options": {"include_usage": True}},
    {"input": [{"role": "user", "content": [{"type": "input_image"}]}], "previous_response_id": "r", "task": "code"},
)]  # fmt: skip


def attempt(call: Callable[[], T], error: type[E]) -> tuple[T, None] | tuple[None, E]:
    """What came of it: a value, or the one kind of error that may."""
    try:
        return call(), None
    except error as raised:
        return None, raised


def choose(endpoint: Any, raw: bytes) -> tuple[chat.Prompt, routing.Choice]:
    prompt = chat.read_prompt(endpoint, raw)
    return prompt, routing.choose(CATALOGUE, prompt, ["*"], lambda _: 0.3, lambda _: True)


def check_prompt(endpoint: Any, raw: bytes) -> None:
    read, error = attempt(lambda: choose(endpoint, raw), ApiError)
    if read is None:
        assert 400 <= error.status < 500
        assert json.loads(error.body())["error"]["message"]
        return
    prompt, choice = read
    assert 0 <= choice.prompt_tokens + choice.completion_tokens < 2**40
    body = chat.rewrite(prompt, MISTRAL.served_name)
    seen = json.loads(raw if body is None else body)
    assert seen["model"] == MISTRAL.served_name
    assert bool(seen.get("stream")) == prompt.stream or endpoint == "embeddings"
    theirs = {name: value for name, value in seen.items() if name not in {"model", "stream_options", "task"}}
    assert theirs == {name: value for name, value in json.loads(raw).items() if name in theirs}
    print_of = caching.fingerprint(prompt, MISTRAL)
    assert len(print_of) == 64
    assert print_of == caching.fingerprint(chat.read_prompt(endpoint, json.dumps(json.loads(raw)).encode()), MISTRAL)


@fuzzed(st.sampled_from(ENDPOINTS), bodies)
def test_any_object_is_a_prompt_that_the_backend_reads_as_we_do_or_a_400(endpoint: Any, body: dict[str, Any]) -> None:
    check_prompt(endpoint, json.dumps(body).encode())


@fuzzed(st.sampled_from(ENDPOINTS), mangled(_SAMPLES))
def test_any_bytes_are_a_prompt_or_a_400(endpoint: Any, raw: bytes) -> None:
    check_prompt(endpoint, raw)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":['])
def test_any_depth_is_a_prompt_or_a_400(opening: bytes) -> None:
    closing = bytes({91: 93, 123: 125}[c] for c in reversed(opening) if c in b"[{")
    for depth in [*range(1, 1500), 10_000, 1_000_000]:
        check_depth(b'{"messages":[1],"temperature":0,"x":' + opening * depth + b"1" + closing * depth + b"}")


def check_depth(raw: bytes) -> None:
    _, error = attempt(lambda: written(chat.read_prompt("chat", raw)), ApiError)
    assert error is None or error.status == 400


def written(prompt: chat.Prompt) -> None:
    chat.rewrite(prompt, MISTRAL.served_name)
    caching.fingerprint(prompt, MISTRAL)


def check_entry(endpoint: Any, streamed: bool, raw: bytes) -> None:
    entry = caching.entry_of(endpoint, streamed, raw)
    if entry is None:
        return
    assert isinstance(json.loads(entry), dict)
    for stream in (False, True):
        asked = {chat._PROMPT_FIELD[endpoint]: [{"role": "user", "content": "hi"}], "stream": stream}
        prompt = chat.read_prompt(endpoint, json.dumps(asked).encode())
        if stream and not prompt.stream:
            continue
        kind, body = caching.replay(prompt, entry)
        assert (kind == caching.EVENT_STREAM) == stream
        if not stream:
            assert body == entry


@fuzzed(st.sampled_from(ENDPOINTS), st.booleans(), mangled([*_ENCODED, *_STREAMS]))
def test_any_answer_is_an_entry_that_can_be_replayed_both_ways_or_none(
    endpoint: Any, streamed: bool, raw: bytes
) -> None:
    check_entry(endpoint, streamed and endpoint != "embeddings", raw)


@st.composite
def changed_answers(draw: st.DrawFn) -> tuple[str, bytes]:
    """An answer with any field replaced by any value, at any depth."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    answer: Any = json.loads(json.dumps(ANSWERS[endpoint]))
    for _ in range(draw(st.integers(1, 3))):
        place = answer
        while True:
            steps = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not steps:
                break
            step = draw(st.sampled_from(steps))
            inner = place[step]
            if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
                place[step] = draw(values)
                break
            place = inner
    return endpoint, json.dumps(answer).encode()


@fuzzed(changed_answers())
def test_an_answer_of_any_types_is_an_entry_or_none(case: tuple[Any, bytes]) -> None:
    check_entry(case[0], False, case[1])


@fuzzed(mangled([b'{"prompt_tokens":1,"completion_tokens":2}', b'{"input_tokens":1,"output_tokens":2}']))
def test_any_usage_is_counted_or_none(raw: bytes) -> None:
    usage = chat.read_usage(raw)
    assert usage is None or min(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) >= 0


_schemes, _starts = st.sampled_from(["Bearer", "bearer", "Basic"]), st.sampled_from(["", "sk-llm-", " "])


@fuzzed(st.text(max_size=300) | st.builds("{} {}{}".format, _schemes, _starts, st.text(max_size=250)))
def test_any_authorization_is_a_key_or_a_401(header: str) -> None:
    key, error = attempt(lambda: keys.bearer(header), ApiError)
    if key is None:
        assert error.status == 401
        assert json.loads(error.body())
        return
    assert key.startswith(keys.PREFIX)
    assert len(keys.digest(key)) == 64


def good_request() -> bytes:
    request = ProcessingRequest()
    request.request_body.body = _SAMPLES[0]
    request.request_body.end_of_stream = True
    fields = request.attributes["envoy.filters.http.ext_proc"].fields
    fields["request.method"].string_value = "POST"
    fields["request.path"].string_value = "/v1/chat/completions?a=b"
    fields["request.headers['authorization']"].string_value = "Bearer sk-llm-x"
    fields["request.headers['x-llm-tenant']"].string_value = "acme"
    fields["request.headers['x-llm-user']"].string_value = "ann"
    return bytes(request.SerializeToString())


def headers_only() -> bytes:
    request = ProcessingRequest()
    named = {":method": b"GET", ":path": b"/v1/models/\xff", "authorization": b"Bearer \xff", "x-llm-user": b"\xff"}
    for name, value in named.items():
        header = request.request_headers.headers.headers.add()
        header.key, header.raw_value = name, value
    return bytes(request.SerializeToString())


@fuzzed(mangled([good_request(), headers_only()]))
def test_any_message_of_envoy_is_a_head_and_a_body_or_a_wire_error(raw: bytes) -> None:
    message = wire.parse_request(raw)
    if message is None:
        return
    try:
        head, body = wire.read_request(message)
    except wire.WireError:
        return
    assert isinstance(body, bytes)
    if models_api.is_ours(head.path):
        try:
            models_api.answer(CATALOGUE, head.method, head.path, ["*"])
        except ApiError as error:
            json.loads(error.body())


def receipts() -> bytes:
    message = StreamAccessLogsMessage()
    for number in range(3):
        entry = message.http_logs.log_entry.add()
        metadata = entry.common_properties.metadata.filter_metadata
        ticket = msgspec.json.encode(Ticket(f"r-{number}", "chat", "t", "u", "k", model="mistral", fingerprint="f"))
        metadata["llm.ticket"]["ticket"] = ticket.decode()
        metadata["llm.usage"]["report"] = (
            '{"first_us":1,"events":2,"bytes":3,"done":true,"usage":{"prompt_tokens":1,"completion_tokens":2}}'
        )
        metadata["llm.fill"]["body"] = "e30="
        entry.common_properties.upstream_cluster = "model-mistral"
        entry.request.request_id = "x"
        entry.response.response_code.value = 200
        entry.response.response_body_bytes = 10
    return bytes(message.SerializeToString())


@fuzzed(mangled([receipts()]))
def test_any_access_log_gives_receipts_that_can_be_charged(raw: bytes) -> None:
    message, _ = attempt(lambda: wire.parse_access_logs(raw), DecodeError)
    if message is None:  # gRPC ends the stream, Envoy opens another
        return
    batch = Batch(Exemplars())
    for each in wire.read_receipts(message):
        charged = receipt.charge(each)
        settlement = receipt.settlement(each, charged, CATALOGUE.config.cache)
        assert settlement.cost_micros >= 0
        msgspec.msgpack.encode(settlement)
        json.loads(request_log.line(each, charged, settlement.cost_micros))
        batch.add(each, charged, settlement.cost_micros, False)


_reports = st.dictionaries(st.sampled_from(["first_us", "events", "bytes", "done", "usage"]), values, max_size=5)
_tickets = st.lists(values, max_size=8)


@fuzzed(_reports, _tickets | st.none(), st.integers(0, 10**6), st.booleans())
def test_any_report_and_ticket_give_a_receipt_that_can_be_charged_or_none(
    report: Any, ticket: Any, status: int, left: bool
) -> None:
    message = wire.parse_access_logs(receipts())
    entry = message.http_logs.log_entry[0]
    metadata = entry.common_properties.metadata.filter_metadata
    metadata["llm.usage"]["report"] = json.dumps(report)
    if ticket is not None:
        metadata["llm.ticket"]["ticket"] = json.dumps(ticket)
    entry.response.response_code.value = status
    entry.common_properties.response_flags.downstream_remote_reset = left
    found = list(wire.read_receipts(message))
    assert len(found) >= 2  # one that cannot be read does not hide the others
    for each in found:
        charged = receipt.charge(each)
        assert min(charged.usage.prompt_tokens, charged.usage.completion_tokens) >= 0
        receipt.settlement(each, charged, CATALOGUE.config.cache)
        receipt.time_per_output_token(each, charged.usage)


_ODD = [
    b"a: &a [*a]",
    b"&a {models: *a}",
    b"models: .inf",
    b"2001-99-99",
    b"!!int x",
    b"!!float x",
    b"!!timestamp x",
    b"!!bool x",
    b"!!binary x",
    b"? [a]\n: b",
    b"<<: 3",
    b"models: " + b"9" * 5000,
    b"[" * 2000,
    b"---\n---\n",
    b"%YAML 9.9",
]


@fuzzed(mangled([TEXT, *_ODD]))
def test_any_configuration_is_loaded_or_refused_with_its_line(raw: bytes) -> None:
    check_config(raw)


@pytest.mark.parametrize("raw", [*_ODD, TEXT.replace(b"0.20", b".inf"), TEXT.replace(b"0.20", b"1.0e+300")])
def test_what_trips_the_yaml_parser_is_refused_with_its_line(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        config.load(raw, "f.yaml")


def check_config(raw: bytes) -> None:
    _, error = attempt(lambda: config.load(raw, "f.yaml"), ConfigError)
    if error is not None:
        name, line, _ = str(error).split(":", 2)
        assert name == "f.yaml"
        assert int(line) >= 1


def test_aliases_that_double_and_double_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    began = time.monotonic()
    check_config("\n".join(lines).encode())
    assert time.monotonic() - began < 1
