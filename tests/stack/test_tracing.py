"""Traces, received by a collector of our own: one span a request, between the caller's and the backend's."""

import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from spread import spread
from stack_rig import (
    OPENMETRICS,
    Backend,
    Caller,
    Json,
    MakeCaller,
    Metrics,
    Platform,
    arrived,
    eventually,
    log_lines,
    running,
    unique,
)

from extproc.local.stack import Settings

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Span(msgspec.Struct):
    name: str
    trace: str
    span: str
    parent: str
    start_s: float
    end_s: float
    status: int
    service: str
    attributes: Json


class Collector(Backend):
    """An OTLP receiver: POST /v1/traces, protobuf."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.received: list[bytes] = []
        super().__init__()

    def answer(self, _method: str, path: str, body: bytes) -> bytes:
        self.received.append(body)
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = attributes_of(resource.resource.attributes).get("service.name", "")
                for scope in resource.scope_spans:
                    self.spans += [span_of(s, service) for s in scope.spans]
        return b""

    def of(self, tenant: str) -> list[Span]:
        return [s for s in self.spans if s.attributes.get("llm.tenant") == tenant]

    def one(self, tenant: str) -> Span:
        """The tenant's only span, once it is there."""
        (span,) = eventually(lambda: self.of(tenant))
        return span


def attributes_of(pairs: Any) -> Json:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}


def span_of(span: Any, service: str) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_s=span.start_time_unix_nano / 1e9,
        end_s=span.end_time_unix_nano / 1e9,
        status=span.status.code,
        service=service,
        attributes=attributes_of(span.attributes),
    )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("traced")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    settings = Settings(directory, workers=1, drain_seconds=0.1, request_log=True, environment=environment)
    with running(settings) as platform:
        yield platform


def traceparent_at_backend(platform: Platform, marker: str) -> str:
    (request,) = arrived(platform, "llama2", marker)
    found: str = request["headers"].get("traceparent", "")
    return found


@pytest.mark.simulated("tells what reached it")
def test_a_request_is_a_span_between_the_callers_and_the_backends(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        marker = unique("traced")
        began = time.time()
        answer = caller.chat(marker, max_tokens=6, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        ended = time.time()
        span = collector.one(caller.tenant)
        usage = answer.json()["usage"]
        account = caller.settled(1)
        assert (span.trace, span.parent) == (TRACE, PARENT)
        assert traceparent_at_backend(traced, marker) == f"00-{TRACE}-{span.span}-01"
        assert span.name == "chat llama2"
        assert span.service == "llm-mesh"
        assert began - 0.05 <= span.start_s <= span.end_s <= ended + 0.05
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "llama2",
            "gen_ai.response.model": "llama2",
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": 6,
            "http.response.status_code": 200,
            "llm.cache": "bypass",
            "llm.arm": "stable",
            "llm.request_id": answer.headers["x-request-id"],
            "llm.cost_micro_dollars": account["cost_micros"],
        }
        assert {name: span.attributes.get(name) for name in expected} == expected
        assert marker not in str(span)
        (line,) = log_lines(traced, tenant=caller.tenant)
        assert line["trace_id"] == TRACE


def test_a_stream_tells_its_time_to_the_first_token(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        assert caller.chat(stream=True, max_tokens=4, headers={"x-sim-delay-ms": "100"}).status_code == 200
        span = collector.one(caller.tenant)
        assert 0.1 <= span.attributes["gen_ai.server.time_to_first_token"] <= span.end_s - span.start_s + 0.01
        assert span.attributes["gen_ai.request.stream"] is True


@pytest.mark.simulated("tells what reached it")
def test_without_a_caller_to_follow_the_span_is_a_root(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        marker = unique("root")
        assert caller.chat(marker, max_tokens=1).status_code == 200
        span = collector.one(caller.tenant)
        assert span.parent == ""
        assert re.fullmatch("[0-9a-f]{32}", span.trace)
        assert traceparent_at_backend(traced, marker) == f"00-{span.trace}-{span.span}-01"


@pytest.mark.simulated("tells what reached it")
@pytest.mark.parametrize("sent", ["garbage", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", "00-zz-zz-01"])
def test_an_unusable_traceparent_is_replaced(traced: Platform, collector: Collector, sent: str) -> None:
    with Caller(traced) as caller:
        marker = unique("unusable")
        assert caller.chat(marker, max_tokens=1, headers={"traceparent": sent}).status_code == 200
        span = collector.one(caller.tenant)
        assert span.parent == ""
        assert traceparent_at_backend(traced, marker) == f"00-{span.trace}-{span.span}-01"


@pytest.mark.simulated("tells what reached it")
def test_what_the_caller_does_not_sample_stays_unsampled(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        marker = unique("unsampled")
        sent = f"00-{TRACE}-{PARENT}-00"
        assert caller.chat(marker, max_tokens=1, headers={"traceparent": sent}).status_code == 200
        assert traceparent_at_backend(traced, marker) == sent
        assert caller.chat(max_tokens=1).status_code == 200  # sampled, and its span comes behind the other's
        assert collector.one(caller.tenant).trace != TRACE
        caller.settled(2)
        assert len(collector.of(caller.tenant)) == 1


def test_a_hit_and_errors_are_spans_too(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        body = {"model": "llama2", "messages": [{"role": "user", "content": unique()}], "temperature": 0}
        caller.http.post("/chat/completions", json=body)
        caller.settled(1)
        assert caller.http.post("/chat/completions", json=body).headers["x-llm-cache"] == "hit"
        caller.chat(headers={"x-sim-status": "500"})
        eventually(lambda: len(collector.of(caller.tenant)) == 3)
        first, hit, failed = collector.of(caller.tenant)
        assert (first.attributes["llm.cache"], hit.attributes["llm.cache"]) == ("miss", "hit")
        assert hit.attributes["gen_ai.usage.output_tokens"] == 0
        assert (failed.attributes["http.response.status_code"], failed.status) == (500, 2)
        assert (first.status, hit.status) == (0, 0)


def test_the_trace_of_a_slow_answer_is_found_from_its_bucket(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        assert caller.chat(stream=True, max_tokens=4, headers={"x-sim-delay-ms": "600"}).status_code == 200
        trace = collector.one(caller.tenant).trace

        def shown(name: str) -> list[Any]:
            found = Metrics(traced, OPENMETRICS).exemplars(name)
            return [e for e in found if e.labels == {"trace_id": trace}]

        (first_token,) = eventually(lambda: shown("llm_time_to_first_token_seconds"))
        (whole,) = shown("llm_request_duration_seconds")
        assert 0.6 <= first_token.value <= whole.value < 5
        assert abs(float(whole.timestamp) - time.time()) < 60
        assert trace not in Metrics(traced).text


def test_no_word_of_a_prompt_or_an_answer_is_in_a_span_or_an_exemplar(traced: Platform, collector: Collector) -> None:
    with Caller(traced) as caller:
        secret = unique("marker").replace(" ", "-")
        spread(caller, secret)
        eventually(lambda: len(collector.of(caller.tenant)) > 10)
        eventually(lambda: Metrics(traced, OPENMETRICS).exemplars("llm_request_duration_seconds"))
        assert secret not in Metrics(traced, OPENMETRICS).text
        assert secret.encode() not in b"".join(collector.received)
        for path in traced.stack.settings.directory.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


@pytest.mark.simulated("tells what reached it")
def test_tracing_is_off_unless_an_endpoint_is_set(platform: Platform, make_caller: MakeCaller) -> None:
    caller = make_caller()
    for headers in ({}, {"traceparent": f"00-{TRACE}-{PARENT}-01"}):
        marker = unique("off")
        assert caller.chat(marker, max_tokens=1, headers=headers).status_code == 200
        assert traceparent_at_backend(platform, marker) == headers.get("traceparent", "")
