"""Envoy's protobufs <-> our values: the only importer of Envoy's generated code.

Two messages come in per request (headers, then the whole body), one decision goes out, and later an access-log entry
comes in. Replies are bytes: what is the same for every request is serialised once, and protobuf allows the parts of a
message to be written one after the other.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus

from extproc.decision import Forward, Reject, Replay, Ticket, error_headers
from extproc.errors import LlmMeshError
from extproc.receipt import Receipt

PROCESS = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOGS = "envoy.service.accesslog.v3.AccessLogService"
MODEL_HEADER = "x-llm-model"  # the routes match on it
NAMESPACE = "llm"  # for usage.lua, which copies all of it
TICKET_NAMESPACE = "llm.ticket"  # for the settlement alone
STEERING = ("x-llm-", "x-envoy-")
# Never passed on: the caller's credentials are ours, and compressed answers could not be metered.
_PRIVATE = ["authorization", "cookie", "accept-encoding"]
_METHODS = [
    "",
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
]  # of envoy RequestMethod

CONTINUE: bytes = ProcessingResponse(request_headers=HeadersResponse()).SerializeToString()
parse_request = ProcessingRequest.FromString
parse_access_logs = StreamAccessLogsMessage.FromString
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Ticket)


class WireError(LlmMeshError):
    """Envoy's filter is not configured as mesh/envoyfilter/ext-proc.yaml says."""


class Head(msgspec.Struct, frozen=True):
    """The request headers that a decision needs. Names are lower case; values latin-1, as HTTP has them."""

    method: str
    path: str  # without the query
    headers: Mapping[str, str]
    end_of_stream: bool  # no body follows
    steering: list[str]  # x-llm-* names that the client sent

    def get(self, name: str) -> str:
        return self.headers.get(name, "")


def read_head(message: ProcessingRequest) -> Head:
    """Raises WireError if this is not a request's first message."""
    if message.WhichOneof("request") != "request_headers":
        raise WireError("the first message must be request headers")
    request = message.request_headers
    headers = {}
    steering = []
    for header in request.headers.headers:
        name = header.key
        if name.startswith(STEERING):
            steering.append(name)
        else:
            headers[name] = (header.raw_value or header.value.encode()).decode("latin-1")
    path = headers.get(":path", "").partition("?")[0]
    return Head(headers.get(":method", ""), path, headers, request.end_of_stream, steering)


def read_body(message: ProcessingRequest) -> bytes:
    """Raises WireError if this is no request body."""
    if message.WhichOneof("request") != "request_body":
        raise WireError("the second message must be the request body")
    body: bytes = message.request_body.body
    return body


def _set(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")),
        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


_forward_parts: dict[str, bytes] = {}


def _forward_part(model: str) -> bytes:
    """What forwarding to a model says for every request: the route's header, private headers off, route anew."""
    part = _forward_parts.get(model)
    if part is None:
        mutation = HeaderMutation(set_headers=[_set(MODEL_HEADER, model)], remove_headers=_PRIVATE)
        common = CommonResponse(header_mutation=mutation, clear_route_cache=True)
        part = ProcessingResponse(request_body=BodyResponse(response=common)).SerializeToString()
        _forward_parts[model] = part
    return part


def forward(verdict: Forward, head: Head, max_fill_bytes: int, traceparent: str = "") -> bytes:
    reply = ProcessingResponse()
    if verdict.body is not None:
        reply.request_body.response.body_mutation.body = verdict.body
    mutation = reply.request_body.response.header_mutation
    if verdict.body is not None and "content-length" in head.headers:  # Envoy refuses a mutation that contradicts it
        mutation.set_headers.append(_set("content-length", str(len(verdict.body))))
    if head.steering:
        mutation.remove_headers.extend(name for name in head.steering if name != MODEL_HEADER)
    if traceparent:
        mutation.set_headers.append(_set("traceparent", traceparent))
    fields = reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    fields["forward"].bool_value = True
    _attach(reply, verdict.ticket)
    if verdict.strip_usage:
        fields["strip_usage"].bool_value = True
    if verdict.fill:
        fields["fill"].number_value = max_fill_bytes
    fields["headers"].string_value = "".join([f"{name}: {value}\n" for name, value in verdict.headers.items()])
    return _forward_part(verdict.model) + _bytes(reply)


def replay(verdict: Replay) -> bytes:
    headers = {"content-type": verdict.content_type, **verdict.headers}
    return _immediate(200, headers, verdict.body, verdict.ticket, "llm_cache_hit")


def reject(verdict: Reject) -> bytes:
    error = verdict.error
    headers = {"content-type": "application/json", **verdict.headers, **error_headers(error)}
    ticket = verdict.ticket
    if not ticket.reason:
        ticket = msgspec.structs.replace(ticket, reason=error.code or "invalid_request")
    return _immediate(error.status, headers, error.body(), ticket, "llm_" + ticket.reason)


def answer(body: bytes, ticket: Ticket) -> bytes:
    """A plain JSON answer of our own (the model list)."""
    return _immediate(200, {"content-type": "application/json"}, body, ticket, "llm_answer")


def _immediate(status: int, headers: Mapping[str, str], body: bytes, ticket: Ticket, details: str) -> bytes:
    reply = ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=status),
            headers=HeaderMutation(set_headers=[_set(name, value) for name, value in headers.items()]),
            body=body,
            details=details,
        )
    )
    fields = reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    fields["answer"].bool_value = True  # keeps Envoy from putting its own words in place of ours
    _attach(reply, ticket)
    return _bytes(reply)


def _attach(reply: ProcessingResponse, ticket: Ticket) -> None:
    fields = reply.dynamic_metadata.fields[TICKET_NAMESPACE].struct_value.fields
    fields["ticket"].string_value = _encoder.encode(ticket).decode()


def _bytes(reply: ProcessingResponse) -> bytes:
    serialized: bytes = reply.SerializeToString()
    return serialized


def read_receipts(message: StreamAccessLogsMessage) -> Iterator[Receipt]:
    """The receipts of one access-log message. Entries without our ticket (refused before the decision) are left out."""
    for entry in message.http_logs.log_entry:
        receipt = _receipt(entry)
        if receipt is not None:
            yield receipt


def _receipt(entry: Any) -> Receipt | None:
    common = entry.common_properties
    metadata = common.metadata.filter_metadata
    if TICKET_NAMESPACE not in metadata:
        return None
    try:
        ticket = _decoder.decode(metadata[TICKET_NAMESPACE].fields["ticket"].string_value)
    except msgspec.MsgspecError:
        return None
    start_ns = common.start_time.seconds * 1_000_000_000 + common.start_time.nanos
    flags = common.response_flags
    report = _read_report(metadata)
    return Receipt(
        ticket=ticket,
        status=entry.response.response_code.value,
        start=start_ns / 1e9,
        duration=common.duration.seconds + common.duration.nanos / 1e9,
        first_byte=max(0.0, (report.first_us * 1000 - start_ns) / 1e9) if report.first_us else 0.0,
        body_bytes=entry.response.response_body_bytes,
        upstream=common.upstream_cluster,
        unreachable=flags.no_healthy_upstream or flags.upstream_connection_failure,
        client_left=flags.downstream_connection_termination or flags.downstream_remote_reset,
        request_id=entry.request.request_id,
        usage=bytes(report.usage),
        done=report.done,
        events=report.events,
        marked_bytes=report.bytes,
        body=metadata["llm.fill"].fields["body"].string_value if "llm.fill" in metadata else "",
    )


class _Report(msgspec.Struct, frozen=True):
    """What usage.lua writes."""

    first_us: int = 0
    events: int = 0
    bytes: int = 0
    done: bool = False
    usage: msgspec.Raw = msgspec.Raw()


_NO_REPORT = _Report()
_report_decoder = msgspec.json.Decoder(_Report)


def _read_report(metadata: Mapping[str, Any]) -> _Report:
    if "llm.usage" not in metadata:
        return _NO_REPORT
    try:
        return _report_decoder.decode(metadata["llm.usage"].fields["report"].string_value)
    except msgspec.MsgspecError:
        return _NO_REPORT
