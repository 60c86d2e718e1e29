"""The request log of a running platform: one line for each request, and what the line says is what happened."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from stack_rig import (
    Caller,
    Json,
    MakeCaller,
    Platform,
    StartPlatform,
    ask,
    eventually,
    log_lines,
    unique,
)


def logged(caller: Caller, count: int) -> list[Json]:
    """The caller's lines once there are so many; one more would be one too many."""
    lines = eventually(lambda: found if len(found := log_lines(caller.platform, tenant=caller.tenant)) >= count else [])
    assert len(lines) == count
    return lines


@pytest.mark.simulated("a fault on demand")
def test_a_line_says_what_the_client_saw_and_what_was_charged(caller: Caller) -> None:
    began = datetime.now(UTC).timestamp()
    answer = caller.chat(max_tokens=6, headers={"x-sim-delay-ms": "120"})
    account = caller.settled(1)
    (line,) = logged(caller, 1)
    usage = answer.json()["usage"]
    expected = {
        "request_id": answer.headers["x-request-id"],
        "trace_id": "",
        "user": "dev",
        "model": "llama2",
        "arm": "stable",
        "endpoint": "chat",
        "stream": False,
        "status": 200,
        "reason": "",
        "cache": "bypass",
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": 6,
        "estimated": False,
        "cost_micros": account["cost_micros"],
        "ttft_ms": None,
        "attempts": 1,
        "flags": "",
        "details": "via_upstream",
    }
    assert {name: line[name] for name in expected} == expected
    assert line["key_id"].startswith("key_")
    assert line["upstream"].rpartition(":")[2].isdecimal()
    assert 120 <= line["duration_ms"] < 5000
    assert 0 < line["overhead_ms"] <= line["duration_ms"] - 120
    assert began <= datetime.fromisoformat(line["time"]).timestamp() <= datetime.now(UTC).timestamp()


@pytest.mark.simulated("a fault on demand")
def test_a_stream_tells_its_first_token_and_a_hit_that_nobody_was_asked(caller: Caller) -> None:
    body = ask(temperature=0, max_tokens=4, stream=True)
    for hits in range(2):
        assert caller.http.post("/chat/completions", json=body, headers={"x-sim-delay-ms": "80"}).status_code == 200
        caller.settled(hits + 1)
    first, hit = logged(caller, 2)
    assert 80 <= first["ttft_ms"] <= first["duration_ms"]
    assert (first["cache"], first["arm"], first["stream"]) == ("miss", "stable", True)
    assert (hit["cache"], hit["arm"], hit["upstream"], hit["overhead_ms"]) == ("hit", "", "", None)
    assert (hit["prompt_tokens"], hit["completion_tokens"], hit["cost_micros"]) == (0, 0, 0)


@pytest.mark.simulated("a fault on demand")
def test_refusals_and_failures_say_why(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 2, "burst_requests": 2})
    caller.chat(model="no-such-model")
    caller.chat(headers={"x-sim-status": "500"})
    caller.chat(temperature=-1)
    caller.chat()
    found = [(line["status"], line["reason"], line["details"]) for line in logged(caller, 4)]
    assert found == [
        (404, "model_not_found", "llm_model_not_found"),
        (500, "", "via_upstream"),
        (400, "", "via_upstream"),
        (429, "rate_limit_exceeded", "llm_rate_limit_exceeded"),
    ]


def test_what_envoy_ends_before_a_decision_is_logged_too(platform: Platform, caller: Caller) -> None:
    answer = caller.http.post("/chat/completions", content=b"x" * 9_000_000)
    assert answer.status_code == 413
    (line,) = eventually(lambda: log_lines(platform, request_id=answer.headers["x-request-id"]))
    assert (line["status"], line["tenant"], line["details"]) == (413, "", "request_payload_too_large")


def test_a_model_that_is_away_is_told_by_envoys_flags(start_platform: StartPlatform) -> None:
    with start_platform(workers=1, request_log=True) as platform, Caller(platform) as caller:
        platform.do(platform.stack.children["backend-codellama"].stop())
        assert caller.chat(model="codellama").status_code == 503
        (line,) = logged(caller, 1)
        assert (line["status"], line["model"], line["arm"]) == (503, "codellama", "stable")
        assert "UF" in line["flags"].split(",")
        assert line["attempts"] == 3


def test_every_request_has_its_line_and_none_has_two(make_caller: MakeCaller) -> None:
    caller = make_caller()
    sent = [caller.chat(unique(), max_tokens=1, stream=n % 3 == 0).headers["x-request-id"] for n in range(60)]
    caller.settled(60)
    counted = Counter(line["request_id"] for line in logged(caller, 60))
    assert counted == Counter(sent)


@pytest.mark.local
def test_the_log_is_off_unless_it_is_wanted(start_platform: StartPlatform) -> None:
    with start_platform(workers=1) as platform, Caller(platform) as caller:
        caller.chat(max_tokens=1)
        caller.settled_exactly(1)
        assert log_lines(platform) == []
