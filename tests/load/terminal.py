"""A run as people see it while it goes on, and its figures as tables."""

import time
from collections.abc import Mapping
from typing import Self

from costs import Cost, columns, rows
from orders import Progress
from places import Found
from promises import Verdict
from quantiles import Spread
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

console = Console()
_EVERY_SECONDS = 10.0  # a line, where nobody watches
_LATE_MS = 10.0  # of the generator


class Live:
    """One line that changes once a second; on no terminal a line now and then."""

    def __init__(self, title: str, seconds: float) -> None:
        self._title = title
        self._seconds = seconds
        self._status: Status | None = Status("", console=console) if console.is_terminal else None
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, progress: Progress) -> None:
        text = f"{self._title} {line(progress, self._seconds)}"
        if self._status:
            self._status.update(text)
        elif time.monotonic() - self._told > _EVERY_SECONDS:
            self._told = time.monotonic()
            console.print(text, highlight=False, soft_wrap=True)


def line(p: Progress, seconds: float) -> str:
    ttft = "–" if p.ttft_p95 is None else f"{p.ttft_p95:,.0f} ms"
    refused = f", {p.refused:,} refused" if p.refused else ""
    failed = f"[red]{p.failed:,} failed[/]" if p.failed else "0 failed"
    return (
        f"{p.at:,.0f}/{seconds:,.0f} s: {p.due:,} due, {p.answered:,} answered{refused}, {failed}; "
        f"{p.asking:,} open, {p.streaming:,} streaming; TTFT p95 {ttft}"
    )


def show(name: str, about: str, runs: Mapping[str, Found]) -> None:
    console.print(f"\n[bold]{name}[/]: {' '.join(about.split())}", highlight=False)
    console.print(_latency(runs))
    console.print(_volume(runs))
    name, last = list(runs.items())[-1]
    if last.cost is not None:
        console.print(_cost(name, last.cost))
    for run, found in runs.items():
        for words in warnings(run, found):
            console.print(words, style="yellow", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True, min_width=10)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def ms(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _cells(spread: Spread | None) -> tuple[str, ...]:
    return ("–",) * 3 if spread is None else tuple(ms(value) for value in (spread.p50, spread.p95, spread.p99))


def _latency(runs: Mapping[str, Found]) -> Table:
    names = [f"{what}\n{share}" for what in ("TTFT", "gap", "whole") for share in ("p50", "p95", "p99")]
    table = _table(*names)
    for name, found in runs.items():
        told = found.result.summary
        table.add_row(name, *_cells(told.all.ttft), *_cells(told.gaps), *_cells(told.all.whole))
    table.caption = "milliseconds; TTFT and whole answers from the due time"
    return table


def _volume(runs: Mapping[str, Found]) -> Table:
    table = _table("requests", "good", "refused", "failed", "hits", "tokens", "tok/s", "most")
    for name, found in runs.items():
        told = found.result.summary
        of = told.all
        per_second = of.completion_tokens / max(told.seconds, 1e-9)
        counts = (of.requests, of.good, of.refused, of.failed, of.hits, of.completion_tokens, per_second)
        table.add_row(name, *(f"{count:,.0f}" for count in (*counts, found.result.most_streaming)))
    table.caption = "most: streams at a time"
    return table


def _cost(name: str, cost: Cost) -> Table:
    table = _table(*(title.replace(" ", "\n", 1) for title, _, _ in columns(cost)))
    for row in rows(cost):
        table.add_row(*row)
    table.caption = f"CPU and memory, {name}"
    return table


def warnings(name: str, found: Found) -> list[str]:
    """What makes figures doubtful."""
    late, result = found.result.summary.late, found.result
    words = []
    if late is not None and late.p99 > _LATE_MS:
        words.append(f"{name}: the generator itself sent late, p99 {ms(late.p99)} ms: read latencies with care")
    if result.held:
        words.append(f"{name}: {result.held:,} requests waited for a connection of the generator")
    return words


def show_verdicts(verdicts: list[Verdict]) -> None:
    table = Table("promise", "wanted", "found", "", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for v in verdicts:
        broken = "[yellow]missed[/]" if v.speed else "[red]broken[/]"
        table.add_row(v.name, v.wanted, v.found, "[green]kept[/]" if v.met else broken)
    console.print(table)
