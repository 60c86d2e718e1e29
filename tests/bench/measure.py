"""One measurement, and the variants side by side.

No figure leaves `measure` before the counters agree: every request answered as expected, seen by the backend or kept
from it, put to the processor in two messages at most, none of them for its answer, and settled.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from figures import Figures, Outcome, add, figures, median
from load import Load, Tally
from rig import DIRECT, ENVOY, MESSAGES, PLATFORM, Rig

_SETTLE_TRIES, _SETTLE_SECONDS = 100, 0.1
_WARM_SECONDS = 0.5
_MOST_MESSAGES = 2  # a request's headers, and its body

Expected = Mapping[str, int]  # counter -> how often a request


class BenchError(Exception):
    """The counters disagree: there is nothing to print."""


class Pace(msgspec.Struct, frozen=True):
    seconds: float  # of one run
    rounds: int


def fresh() -> int:
    """A first number whose successors nobody asked before."""
    return secrets.randbelow(10**6) * 10**9


def everywhere(load: Load) -> dict[str, Load]:
    return dict.fromkeys((DIRECT, ENVOY, PLATFORM), load)


async def compare(rig: Rig, pace: Pace, loads: Mapping[str, Load], expected: Expected) -> Outcome:
    """The variants in turn, `rounds` times, after a short turn to warm up. `expected` is of the platform."""
    found: dict[str, list[Figures]] = {variant: [] for variant in loads}
    for seconds in (min(_WARM_SECONDS, pace.seconds), *(pace.seconds for _ in range(pace.rounds))):
        for variant, load in loads.items():
            run = msgspec.structs.replace(load, seconds=seconds, first=load.first or fresh())
            found[variant].append(await measure(rig, variant, run, beside(variant, expected)))
            if variant != DIRECT and DIRECT in found:
                add(found[DIRECT][-1], found[variant][-1])
    return {variant: median(runs[1:]) for variant, runs in found.items()}


def beside(variant: str, expected: Expected) -> Expected:
    """Without the platform the backend sees every request and nobody else does."""
    return expected if variant == PLATFORM else {"backend": 1, "events": expected.get("events", 0)}


async def measure(rig: Rig, variant: str, load: Load, expected: Expected) -> Figures:
    """One run, with its counters checked."""
    run = await observe(rig, variant, load, expected.get("settled", 0))
    check(variant, run.tally, expected, run.counts)
    return run.figures(max(rig.worker_megabytes()))


class Observed(NamedTuple):
    """A run as it was seen, before anyone has judged it."""

    tally: Tally
    cpu_seconds: dict[str, float]
    counts: dict[str, int]
    others: float

    def figures(self, worker_mb: float) -> Figures:
        return figures(self.tally, self.cpu_seconds, self.counts[MESSAGES], worker_mb, self.others)


async def observe(rig: Rig, variant: str, load: Load, settled_each: int = 0) -> Observed:
    load = msgspec.structs.replace(load, port=rig.ports[variant])
    counts, others = rig.counts(), rig.others()
    cpu = rig.cpu_seconds(variant)
    tally = await rig.drive(load)
    await settled(rig, counts["settled"] + settled_each * tally.requests)
    used = {part: seconds - cpu[part] for part, seconds in rig.cpu_seconds(variant).items()}
    seen = {name: now - counts[name] for name, now in rig.counts().items()}
    return Observed(tally, used, seen, others())


async def settled(rig: Rig, wanted: int) -> None:
    """Wait: receipts come in batches, a moment after the answers."""
    for _ in range(_SETTLE_TRIES):
        if rig.counts()["settled"] >= wanted:
            return
        await asyncio.sleep(_SETTLE_SECONDS)


def check(variant: str, tally: Tally, expected: Expected, seen: Mapping[str, int]) -> None:
    if tally.failed or not tally.requests:
        raise BenchError(f"{variant}: {tally.failed} of {tally.requests} requests failed; the first: {tally.failure}")
    if seen[MESSAGES] > _MOST_MESSAGES * tally.requests:
        raise BenchError(f"{variant}: {seen[MESSAGES]} messages to the processor for {tally.requests} requests")
    for name, count in {**seen, "events": tally.events}.items():
        wanted = expected.get(name, 0) * tally.requests
        if count != wanted and name != MESSAGES:
            raise BenchError(f"{variant}: {tally.requests} requests, but counter `{name}` says {count}, not {wanted}")
