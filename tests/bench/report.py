"""Figures on the terminal, and as JSON with the versions that they belong to."""

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from figures import Outcome
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rig import PLATFORM
from soak import Soak
from targets import Verdict

from extproc.local.stack import envoy_program, valkey_program

ROOT = Path(__file__).resolve().parents[2]
_OURS, _THEIRS = ("Envoy", "processor", "Valkey"), ("backend", "client")
_FULL = 0.95  # of a core, or of the machine
console = Console()


def show(name: str, about: str, outcome: Outcome) -> None:
    console.print(_stream_table(name, outcome) if _streamed(outcome) else _table(name, outcome))
    console.print(f"{about}\n{_aside(outcome)}\n", style="dim", highlight=False)


def _streamed(outcome: Outcome) -> bool:
    return any(f.unit == "event" for f in outcome.values())


def _table(name: str, outcome: Outcome) -> Table:
    table = _headed(
        name, "requests\n/s", "p50\nms", "p99\nms", "added\np50", "added\np99", *(f"{p}\nµs" for p in _OURS)
    )
    for variant, f in outcome.items():
        times = (_ms(f.p50), _ms(f.p99), _ms(f.added_p50, "+"), _ms(f.added_p99, "+"))
        table.add_row(variant, f"{f.per_second:,.0f}", *times, *(f"{f.cpu_us[p]:.0f}" for p in _OURS))
    return table


def _stream_table(name: str, outcome: Outcome) -> Table:
    table = _headed(name, "chunks/s", "TTFT\np50 ms", "TTFT\np95 ms", *(f"{p}\nµs/chunk" for p in _OURS))
    for variant, f in outcome.items():
        times = (_ms(f.ttft_p50), _ms(f.ttft_p95))
        table.add_row(variant, f"{f.events_per_second:,.0f}", *times, *(f"{f.cpu_us[p]:.1f}" for p in _OURS))
    return table


def _headed(name: str, *columns: str) -> Table:
    table = Table(title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True, min_width=10)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ms(value: float | None, sign: str = "") -> str:
    """Three digits or so."""
    if value is None:
        return "–"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:{sign}.{digits}f}"


def _aside(outcome: Outcome) -> str:
    """The machinery's own share, and what was full: nobody shall take its limits for the platform's."""
    lines = []
    for variant, f in outcome.items():
        theirs = ", ".join(f"{part} {f.cpu_us[part]:.0f} µs" for part in _THEIRS)
        full = [part for part, cores in f.busy.items() if cores >= _FULL]
        if sum(f.busy.values()) >= _FULL * (os.cpu_count() or 1):
            full.append("all cores")
        lines.append(f"{variant}: {theirs}; {f.failed:.0f} failed; full: {', '.join(full) or 'nothing'}")
    ours = outcome[PLATFORM]
    lines.append(f"processor: messages a request {ours.messages:g}, memory of a worker {ours.worker_mb:.0f} MB")
    others = max(f.others for f in outcome.values())
    spread = max(f.spread for f in outcome.values())
    lines.append(f"noise: rounds differ by up to {spread:.0%}, other processes used up to {others:.1f} cores")
    return "\n".join(lines)


def show_soak(found: Soak) -> None:
    table = Table("", "first", "last", "highest", "growth, second half", box=None)
    table.title = f"soak: {found.seconds:.0f} s, {found.requests:,} requests"
    for name, values in found.series.items():
        table.add_row(name, *(f"{v:,.1f}" for v in (values[0], values[-1], max(values))), f"{found.growth(name):+,.1f}")
    console.print(table)


def show_targets(verdicts: list[Verdict]) -> None:
    table = Table("target", "wanted", "found", "", title="targets", title_justify="left", title_style="bold")
    for v in verdicts:
        table.add_row(v.name, v.wanted, v.found, "[green]met[/]" if v.met else "[red]missed[/]")
    console.print(table)


def save(settings: Mapping[str, Any], results: Mapping[str, Any], verdicts: list[Verdict], errors: list[str]) -> Path:
    path = ROOT / "bench-results" / (time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + ".json")
    path.parent.mkdir(exist_ok=True)
    everything = {"versions": versions(), "settings": settings, "results": results, "targets": verdicts}
    path.write_bytes(msgspec.json.format(msgspec.json.encode({**everything, "errors": errors})))
    return path


def versions() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "revision": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "lock_sha256": hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
        "envoy": _said(envoy_program(), "--version").rpartition("version: ")[2],
        "valkey": _said(valkey_program("valkey-server"), "--version"),
        "python": sys.version.split()[0],
        "grpcio": version("grpcio"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
