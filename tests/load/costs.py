"""From what the parts used, looked at once a second, to the cost of a stream and of a chunk. Pure."""

from collections.abc import Mapping, Sequence

import msgspec
from orders import Progress


class Sample(msgspec.Struct, frozen=True):
    progress: Progress
    cpu_seconds: dict[str, float]  # by part, since its start
    megabytes: dict[str, float]  # resident


class Plateau(msgspec.Struct, frozen=True):
    """The stretch in which nothing came and nothing ended: only chunks passed."""

    seconds: float
    streams: int
    chunks_per_second: float
    us_per_chunk: dict[str, float]


class Cost(msgspec.Struct, frozen=True):
    """Of one run. CPU is user and system time; all of it is divided by the requests, and again by the chunks."""

    us_per_request: dict[str, float]
    us_per_chunk: dict[str, float]  # {} without streams
    cores: dict[str, float]  # used on average
    plateau: Plateau | None
    megabytes_before: dict[str, float]
    megabytes_most: dict[str, float]
    kilobytes_per_stream: dict[str, float]  # growth from before to the peak of open streams; {} if there were few
    samples: list[Sample]


_FEW_STREAMS = 100  # less than that says nothing about the memory of one
_LEAST_SAMPLES = 4


def cost(before: Sample, samples: Sequence[Sample], after: Mapping[str, float], requests: int) -> Cost:
    """`after` is the CPU by part once everything is settled."""
    used = {part: seconds - before.cpu_seconds[part] for part, seconds in after.items()}
    chunks, seconds = samples[-1].progress.chunks, samples[-1].progress.at
    peak = max(samples, key=lambda sample: sample.progress.streaming)
    streams = peak.progress.streaming
    grown = {part: peak.megabytes[part] - size for part, size in before.megabytes.items()}
    return Cost(
        us_per_request={part: 1e6 * s / requests for part, s in used.items()},
        us_per_chunk={part: 1e6 * s / chunks for part, s in used.items()} if chunks else {},
        cores={part: s / seconds for part, s in used.items()},
        plateau=plateau(samples),
        megabytes_before=dict(before.megabytes),
        megabytes_most={part: max(s.megabytes[part] for s in samples) for part in before.megabytes},
        kilobytes_per_stream=(
            {part: 1000 * mb / streams for part, mb in grown.items()} if streams >= _FEW_STREAMS else {}
        ),
        samples=list(samples),
    )


def plateau(samples: Sequence[Sample]) -> Plateau | None:
    """The longest stretch of samples between which no request came or ended."""
    stretches: list[list[Sample]] = [[]]
    for sample in samples:
        if stretches[-1] and _moved(stretches[-1][-1].progress, sample.progress):
            stretches.append([])
        stretches[-1].append(sample)
    longest = max(stretches, key=len)
    first, last = longest[0], longest[-1]
    chunks = last.progress.chunks - first.progress.chunks
    if len(longest) < _LEAST_SAMPLES or not chunks or first.progress.streaming < _FEW_STREAMS:
        return None
    seconds = last.progress.at - first.progress.at
    used = {part: s - first.cpu_seconds[part] for part, s in last.cpu_seconds.items()}
    return Plateau(
        seconds, first.progress.streaming, chunks / seconds, {part: 1e6 * s / chunks for part, s in used.items()}
    )


def _moved(before: Progress, after: Progress) -> bool:
    return (before.due, before.answered, before.refused, before.failed, before.streaming) != (
        after.due, after.answered, after.refused, after.failed, after.streaming,
    )  # fmt: skip


def columns(cost: Cost) -> list[tuple[str, dict[str, float], int]]:
    """What there is to show: a title, the figures by part, and their digits after the point."""
    found = [
        ("cores", cost.cores, 2),
        ("µs a request", cost.us_per_request, 0),
        ("µs a chunk", cost.us_per_chunk, 1),
        ("µs alone", cost.plateau.us_per_chunk if cost.plateau else {}, 1),
        ("MB before", cost.megabytes_before, 1),
        ("MB at most", cost.megabytes_most, 1),
        ("kB a stream", cost.kilobytes_per_stream, 1),
    ]
    return [column for column in found if column[1]]


def rows(cost: Cost) -> list[list[str]]:
    """A line for each part, in the order of the columns."""
    shown = columns(cost)
    return [
        [part, *(f"{of[part]:,.{digits}f}" if part in of else "–" for _, of, digits in shown)] for part in cost.cores
    ]
