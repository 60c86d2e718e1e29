"""/health and /metrics: names, labels and values by what was sent; and no word of a prompt anywhere."""

import json

import httpx
import pytest
from spread import spread
from stack_rig import (
    NO_TLS,
    OPENMETRICS,
    SERVED,
    Caller,
    MakeCaller,
    Metrics,
    Platform,
    ask,
    connected,
    eventually,
    health,
    log_lines,
    price,
    unique,
)


def test_health_names_redis_every_model_and_the_workers(platform: Platform) -> None:
    found = health(platform)
    assert (found["status"], found["redis"]) == ("ok", "up")
    assert found["models"] == dict.fromkeys(SERVED, "up")
    assert (found["workers"]["wanted"], found["workers"]["alive"]) == (2, 2)
    assert len(set(found["workers"]["pids"])) == 2
    assert found["config"] == {"revisions": [platform.stack.catalogue.revision], "errors": []}
    assert found["settlement_backlog"] == 0


def test_the_admin_port_serves_nothing_else(platform: Platform) -> None:
    with httpx.Client(base_url=platform.stack.admin_url, verify=NO_TLS) as client:
        assert client.get("/health").headers["content-type"].startswith("application/json")
        assert client.get("/metrics").headers["content-type"].startswith("text/plain")
        assert client.get("/").status_code == 404
        assert client.post("/v1/chat/completions", json=ask()).status_code == 404


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("llm_requests_total", {"model", "endpoint", "status"}),
        ("llm_request_duration_seconds_count", {"model", "endpoint"}),
        ("llm_tokens_generated_total", {"model"}),
        ("llm_cache_hits_total", {"model"}),
        ("llm_prompt_tokens_total", {"model"}),
        ("llm_cost_micro_dollars_total", {"tenant", "model"}),
        ("llm_time_to_first_token_seconds_count", {"model"}),
        ("llm_overhead_seconds_count", {"model"}),
        ("llm_arm_requests_total", {"model", "arm", "status"}),
        ("llm_arm_request_duration_seconds_count", {"model", "arm"}),
        ("llm_arm_time_to_first_token_seconds_count", {"model", "arm"}),
        ("llm_arm_tokens_generated_total", {"model", "arm"}),
        ("llm_arm_cost_micro_dollars_total", {"model", "arm"}),
        ("llm_workers", {"state"}),
        ("llm_worker_cpu_seconds_total", {"worker"}),
    ],
)
def test_the_required_metrics_have_exactly_their_labels(
    platform: Platform, caller: Caller, name: str, labels: set[str]
) -> None:
    body = ask(temperature=0, max_tokens=4)
    caller.http.post("/chat/completions", json=body)
    caller.settled(1)
    caller.http.post("/chat/completions", json={**body, "stream": True})
    caller.chat(stream=True, max_tokens=4)
    caller.settled(3)
    assert Metrics(platform).labels(name) == {frozenset(labels)}


def test_values_move_by_what_was_sent(platform: Platform, make_caller: MakeCaller) -> None:
    """codellama is asked by this test alone while it runs: one plain, one streamed, one hit, one refused."""
    caller = make_caller()
    before = Metrics(platform)
    body = ask(model="codellama", temperature=0, max_tokens=8)
    plain = caller.http.post("/chat/completions", json=body).json()["usage"]
    caller.settled(1)
    assert caller.http.post("/chat/completions", json=body).headers["x-llm-cache"] == "hit"
    streamed = caller.chat("Hello", model="codellama", max_tokens=6, stream=True)
    assert streamed.status_code == 200
    prompt = {"model": "codellama", "prompt": "x", "temperature": -1}
    assert caller.http.post("/completions", json=prompt).status_code == 400
    account = caller.settled(4)
    after = Metrics(platform)

    def moved(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    model = "codellama"
    assert moved("llm_requests_total", model=model) == 4
    assert moved("llm_requests_total", model=model, endpoint="chat", status="200") == 3
    assert moved("llm_requests_total", model=model, endpoint="completions", status="400") == 1
    assert moved("llm_request_duration_seconds_count", model=model) == 4
    assert 0 < moved("llm_request_duration_seconds_sum", model=model) < 10
    assert moved("llm_tokens_generated_total", model=model) == 14
    assert moved("llm_prompt_tokens_total", model=model) == account["prompt_tokens"] > plain["prompt_tokens"]
    assert moved("llm_cost_micro_dollars_total", tenant=caller.tenant, model=model) == account["cost_micros"]
    assert account["cost_micros"] >= price(plain["prompt_tokens"], 8, model)
    assert moved("llm_cache_hits_total", model=model) == 1
    assert moved("llm_cache_lookups_total", model=model, result="hit") == 1
    assert moved("llm_cache_lookups_total", model=model, result="miss") == 1
    assert moved("llm_cache_fills_total", model=model) == 1
    assert moved("llm_time_to_first_token_seconds_count", model=model) == 1
    assert after.value("llm_time_to_first_token_seconds_sum", model=model) >= 0
    assert moved("llm_settlements_total", result="applied") >= 4
    assert moved("llm_settlements_total", result="duplicate") == 0
    arm = {"model": model, "arm": "stable"}
    assert moved("llm_arm_requests_total", **arm, status="200") == 2
    assert moved("llm_arm_requests_total", model=model) == 3
    assert moved("llm_arm_tokens_generated_total", **arm) == 14
    assert moved("llm_arm_cost_micro_dollars_total", **arm) == account["cost_micros"]
    assert moved("llm_overhead_seconds_count", model=model) == 3
    assert 0 < moved("llm_overhead_seconds_sum", model=model) < moved("llm_arm_request_duration_seconds_sum", **arm)
    assert after.value("llm_model_up", model=model) == 1
    assert after.value("llm_store_up") == 1


@pytest.mark.simulated("a fault on demand")
def test_a_streams_time_to_first_token_is_the_backends_and_not_the_whole_answers(
    platform: Platform, caller: Caller
) -> None:
    before = Metrics(platform)
    slow = {"x-sim-delay-ms": "300"}
    assert caller.chat(model="codellama", stream=True, max_tokens=5, headers=slow).status_code == 200
    caller.settled(1)
    after = Metrics(platform)
    name = "llm_time_to_first_token_seconds_sum"
    assert 0.3 <= after.value(name, model="codellama") - before.value(name, model="codellama") < 1.5
    overhead = "llm_overhead_seconds_sum"
    assert 0 < after.value(overhead, model="codellama") - before.value(overhead, model="codellama") < 0.3


def test_refusals_are_counted_by_their_reason(platform: Platform, make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 1, "burst_requests": 1})
    caller.chat(max_tokens=1)
    caller.chat()
    caller.chat(model="no-such-model")
    caller.settled(3)

    def refused(reason: str) -> float:
        return Metrics(platform).value("llm_refused_total", tenant=caller.tenant, reason=reason)

    assert refused("rate_limit_exceeded") == 1
    assert refused("model_not_found") == 1
    before = Metrics(platform).value("llm_refused_total", reason="invalid_api_key")
    caller.chat(headers={"authorization": "Bearer sk-llm-nobody"})
    eventually(lambda: Metrics(platform).value("llm_refused_total", reason="invalid_api_key") == before + 1)
    assert Metrics(platform).value("llm_keys_refused_total", why="unknown") >= 1


def test_what_envoy_ends_before_a_decision_is_a_request_too(platform: Platform, caller: Caller) -> None:
    undecided = {"model": "", "endpoint": "", "status": "413"}
    before = Metrics(platform).value("llm_requests_total", **undecided)
    assert caller.http.post("/chat/completions", content=b"x" * 9_000_000).status_code == 413
    eventually(lambda: Metrics(platform).value("llm_requests_total", **undecided) == before + 1)


def test_the_workers_are_counted_and_how_busy_they_are(platform: Platform) -> None:
    found = Metrics(platform)
    assert [found.value("llm_workers", state=state) for state in ("wanted", "alive", "serving")] == [2, 2, 2]
    assert all(found.value("llm_worker_cpu_seconds_total", worker=worker) > 0 for worker in ("0", "1"))
    assert 0 <= found.value("llm_worker_lag_seconds") < 5
    assert found.value("llm_config_refused") == 0
    assert found.value("llm_request_log_dropped_total") == 0


def test_no_client_can_make_a_label_of_its_own(platform: Platform, caller: Caller) -> None:
    marker = unique("label").replace(" ", "-")
    caller.chat(max_tokens=1)
    caller.chat(model=marker)
    caller.http.post(f"/{marker}", json={})
    caller.http.get(f"/models/{marker}")
    caller.http.post("/chat/completions", json={"task": marker, "messages": [{"role": "user", "content": "x"}]})
    caller.settled(3)
    assert marker not in Metrics(platform).text


def test_no_word_of_a_prompt_or_an_answer_is_in_a_log_a_metric_or_the_ledger(
    platform: Platform, caller: Caller
) -> None:
    secret = unique("marker").replace(" ", "-")
    spread(caller, secret)
    for path in platform.stack.settings.directory.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in Metrics(platform).text
    assert secret not in Metrics(platform, OPENMETRICS).text
    assert secret not in json.dumps(health(platform))
    with connected(platform) as redis:
        ledger = redis.xrange(f"llm:{{{caller.tenant}}}:ledger")
        names = redis.keys("*")
    assert len(ledger) > 10
    assert secret not in str(ledger) + str(names)
    assert len(log_lines(platform, tenant=caller.tenant)) > len(ledger)  # refusals have a line too
    logs = [path.read_text() for path in platform.stack.settings.directory.glob("*.log")]
    assert caller.key not in "".join(logs)
