"""How values of time are spread: exact percentiles, from all of them. Pure."""

import math
from collections.abc import Iterable, Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    p999: float
    max: float


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(seconds: Iterable[float]) -> Spread | None:
    ordered = sorted(seconds)
    if not ordered:
        return None
    p50, p95, p99, p999 = (quantile(ordered, share) * 1000 for share in (0.5, 0.95, 0.99, 0.999))
    mean = math.fsum(ordered) / len(ordered) * 1000
    return Spread(len(ordered), mean, p50, p95, p99, p999, ordered[-1] * 1000)
