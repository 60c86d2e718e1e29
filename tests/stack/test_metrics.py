"""/health and /metrics: names, labels and values by what was sent; and no word of a prompt anywhere."""

import json

import httpx
import pytest
from stack_rig import (
    NO_TLS,
    SERVED,
    Caller,
    MakeCaller,
    Metrics,
    Platform,
    ask,
    connected,
    eventually,
    health,
    price,
    said,
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
    assert after.value("llm_model_up", model=model) == 1
    assert after.value("llm_store_up") == 1


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
    """Every path: answered, streamed, cached, refused by us, refused by the backend, broken, too long, cut short."""
    secret = unique("marker").replace(" ", "-")
    echo = said(f"I heard {secret}")
    caller.chat(secret, headers=echo)
    caller.chat(secret, stream=True, headers=echo)
    for _ in range(2):
        caller.chat(secret, temperature=0, headers=echo)
        eventually(lambda: caller.reserved() == 0)
    caller.chat(secret, temperature=-1)
    caller.chat(secret, model="no-such-model")
    caller.chat(secret + " word" * 100_000)
    caller.chat(secret + " word" * 12_000)
    caller.chat(secret, headers={"x-sim-status": "500"})
    caller.http.post("/chat/completions", content=secret, headers={"content-type": "application/json"})
    caller.http.post("/completions", json={"model": "llama2", "prompt": secret, "echo": True})
    caller.http.post("/embeddings", json={"input": secret})
    caller.http.post("/responses", json={"model": "llama2", "input": secret, "instructions": secret, "stream": True})
    for fault in ("x-sim-cut-after", "x-sim-error-after"):
        try:
            caller.chat(secret, stream=True, headers={fault: "2", **echo})
        except httpx.RemoteProtocolError:
            continue
    eventually(lambda: caller.reserved() == 0)
    with Caller(platform) as last:
        last.chat(max_tokens=1)
        last.settled(1)
    for path in platform.stack.settings.directory.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in Metrics(platform).text
    assert secret not in json.dumps(health(platform))
    with connected(platform) as redis:
        ledger = redis.xrange(f"llm:{{{caller.tenant}}}:ledger")
        names = redis.keys("*")
    assert len(ledger) > 10
    assert secret not in str(ledger) + str(names)
    logs = [path.read_text() for path in platform.stack.settings.directory.glob("*.log")]
    assert caller.key not in "".join(logs)
