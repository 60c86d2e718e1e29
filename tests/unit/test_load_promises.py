"""What a load test's scenarios promise, and what breaks a promise."""

from typing import Any

import pytest
from orders import Result
from places import Account, Found
from promises import Runs, Verdict, at_once, counters, fair, hits, no_errors, no_later, soon
from quantiles import Spread
from sums import Sum, Summary

GOOD_COUNTS = {
    "backend": 60, "settled": 100, "hit": 30, "refused": 10, "messages": 100,
    "receipts dropped": 0, "receipts not sent": 0, "admitted without the store": 0,
}  # fmt: skip
LEDGER = Account(100, 30, 1000, 300)


def spread(p95: float) -> Spread:
    return Spread(90, p95, p95, p95, p95, p95, p95)


def told(**fields: Any) -> Sum:
    usual = {
        "requests": 100, "good": 90, "refused": 10, "refused_without_wait": 0, "failed": 0, "hits": 30,
        "prompt_tokens": 900, "completion_tokens": 450, "replayed_tokens": 150, "ttft": spread(40), "whole": spread(90),
    }  # fmt: skip
    return Sum(**{**usual, **fields})


def found(by_traffic: dict[str, Sum] | None = None, streaming: int = 5, **fields: Any) -> Found:
    errors, counts, accounts = (fields.pop(name, {}) for name in ("errors", "counts", "accounts"))
    one = told(**fields)
    summary = Summary(10.0, 1.0, one, by_traffic or {"chat": one}, errors, None, None, [], [], [])
    return Found(Result(summary, 1.0, 1, 0, 1, streaming), None, counts, accounts)


def met(verdicts: list[Verdict]) -> list[bool]:
    return [v.met for v in verdicts]


def test_one_error_breaks_the_promise_and_is_named() -> None:
    (good, bad) = no_errors({"direct": found(), "platform": found(errors={"HTTP 503": 1})})
    assert (good.met, bad.met) == (True, False)
    assert bad.found == "1 × HTTP 503"


def test_counters_agree_when_each_says_what_the_clients_saw() -> None:
    assert met(counters({"platform": found(counts=GOOD_COUNTS, accounts={"chat": LEDGER})})) == [True]


@pytest.mark.parametrize("counter", GOOD_COUNTS)
def test_a_counter_that_is_one_off_breaks_the_promise(counter: str) -> None:
    counts = {**GOOD_COUNTS, counter: GOOD_COUNTS[counter] + 1}
    (verdict,) = counters({"platform": found(counts=counts, accounts={"chat": LEDGER})})
    assert not verdict.met
    assert verdict.found.startswith(counter)


@pytest.mark.parametrize(
    "account", [Account(101, 30, 1000, 300), Account(100, 29, 1000, 300), Account(100, 30, 1000, 600)]
)
def test_a_ledger_that_charges_twice_breaks_the_promise(account: Account) -> None:
    (verdict,) = counters({"platform": found(counts=GOOD_COUNTS, accounts={"chat": account})})
    assert not verdict.met


def test_what_failed_may_have_been_counted_or_not() -> None:
    for more in (0, 5):
        counts = {**GOOD_COUNTS, "backend": 60 + more, "settled": 100 + more}
        run = found(requests=105, failed=5, counts=counts, accounts={"chat": Account(100 + more, 30, 1000, 300)})
        assert met(counters({"platform": run})) == [True]
    run = found(requests=105, failed=5, counts={**GOOD_COUNTS, "settled": 99}, accounts={"chat": LEDGER})
    assert met(counters({"platform": run})) == [False]


def test_a_tenant_that_the_ledger_lost_breaks_the_promise() -> None:
    assert met(counters({"platform": found(counts=GOOD_COUNTS)})) == [False]


def test_a_gateway_elsewhere_promises_nothing_of_its_counters() -> None:
    assert counters({"platform": found()}) == []


@pytest.mark.parametrize(("share", "kept"), [(0.4, False), (0.41, True)])
def test_cache_hits_must_be_more_than_40_percent(share: float, kept: bool) -> None:
    runs: Runs = {"platform": found(good=100, hits=round(100 * share))}
    assert met(hits(0.7)(runs)) == [kept]


def test_all_streams_must_have_been_open_together() -> None:
    assert met(at_once(5)({"platform": found(streaming=5)})) == [True]
    assert met(at_once(6)({"platform": found(streaming=5)})) == [False]


def test_the_first_token_is_held_against_the_first_run_and_decides_only_where_asked() -> None:
    runs = {"direct": found(ttft=spread(40)), "platform": found(ttft=spread(95))}
    verdicts = soon(runs) + no_later(runs)
    assert met(verdicts) == [True, False]
    assert verdicts[1].found == "+55.0 ms"
    assert all(v.speed for v in verdicts)


def tenants(greedy: Sum, other: Sum) -> Runs:
    return {"without it": found({"a": told(refused=0)}), "beside it": found({"a": other, "greedy": greedy})}


def test_a_greedy_tenant_gets_its_allowance_and_the_others_notice_nothing() -> None:
    runs = tenants(told(prompt_tokens=600, completion_tokens=450), told(refused=0))
    assert all(met(fair("greedy", 1000, 100)(runs)))


@pytest.mark.parametrize(
    ("greedy", "other", "broken"),
    [
        (told(), told(refused=1), "others refused"),
        (told(refused=0), told(refused=0), "greedy refused"),
        (told(refused_without_wait=1), told(refused=0), "… without retry-after"),
        (told(completion_tokens=700), told(refused=0), "tokens of the greedy one"),
        (told(completion_tokens=0, prompt_tokens=100), told(refused=0), "tokens of the greedy one"),
        (told(), told(refused=0, ttft=spread(200)), "TTFT p95 of a, added"),
    ],
)
def test_a_greedy_tenant_that_gets_more_or_disturbs_others_breaks_the_promise(
    greedy: Sum, other: Sum, broken: str
) -> None:
    verdicts = fair("greedy", 1350, 100)(tenants(greedy, other))
    assert [v.name for v in verdicts if not v.met] == [broken]
