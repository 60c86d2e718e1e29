"""The peers' figures: tables on the terminal, and one in Markdown to be copied into docs/benchmarks.md."""

import sys
from collections.abc import Mapping

from figures import Figures, Outcome
from peer_rig import GATEWAY
from peer_scenarios import Findings
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rig import ENVOY, PLATFORM

_WIDTH = 110  # where no terminal says another
console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
_PARTS = {ENVOY: ("Envoy",), PLATFORM: ("Envoy", "supervisor", "processor", "Valkey"), "": (GATEWAY,)}
_NONE = "–"
_CARRIED = 0.95


def gateway_us(variant: str, f: Figures) -> float:
    """CPU of all that stands between client and backend, a request or a chunk."""
    return sum(f.cpu_us.get(part, 0.0) for part in _PARTS.get(variant, _PARTS[""]))


def lost(f: Figures) -> str:
    return f"{f.failed / f.requests:.1%}" if f.failed else "0"


def show(name: str, about: str, found: Findings) -> None:
    streamed = any(f.unit == "event" for f in found.outcome.values())
    table = Table(title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for column in _STREAMED if streamed else _PLAIN:
        table.add_column(column, justify="right", no_wrap=True)
    for variant, f in found.outcome.items():
        table.add_row(variant, *((_streamed if streamed else _plain)(variant, f)))
    console.print(table)
    console.print(about, style="dim")
    for variant, failure in found.losses.items():
        console.print(f"{variant} lost requests; the first: {failure}", style="yellow", markup=False)
    for error in found.errors.values():
        console.print(f"no figure: {error}", style="red", markup=False)
    others = max((f.others for f in found.outcome.values()), default=0.0)
    console.print(f"noise: other processes used up to {others:.1f} cores\n", style="dim")


_PLAIN = (
    "requests\n/s",
    "p50\nms",
    "p99\nms",
    "added\np50",
    "added\np99",
    "CPU µs\n/request",
    "MB",
    "lost",
    "rounds\n±",
)
_STREAMED = ("chunks\n/s", "TTFT\np50 ms", "TTFT\np95 ms", "CPU µs\n/chunk", "MB", "lost", "rounds\n±")


def _plain(variant: str, f: Figures) -> list[str]:
    times = [f"{f.p50:.1f}", f"{f.p99:.1f}", _added(f.added_p50), _added(f.added_p99)]
    return [f"{f.per_second:,.0f}", *times, _cpu(variant, f), _mb(f), lost(f), f"{f.spread:.0%}"]


def _streamed(variant: str, f: Figures) -> list[str]:
    times = [f"{f.ttft_p50:.1f}", f"{f.ttft_p95:.1f}"]
    return [f"{f.events_per_second:,.0f}", *times, _cpu(variant, f), _mb(f), lost(f), f"{f.spread:.0%}"]


def _added(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.1f}"


def _cpu(variant: str, f: Figures) -> str:
    value = gateway_us(variant, f)
    return f"{value:,.{0 if value >= 100 else 1}f}" if value else _NONE


def _mb(f: Figures) -> str:
    return f"{f.memory_mb:,.0f}" if f.memory_mb else _NONE


def markdown(outcomes: Mapping[str, Outcome], versions: Mapping[str, str], rate: float) -> str:
    """One row a variant; what was not measured is left open."""
    head = (
        "",
        "requests/s",
        "CPU µs/request",
        f"added p50 / p99 at {rate:g}/s, ms",
        "10 streams: CPU µs/chunk; TTFT p50, ms",
        "100 streams: chunks/s; TTFT p50, ms",
        "500 streams",
        "memory, MB",
        "lost at most",
    )
    names = list(dict.fromkeys(variant for found in outcomes.values() for variant in found))
    rows = [(f"{name} {versions.get(name, '')}".strip(), *_row(name, outcomes, rate)) for name in names]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def _row(name: str, outcomes: Mapping[str, Outcome], rate: float) -> list[str]:
    mine = {scenario: found[name] for scenario, found in outcomes.items() if name in found}
    plain, paced, few = (mine.get(scenario) for scenario in ("plain", "paced", "stream_few"))
    return [
        f"{plain.per_second:,.0f}" if plain else _NONE,
        _cpu(name, plain) if plain else _NONE,
        _waited(paced, rate),
        f"{_cpu(name, few)}; {few.ttft_p50:,.1f}" if few else _NONE,
        _flow(mine.get("stream_light")),
        _flow(mine.get("stream")),
        _mb(max(mine.values(), key=lambda f: f.memory_mb)),
        lost(max(mine.values(), key=lambda f: f.failed / f.requests)),
    ]


def _waited(f: Figures | None, rate: float) -> str:
    """Who did not keep up has no added time, but a queue."""
    if f is None or f.added_p50 is None:
        return _NONE
    carried = "" if f.per_second >= _CARRIED * rate else f" (carried {f.per_second:.0f}/s)"
    return f"{_added(f.added_p50)} / {_added(f.added_p99)}{carried}"


def _flow(f: Figures | None) -> str:
    return f"{f.events_per_second:,.0f}; {f.ttft_p50:,.1f}" if f else _NONE
