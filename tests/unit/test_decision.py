"""From a prompt and a caller to what is to be done, and what the client is told."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import (
    CATALOGUE,
    MESSAGES,
    MISTRAL,
    Json,
    chat_plain,
    compact,
    key,
    prompt,
    ticket,
)

from extproc import caching, decision
from extproc.admission import Admission, Level, Limits, Outcome
from extproc.decision import Caller, Forward, Plan, Reject, Replay, Ticket
from extproc.errors import ApiError, unavailable

LIMITS = Limits(100, 100, 50_000, 50_000, 12_340_000, 3)
FREE = Level(0, 0, 0)
ENTRY = chat_plain(
    [{"content": ["Hi"], "reasoning": [], "calls": [], "logprobs": [], "finish": "stop", "stop_reason": None}]
)


def planned(cache_control: str = "", is_full: Callable[..., bool] = lambda *_: False, **body: Any) -> Plan:
    caller = Caller(key(), LIMITS)
    return decision.plan(
        CATALOGUE, caller, prompt(**body), "r-1", cache_control, lambda m: m.tokens_per_byte, lambda _: True, is_full
    )


def decided(plan: Plan, outcome: Outcome, **fields: Any) -> Any:
    return decision.decide(plan, Admission(outcome, **{"requests": FREE, "tokens": FREE, **fields}))


def test_a_claim_holds_the_worst_case_in_tokens_and_money() -> None:
    plan = planned(max_tokens=1000)
    assert plan.claim.tokens == plan.ticket.prompt_tokens + 1000
    exact = plan.ticket.prompt_tokens * 100_000 + 1000 * 300_000
    assert abs(plan.claim.cost_micros * 1_000_000 - exact) <= 500_000
    assert (plan.claim.tenant, plan.claim.user, plan.claim.key_id) == ("acme", "ann", "key_1")
    assert plan.claim.limits == LIMITS


def test_the_ticket_knows_all_that_the_settlement_needs() -> None:
    plan = planned(seed=1, stream=True)
    made = plan.ticket
    assert made.limits == LIMITS
    assert (made.model, made.input_price, made.cached_input_price) == ("mistral", 100_000, 50_000)
    assert (made.stream, made.cache, made.ttl_ms) == (True, "miss", 3_600_000)
    assert made.fingerprint == plan.claim.fingerprint == caching.fingerprint(plan.prompt, MISTRAL)


@pytest.mark.parametrize(
    ("cache_control", "looks", "stores"),
    [("", True, True), ("no-cache", False, True), ("no-store", False, False), ("max-age=0, no-cache", False, True)],
)
def test_the_client_may_pass_the_cache_by(cache_control: str, looks: bool, stores: bool) -> None:
    plan = planned(cache_control, seed=1)
    assert bool(plan.claim.fingerprint) is looks
    assert plan.ticket.cache == ("miss" if looks else "bypass")
    assert bool(decided(plan, Outcome.ADMITTED).max_fill_bytes) is stores


def test_a_sampled_request_passes_the_cache_by() -> None:
    verdict = decided(planned(), Outcome.ADMITTED)
    assert not verdict.max_fill_bytes
    assert verdict.headers["x-llm-cache"] == "bypass"


def test_an_admitted_request_is_forwarded_under_the_backends_name() -> None:
    verdict = decided(planned(model="gpt-4", stream=True), Outcome.ADMITTED)
    assert isinstance(verdict, Forward)
    assert verdict.model == "llama2"
    assert json.loads(verdict.body or b"") == {
        "messages": MESSAGES,
        "model": "meta/llama",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert verdict.strip_usage
    assert verdict.headers == {"x-llm-model": "llama2", "x-llm-cache": "bypass"}


@pytest.mark.parametrize(
    ("body", "strips"),
    [
        ({}, False),
        ({"stream": True}, True),
        ({"stream": True, "stream_options": {"include_usage": True}}, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True),
    ],
)
def test_the_usage_event_is_stripped_where_we_asked_for_it(body: Json, strips: bool) -> None:
    assert decided(planned(**body), Outcome.ADMITTED).strip_usage is strips


def test_a_hit_is_replayed_with_its_age_and_stored_no_more() -> None:
    verdict = decided(planned(seed=1), Outcome.HIT, entry=ENTRY, age_ms=61_999)
    assert isinstance(verdict, Replay)
    assert verdict.body == ENTRY
    assert verdict.headers == {"x-llm-model": "mistral", "x-llm-cache": "hit", "age": "61"}
    assert (verdict.ticket.cache, verdict.ticket.fingerprint) == ("hit", "")


def test_a_hit_for_a_stream_is_a_stream() -> None:
    verdict = decided(planned(seed=1, stream=True), Outcome.HIT, entry=ENTRY)
    assert verdict.content_type.startswith("text/event-stream")
    assert verdict.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("outcome", "code", "kind", "words"),
    [
        (Outcome.REQUESTS, "rate_limit_exceeded", "requests", "100 requests per minute. Please try again in 1.5s."),
        (Outcome.TOKENS, "rate_limit_exceeded", "tokens", "50000 tokens per minute; this request needs up to "),
        (Outcome.BUDGET, "insufficient_quota", "insufficient_quota", "budget of $12.34 for this month"),
        (Outcome.IN_FLIGHT, "rate_limit_exceeded", "requests", "3 requests in flight at a time"),
    ],
)
def test_a_refusal_says_which_limit_and_how_long(outcome: Outcome, code: str, kind: str, words: str) -> None:
    verdict = decided(planned(), outcome, retry_after_ms=1500)
    assert isinstance(verdict, Reject)
    error = verdict.error
    assert (error.status, error.code, error.kind, error.retry_after_ms) == (429, code, kind, 1500)
    assert words in error.message
    assert verdict.ticket.reason == code
    assert not verdict.ticket.fingerprint


def test_the_limits_of_a_caller_are_told_in_headers() -> None:
    verdict = decided(planned(), Outcome.ADMITTED, requests=Level(100, 99, 600), tokens=Level(50_000, 0, 61_001))
    assert verdict.headers["x-ratelimit-limit-requests"] == "100"
    assert verdict.headers["x-ratelimit-remaining-requests"] == "99"
    assert verdict.headers["x-ratelimit-reset-requests"] == "600ms"
    assert verdict.headers["x-ratelimit-remaining-tokens"] == "0"
    assert verdict.headers["x-ratelimit-reset-tokens"] == "1m2s"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (450, "450ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1200, "1.2s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (60_001, "1m1s"),
        (360_000, "6m0s"),
        (3_599_001, "1h0m0s"),
        (7_200_000, "2h0m0s"),
        (2_592_000_000, "720h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(ms: int, text: str) -> None:
    assert decision.duration(ms) == text


def read_ms(text: str) -> float:
    units = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))


@given(st.integers(0, 10**10), st.integers(0, 10**6))
def test_a_longer_duration_never_reads_shorter_and_none_is_too_early(ms: int, more: int) -> None:
    told = read_ms(decision.duration(ms))
    assert ms <= round(told, 3) < ms + 1000
    assert told <= read_ms(decision.duration(ms + more))


@given(st.integers(1, 10**10))
def test_retry_after_is_whole_seconds_and_never_too_early(ms: int) -> None:
    headers = decision.error_headers(ApiError(429, "rate_limit_exceeded", "", retry_after_ms=ms))
    assert 0 <= int(headers["retry-after"]) * 1000 - ms < 1000
    assert headers["retry-after-ms"] == str(ms)


def test_clients_are_told_not_to_retry_where_waiting_does_not_help() -> None:
    quota = ApiError(429, "insufficient_quota", "", retry_after_ms=86_400_000)
    assert decision.error_headers(quota)["x-should-retry"] == "false"
    assert decision.error_headers(ApiError(400, None, "")) == {}
    assert decision.error_headers(unavailable("")) == {"retry-after": "1"}


@given(st.builds(Ticket, request_id=st.text(), tenant=st.text(), limits=st.builds(Limits, st.integers(0, 2**53))))
def test_a_ticket_survives_its_way_through_envoy(made: Ticket) -> None:
    import msgspec

    assert msgspec.json.decode(msgspec.json.encode(made), type=Ticket) == made


def test_a_ticket_of_an_older_version_is_still_read() -> None:
    import msgspec

    assert msgspec.json.decode(compact(["r-1", "chat"]), type=Ticket) == Ticket("r-1", "chat")
    longer = [*json.loads(msgspec.json.encode(ticket())), "a field of a newer one"]
    assert msgspec.json.decode(compact(longer), type=Ticket) == ticket()
