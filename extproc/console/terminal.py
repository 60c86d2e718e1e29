"""One picture of the console for a terminal: values in, something for rich to draw out. Pure."""

import time
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from extproc.console.ring import STEP_SECONDS
from extproc.console.shapes import Figures, Live, Model, Usage

_BARS = " ▁▂▃▄▅▆▇█"
_TREND = 48  # characters of the trend at most, a point each
TREND_SECONDS = _TREND * STEP_SECONDS
_WORDS = 62  # columns beside the trend
_ROOMY = 96
_TENANTS = 8
_NOTHING = "–"


class Frame(msgspec.Struct, frozen=True):
    """All that one picture is drawn from. `trouble`: why there are no accounts."""

    live: Live
    usage: Usage | None
    trouble: str = ""


def draw(frame: Frame, width: int, trouble: str = "") -> RenderableType:
    """`trouble`: why there is nothing newer."""
    live, gap = frame.live, 2 if width >= _ROOMY else 1
    parts: list[RenderableType] = [_head(live, trouble), *_problems(live), Text(), _figures(live, width)]
    parts += [Text(), _models(live, gap)]
    if any(arm.arm != "stable" for arm in live.arms):
        parts += [Text(), _arms(live, gap)]
    parts += [Text(), _tenants(frame, gap)]
    if live.refused:
        parts += [Text(), _refusals(live)]
    return Group(*parts)


def _head(live: Live, trouble: str) -> Text:
    style = {"ok": "bold green", "degraded": "bold yellow"}.get(live.health.status, "bold red")
    workers = f"{live.health.workers.alive}/{live.health.workers.wanted} workers"
    busy = " ".join(f"{percent(w.cpu_ratio)}" for w in live.workers)
    at = time.strftime("%H:%M:%S", time.localtime(live.time_ms / 1000))
    head = Text.assemble(
        ("llm-mesh ", "bold"),
        f"{live.instance}  ",
        (live.health.status, style),
        f"  {workers}{f' ({busy} of a core)' if busy else ''}  Redis {live.health.redis}  {at}",
    )
    return head if not trouble else head.append(f"\nstopped: {trouble}", "bold red")


def _problems(live: Live) -> Iterable[Text]:
    for model, state in live.health.models.items():
        if state != "up":
            yield plain(f"{model}: {state}", "red")
    for error in live.health.config.errors:
        yield Text(f"the configuration file can not be used: {error}", "red")
    for count, words in (
        (live.health.settlement_backlog, "settlements wait for the store"),
        (live.unsettled, "reservations are overdue"),
    ):
        if count:
            yield Text(f"{count} {words}", "yellow")


def _figures(live: Live, width: int) -> Table:
    now, totals = live.total, live.totals
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    trend, room = live.history.scopes.get("", {}), max(8, min(_TREND, width - _WORDS))
    streams = f"p50 {seconds(now.ttft_p50_seconds)}  p99 {seconds(now.ttft_p99_seconds)}  of {now.ttft_streams} streams"
    for name, value, field, more in (
        ("requests", rate(now.requests_per_second), "requests_per_second", f"{totals.requests:,} since start"),
        ("TTFT p95", seconds(now.ttft_p95_seconds), "ttft_p95_seconds", streams),
        ("hit rate", percent(now.hit_ratio), "hit_ratio", f"{totals.hits:,} of {totals.lookups:,} look-ups"),
        (
            "tokens",
            rate(now.completion_tokens_per_second),
            "completion_tokens_per_second",
            f"written; {rate(now.prompt_tokens_per_second)} read",
        ),
        ("cost", f"{dollars(now.usd_per_hour)}/h", "usd_per_hour", f"{dollars(totals.usd)} since start"),
        ("failed", percent(now.failed_ratio), "failed_per_second", f"refused {rate(now.refused_per_second)}"),
    ):
        table.add_row(
            Text(name, "dim"), Text(value, "bold"), Text(bars(trend.get(field, [])[-room:]), "cyan"), Text(more, "dim")
        )
    return table


def plain(text: str, style: str = "") -> Text:
    """As it is: neither rich's markup nor anything that moves the terminal's cursor."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), style)


def _models(live: Live, gap: int) -> Table:
    table = _table(
        gap, "model", "state", "busy", "req/s", "TTFT p50", "p95", "token", "tok/s", "hits", "failed", "$/h", "total"
    )
    for model in live.models:
        if model.name or model.totals.requests:
            table.add_row(*_model(model))
    return table


def _model(model: Model) -> list[Text | str]:
    state = Text("–", "dim") if not model.name else Text({"up": "up", "": "gone"}.get(model.state, "down"))
    if model.name:
        state.stylize("green" if model.state == "up" else "red")
    busy = f"{model.in_flight}/{model.room}" if model.room else f"{model.in_flight}"
    return [plain(model.name or "(none)"), state, busy if model.name else "", *_cells(model.now, model.totals.requests)]


def _cells(now: Figures, total: int) -> list[str]:
    return [
        number(now.requests_per_second),
        seconds(now.ttft_p50_seconds),
        seconds(now.ttft_p95_seconds),
        seconds(now.token_p50_seconds),
        number(now.completion_tokens_per_second),
        percent(now.hit_ratio),
        percent(now.failed_ratio),
        dollars(now.usd_per_hour),
        number(total),
    ]


def _arms(live: Live, gap: int) -> Table:
    table = _table(gap, "model", "arm", "share", "req/s", "TTFT p95", "failed", "$/h", "total")
    for arm in live.arms:
        table.add_row(
            plain(arm.model),
            plain(arm.arm),
            percent(arm.share),
            number(arm.now.requests_per_second),
            seconds(arm.now.ttft_p95_seconds),
            percent(arm.now.failed_ratio),
            dollars(arm.now.usd_per_hour),
            f"{arm.totals.requests:,}",
        )
    return table


def _tenants(frame: Frame, gap: int) -> RenderableType:
    usage = frame.usage
    if usage is None:
        return Text(f"usage: {frame.trouble}", "red")
    if not usage.lines:
        return Text("usage: nothing today", "dim")
    table = _table(gap, "tenant, today (UTC)", "requests", "hits", "errors", "read", "written", "cost", "$/1M")
    others = usage.count - _TENANTS
    for line in usage.lines[:_TENANTS]:
        price = _NOTHING if line.usd_per_million_tokens is None else f"{line.usd_per_million_tokens:.2f}"
        hits = percent(line.hits / line.requests if line.requests else None)
        sums = number(line.prompt_tokens), number(line.completion_tokens)
        table.add_row(
            plain(line.names[0]), f"{line.requests:,}", hits, f"{line.errors:,}", *sums, dollars(line.usd), price
        )
    if others > 0:
        table.add_row(Text(f"and {others} more", "dim"))
    return table


def _refusals(live: Live) -> Text:
    found = [f"{r.reason} {number(r.per_minute)}/min" for r in live.refused if r.per_minute]
    return Text("refused: " + (", ".join(found) or "nothing in the last minute"), "dim")


def _table(gap: int, *heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for i, head in enumerate(heads):
        words = i == 0 or head in ("state", "arm")
        table.add_column(head, justify="left" if words else "right", no_wrap=True)
    return table


def bars(values: Sequence[float | None]) -> str:
    """A trend, newest right; the highest of it fills the line."""
    shown = list(values)[-_TREND:]
    top = max((v for v in shown if v), default=0.0)
    return "".join(_BARS[0] if not v else _BARS[max(1, round(v / top * (len(_BARS) - 1)))] for v in shown)


def number(value: float | None) -> str:
    if value is None:
        return _NOTHING
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.1f}{letter}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def rate(value: float | None) -> str:
    return f"{number(value)}/s"


def percent(ratio: float | None) -> str:
    return _NOTHING if ratio is None else f"{ratio * 100:.1f}%" if ratio < 0.1 else f"{ratio * 100:.0f}%"


def seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value * 1000:.1f}ms" if value < 0.01 else f"{value * 1000:.0f}ms" if value < 1 else f"{value:.2f}s"


def dollars(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}" if usd else "$0"
