"""Envoy's protobufs <-> our values: the only importer of Envoy's generated code.

One message comes in per request, one decision goes out, and later an access-log entry comes in. Field names of Envoy
stay in here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    ProcessingRequest,
    ProcessingResponse,
)
from google.protobuf.message import DecodeError

from extproc.decision import Forward, Reject, Replay, Ticket, error_headers
from extproc.errors import LlmMeshError
from extproc.receipt import Receipt

PROCESS = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOGS = "envoy.service.accesslog.v3.AccessLogService"
NAMESPACE = "llm"  # for usage.lua, which copies all of it
TICKET_NAMESPACE = "llm.ticket"  # for the settlement alone
TENANT, USER = "x-llm-tenant", "x-llm-user"  # whom a verified token was issued to
_JSON = "application/json"
_FILTER = "envoy.filters.http.ext_proc"  # the key of its attributes
_ATTRIBUTES = {  # of mesh/envoyfilter/ext-proc.yaml -> the headers' names
    "request.method": ":method",
    "request.path": ":path",
    **{
        f"request.headers['{name}']": name
        for name in (
            "authorization",
            "cache-control",
            "content-encoding",
            "content-type",
            "traceparent",
            TENANT,
            USER,
        )
    },
}

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

    def get(self, name: str) -> str:
        return self.headers.get(name, "")


def parse_request(raw: bytes) -> ProcessingRequest | None:
    """None where an attribute, which a client's header is, is no UTF-8: protobuf takes nothing else for text."""
    try:
        return ProcessingRequest.FromString(raw)
    except DecodeError:
        return None


def read_request(message: ProcessingRequest) -> tuple[Head, bytes]:
    """A request's one message: its body with the headers as attributes, or headers where no body is to be decided on.

    Raises WireError if it is neither.
    """
    kind = message.WhichOneof("request")
    if kind == "request_body":
        attributes = message.attributes[_FILTER].fields
        try:
            headers = {_ATTRIBUTES[key]: attributes[key].string_value for key in attributes}
        except KeyError as error:
            raise WireError(f"an attribute that nobody asked for: {error}") from error
        return _head(headers), message.request_body.body
    if kind == "request_headers":
        found = message.request_headers.headers.headers
        return _head({h.key: (h.raw_value or h.value.encode()).decode("latin-1") for h in found}), b""
    raise WireError("the first message must be request headers or the request body")


def _head(headers: Mapping[str, str]) -> Head:
    path = headers.get(":path", "").partition("?")[0]
    return Head(headers.get(":method", ""), path, headers)


def forward(verdict: Forward) -> bytes:
    """Envoy lets a body reply change headers only after a header phase: usage.lua sets them, from the metadata."""
    reply = ProcessingResponse()
    reply.request_body.SetInParent()
    fields = reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    fields["forward"].bool_value = True
    fields["model"].string_value = verdict.model
    if verdict.body is not None:
        reply.request_body.response.body_mutation.body = verdict.body
        fields["length"].number_value = len(verdict.body)
    if verdict.strip_usage:
        fields["strip_usage"].bool_value = True
    if verdict.max_fill_bytes:
        fields["fill"].number_value = verdict.max_fill_bytes
    if verdict.ticket.trace:
        fields["traceparent"].string_value = verdict.ticket.trace
    fields["headers"].string_value = _lines(verdict.headers)
    _attach(reply, verdict.ticket)
    return _bytes(reply)


def replay(verdict: Replay) -> bytes:
    return _immediate(200, verdict.content_type, verdict.headers, verdict.body, verdict.ticket, "llm_cache_hit")


def reject(verdict: Reject) -> bytes:
    error = verdict.error
    ticket = verdict.ticket
    if not ticket.reason:
        ticket = msgspec.structs.replace(ticket, reason=error.code or "invalid_request")
    headers = {**verdict.headers, **error_headers(error)}
    return _immediate(error.status, _JSON, headers, error.body(), ticket, "llm_" + ticket.reason)


def answer(body: bytes, ticket: Ticket) -> bytes:
    """A plain JSON answer of our own (the model list)."""
    return _immediate(200, _JSON, {}, body, ticket, "llm_answer")


def _immediate(
    status: int, content_type: str, headers: Mapping[str, str], body: bytes, ticket: Ticket, details: str
) -> bytes:
    """usage.lua sets the headers here too: ten of them cost ten microseconds as protobuf, one as a string."""
    reply = ProcessingResponse()
    immediate = reply.immediate_response
    immediate.status.code = status
    immediate.body = body
    immediate.details = details
    media = immediate.headers.set_headers.add()
    media.header.key = "content-type"
    media.header.raw_value = content_type.encode()
    media.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    fields = reply.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    fields["answer"].bool_value = True  # keeps Envoy from putting its own words in place of ours
    if headers:
        fields["headers"].string_value = _lines(headers)
    _attach(reply, ticket)
    return _bytes(reply)


def _lines(headers: Mapping[str, str]) -> str:
    return "".join([f"{name}: {value}\n" for name, value in headers.items()])


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
    status = entry.response.response_code.value
    return Receipt(
        ticket=ticket,
        status=status,
        start=start_ns / 1e9,
        duration=common.duration.seconds + common.duration.nanos / 1e9,
        first_byte=max(0.0, (report.first_us * 1000 - start_ns) / 1e9) if report.first_us else 0.0,
        body_bytes=entry.response.response_body_bytes,
        upstream=common.upstream_cluster,
        # The flag of a first try stays when a second one succeeds: only a failed answer counts.
        unreachable=status >= 500 and (flags.no_healthy_upstream or flags.upstream_connection_failure),
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
