"""`llm-mesh usage`: who used what and what it cost, out of the store's counters."""

import argparse
import asyncio
import csv
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec
from rich.console import Console
from rich.table import Table

from extproc.admission import UsageRow
from extproc.keys_cli import UsageError
from extproc.store import RedisStore
from extproc.store.keyspace import METRICS

DIMENSIONS = ("day", "tenant", "user", "key", "model", "arm")


def add_arguments(parser: argparse.ArgumentParser, redis_url: str) -> None:
    parser.add_argument("--redis", default=redis_url, metavar="URL", help="(or REDIS_URL)")
    by = ",".join(DIMENSIONS)
    parser.add_argument("--by", default="tenant,user,model", help=f"some of {by} (default tenant,user,model)")
    parser.add_argument("--since", default="30d", help="a day (2026-11-01) or so many days back (7d); default 30d")
    parser.add_argument("--until", default="", help="a day, included; default today (UTC)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true")
    form.add_argument("--json", action="store_true")
    parser.set_defaults(run=_run)


def _run(a: argparse.Namespace) -> int:
    by = [d.strip() for d in a.by.split(",") if d.strip()]
    if not by or not set(by) <= set(DIMENSIONS):
        raise UsageError(f"--by {a.by}: some of {', '.join(DIMENSIONS)} are needed")
    today = datetime.now(UTC).date()
    since, until = _day(a.since, today), _day(a.until, today) if a.until else today
    if since > until:
        raise UsageError(f"--since {since} is later than --until {until}")
    rows = asyncio.run(_read(a.redis, since, until))
    table = summarize(rows, by)
    if a.json:
        heads = [*by, *METRICS]
        print(msgspec.json.format(msgspec.json.encode([dict(zip(heads, r, strict=True)) for r in table])).decode())
    elif a.csv:
        csv.writer(sys.stdout).writerows([[*by, *METRICS], *table])
    else:
        _show(by, table, since, until)
    return 0


async def _read(url: str, since: date, until: date) -> list[UsageRow]:
    store = RedisStore(url, timeout_seconds=30.0)
    await store.start()
    try:
        return await store.usage(since.isoformat(), until.isoformat())
    finally:
        await store.aclose()


def _day(text: str, today: date) -> date:
    try:
        if text.endswith("d") and text[:-1].isdecimal():
            return today - timedelta(days=int(text[:-1]))
        return date.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"`{text}` is neither a day such as 2026-11-01 nor a span such as 7d") from error


def summarize(rows: Iterable[UsageRow], by: Sequence[str]) -> list[list[str | int]]:
    """One line per combination of the dimensions, the dearest first: dimensions, then sums as in METRICS."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        group = tuple(str(getattr(row, "key_id" if d == "key" else d)) for d in by)
        total = sums.setdefault(group, [0] * len(METRICS))
        for i, name in enumerate(METRICS):
            total[i] += getattr(row, name)
    ordered = sorted(sums.items(), key=lambda item: (-item[1][-1], -item[1][0], item[0]))
    return [[*group, *total] for group, total in ordered]


def _show(by: Sequence[str], table: list[list[str | int]], since: date, until: date) -> None:
    shown = Table(title=f"usage {since} … {until} (UTC)", title_justify="left", box=None)
    for head in by:
        shown.add_column(head, no_wrap=True)
    for head in (
        "requests",
        "hits",
        "errors",
        "estimated",
        "prompt",
        "completion",
        "cached",
        "cost $",
        "$ / 1M tokens",
    ):
        shown.add_column(head, justify="right", no_wrap=True)
    total: list[str | int] = ["total", *[""] * (len(by) - 1), *_total(table, len(by))]
    for line in [*table, total]:
        shown.add_row(*_cells(line, len(by)))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(shown)


def _total(table: list[list[str | int]], first: int) -> list[int]:
    return [sum(int(line[first + i]) for line in table) for i in range(len(METRICS))]


def _cells(line: list[str | int], first: int) -> list[str]:
    sums = [int(x) for x in line[first:]]
    cost = sums[-1] / 1e6
    tokens = sums[4] + sums[5]
    price = f"{cost / tokens * 1e6:.3f}" if tokens else ""
    return [*(str(x) for x in line[:first]), *(f"{x:,}" for x in sums[:-1]), f"{cost:,.6f}", price]
