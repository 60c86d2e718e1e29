"""One request through the processor, over a store in memory."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy_messages import error_of, headers, read, request, ticket_of, told
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from unit_rig import CATALOGUE, MESSAGES, changed, chat_plain, key

from extproc import config, keys, wire
from extproc.admission import Admission, Claim, Fill, Limits, Settlement
from extproc.errors import ApiError, StoreUnavailable
from extproc.processor import Processor, check_head, divide
from extproc.store import MemoryStore
from extproc.worker import Options, Worker

KEY = "sk-llm-test"
BEARER = "Bearer " + KEY
ASK = {"messages": MESSAGES, "model": "gpt-4"}


class Away(MemoryStore):
    """A store whose admissions time out."""

    async def admit(self, _claim: Claim) -> Admission:
        raise StoreUnavailable


async def worker(store: MemoryStore | None = None, catalogue: config.Catalogue = CATALOGUE, **fields: Any) -> Worker:
    store = store or MemoryStore(lambda: 0)
    await store.put_key(keys.digest(KEY), key(**fields))
    return Worker(Options("no such file", "", "", shares=4), catalogue, store)


async def ask(made: Worker, message: Any) -> bytes:
    return await Processor(made).process(message, None)


async def test_a_request_is_forwarded_under_the_backends_name() -> None:
    decided = await ask(await worker(), request(ASK, authorization=BEARER))
    assert told(decided)["model"] == "llama2"
    assert json.loads(read(decided).request_body.response.body_mutation.body)["model"] == "meta/llama"
    ticket = ticket_of(decided)
    assert (ticket.tenant, ticket.user, ticket.model, ticket.cache) == ("acme", "ann", "llama2", "bypass")
    assert ticket.limits == CATALOGUE.limits


async def test_every_request_has_an_id_of_its_own() -> None:
    processors = [Processor(await worker()) for _ in range(2)]
    replies = [await p.process(request(ASK, authorization=BEARER), None) for p in processors for _ in range(50)]
    assert len({ticket_of(reply).request_id for reply in replies}) == 100


async def test_the_models_are_listed_without_a_backend() -> None:
    reply = await ask(await worker(models=["bge"]), headers(method="GET", path="/v1/models", authorization=BEARER))
    immediate = read(reply).immediate_response
    assert immediate.status.code == 200
    assert [m["id"] for m in json.loads(immediate.body)["data"]] == ["bge"]
    assert ticket_of(reply).endpoint == "models"


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, (401, "invalid_api_key")),
        ({"authorization": "Bearer sk-llm-other"}, (401, "invalid_api_key")),
        ({"path": "/nothing"}, (401, "invalid_api_key")),
        ({"authorization": BEARER, "path": "/v1/nothing"}, (404, "unknown_url")),
        ({"authorization": BEARER, "path": "/v1/chat/completions/"}, (404, "unknown_url")),
        ({"authorization": BEARER, "path": "/V1/chat/completions"}, (404, "unknown_url")),
        ({"authorization": BEARER, "path": "//v1/chat/completions"}, (404, "unknown_url")),
        ({"authorization": BEARER, "method": "GET"}, (404, "unknown_url")),
        ({"authorization": BEARER, "method": "DELETE"}, (404, "unknown_url")),
        ({"authorization": BEARER, "method": "POST", "path": "/v1/models"}, (404, "unknown_url")),
        ({"authorization": BEARER, "method": "HEAD", "path": "/v1/models"}, (404, "unknown_url")),
        ({"authorization": BEARER, "content_type": "text/plain"}, (415, "unsupported_media_type")),
        ({"authorization": BEARER, "content_type": ""}, (415, "unsupported_media_type")),
        ({"authorization": BEARER, "content_encoding": "gzip"}, (415, "unsupported_media_type")),
    ],
)
async def test_a_request_that_is_not_for_us_is_refused(fields: dict[str, str], answer: tuple[int, str]) -> None:
    reply = await ask(await worker(), request(ASK, **fields))
    assert error_of(reply) == answer
    assert ticket_of(reply).reason == answer[1]


@pytest.mark.parametrize("fields", [{"expires_ms": 1}, {"revoked_ms": 1}])
async def test_a_key_that_has_ended_is_refused(fields: dict[str, int]) -> None:
    reply = await ask(await worker(**fields), request(ASK, authorization=BEARER))
    assert error_of(reply) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("record", "shown", "why"),
    [
        ({}, {}, "missing"),
        ({}, {"authorization": "Bearer sk-proj-x"}, "malformed"),
        ({}, {"authorization": "Bearer sk-llm-other"}, "unknown"),
        ({"expires_ms": 1}, {"authorization": BEARER}, "expired"),
        ({"revoked_ms": 1}, {"authorization": BEARER}, "revoked"),
        ({}, {"x_llm_tenant": "acme", "x_llm_user": "ann"}, "token"),
    ],
)
async def test_who_is_not_let_in_is_counted_by_why(record: dict[str, int], shown: dict[str, str], why: str) -> None:
    def counted(label: str) -> float:
        return REGISTRY.get_sample_value("llm_keys_refused_total", {"why": label}) or 0.0

    labels = ["missing", "malformed", "unknown", "expired", "revoked", "token"]
    before = {label: counted(label) for label in labels}
    await ask(await worker(**record), request(ASK, **shown))
    assert {label for label in labels if counted(label) != before[label]} == {why}


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"{}"])
async def test_a_bad_body_is_refused(body: bytes) -> None:
    assert error_of(await ask(await worker(), request(body, authorization=BEARER)))[0] == 400
    assert error_of(await ask(await worker(), headers(authorization=BEARER)))[0] == 400


async def test_a_message_that_is_no_request_ends_the_stream_with_an_error() -> None:
    with pytest.raises(wire.WireError):
        await ask(await worker(), ProcessingRequest())


async def test_a_body_one_byte_too_long_is_refused_and_one_that_just_fits_is_not() -> None:
    text = json.dumps(ASK).encode()
    for limit, field in ((len(text), "request_body"), (len(text) - 1, "immediate_response")):
        catalogue = changed(max_body_bytes=limit)
        reply = await ask(await worker(catalogue=catalogue), request(text, authorization=BEARER))
        assert read(reply).WhichOneof("response") == field


async def test_a_used_up_limit_is_told_and_the_next_tenant_is_not_touched() -> None:
    store = MemoryStore(lambda: 0)
    made = await worker(store, limits={"requests_per_minute": 2})
    await store.put_key(keys.digest(KEY + "2"), key(tenant="other", key_id="key_2"))
    replies = [await ask(made, request(ASK, authorization=BEARER)) for _ in range(3)]
    assert [read(r).WhichOneof("response") for r in replies] == ["request_body"] * 2 + ["immediate_response"]
    assert error_of(replies[2]) == (429, "rate_limit_exceeded")
    other = await ask(made, request(ASK, authorization=BEARER + "2"))
    assert read(other).WhichOneof("response") == "request_body"


async def test_a_stored_answer_is_replayed() -> None:
    made = await worker()
    asked = {**ASK, "temperature": 0}
    missed = await ask(made, request(asked, authorization=BEARER))
    ticket = ticket_of(missed)
    assert ticket.cache == "miss"
    plain = chat_plain(
        [{"content": ["Hi"], "reasoning": [], "calls": [], "logprobs": [], "finish": "stop", "stop_reason": None}]
    )
    await made.store.settle([settled(ticket.request_id, Fill(ticket.fingerprint, plain, 1000, 10**6))])
    hit = await ask(made, request(asked, authorization=BEARER))
    assert read(hit).immediate_response.body == plain
    anew = await ask(made, request(asked, authorization=BEARER, cache_control="No-Cache"))
    assert ticket_of(anew).cache == "bypass"


def settled(request_id: str, fill: Fill) -> Settlement:
    return Settlement(request_id, "acme", "ann", "key_1", "llama2", "chat", 200, 1, 1, 0, 1, Limits(), fill=fill)


async def test_while_the_store_is_away_each_worker_gives_its_share_of_the_limits() -> None:
    made = await worker(Away(lambda: 0), limits={"requests_per_minute": 8})
    kinds = []
    for _ in range(4):
        reply = await ask(made, request({**ASK, "seed": 1}, authorization=BEARER))
        kinds.append(read(reply).WhichOneof("response"))
    assert kinds == ["request_body"] * 2 + ["immediate_response"] * 2


async def test_a_bug_refuses_the_request_and_lets_none_through(caplog: pytest.LogCaptureFixture) -> None:
    reply = await ask(await worker(models=None), request(ASK, authorization=BEARER))
    assert error_of(reply) == (500, "internal_error")
    assert "request failed" in caplog.text


async def test_a_limit_that_only_a_newer_version_knows_locks_nobody_out() -> None:
    reply = await ask(await worker(limits={"no_such_limit": 1}), request(ASK, authorization=BEARER))
    assert told(reply)["model"] == "llama2"


# --- its pure parts ---------------------------------------------------------------------------------------------------


def checked(body: bytes, **fields: str) -> None:
    check_head(wire.read_request(request(body, **fields))[0], body, 10)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON", " application/json ;x"]
)
def test_json_is_taken_however_it_is_written(content_type: str) -> None:
    checked(b"x" * 10, content_type=content_type, content_encoding="Identity")


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"{}", {"content_type": ""}, 415),
        (b"{}", {"content_type": "application/jsonl"}, 415),
        (b"{}", {"content_type": "multipart/form-data"}, 415),
        (b"{}", {"content_encoding": "gzip"}, 415),
        (b"x" * 11, {}, 413),
        (b"", {}, 400),
    ],
)
def test_other_bodies_are_refused(body: bytes, fields: dict[str, str], status: int) -> None:
    with pytest.raises(ApiError) as error:
        checked(body, **fields)
    assert error.value.status == status


COUNTS = st.integers(0, 10**9)


@given(st.builds(Limits, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), st.integers(1, 1000))
def test_shares_of_limits_stay_limits_and_never_add_up_to_more_than_one_each(limits: Limits, shares: int) -> None:
    part = divide(limits, shares)
    names: Sequence[str] = ("requests_per_minute", "burst_requests", "tokens_per_minute", "burst_tokens",
                            "max_in_flight")  # fmt: skip
    for name in names:
        whole, one = getattr(limits, name), getattr(part, name)
        assert (one == 0) == (whole == 0)
        assert one * shares <= max(whole, shares)
    assert part.budget_micros == 0
