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
from extproc.receipt import UNDECIDED, Receipt

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
_FLAGS = {  # Envoy's short words, as %RESPONSE_FLAGS% writes them
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "unauthorized_details": "UAEX",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
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
    """The receipts of one access-log message. Entries without a ticket of ours ended before the decision."""
    for entry in message.http_logs.log_entry:
        yield _receipt(entry)


def _receipt(entry: Any) -> Receipt:
    common, response = entry.common_properties, entry.response
    metadata = common.metadata.filter_metadata
    ticket = _read_ticket(metadata)
    start_ns = common.start_time.seconds * 1_000_000_000 + common.start_time.nanos
    flags = common.response_flags
    report = _read_report(metadata)
    status = response.response_code.value
    return Receipt(
        ticket=ticket,
        status=status,
        start=start_ns / 1e9,
        duration=_seconds(common.duration),
        first_byte=max(0.0, (report.first_us * 1000 - start_ns) / 1e9) if report.first_us else 0.0,
        body_bytes=response.response_body_bytes,
        upstream=common.upstream_cluster,
        # The flag of a first try stays when a second one succeeds: only a failed answer counts.
        unreachable=status >= 500 and (flags.no_healthy_upstream or flags.upstream_connection_failure),
        client_left=flags.downstream_connection_termination or flags.downstream_remote_reset,
        request_id=entry.request.request_id,
        peer=_peer(common),
        overhead=_overhead(common),
        attempts=common.upstream_request_attempt_count,
        flags=",".join([_FLAGS.get(field.name, field.name) for field, _ in flags.ListFields()]),
        details=response.response_code_details,
        usage=bytes(report.usage),
        done=report.done,
        events=report.events,
        marked_bytes=report.bytes,
        body=metadata["llm.fill"].fields["body"].string_value if "llm.fill" in metadata else "",
    )


def _read_ticket(metadata: Mapping[str, Any]) -> Ticket:
    if TICKET_NAMESPACE not in metadata:
        return UNDECIDED
    try:
        return _decoder.decode(metadata[TICKET_NAMESPACE].fields["ticket"].string_value)
    except msgspec.MsgspecError:
        return UNDECIDED


def _peer(common: Any) -> str:
    address = common.upstream_remote_address.socket_address
    return f"{address.address}:{address.port_value}" if address.address else ""


def _overhead(common: Any) -> float | None:
    """From the request's last byte to the first one upstream, and from the answer's first byte to the first one to the
    client: all that is done here. What was lost on an upstream that failed before another was tried counts too."""
    answered, told = common.time_to_first_upstream_rx_byte, common.time_to_first_downstream_tx_byte
    if not answered.nanos or not told.nanos:  # to the nanosecond: none is a whole second
        return None
    whole, asked = common.time_to_last_rx_byte, common.time_to_first_upstream_tx_byte
    seconds = asked.seconds - whole.seconds + told.seconds - answered.seconds
    nanos = asked.nanos - whole.nanos + told.nanos - answered.nanos
    return float(max(0.0, seconds + nanos / 1e9))


def _seconds(duration: Any) -> float:
    seconds: float = duration.seconds + duration.nanos / 1e9
    return seconds


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
