"""OpenTelemetry spans, built after the fact from receipts: the request path only draws a span id.

Off unless an OTLP endpoint is set in the environment (OTEL_EXPORTER_OTLP_ENDPOINT or …_TRACES_ENDPOINT). The span of a
request is a child of the caller's `traceparent`, and the parent of what the backend records, since its id goes upstream
in the same header. Attribute names are those of the GenAI semantic conventions. No prompt text, no answer text.
"""

import os
import random
from typing import TYPE_CHECKING, NamedTuple

from extproc.chat import Usage
from extproc.receipt import Receipt

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings", "responses": "chat"}
_PARENT_PARTS = 4
_SAMPLED = 1


class Traced(NamedTuple):
    """The ids of one request's span, hex as in traceparent. `parent` is "" for a root."""

    trace: str
    span: str
    parent: str

    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-01"


def begin(traceparent: str) -> Traced | None:
    """Ids for a new span under the caller's; None where the caller decided not to sample."""
    parts = traceparent.strip().lower().split("-")
    if len(parts) >= _PARENT_PARTS and _is_id(parts[1], 32) and _is_id(parts[2], 16) and _is_hex(parts[3], 2):
        if not int(parts[3], 16) & _SAMPLED:
            return None
        return Traced(parts[1], _span_id(), parts[2])
    return Traced(f"{random.getrandbits(128) or 1:032x}", _span_id(), "")


def trace_id(header: str) -> str:
    """Of a header that `Traced` made; "" of none."""
    return header[3:35]


def _span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def _is_id(text: str, length: int) -> bool:
    """All zeros are no id; as flags they are fine."""
    return _is_hex(text, length) and text.strip("0") != ""


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(c in "0123456789abcdef" for c in text)


def wanted() -> bool:
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


class Tracer:
    """Turns receipts into finished spans and hands them to the exporter's queue."""

    def __init__(self, processor: "SpanProcessor | None" = None) -> None:
        # Imported here: 15 MB and 0.2 s that a worker without tracing does not pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "llm-mesh")})
        self._processor = processor or BatchSpanProcessor(OTLPSpanExporter())

    def record(self, receipt: Receipt, usage: Usage, cost_micros: int) -> None:
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415

        ticket = receipt.ticket
        if not ticket.trace:
            return
        _, trace, span, _ = ticket.trace.split("-")
        sampled = TraceFlags(_SAMPLED)
        context = SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=sampled)
        parent = None
        if ticket.parent:
            parent = SpanContext(int(trace, 16), int(ticket.parent, 16), is_remote=True, trace_flags=sampled)
        operation = _OPERATIONS.get(ticket.endpoint, ticket.endpoint)
        start_ns = int(receipt.start * 1e9)
        failed = receipt.status == 0 or receipt.status >= 500
        finished = ReadableSpan(
            name=f"{operation} {ticket.model}".strip(),
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=_attributes(receipt, usage, cost_micros, operation),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start_ns,
            end_time=start_ns + int(receipt.duration * 1e9),
        )
        self._processor.on_end(finished)

    def close(self) -> None:
        self._processor.shutdown()


def _attributes(
    receipt: Receipt, usage: Usage, cost_micros: int, operation: str
) -> dict[str, str | int | float | bool]:
    ticket = receipt.ticket
    attributes: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": ticket.model,
        "gen_ai.response.model": ticket.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.request.stream": ticket.stream,
        "http.response.status_code": receipt.status,
        "llm.tenant": ticket.tenant,
        "llm.request_id": receipt.request_id,
        "llm.cache": ticket.cache,
        "llm.cost_micro_dollars": cost_micros,
        "llm.decision_us": ticket.decided_us,
    }
    if receipt.arm:
        attributes["llm.arm"] = receipt.arm
    if receipt.first_byte:
        attributes["gen_ai.server.time_to_first_token"] = receipt.first_byte
    if ticket.reason:
        attributes["error.type"] = ticket.reason
    return attributes
