"""Mixed load for long: do memory, file descriptors and latency stay where they are?"""

import asyncio

import msgspec
import psutil
from figures import slope
from load import Load, Tally
from measure import BenchError, fresh, settled
from rich.progress import track
from rig import ALONE, PLATFORM, PROCESSOR, Rig
from scenarios import cached, indebted, plain, streaming

WINDOWS = 15  # of the whole: a sample of each series at the end of each
_PARTS = {"worker": PROCESSOR, "Envoy": PLATFORM, "Valkey": "Valkey"}


class Soak(msgspec.Struct):
    """A series has one value a window: "worker MB", "Envoy open files", "miss p99 ms" …"""

    seconds: float
    requests: int
    series: dict[str, list[float]]

    def growth(self, name: str) -> float:
        """Over the run's second half, by the line through its values."""
        values = self.series[name]
        half = [(float(at), value) for at, value in enumerate(values)][len(values) // 2 :]
        return slope(half) * (len(half) - 1) if len(half) > 1 else 0.0


async def soak(rig: Rig, seconds: float) -> Soak:
    """Misses, hits, refusals, large prompts and streams at once, at about half of what one worker carries."""
    found = Soak(seconds, 0, {})
    for _ in track(range(WINDOWS), "soak", transient=True):
        loads = [_of_window(rig, load, seconds / WINDOWS) for load in await _mix(rig)]
        before = rig.counts()
        tallies = await asyncio.gather(*(rig.drive(load) for load in loads))
        await _check(rig, tallies, before)
        found.requests += sum(t.requests for t in tallies)
        for name, value in _sample(rig, tallies[0]).items():
            found.series.setdefault(name, []).append(round(value, 2))
    return found


async def _mix(rig: Rig) -> list[Load]:
    """The first is the one whose latency is looked at. Made anew for each window: a debt is paid in minutes."""
    key, paced = rig.stack.api_key, msgspec.structs.replace
    return [
        Load(0, **plain(key), connections=250, rate=250.0),
        Load(0, **plain(key, words=44_000), connections=20, rate=5.0),
        paced(await cached(rig), connections=50, rate=250.0),
        paced(await indebted(rig), connections=50, rate=100.0),
        streaming(rig, connections=50, seconds=2.0),
    ]


def _of_window(rig: Rig, load: Load, seconds: float) -> Load:
    first = load.first if load.pool else fresh()
    return msgspec.structs.replace(load, port=rig.ports[PLATFORM], seconds=seconds, first=first)


def _sample(rig: Rig, misses: Tally) -> dict[str, float]:
    found = {"miss p50 ms": misses.p50, "miss p99 ms": misses.p99}
    for name, part in _PARTS.items():
        processes: list[psutil.Process] = rig.parts[part]
        found[f"{name} MB"] = max(p.memory_info().rss for p in processes) / 1e6
        found[f"{name} open files"] = max(p.num_fds() for p in processes)
    return found


async def _check(rig: Rig, tallies: list[Tally], before: dict[str, int]) -> None:
    """Where the machine stalls for longer than the store's time-out, a worker grants its own share of a limit: what
    should be refused may then pass."""
    asked = sum(t.requests for t in tallies)
    await settled(rig, before["settled"] + asked)
    new = {name: count - before[name] for name, count in rig.counts().items()}
    for tally in tallies:
        if tally.failed > new[ALONE]:
            raise BenchError(f"soak: {tally.failed} of {tally.requests} requests failed; the first: {tally.failure}")
    if new["settled"] != asked:
        raise BenchError(f"soak: {asked} requests, but {new['settled']} settled")
