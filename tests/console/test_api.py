"""The API on a running platform: its figures are those of /metrics, of the usage report, and of what was sent."""

import json
import time

import httpx
import pytest
from stack_rig import Caller, Json, Metrics, Platform, StartPlatform, ask, cli, eventually, said, unique

pytestmark = pytest.mark.local


def totals(live: Json, model: str) -> Json:
    (found,) = [m["totals"] for m in live["models"] if m["name"] == model]
    return found


def now(live: Json, model: str) -> Json:
    (found,) = [m["now"] for m in live["models"] if m["name"] == model]
    return found


def test_totals_are_those_of_the_metrics(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed) as caller:
        body = ask(model="codellama", temperature=0, max_tokens=6)
        caller.http.post("/chat/completions", json=body)
        caller.settled(1)
        caller.http.post("/chat/completions", json=body)
        caller.chat(model="codellama", stream=True, max_tokens=6)
        caller.chat(model="codellama", headers={"x-sim-status": "500"})
        caller.settled(4)

    def agreed() -> Json | None:
        found, metrics = totals(api.get("live").json(), "codellama"), Metrics(observed)
        expected = {
            "requests": metrics.value("llm_requests_total", model="codellama"),
            "failed": metrics.value("llm_requests_total", model="codellama", status="500"),
            "hits": metrics.value("llm_cache_hits_total", model="codellama"),
            "prompt_tokens": metrics.value("llm_prompt_tokens_total", model="codellama"),
            "completion_tokens": metrics.value("llm_tokens_generated_total", model="codellama"),
            "usd": metrics.value("llm_cost_micro_dollars_total", model="codellama") / 1e6,
        }
        return found if {k: v for k, v in found.items() if k != "lookups"} == expected else None

    found = eventually(agreed)
    assert (found["requests"], found["failed"], found["hits"], found["completion_tokens"]) == (4, 1, 1, 12)


def test_what_happens_now_is_in_the_rates_and_in_the_history(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed) as caller:
        caller.chat(model="llama2", stream=True, max_tokens=4)
        caller.settled(1)

    def streamed() -> Json | None:
        live: Json = api.get("live").json()
        return live if now(live, "llama2")["ttft_streams"] else None

    live = eventually(streamed)
    llama2 = now(live, "llama2")
    assert llama2["ttft_streams"] == 1
    assert 0 < llama2["ttft_p50_seconds"] <= llama2["ttft_p95_seconds"]
    assert live["total"]["requests_per_second"] > 0
    assert live["total"]["completion_tokens_per_second"] > 0
    history = live["history"]
    assert {len(column) for scope in history["scopes"].values() for column in scope.values()} == {
        len(history["time_ms"])
    }
    assert api.get("live", params={"since": history["time_ms"][-1]}).json()["history"]["time_ms"] == []


def test_requests_that_reach_a_backend_are_in_its_arm_and_others_are_not(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed) as caller:
        body = {"input": unique(), "model": "bge-small"}
        for n in (1, 2):
            caller.http.post("/embeddings", json=body)
            caller.settled(n)

    def arm() -> Json | None:
        live = api.get("live").json()
        arms = [a for a in live["arms"] if a["model"] == "bge-small"]
        return arms[0] if arms and totals(live, "bge-small")["requests"] == 2 else None

    found = eventually(arm)
    assert (found["arm"], found["share"], found["totals"]["requests"]) == ("stable", 1, 1)


def test_refusals_are_counted_by_their_reason(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed) as caller:
        assert caller.chat(model="no-such-model").status_code == 404
        caller.settled(1)

    def refused() -> list[Json]:
        return [r for r in api.get("live").json()["refused"] if r["reason"] == "model_not_found"]

    (found,) = eventually(refused)
    assert found["total"] == 1
    assert found["per_minute"] > 0


def test_usage_is_that_of_the_usage_report(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed, user="ann") as caller:
        caller.chat(model="mistral", max_tokens=3)
        caller.chat(model="llama2", max_tokens=3)
        caller.settled(2)
        tenant = caller.tenant

    def lines(by: str) -> list[Json]:
        return [line for line in api.get("usage", params={"by": by}).json()["lines"] if tenant in line["names"]]

    (line,) = eventually(lambda: lines("user"))
    report = json.loads(cli(observed, "usage", "--by", "tenant,user", "--json").stdout)
    (row,) = [r for r in report if r["tenant"] == tenant]
    assert line["names"] == [tenant, "ann"]
    assert {k: line[k] for k in ("requests", "hits", "errors", "prompt_tokens", "completion_tokens")} == {
        k: row[k] for k in ("requests", "hits", "errors", "prompt_tokens", "completion_tokens")
    }
    assert line["usd"] == row["cost_micros"] / 1e6
    for span in ("today", "week", "month", "30d"):
        answer = api.get("usage", params={"by": "arm", "span": span}).json()
        assert answer["by"] == ["model", "arm"]
        assert ["mistral", "stable"] in [line["names"] for line in answer["lines"]]
        assert answer["since"] <= answer["until"]


def test_a_budget_shows_what_was_spent_of_it(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed, tenant="thrifty") as caller:
        caller.chat(model="llama2", max_tokens=50)
        spent = caller.settled(1)["cost_micros"]

    def budget() -> Json | None:
        found = [b for b in api.get("limits").json()["budgets"] if b["tenant"] == "thrifty"]
        return found[0] if found and found[0]["spent_usd"] == spent / 1e6 else None

    found = eventually(budget)
    assert (found["budget_usd"], found["used_ratio"]) == (0.001, spent / 1000)


def test_a_callers_limits_show_what_is_left(observed: Platform, api: httpx.Client) -> None:
    with Caller(observed, tenant="slow", user="sue", limited=True) as caller:
        for _ in range(6):
            assert caller.chat(max_tokens=1).status_code == 200
        caller.settled(6)

    def left() -> Json | None:
        found = [c for c in api.get("limits").json()["callers"] if c["tenant"] == "slow"]
        return found[0] if found and found[0]["requests"]["left"] < 9 else None

    found = eventually(left)
    assert (found["user"], found["requests"]["per_minute"], found["max_in_flight"]) == ("sue", 10, 40)
    assert 4 <= found["requests"]["left"] <= 8
    assert found["tokens"]["per_minute"] == 100_000
    assert found["in_flight"] == 0


def test_no_word_of_a_prompt_or_an_answer_is_in_any_of_it(observed: Platform, api: httpx.Client) -> None:
    secret = unique("marker").replace(" ", "-")
    with Caller(observed) as caller:
        caller.chat(secret, headers=said(f"I heard {secret}"))
        caller.chat(secret, model=secret)
        caller.http.post(f"/{secret}", json={})
        caller.settled(2)
        tenant = caller.tenant
    eventually(lambda: tenant in api.get("usage").text)
    for by in ("tenant", "user", "model", "arm", "key"):
        assert secret not in api.get("usage", params={"by": by}).text
    assert secret not in api.get("live").text + api.get("limits").text


def test_many_who_look_cost_one_look(api: httpx.Client) -> None:
    """Samples are a second apart, and the store is asked every few seconds, however many ask."""
    began = time.monotonic()
    live = {api.get("live").json()["time_ms"] for _ in range(30)}
    usage = {api.get("usage").json()["time_ms"] for _ in range(30)}
    seconds = time.monotonic() - began
    assert len(live) <= 2 + seconds
    assert len(usage) <= 2 + seconds / 5


def test_the_processors_workers_do_not_know_the_token(observed: Platform, token: str) -> None:
    import psutil

    processor = psutil.Process(observed.stack.children["processor"].pid)
    workers = [p for p in processor.children() if "worker" in p.cmdline()]
    assert len(workers) == 2
    for worker in workers:
        assert token not in str(worker.environ()) + str(worker.cmdline())
    assert token not in str(processor.cmdline())


def test_the_console_lives_through_a_store_that_goes_away_and_comes_back(
    start_platform: StartPlatform, token: str
) -> None:
    headers = {"authorization": f"Bearer {token}"}
    with start_platform(workers=1, admin_token=token) as platform:
        url = f"{platform.stack.admin_url}/console/api/"
        with httpx.Client(base_url=url, headers=headers) as api, Caller(platform) as caller:
            caller.chat(max_tokens=2)
            caller.settled(1)
            eventually(lambda: api.get("usage").json()["total"]["requests"] == 1)
            platform.stack.children["valkey"].kill()
            gone = eventually(lambda: (it := api.get("limits")).status_code == 503 and it)
            assert gone.json()["error"]["message"].startswith("Redis is away")
            assert eventually(lambda: (it := api.get("live").json())["health"]["redis"] == "down" and it)["totals"]
            platform.do(platform.stack.restart("valkey"))
            eventually(lambda: api.get("limits").status_code == 200)
            eventually(lambda: api.get("live").json()["health"]["redis"] == "up")
