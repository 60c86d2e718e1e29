"""What is charged: exactly what was used, once, to the right account; an estimate where the end is missing."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from stack_rig import (
    Caller,
    Json,
    MakeCaller,
    Metrics,
    Platform,
    ask,
    cli,
    connected,
    eventually,
    price,
    said,
    unique,
    usage_rows,
)

HELLO = [{"role": "user", "content": "Hello"}]
SUMS = ("requests", "hits", "errors", "estimated", "prompt_tokens", "completion_tokens", "cached_tokens", "cost_micros")


def usage_of(answer: httpx.Response) -> tuple[int, int]:
    usage = answer.json()["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def test_an_answer_is_settled_once_with_the_tokens_that_the_client_saw(caller: Caller) -> None:
    answer = caller.chat(max_tokens=20)
    prompt, completion = usage_of(answer)
    account = caller.settled_exactly(1)
    assert account == {
        **dict.fromkeys(SUMS, 0),
        "requests": 1,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost_micros": price(prompt, completion),
    }


@pytest.mark.simulated("embeds")
@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/chat/completions", {"model": "mistral", "messages": HELLO, "n": 3}, "mistral"),
        ("/completions", {"model": "codellama", "prompt": ["one", "two"], "max_tokens": 9}, "codellama"),
        ("/responses", {"model": "llama2", "input": "x y z", "max_output_tokens": 11}, "llama2"),
        ("/embeddings", {"model": "bge-small", "input": ["one", "two", "three"]}, "bge-small"),
    ],
)  # fmt: skip
def test_every_endpoint_is_charged_by_its_models_prices(caller: Caller, path: str, body: Any, model: str) -> None:
    answer = caller.http.post(path, json=body)
    assert answer.status_code == 200
    usage = answer.json()["usage"]
    prompt = usage.get("prompt_tokens") or usage["input_tokens"]
    completion = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    account = caller.settled(1)
    assert (account["prompt_tokens"], account["completion_tokens"]) == (prompt, completion)
    assert account["cost_micros"] == price(prompt, completion, model)
    (row,) = [r for r in usage_rows(caller.platform) if r["tenant"] == caller.tenant]
    assert (row["model"], row["arm"]) == (model, "stable")


def test_the_sums_of_many_concurrent_requests_equal_what_the_clients_saw(
    platform: Platform, make_caller: MakeCaller
) -> None:
    """Plain and streamed, three models, two users with two keys, some of them refused."""
    first = make_caller(user="first")
    second = make_caller(tenant=first.tenant, user="second")
    models = ("llama2", "mistral", "codellama")

    def one(number: int) -> tuple[str, str, int, int]:
        caller, model = (first, second)[number % 2], models[number % 3]
        fields: Json = {"model": model, "max_tokens": 1 + number % 17}
        if number % 5 == 0:
            assert caller.chat(**fields, temperature=-1).status_code == 400
            return model, caller.key, 0, 0
        if number % 4 == 0:
            with caller.openai.chat.completions.create(
                **ask(**fields), stream=True, stream_options={"include_usage": True}
            ) as stream:
                usage = list(stream)[-1].usage
            return model, caller.key, usage.prompt_tokens, usage.completion_tokens
        return model, caller.key, *usage_of(caller.chat(**fields))

    with ThreadPoolExecutor(12) as pool:
        seen = list(pool.map(one, range(120)))
    account = first.settled_exactly(120)
    assert (account["requests"], account["errors"], account["hits"], account["estimated"]) == (120, 24, 0, 0)
    assert account["prompt_tokens"] == sum(s[2] for s in seen)
    assert account["completion_tokens"] == sum(s[3] for s in seen)
    assert account["cost_micros"] == sum(price(s[2], s[3], s[0]) for s in seen)

    done = cli(platform, "usage", "--by", "tenant,user,key,model", "--json")
    rows = [r for r in json.loads(done.stdout) if r["tenant"] == first.tenant]
    assert len(rows) == 6
    for row in rows:
        key = first.key if row["user"] == "first" else second.key
        mine = [s for s in seen if s[0] == row["model"] and s[1] == key]
        assert row["requests"] == len(mine)
        assert row["prompt_tokens"] == sum(s[2] for s in mine)
        assert row["completion_tokens"] == sum(s[3] for s in mine)
        assert row["cost_micros"] == sum(price(s[2], s[3], s[0]) for s in mine)


def test_the_report_sums_by_any_dimensions_in_every_form(platform: Platform, make_caller: MakeCaller) -> None:
    caller = make_caller(user="ann")
    prompt, completion = usage_of(caller.chat(max_tokens=10))
    caller.settled(1)
    today = datetime.now(UTC).date()

    def report(*options: str) -> list[Json]:
        done = cli(platform, "usage", "--json", *options)
        assert done.returncode == 0, done.stderr
        rows: list[Json] = json.loads(done.stdout)
        return rows

    sums = {"requests": 1, "prompt_tokens": prompt, "completion_tokens": completion}
    sums = {**dict.fromkeys(SUMS, 0), **sums, "cost_micros": price(prompt, completion)}
    by_default = [r for r in report() if r["tenant"] == caller.tenant]
    assert by_default == [{"tenant": caller.tenant, "user": "ann", "model": "llama2", **sums}]
    days = [r for r in report("--by", "day,tenant") if r["tenant"] == caller.tenant]
    assert [r["day"] for r in days] in ([str(today)], [str(today - timedelta(days=1))])
    arms = [r for r in report("--by", "tenant,model,arm") if r["tenant"] == caller.tenant]
    assert [(r["model"], r["arm"], r["requests"]) for r in arms] == [("llama2", "stable", 1)]
    whole, models = report("--by", "tenant"), report("--by", "model")
    assert sum(r["cost_micros"] for r in whole) == sum(r["cost_micros"] for r in models)
    assert {r["tenant"] for r in report("--since", str(today))} >= {caller.tenant}
    assert report("--since", "2d", "--until", str(today - timedelta(days=1))) == []

    table = csv.DictReader(io.StringIO(cli(platform, "usage", "--by", "tenant", "--csv").stdout))
    (row,) = [r for r in table if r["tenant"] == caller.tenant]
    assert (row["requests"], row["prompt_tokens"]) == ("1", str(prompt))
    shown = cli(platform, "usage", "--by", "tenant,model").stdout
    (line,) = [one for one in shown.splitlines() if caller.tenant in one]
    assert f"{price(prompt, completion) / 1e6:.6f}" in line
    assert "total" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--by", "colour"), "--by colour"),
        (("--since", "yesterday"), "yesterday"),
        (("--json", "--csv"), "not allowed"),
    ],
)
def test_a_report_that_can_not_be_made_says_why(platform: Platform, options: tuple[str, ...], words: str) -> None:
    done = cli(platform, "usage", *options)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# --- where the end is missing -----------------------------------------------------------------------------------------


@pytest.mark.simulated("a fault on demand")
def test_a_client_that_leaves_a_stream_is_charged_for_about_what_passed(caller: Caller) -> None:
    """Forty tokens have come when it leaves, behind an event that holds none."""
    body = ask("Hello", stream=True, max_tokens=1_000)
    with caller.http.stream("POST", "/chat/completions", json=body, headers={"x-sim-stall-after": "41"}) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        for _ in range(41):
            next(lines)
    account = caller.settled_exactly(1)
    assert account["estimated"] == 1
    assert abs(account["completion_tokens"] - 40) <= 3
    assert 0 < account["prompt_tokens"] < 60
    assert account["cost_micros"] == price(account["prompt_tokens"], account["completion_tokens"])


@pytest.mark.simulated("a fault on demand")
def test_a_stream_that_the_backend_cuts_is_charged_for_about_what_passed(caller: Caller) -> None:
    """A reset overtakes what the proxy has not read yet, so the client counts what it got."""
    got = cut_short(caller, ask("Hello", stream=True, max_tokens=1_000), "41")
    events = got.count(b"data:")
    account = caller.settled_exactly(1)
    assert account["estimated"] == 1
    assert 0 < events <= 41
    assert abs(account["completion_tokens"] - (events - 1)) <= 3
    assert account["cost_micros"] == price(account["prompt_tokens"], account["completion_tokens"])


@pytest.mark.simulated("a fault on demand")
def test_a_plain_answer_that_the_backend_cuts_is_charged_by_its_bytes(caller: Caller) -> None:
    got = cut_short(caller, ask("Hello", max_tokens=1_000), "1")
    account = caller.settled_exactly(1)
    assert account["estimated"] == bool(got)
    assert account["completion_tokens"] == len(got) // 4


def cut_short(caller: Caller, body: Json, after: str) -> bytes:
    """What came before the backend reset its connection."""
    got: list[bytes] = []
    headers = {"x-sim-cut-after": after}
    with caller.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            got.extend(answer.iter_raw())
    return b"".join(got)


def test_a_client_that_leaves_before_the_first_byte_pays_for_its_prompt_at_most(caller: Caller) -> None:
    with pytest.raises(httpx.ReadTimeout):
        caller.http.post("/chat/completions", json=ask("Hello"), headers={"x-sim-hang": "1"}, timeout=0.2)
    account = caller.settled_exactly(1)
    assert account["completion_tokens"] == 0
    assert account["prompt_tokens"] < 60


@pytest.mark.simulated("a fault on demand")
def test_an_estimate_is_never_more_than_was_reserved(caller: Caller) -> None:
    """Five tokens at most, however many events the backend sends."""
    text = unique("word " * 100)
    with pytest.raises(httpx.RemoteProtocolError):
        caller.chat(stream=True, max_tokens=5, headers={**said(text), "x-sim-cut-after": "5"})
    assert caller.settled(1)["completion_tokens"] <= 5


@pytest.mark.simulated("a fault on demand")
@pytest.mark.parametrize("fault", [{"x-sim-status": "500"}, {"x-sim-status": "503"}, {"x-sim-status": "502 html"}])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_backend_costs_nothing(caller: Caller, fault: dict[str, str], stream: bool) -> None:
    assert caller.chat(stream=stream, headers=fault).status_code >= 500
    assert caller.settled_exactly(1) == {**dict.fromkeys(SUMS, 0), "requests": 1, "errors": 1}


def test_what_is_refused_costs_nothing_and_is_counted(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 1, "burst_requests": 1})
    assert caller.chat(temperature=-1).status_code == 400
    assert caller.chat().status_code == 429
    assert caller.chat(model="no-such-model").status_code == 404
    account = caller.settled_exactly(3)
    assert account == {**dict.fromkeys(SUMS, 0), "requests": 3, "errors": 3}


def test_a_tenant_whose_requests_were_all_refused_is_in_the_report(caller: Caller) -> None:
    # Fails: the store learns of a tenant when it first admits a request of it, so the counters of this one are in
    # Redis (llm:{TENANT}:usage:DAY) and no report finds them.
    assert caller.chat(model="no-such-model").status_code == 404
    assert caller.settled(1)["errors"] == 1
    assert [r["errors"] for r in usage_rows(caller.platform) if r["tenant"] == caller.tenant] == [1]


def test_an_unknown_key_leaves_no_trace_in_the_accounts(platform: Platform, caller: Caller) -> None:
    assert caller.chat(headers={"authorization": "Bearer sk-llm-unknown"}).status_code == 401
    assert caller.chat(max_tokens=1).status_code == 200
    assert caller.settled(1)["requests"] == 1
    assert not [r for r in usage_rows(platform) if not r["key_id"]]


def test_nothing_stays_reserved(platform: Platform, caller: Caller) -> None:
    """Whatever became of the requests: every reservation of the tenant ends, and the gauge says so."""
    faults: list[dict[str, str]] = [{}, {"x-sim-status": "500"}, {"x-sim-cut-after": "1"}, {"x-sim-error-after": "2"}]
    for fault in faults:
        for stream in (False, True):
            try:
                caller.chat(stream=stream, max_tokens=30, headers=fault)
            except httpx.RemoteProtocolError:
                continue
    caller.settled(2 * len(faults))
    with connected(platform) as redis:
        prefix = f"llm:{{{caller.tenant}}}:"
        left = [key for key in redis.keys("*") if key.startswith(prefix) and ":flight:" in key]
    assert left == []
    assert eventually(lambda: Metrics(platform).value("llm_reservations_unsettled") == 0.0)
    assert eventually(lambda: Metrics(platform).value("llm_settlement_backlog") == 0.0)


def test_the_ledger_has_one_line_a_request(platform: Platform, caller: Caller) -> None:
    answer = caller.chat(max_tokens=3)
    caller.settled_exactly(1)
    with connected(platform) as redis:
        lines = redis.xrange(f"llm:{{{caller.tenant}}}:ledger")
    (line,) = [json.loads(fields["line"]) for _, fields in lines]
    prompt, completion = usage_of(answer)
    assert (line["model"], line["endpoint"], line["status"]) == ("llama2", "chat", 200)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (prompt, completion)
