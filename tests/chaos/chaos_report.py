"""The table for people, the file for machines."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import msgspec
from faults import BY_NAME, Fault
from rich.console import Console
from rich.table import Table
from verdicts import Verdict

console = Console(highlight=False, markup=False, emoji=False)
_RESULTS = Path(__file__).resolve().parents[2] / "chaos-results"
_SHOWN = 8  # broken promises of one trial
_HEADS = ("requests", "failed", "cut", "refused", "estimated", "uncharged", "wrong", "recovered", "longest")


def tell(name: str) -> None:
    console.print(f"  … {name}", style="dim")


def announce(seed: int, plan: Sequence[tuple[float, Fault]]) -> None:
    console.print(f"random, SEED={seed}: " + ", ".join(f"{pause:.1f} s, {fault.name}" for pause, fault in plan))


def show_line(verdict: Verdict) -> None:
    """As soon as it is known; the table follows at the end."""
    console.print(f"{verdict.name}: {'kept' if verdict.kept else 'BROKEN'}", style="green" if verdict.kept else "red")
    for words in verdict.broken[:_SHOWN]:
        console.print(f"    {words}", style="red")
    if len(verdict.broken) > _SHOWN:
        console.print(f"    and {len(verdict.broken) - _SHOWN} more", style="red")


def show(verdicts: Sequence[Verdict]) -> None:
    table = Table(box=None, title="chaos", title_justify="left")
    table.add_column("fault", no_wrap=True)
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("promises", no_wrap=True)
    for each in verdicts:
        table.add_row(each.name, *_figures(each), "kept" if each.kept else "BROKEN", style="" if each.kept else "red")
    (console if console.is_terminal else Console(width=140, markup=False, emoji=False)).print(table)


def _figures(v: Verdict) -> list[str]:
    counts = (v.requests, v.failed, v.cut, v.refused, v.estimated, v.uncharged, v.wrong)
    return [*(f"{count:,}" for count in counts), f"{v.recovered_seconds:.2f} s", f"{v.longest_seconds:.2f} s"]


def save(verdicts: Sequence[Verdict], seed: int) -> None:
    now = dt.datetime.now(dt.UTC)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{now:%Y%m%d-%H%M%S}.json"
    what = {name: fault.what for name, fault in BY_NAME.items()}
    found = [{**msgspec.to_builtins(v), "kept": v.kept, "what": what.get(v.name, "")} for v in verdicts]
    path.write_bytes(msgspec.json.format(msgspec.json.encode({"time": now, "seed": seed, "faults": found})))
    console.print(f"results: {path}")
