"""What was used, by whom, and how much is left: the store's answers into the console's tables. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from extproc import limits
from extproc.admission import KeyRecord, UsageRow
from extproc.admission import Limits as Allowed
from extproc.config import Catalogue, JwtConfig
from extproc.console.shapes import DIMENSIONS, Budget, By, Caller, Level, Limits, Line, Span, Usage
from extproc.store.keyspace import METRICS
from extproc.store.report import Standing
from extproc.usage_cli import summarize

LINES = 100  # in one table; the rest is summed up
Who = tuple[str, str, str]  # tenant, user, key id


class Accounts(msgspec.Struct, frozen=True):
    """What is kept of a span's counters: of many users and days, those are large."""

    tables: dict[By, Usage]
    most_active: list[Who]


def days(span: Span, now_ms: int) -> tuple[str, str]:
    """First and last day, UTC."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    first: dict[Span, date] = {
        "today": today,
        "week": today - timedelta(days=6),
        "month": today.replace(day=1),
        "30d": today - timedelta(days=29),
    }
    return first[span].isoformat(), today.isoformat()


def sum_up(rows: Collection[UsageRow], since: str, until: str, time_ms: int, most: int) -> Accounts:
    """May take its time: not for an event loop."""
    tables = {by: usage(rows, by, since, until, time_ms) for by in DIMENSIONS}
    return Accounts(tables, most_active(rows, most))


def usage(rows: Iterable[UsageRow], by: By, since: str, until: str, time_ms: int) -> Usage:
    width = len(DIMENSIONS[by])
    table = [(list(map(str, line[:width])), [int(n) for n in line[width:]]) for line in summarize(rows, DIMENSIONS[by])]
    rest = [sums for _, sums in table[LINES:]]
    return Usage(
        time_ms=time_ms,
        since=since,
        until=until,
        by=list(DIMENSIONS[by]),
        lines=[_line(names, sums) for names, sums in table[:LINES]],
        others=_line([], _sum(rest)) if rest else None,
        count=len(table),
        total=_line([], _sum([sums for _, sums in table])),
    )


def _sum(many: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*many, strict=True)] or [0] * len(METRICS)


def _line(names: list[str], sums: Sequence[int]) -> Line:
    named = dict(zip(METRICS, sums, strict=True))
    usd = named.pop("cost_micros") / 1e6
    tokens = named["prompt_tokens"] + named["completion_tokens"]
    return Line(names, **named, usd=usd, usd_per_million_tokens=round(usd / tokens * 1e6, 4) if tokens else None)


def most_active(rows: Iterable[UsageRow], most: int) -> list[Who]:
    """Those with the most requests. Swept reservations have no requests of their own, but a key."""
    requests: dict[Who, int] = {}
    for row in rows:
        who = row.tenant, row.user, row.key_id
        requests[who] = requests.get(who, 0) + row.requests
    return sorted(requests, key=lambda who: (-requests[who], who))[:most]


def table(
    spent: Mapping[str, int],
    standings: Mapping[Who, Standing],
    records: Iterable[KeyRecord],
    catalogue: Catalogue,
    now_ms: int,
) -> Limits:
    overrides = {record.key_id: record.limits for record in records}
    budgets = sorted((_budget(t, micros, catalogue) for t, micros in spent.items()), key=_fullest_budget)
    allowed = {who: _allowed(who, overrides, catalogue) for who in standings}
    callers = [_caller(who, standing, allowed[who], now_ms) for who, standing in standings.items()]
    callers.sort(key=lambda c: (-c.used_ratio, c.tenant, c.user, c.key_id))
    return Limits(
        time_ms=now_ms,
        month=limits.month(now_ms),
        month_ratio=round(_month_ratio(now_ms), 4),
        budgets=budgets[:LINES],
        budgets_count=len(budgets),
        callers=callers[:LINES],
        callers_count=len(callers),
    )


def _budget(tenant: str, micros: int, catalogue: Catalogue) -> Budget:
    budget = catalogue.limits_of(tenant, {}).budget_micros
    return Budget(tenant, micros / 1e6, budget / 1e6, round(micros / budget, 4) if budget else None)


def _fullest_budget(budget: Budget) -> tuple[float, float, str]:
    return -(budget.used_ratio or 0.0), -budget.spent_usd, budget.tenant


def _allowed(who: Who, overrides: Mapping[str, dict[str, int]], catalogue: Catalogue) -> Allowed:
    """As callers.py has it: keys have limits of their own, those who come with a token have their tenant's."""
    tenant, _, key_id = who
    own = overrides.get(key_id, {})
    jwt = catalogue.config.jwt
    if key_id not in overrides and isinstance(jwt, JwtConfig) and jwt.max_in_flight is not None:
        own = {"max_in_flight": jwt.max_in_flight}
    return catalogue.limits_of(tenant, own)


def _caller(who: Who, standing: Standing, allowed: Allowed, now_ms: int) -> Caller:
    requests = _level(standing.requests, allowed.requests_per_minute, allowed.burst_requests, now_ms)
    tokens = _level(standing.tokens, allowed.tokens_per_minute, allowed.burst_tokens, now_ms)
    in_flight = standing.in_flight if allowed.max_in_flight else 0
    flying = in_flight / allowed.max_in_flight if allowed.max_in_flight else 0.0
    fullest = max(flying, *(level.used_ratio for level in (requests, tokens) if level), 0.0)
    return Caller(*who, requests, tokens, in_flight, allowed.max_in_flight, round(fullest, 4))


def _level(bucket: limits.Bucket, per_minute: int, burst: int, now_ms: int) -> Level | None:
    if not per_minute:
        return None
    missing = limits.refill(bucket, per_minute, now_ms).missing
    size, left = limits.size(per_minute, burst), limits.level(missing, per_minute, burst).remaining
    return Level(per_minute, size, left, round(missing / (size * limits.DROPS), 4))


def _month_ratio(now_ms: int) -> float:
    ends_ms = limits.month_ends_ms(now_ms)
    begins_ms = int(datetime.fromisoformat(limits.month(now_ms) + "-01T00:00:00+00:00").timestamp() * 1000)
    return (now_ms - begins_ms) / (ends_ms - begins_ms)
