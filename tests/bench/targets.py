"""What the platform promises of its own speed, held against the figures."""

from collections.abc import Callable, Mapping

import msgspec
from figures import Figures, Outcome
from rig import PLATFORM
from soak import Soak

_FLAT = {  # growth over a soak's second half that counts as none
    "worker MB": 3.0,
    "Envoy MB": 5.0,
    "worker open files": 5.0,
    "Envoy open files": 20.0,
    "miss p50 ms": 1.0,
}


class Verdict(msgspec.Struct):
    name: str
    wanted: str
    found: str
    met: bool


class _Target(msgspec.Struct):
    scenario: str
    name: str
    figure: Callable[[Figures], float]
    bound: float
    unit: str = ""
    least: bool = False  # at least, not at most


def _processor(f: Figures) -> float:
    return f.cpu_us["processor"]


_TARGETS = (
    _Target("miss", "cache miss, one worker", lambda f: f.per_second, 2500, "requests/s", least=True),
    _Target("miss", "cache miss, processor CPU", _processor, 250, "µs a request"),
    _Target("hit", "cache hit, processor CPU", _processor, 150, "µs a request"),
    _Target("paced", "500 requests/s, added p50", lambda f: f.added_p50 or 0.0, 2, "ms"),
    _Target("paced", "500 requests/s, added p99", lambda f: f.added_p99 or 0.0, 10, "ms"),
    _Target("large", "prompts of 220 KB", lambda f: f.per_second, 130, "requests/s", least=True),
)


def verdicts(outcomes: Mapping[str, Outcome], soak: Soak | None) -> list[Verdict]:
    """Of the targets whose scenario was run."""
    found = [_verdict(t, outcomes[t.scenario][PLATFORM]) for t in _TARGETS if t.scenario in outcomes]
    if "stream" in outcomes:  # its counters are exact: one message more, and there were no outcome
        found.append(Verdict("processor messages a streamed chunk", "0", "0", met=True))
    if outcomes:
        found.append(
            _memory("worker memory after the scenarios", max(o[PLATFORM].worker_mb for o in outcomes.values()))
        )
    if soak:
        found.append(_memory("worker memory in the soak", max(soak.series["worker MB"])))
        for name, most in _FLAT.items():
            grown = soak.growth(name)
            found.append(Verdict(f"growth of {name}, second half", f"< {most:g}", f"{grown:+.1f}", grown < most))
    return found


def _verdict(target: _Target, figures: Figures) -> Verdict:
    value = target.figure(figures)
    met = value >= target.bound if target.least else value <= target.bound
    digits = 0 if target.bound >= 100 else 2
    sign = "≥" if target.least else "≤"
    return Verdict(target.name, f"{sign} {target.bound:,g} {target.unit}", f"{value:,.{digits}f} {target.unit}", met)


def _memory(name: str, megabytes: float) -> Verdict:
    return Verdict(name, "< 150 MB", f"{megabytes:.0f} MB", megabytes < 150)
