"""Mixed load for long: does a worker's memory stay where it is?"""

import asyncio
import time

import msgspec
from figures import slope
from load import Load, Tally
from measure import BenchError, fresh, settled
from rig import PLATFORM, Rig
from scenarios import cached, indebted, plain, streaming

_EVERY_SECONDS = 1.0


class Soak(msgspec.Struct):
    """Resident memory of the largest worker, in MB."""

    seconds: float
    requests: int
    first_mb: float
    last_mb: float
    max_mb: float
    growth_mb: float  # over the run's second half, by the line through its samples
    samples: list[float]


async def soak(rig: Rig, seconds: float) -> Soak:
    """Misses, hits, refusals, large prompts and streams at once, at about half of what one worker carries."""
    loads = [msgspec.structs.replace(load, port=rig.ports[PLATFORM], seconds=seconds) for load in await _mix(rig)]
    before = rig.counts()["settled"]
    running = asyncio.gather(*(rig.drive(load) for load in loads))
    points = await _sample(rig, running)
    tallies = await running
    await _check(rig, tallies, before)
    return _soak(seconds, sum(t.requests for t in tallies), points)


async def _mix(rig: Rig) -> list[Load]:
    key, paced = rig.stack.api_key, msgspec.structs.replace
    return [
        Load(0, **plain(key), connections=250, rate=250.0, first=fresh()),
        Load(0, **plain(key, words=44_000), connections=20, rate=5.0, first=fresh()),
        paced(await cached(rig), connections=50, rate=250.0),
        paced(await indebted(rig), connections=50, rate=100.0),
        streaming(rig, connections=50, seconds=2.0),
    ]


async def _sample(rig: Rig, running: "asyncio.Future[list[Tally]]") -> list[tuple[float, float]]:
    """(seconds, MB) until the load ends."""
    start, points = time.monotonic(), []
    while not running.done():
        points.append((time.monotonic() - start, max(rig.worker_megabytes())))
        await asyncio.wait([running], timeout=_EVERY_SECONDS)
    return points


async def _check(rig: Rig, tallies: list[Tally], before: int) -> None:
    for tally in tallies:
        if tally.failed:
            raise BenchError(f"soak: {tally.failed} of {tally.requests} requests failed; the first: {tally.failure}")
    asked = sum(t.requests for t in tallies)
    await settled(rig, before + asked)
    if rig.counts()["settled"] != before + asked:
        raise BenchError(f"soak: {asked} requests, but {rig.counts()['settled'] - before} settled")


def _soak(seconds: float, requests: int, points: list[tuple[float, float]]) -> Soak:
    sizes = [mb for _, mb in points]
    half = points[len(points) // 2 :]
    growth = slope(half) * (half[-1][0] - half[0][0])
    return Soak(seconds, requests, sizes[0], sizes[-1], max(sizes), growth, [round(mb, 1) for mb in sizes])
