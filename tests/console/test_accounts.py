"""The store's answers as tables: sums, shares, what is left."""

import datetime as dt

import pytest

from extproc import config
from extproc.admission import KeyRecord, UsageRow
from extproc.console import accounts
from extproc.limits import DROPS, Bucket
from extproc.store.report import Standing

NOON_MS = int(dt.datetime(2026, 11, 16, 12, tzinfo=dt.UTC).timestamp() * 1000)
CONFIG = b"""
models: [{name: llama2, context_tokens: 4096, price: {input: 0.2, output: 0.6}}]
default_model: llama2
limits: {requests_per_minute: 100, tokens_per_minute: 1000}
tenants:
  - {name: acme, limits: {requests_per_minute: 0, budget_usd_per_month: 50}}
  - {name: globex, limits: {budget_usd_per_month: 10}}
"""


@pytest.fixture
def catalogue() -> config.Catalogue:
    return config.load(CONFIG, "test")


def row(tenant: str, user: str, model: str = "llama2", **sums: int) -> UsageRow:
    return UsageRow("2026-11-16", tenant, user, "key_1", model, **sums)


@pytest.mark.parametrize(
    ("span", "since"),
    [("today", "2026-11-16"), ("week", "2026-11-10"), ("month", "2026-11-01"), ("30d", "2026-10-18")],
)
def test_a_span_ends_today(span: accounts.Span, since: str) -> None:
    assert accounts.days(span, NOON_MS) == (since, "2026-11-16")


def test_usage_is_summed_by_what_is_asked_and_the_dearest_comes_first() -> None:
    rows = [
        row("acme", "ann", requests=2, prompt_tokens=10, completion_tokens=10, cost_micros=5),
        row("acme", "bob", requests=3, prompt_tokens=10, completion_tokens=10, cost_micros=15),
        row("globex", "ann", requests=9, cost_micros=1_000_000),
    ]
    by_tenant = accounts.usage(rows, "tenant", "2026-11-16", "2026-11-16", 1)
    assert [(line.names, line.requests, line.usd) for line in by_tenant.lines] == [
        (["globex"], 9, 1.0),
        (["acme"], 5, 0.00002),
    ]
    assert by_tenant.lines[1].usd_per_million_tokens == 0.5
    assert by_tenant.lines[0].usd_per_million_tokens is None
    assert (by_tenant.total.requests, by_tenant.total.usd, by_tenant.others) == (14, 1.00002, None)
    by_user = accounts.usage(rows, "user", "", "", 1)
    assert [line.names for line in by_user.lines] == [["globex", "ann"], ["acme", "bob"], ["acme", "ann"]]


def test_what_does_not_fit_is_one_line_and_part_of_the_total() -> None:
    rows = [row(f"t{n:03}", "u", requests=1, cost_micros=1000 - n) for n in range(accounts.LINES + 7)]
    answer = accounts.usage(rows, "tenant", "", "", 1)
    assert (len(answer.lines), answer.count) == (accounts.LINES, accounts.LINES + 7)
    assert answer.others is not None
    assert answer.others.requests == 7
    assert answer.total.requests == accounts.LINES + 7


def test_no_usage_is_an_empty_table_with_a_total_of_nothing() -> None:
    answer = accounts.usage([], "model", "", "", 1)
    assert (answer.lines, answer.others, answer.total.requests) == ([], None, 0)


def test_the_most_active_are_those_with_the_most_requests() -> None:
    rows = [row("a", "ann", requests=2), row("a", "bob", requests=3), row("a", "ann", "mistral", requests=2)]
    assert accounts.most_active(rows, 1) == [("a", "ann", "key_1")]


def test_budgets_are_of_the_month_the_fullest_first(catalogue: config.Catalogue) -> None:
    spent = {"acme": 5_000_000, "globex": 9_000_000, "free": 70_000_000}
    table = accounts.table(spent, {}, [], catalogue, NOON_MS)
    assert [(b.tenant, b.spent_usd, b.budget_usd, b.used_ratio) for b in table.budgets] == [
        ("globex", 9.0, 10.0, 0.9),
        ("acme", 5.0, 50.0, 0.1),
        ("free", 70.0, 0.0, None),
    ]
    assert table.month == "2026-11"
    assert table.month_ratio == pytest.approx(15.5 / 30, abs=1e-4)


def test_a_callers_bucket_is_as_full_as_it_is_now(catalogue: config.Catalogue) -> None:
    """40 requests were taken 12 s ago; at 100 a minute, 20 of them are back."""
    taken = Standing(Bucket(40 * DROPS, NOON_MS - 12_000), Bucket(1500 * DROPS, NOON_MS))
    (caller,) = accounts.table({}, {("t", "ann", "k"): taken}, [], catalogue, NOON_MS).callers
    assert caller.requests is not None
    assert (caller.requests.per_minute, caller.requests.left, caller.requests.used_ratio) == (100, 80, 0.2)
    assert caller.tokens is not None
    assert (caller.tokens.left, caller.tokens.used_ratio) == (0, 1.5)
    assert caller.used_ratio == 1.5


def test_a_caller_without_a_limit_has_no_level(catalogue: config.Catalogue) -> None:
    (caller,) = accounts.table({}, {("acme", "ann", "k"): Standing()}, [], catalogue, NOON_MS).callers
    assert (caller.requests, caller.tokens, caller.max_in_flight, caller.used_ratio) == (None, None, 0, 0)


def test_a_keys_own_limits_go_before_its_tenants(catalogue: config.Catalogue) -> None:
    limits = {"requests_per_minute": 10, "max_in_flight": 4}
    record = KeyRecord("key_1", "acme", "ann", ["*"], 0, limits)
    standings = {("acme", "ann", "key_1"): Standing(Bucket(5 * DROPS, NOON_MS), in_flight=3)}
    (caller,) = accounts.table({}, standings, [record], catalogue, NOON_MS).callers
    assert caller.requests is not None
    assert (caller.requests.left, caller.in_flight, caller.max_in_flight, caller.used_ratio) == (5, 3, 4, 0.75)


def test_who_comes_with_a_token_has_the_tokens_cap() -> None:
    catalogue = config.load(CONFIG + b"jwt: {max_in_flight: 2}\n", "test")
    standings = {("acme", "ann", "jwt"): Standing(in_flight=1), ("acme", "bob", "key_1"): Standing()}
    record = KeyRecord("key_1", "acme", "bob", ["*"], 0)
    callers = accounts.table({}, standings, [record], catalogue, NOON_MS).callers
    assert {caller.user: caller.max_in_flight for caller in callers} == {"ann": 2, "bob": 0}


def test_a_bucket_may_hold_more_than_a_minutes_worth() -> None:
    catalogue = config.load(CONFIG.replace(b"minute: 100,", b"minute: 10, burst_requests: 30,"), "test")
    (caller,) = accounts.table({}, {("t", "ann", "k"): Standing()}, [], catalogue, NOON_MS).callers
    assert caller.requests is not None
    assert (caller.requests.left, caller.requests.size, caller.requests.per_minute) == (30, 30, 10)


def test_of_a_span_the_tables_and_the_most_active_are_kept() -> None:
    rows = [row("acme", "ann", requests=2), row("globex", "bob", requests=3)]
    kept = accounts.sum_up(rows, "2026-11-16", "2026-11-16", 1, most=1)
    assert kept.most_active == [("globex", "bob", "key_1")]
    assert {by: table.by for by, table in kept.tables.items()} == {by: list(d) for by, d in accounts.DIMENSIONS.items()}
    assert kept.tables["user"] == accounts.usage(rows, "user", "2026-11-16", "2026-11-16", 1)
