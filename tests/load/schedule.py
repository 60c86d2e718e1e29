"""When each request is due, and which question it asks: fixed before the first is sent. Pure.

A slow server can not slow these arrivals down, and the same seed gives the same run. Rates are requests a second.
"""

import random
from array import array
from collections.abc import Iterator
from itertools import accumulate

import msgspec


class Stage(msgspec.Struct, frozen=True):
    """A stretch of time over which the rate goes in a line from `start` to `end`."""

    seconds: float
    start: float
    end: float


class Arrivals(msgspec.Struct, frozen=True):
    stages: tuple[Stage, ...]
    seed: int = 0  # Poisson arrivals drawn with it; 0 = evenly spaced

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


class Questions(msgspec.Struct, frozen=True):
    """The number in each request. Without a pool every one is new, with it they repeat as Zipf's law says."""

    first: int = 0
    pool: int = 0
    exponent: float = 1.0
    seed: int = 1


def constant(rate: float, seconds: float, seed: int = 0) -> Arrivals:
    return Arrivals((Stage(seconds, rate, rate),), seed)


def due_times(arrivals: Arrivals) -> "array[float]":
    """Seconds since the start, ascending.

    The n-th request is due when the area under the rate has grown to n - ½, or, for Poisson arrivals, to the sum of n
    exponential steps.
    """
    due = array("d")
    areas = _steps(arrivals)
    area, began, passed = next(areas), 0.0, 0.0
    for stage in arrivals.stages:
        whole = stage.seconds * (stage.start + stage.end) / 2
        while area < passed + whole:
            due.append(began + _when(stage, area - passed))
            area = next(areas)
        passed += whole
        began += stage.seconds
    return due


def _steps(arrivals: Arrivals) -> Iterator[float]:
    if not arrivals.seed:
        area = 0.5
        while True:
            yield area
            area += 1.0
    chooser = random.Random(arrivals.seed)
    area = 0.0
    while True:
        area += chooser.expovariate(1.0)
        yield area


def _when(stage: Stage, area: float) -> float:
    """The moment of the stage at which the area under its rate is so large."""
    slope = (stage.end - stage.start) / stage.seconds
    root = max(0.0, stage.start**2 + 2 * slope * area) ** 0.5
    return min(stage.seconds, 2 * area / (stage.start + root))


def numbers(questions: Questions, count: int) -> list[int]:
    """One for each request."""
    if not questions.pool:
        return list(range(questions.first, questions.first + count))
    weights = accumulate(1 / rank**questions.exponent for rank in range(1, questions.pool + 1))
    ranks = random.Random(questions.seed).choices(range(questions.pool), cum_weights=list(weights), k=count)
    return [questions.first + rank for rank in ranks]


def repeated(asked: list[int]) -> float:
    """The share that was asked before: a cache that forgets nothing and fills at once could hit no more."""
    return 1 - len(set(asked)) / max(1, len(asked))
