"""What is measured of the peers, beside the bench's own variants and in the same rounds.

Peers are held to less than the platform: a run that loses requests is reported with the share that it lost. What does
not agree without a loss (the backend saw other requests than the client, a stream came short) is no figure at all.
"""

import asyncio
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

import msgspec
from figures import Figures, Outcome, add, median
from load import Load, Tally
from measure import BenchError, Expected, Pace, beside, everywhere, fresh, measure, observe
from peer_catalogue import addressed
from peer_rig import GATEWAY, PeerRig
from rig import DIRECT
from scenarios import BYPASS, MISS, STREAMS, events, streaming
from scenarios import plain as plain_chat

_WARM_SECONDS = 2.0
_QUIET_SECONDS, _QUIET_TRIES, _QUIET_CORES = 0.5, 120, 0.1
_HOLDS = 0.9  # of the direct run's chunks a second
_WHOLE = 0.9  # of a stream's events: some join the first two, some add one


class Findings(NamedTuple):
    """By variant."""

    outcome: Outcome
    errors: dict[str, str]  # why there is no figure
    losses: dict[str, str]  # what the first lost request met


async def plain(rig: PeerRig, pace: Pace) -> Findings:
    """32 connections, each asks again when it is answered: new prompts at temperature 0."""
    return await compare(rig, pace, loads(rig, Load(0, **plain_chat(rig.stack.api_key))), MISS)


async def paced(rig: PeerRig, pace: Pace, rate: float) -> Findings:
    """Requests at fixed due times, at a rate that all of them should carry: what a caller waits longer."""
    load = Load(0, **plain_chat(rig.stack.api_key), rate=rate, connections=64)
    return await compare(rig, pace, loads(rig, load), MISS)


async def stream_few(rig: PeerRig, pace: Pace) -> Findings:
    """10 streams at a time, 50 chunks a second each: all of them should carry that."""
    return await streams(rig, pace, STREAMS // 50, list(rig.ports))


async def stream_light(rig: PeerRig, pace: Pace) -> Findings:
    """100 streams at a time, 50 chunks a second each."""
    return await streams(rig, pace, STREAMS // 5, list(rig.ports))


async def stream(rig: PeerRig, pace: Pace, variants: list[str]) -> Findings:
    """500 streams at a time, 50 chunks a second each: only those that held 100."""
    return await streams(rig, pace, STREAMS, variants)


async def streams(rig: PeerRig, pace: Pace, connections: int, variants: list[str]) -> Findings:
    load = streaming(rig, connections, pace.seconds)
    chosen = {variant: each for variant, each in loads(rig, load).items() if variant in variants}
    return await compare(rig, pace, chosen, {**BYPASS, "events": events(load)})


def holding(found: Outcome) -> list[str]:
    """Who lost nothing and passed the chunks on at about the pace that they came."""
    wanted = _HOLDS * found[DIRECT].events_per_second
    return [variant for variant, f in found.items() if not f.failed and f.events_per_second >= wanted]


def loads(rig: PeerRig, load: Load) -> dict[str, Load]:
    """By variant: the same request, with the headers that each asks for."""
    theirs = {
        name: msgspec.structs.replace(load, head=addressed(load.head, launch.headers))
        for name, launch in rig.launches.items()
    }
    return everywhere(load) | theirs


async def compare(rig: PeerRig, pace: Pace, loads: Mapping[str, Load], expected: Expected) -> Findings:
    """The variants in turn, `rounds` times, after a turn to warm up; one that gives no figure is left out from then."""
    found: dict[str, list[Figures]] = {variant: [] for variant in loads}
    errors: dict[str, str] = {}
    warming: dict[str, str] = {}
    losses: dict[str, str] = {}
    turns = [(min(_WARM_SECONDS, pace.seconds), warming), *((pace.seconds, losses) for _ in range(pace.rounds))]
    for seconds, lost in turns:
        for variant in [each for each in loads if each not in errors]:
            run = msgspec.structs.replace(loads[variant], seconds=seconds, first=fresh())
            try:
                found[variant].append(await once(rig, variant, run, expected, lost))
            except BenchError as error:
                errors[variant] = str(error)
                continue
            if variant != DIRECT and DIRECT not in errors:
                add(found[DIRECT][-1], found[variant][-1])
    outcome = {variant: over(runs[1:]) for variant, runs in found.items() if variant not in errors}
    return Findings(outcome, errors, losses)


def over(rounds: list[Figures]) -> Figures:
    """Medians; but what was lost in any round counts."""
    whole = median(rounds)
    whole.requests = fmean(each.requests for each in rounds)
    whole.failed = fmean(each.failed for each in rounds)
    return whole


async def once(rig: PeerRig, variant: str, load: Load, expected: Expected, losses: dict[str, str]) -> Figures:
    if variant in rig.launches:
        run = await observe(rig, variant, load)
        judge(variant, run.tally, run.counts["backend"], expected)
        if run.tally.failed:
            losses.setdefault(variant, run.tally.failure)
            await quiet(rig, variant)
        figures = run.figures(0.0)
    else:
        figures = await measure(rig, variant, load, beside(variant, expected))
    figures.memory_mb = rig.memory_mb(variant)
    return figures


async def quiet(rig: PeerRig, variant: str) -> None:
    """Wait: who was overloaded works on after its callers have left, and that is not the next variant's cost."""
    for _ in range(_QUIET_TRIES):
        seen, used = rig.counts()["backend"], rig.cpu_seconds(variant)[GATEWAY]
        await asyncio.sleep(_QUIET_SECONDS)
        cores = (rig.cpu_seconds(variant)[GATEWAY] - used) / _QUIET_SECONDS
        if rig.counts()["backend"] == seen and cores < _QUIET_CORES:
            return
    raise BenchError(f"{variant}: still busy {_QUIET_SECONDS * _QUIET_TRIES:.0f} s after its last caller has left")


def judge(variant: str, tally: Tally, backend: int, expected: Expected) -> None:
    """Raises BenchError if a figure would say nothing."""
    if tally.failed >= tally.requests:
        raise BenchError(f"{variant}: none of {tally.requests} requests was answered; the first: {tally.failure}")
    if tally.failed:
        return
    if backend != tally.requests:
        raise BenchError(f"{variant}: {tally.requests} requests, but the backend saw {backend}")
    if tally.events < _WHOLE * expected.get("events", 0) * tally.requests:
        raise BenchError(f"{variant}: {tally.events} events in {tally.requests} streams")
