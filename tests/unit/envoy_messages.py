"""What Envoy sends and gets, as real protobufs."""

import base64
import json
from typing import Any

import msgspec
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from unit_rig import compact

from extproc.decision import Ticket

JSON_HEADERS = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
FILTER = "envoy.filters.http.ext_proc"


def headers(**fields: str) -> ProcessingRequest:
    """A request that has no body to decide on."""
    message = ProcessingRequest()
    for name, value in named(fields).items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode("latin-1"))
    message.request_headers.end_of_stream = True
    return message


def request(value: Any, **fields: str) -> ProcessingRequest:
    """A request with its body, and its headers as attributes."""
    message = ProcessingRequest()
    message.request_body.body = value if isinstance(value, bytes) else compact(value)
    message.request_body.end_of_stream = True
    attributes = message.attributes[FILTER].fields
    for name, text in named(fields).items():
        key = "request" + name.replace(":", ".") if name.startswith(":") else f"request.headers['{name}']"
        attributes[key].string_value = text
    return message


def named(fields: dict[str, str]) -> dict[str, str]:
    """Header names of field names: _ is -, method and path are pseudo-headers; "" leaves one out."""
    proper = {":" + n if n in {"method", "path"} else n.replace("_", "-"): v for n, v in fields.items()}
    return {n: v for n, v in {**JSON_HEADERS, **proper}.items() if v}


def read(reply: bytes) -> ProcessingResponse:
    return ProcessingResponse.FromString(reply)


def told(reply: bytes) -> dict[str, Any]:
    """The metadata `llm` of a reply."""
    fields = read(reply).dynamic_metadata.fields["llm"].struct_value.fields
    kinds = ("bool_value", "string_value", "number_value")
    return {name: next(getattr(v, k) for k in kinds if v.HasField(k)) for name, v in fields.items()}


def ticket_text(reply: bytes) -> str:
    text: str = read(reply).dynamic_metadata.fields["llm.ticket"].struct_value.fields["ticket"].string_value
    return text


def ticket_of(reply: bytes) -> Ticket:
    return msgspec.json.decode(ticket_text(reply), type=Ticket)


def error_of(reply: bytes) -> tuple[int, str]:
    """Status and code of an immediate response."""
    immediate = read(reply).immediate_response
    return immediate.status.code, json.loads(immediate.body)["error"]["code"]


def entry(
    ticket: Ticket | str, status: int = 200, upstream: str = "model-mistral", **report: Any
) -> HTTPAccessLogEntry:
    """An access-log entry; `report` is what usage.lua writes, `body` what it keeps."""
    made = HTTPAccessLogEntry()
    common = made.common_properties
    text = ticket if isinstance(ticket, str) else msgspec.json.encode(ticket).decode()
    common.metadata.filter_metadata["llm.ticket"].fields["ticket"].string_value = text
    kept = report.pop("body", b"")
    if kept:
        fill = common.metadata.filter_metadata["llm.fill"].fields
        fill["body"].string_value = base64.b64encode(kept).decode()
    if report:
        common.metadata.filter_metadata["llm.usage"].fields["report"].string_value = json.dumps(report)
    common.start_time.seconds = 1000
    common.duration.FromMilliseconds(2500)
    common.upstream_cluster = upstream
    made.response.response_code.value = status
    made.response.response_body_bytes = 1000
    made.request.request_id = "x-1"
    return made


def logs(*entries: HTTPAccessLogEntry) -> StreamAccessLogsMessage:
    message = StreamAccessLogsMessage()
    message.http_logs.log_entry.extend(entries)
    return message
