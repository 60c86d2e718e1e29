"""Envoy's protobufs to values and back."""

import json

import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry, ResponseFlags
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy_messages import entry, headers, logs, read, request, ticket_of, told
from unit_rig import ticket

from extproc import errors, wire
from extproc.decision import Forward, Reject, Replay
from extproc.errors import ApiError
from extproc.receipt import UNDECIDED


def forwarded(**fields: object) -> Forward:
    usual = {"model": "mistral", "body": None, "strip_usage": False, "max_fill_bytes": 0, "headers": {}}
    return Forward(**{**usual, "ticket": ticket(), **fields})  # type: ignore[arg-type]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_body_comes_with_its_headers_as_attributes() -> None:
    token = {"x_llm_tenant": "acme", "x_llm_user": "ann"}
    message = request({"a": 1}, path="/v1/completions?x=2", authorization="Bearer k", traceparent="t", **token)
    head, body = wire.read_request(message)
    assert body == b'{"a":1}'
    assert (head.method, head.path) == ("POST", "/v1/completions")
    assert (head.get("authorization"), head.get("traceparent"), head.get("cache-control")) == ("Bearer k", "t", "")
    assert (head.get(wire.TENANT), head.get(wire.USER)) == ("acme", "ann")


def test_a_request_without_a_body_comes_as_headers() -> None:
    head, body = wire.read_request(headers(path="/v1/models?limit=2", method="GET", authorization="Bearer é"))
    assert body == b""
    assert (head.method, head.path, head.get("authorization")) == ("GET", "/v1/models", "Bearer é")


def test_header_values_may_come_as_text() -> None:
    message = ProcessingRequest()
    message.request_headers.headers.headers.add(key=":path", value="/x")
    assert wire.read_request(message)[0].path == "/x"


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.read_request(ProcessingRequest())


def test_a_body_without_attributes_is_a_request_of_nobody() -> None:
    message = ProcessingRequest()
    message.request_body.body = b"{}"
    head, _ = wire.read_request(message)
    assert (head.method, head.path, head.get("authorization")) == ("", "", "")


# --- decisions --------------------------------------------------------------------------------------------------------


def test_a_forward_names_its_model_and_leaves_the_body_alone() -> None:
    reply = wire.forward(forwarded(headers={"x-llm-model": "mistral", "x-llm-cache": "miss"}))
    said = told(reply)
    assert said["forward"] is True
    assert said["model"] == "mistral"
    assert said["headers"] == "x-llm-model: mistral\nx-llm-cache: miss\n"
    assert "strip_usage" not in said
    assert "fill" not in said
    assert read(reply).WhichOneof("response") == "request_body"
    assert not read(reply).request_body.response.HasField("body_mutation")
    assert ticket_of(reply) == ticket()


def test_a_changed_body_goes_with_its_length() -> None:
    reply = wire.forward(
        forwarded(body=b'{"a":1}', strip_usage=True, max_fill_bytes=5, ticket=ticket(trace="00-a-b-01"))
    )
    said = told(reply)
    assert (said["strip_usage"], said["fill"], said["length"], said["traceparent"]) == (True, 5, 7, "00-a-b-01")
    assert read(reply).request_body.response.body_mutation.body == b'{"a":1}'


def test_a_replay_is_an_answer_of_ours() -> None:
    reply = wire.replay(Replay("application/json", b"{}", {"age": "3"}, ticket(cache="hit")))
    immediate = read(reply).immediate_response
    assert (immediate.status.code, immediate.body, immediate.details) == (200, b"{}", "llm_cache_hit")
    sent = {h.header.key: h.header.raw_value for h in immediate.headers.set_headers}
    assert sent == {"content-type": b"application/json"}
    assert told(reply) == {"answer": True, "headers": "age: 3\n"}
    assert ticket_of(reply).cache == "hit"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiError(429, "rate_limit_exceeded", "no", retry_after_ms=1500), "rate_limit_exceeded"),
        (errors.invalid("no"), "invalid_request"),
    ],
)
def test_a_refusal_carries_its_reason_and_when_to_come_back(error: ApiError, reason: str) -> None:
    reply = wire.reject(Reject(error, {"x-llm-model": "m"}, ticket(fingerprint="")))
    immediate = read(reply).immediate_response
    assert immediate.status.code == error.status
    assert json.loads(immediate.body)["error"]["message"] == "no"
    assert immediate.details == "llm_" + reason
    assert ticket_of(reply).reason == reason
    said = told(reply)
    assert said["answer"] is True
    names = [line.partition(":")[0] for line in said["headers"].splitlines()]
    assert names == (["x-llm-model", "retry-after", "retry-after-ms"] if error.retry_after_ms else ["x-llm-model"])


# --- receipts ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_read_with_its_report() -> None:
    usage = {"prompt_tokens": 13, "completion_tokens": 4}
    one = entry(ticket(), usage=usage, done=True, events=6, bytes=900, first_us=1_000_500_000, body=b"{}")
    [made] = wire.read_receipts(logs(one))
    assert made.ticket == ticket()
    assert (made.status, made.start, made.duration, made.first_byte) == (200, 1000.0, 2.5, 0.5)
    assert (made.body_bytes, made.upstream, made.request_id) == (1000, "model-mistral", "x-1")
    assert json.loads(made.usage) == usage
    assert (made.done, made.events, made.marked_bytes, made.body) == (True, 6, 900, "e30=")
    assert not made.unreachable
    assert not made.client_left


def test_an_entry_without_a_report_is_read_too() -> None:
    [made] = wire.read_receipts(logs(entry(ticket(), status=0)))
    assert (made.usage, made.done, made.events, made.first_byte, made.body) == (b"", False, 0, 0.0, "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"events": "many"}'])
def test_a_report_that_is_none_counts_as_missing(text: str) -> None:
    one = entry(ticket())
    one.common_properties.metadata.filter_metadata["llm.usage"].fields["report"].string_value = text
    [made] = wire.read_receipts(logs(one))
    assert (made.usage, made.done) == (b"", False)


@pytest.mark.parametrize(
    ("flag", "unreachable", "client_left"),
    [
        ("no_healthy_upstream", True, False),
        ("upstream_connection_failure", True, False),
        ("downstream_connection_termination", False, True),
        ("downstream_remote_reset", False, True),
        ("upstream_remote_reset", False, False),
    ],
)
def test_envoys_flags_tell_who_was_at_fault(flag: str, unreachable: bool, client_left: bool) -> None:
    one = entry(ticket())
    one.response.response_code.value = 503
    setattr(one.common_properties.response_flags, flag, True)
    [made] = wire.read_receipts(logs(one))
    assert (made.unreachable, made.client_left) == (unreachable, client_left)


def test_a_first_try_that_failed_does_not_count_against_an_answer_that_came() -> None:
    one = entry(ticket())
    one.response.response_code.value = 200
    one.common_properties.response_flags.upstream_connection_failure = True
    [made] = wire.read_receipts(logs(one))
    assert not made.unreachable


def test_entries_without_a_ticket_of_ours_ended_before_there_was_a_decision() -> None:
    without = entry(ticket())
    without.common_properties.metadata.filter_metadata.clear()
    found = list(wire.read_receipts(logs(without, entry("not json"), entry("[]"), entry(ticket()))))
    assert [one.ticket for one in found] == [UNDECIDED] * 3 + [ticket()]
    assert list(wire.read_receipts(StreamAccessLogsMessage())) == []


def test_why_a_request_failed_is_told_in_envoys_short_words() -> None:
    one = entry(ticket(), status=503)
    flags = one.common_properties.response_flags
    flags.upstream_connection_failure = flags.upstream_retry_limit_exceeded = True
    one.common_properties.upstream_request_attempt_count = 3
    one.response.response_code_details = "upstream_reset"
    [made] = wire.read_receipts(logs(one))
    assert (made.flags, made.details, made.attempts) == ("UF,URX", "upstream_reset", 3)


def test_every_flag_of_envoys_has_its_short_word() -> None:
    assert set(wire._FLAGS) == {field.name for field in ResponseFlags.DESCRIPTOR.fields}


def test_the_replica_that_was_asked_is_told() -> None:
    one, none = entry(ticket()), entry(ticket())
    address = one.common_properties.upstream_remote_address.socket_address
    address.address, address.port_value = "10.0.0.7", 8000
    assert [made.peer for made in wire.read_receipts(logs(one, none))] == ["10.0.0.7:8000", ""]


def timed(**microseconds: int) -> HTTPAccessLogEntry:
    made = entry(ticket())
    for name, us in microseconds.items():
        getattr(made.common_properties, "time_to_" + name).FromMicroseconds(us)
    return made


def test_the_overhead_is_the_time_before_the_upstream_is_asked_and_after_it_answers() -> None:
    whole = {"last_rx_byte": 900_000, "first_upstream_tx_byte": 900_700}
    answered = {"first_upstream_rx_byte": 1_999_900, "first_downstream_tx_byte": 2_000_200}
    skewed = {"first_upstream_rx_byte": 5_000, "first_downstream_tx_byte": 4_000}
    found = wire.read_receipts(logs(timed(**whole, **answered), timed(**whole), timed(), timed(**skewed)))
    assert [made.overhead for made in found] == [pytest.approx(0.001), None, None, 0.0]
