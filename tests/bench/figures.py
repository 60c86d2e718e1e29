"""From one run's tally and CPU times to figures, and from many runs' figures to medians. Pure."""

import statistics
from collections.abc import Mapping
from typing import Any

import msgspec
from load import Tally


class Figures(msgspec.Struct):
    """One variant's: of one run, or the medians of all rounds. Times are milliseconds."""

    requests: float
    failed: float
    per_second: float
    p50: float
    p99: float
    unit: str  # what CPU is counted by: "request", or "event" of a stream
    cpu_us: dict[str, float]  # by part
    busy: dict[str, float]  # by part, in cores
    messages: float  # to the processor, a request
    worker_mb: float  # the largest worker's resident memory afterwards
    others: float  # cores that processes of no concern to us used meanwhile
    spread: float = 0.0  # of `per_second` over the rounds: (largest - smallest) / median
    added_p50: float | None = None  # against direct, round by round
    added_p99: float | None = None
    ttft_p50: float = 0.0
    ttft_p95: float = 0.0
    events_per_second: float = 0.0
    memory_mb: float = 0.0  # of all processes of the gateway


Outcome = dict[str, Figures]  # by variant


def figures(tally: Tally, cpu_seconds: Mapping[str, float], messages: int, worker_mb: float, others: float) -> Figures:
    """`cpu_seconds` were used by each part during the run."""
    seconds = tally.requests / tally.per_second
    used = {**cpu_seconds, "client": tally.cpu_us * tally.requests / 1e6}
    return Figures(
        requests=tally.requests,
        failed=tally.failed,
        per_second=tally.per_second,
        p50=tally.p50,
        p99=tally.p99,
        unit="event" if tally.events else "request",
        cpu_us={part: 1e6 * s / (tally.events or tally.requests) for part, s in used.items()},
        busy={part: s / seconds for part, s in used.items()},
        messages=messages / tally.requests,
        worker_mb=worker_mb,
        others=others,
        ttft_p50=tally.ttft_p50,
        ttft_p95=tally.ttft_p95,
        events_per_second=tally.events_per_second,
    )


def add(base: Figures, to: Figures) -> None:
    """What a run took longer than the direct one of its round."""
    to.added_p50 = to.p50 - base.p50
    to.added_p99 = to.p99 - base.p99


def median(of: list[Figures]) -> Figures:
    """Each figure's own median."""
    rows: list[dict[str, Any]] = [msgspec.to_builtins(each) for each in of]
    whole = msgspec.convert({name: _median([row[name] for row in rows]) for name in rows[0]}, Figures)
    rates = [each.per_second for each in of]
    whole.spread = (max(rates) - min(rates)) / whole.per_second
    return whole


def _median(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {name: statistics.median(v[name] for v in values) for name in first}
    return statistics.median(values) if isinstance(first, float | int) else first


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y)."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope
