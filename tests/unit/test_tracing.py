"""Spans made from receipts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from unit_rig import receipt, ticket

from extproc.chat import Usage
from extproc.receipt import Receipt
from extproc.tracing import Tracer, begin, trace_id

TRACE, SPAN, OURS = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
TRACED = ticket(trace=f"00-{TRACE}-{OURS}-01", parent=SPAN, stream=True, decided_us=150)


def spans(*receipts: Receipt) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(exporter))
    for one in receipts:
        tracer.record(one, Usage(13, 4), 7)
    tracer.close()
    return exporter.get_finished_spans()


def test_our_span_is_a_child_of_the_callers() -> None:
    traced = begin(CALLER)
    assert traced is not None
    assert (traced.trace, traced.parent) == (TRACE, SPAN)
    assert traced.header() == f"00-{TRACE}-{traced.span}-01"
    assert traced.span not in (SPAN, "0" * 16)


def test_without_a_caller_a_trace_begins() -> None:
    first, second = begin(""), begin("")
    assert first is not None
    assert second is not None
    assert first.parent == ""
    assert first.trace != second.trace


def test_what_the_caller_did_not_sample_is_not_traced() -> None:
    assert begin(f"00-{TRACE}-{SPAN}-00") is None


@pytest.mark.parametrize(
    "header", ["00", f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
               f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE[:-1]}x-{SPAN}-01"]
)  # fmt: skip
def test_an_invalid_header_begins_a_trace_of_its_own(header: str) -> None:
    traced = begin(header)
    assert traced is not None
    assert traced.trace != TRACE
    assert traced.parent == ""


@given(st.text(max_size=70))
def test_any_header_gives_a_valid_one(header: str) -> None:
    traced = begin(header)
    if traced is not None:
        again = begin(traced.header())
        assert again is not None
        assert (again.trace, again.parent) == (traced.trace, traced.span)


def test_a_receipt_becomes_a_span_with_its_times_and_figures() -> None:
    [span] = spans(receipt(TRACED, start=1000.5, duration=2.0, request_id="x-1"))
    assert span.name == "chat mistral"
    assert span.kind is SpanKind.SERVER
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.context.span_id:016x}" == OURS
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.start_time == 1_000_500_000_000
    assert span.end_time == 1_002_500_000_000
    assert span.status.status_code is StatusCode.UNSET
    found = dict(span.attributes or {})
    assert found["gen_ai.usage.input_tokens"] == 13
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["llm.cost_micro_dollars"] == 7
    assert found["gen_ai.server.time_to_first_token"] == 0.5
    assert found["llm.arm"] == "stable"


def test_the_trace_of_a_header_is_told() -> None:
    assert trace_id(TRACED.trace) == TRACE
    assert trace_id("") == ""


def test_what_no_upstream_was_asked_has_no_arm() -> None:
    [span] = spans(receipt(TRACED, upstream=""))
    assert "llm.arm" not in dict(span.attributes or {})


def test_a_request_that_is_not_traced_leaves_no_span() -> None:
    assert spans(receipt(ticket())) == ()


@pytest.mark.parametrize(("status", "code"), [(0, StatusCode.ERROR), (503, StatusCode.ERROR), (429, StatusCode.UNSET)])
def test_failures_of_ours_are_errors_and_refusals_are_not(status: int, code: StatusCode) -> None:
    [span] = spans(receipt(TRACED, status=status))
    assert span.status.status_code is code
