"""From what happened to each request to figures. Pure.

Latency runs from the due time: a server that stalls shows it in every request that was due meanwhile, sent or not.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from quantiles import Spread, quantile, spread
from records import GOOD, REFUSED, Records

_MOST_POINTS = 240  # of a plot
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)


class Sum(msgspec.Struct, frozen=True):
    """Of one kind of traffic, or of all."""

    requests: int
    good: int
    refused: int
    refused_without_wait: int  # and not told when to come back
    failed: int
    hits: int  # answers out of the cache, as they say themselves
    prompt_tokens: int
    completion_tokens: int
    replayed_tokens: int  # those of them that came out of the cache
    ttft: Spread | None  # of streams
    whole: Spread | None  # due time to last byte, of all good answers


class Point(msgspec.Struct, frozen=True):
    """One bin of time. Latencies (ms) are of requests due in it, counts of what happened in it."""

    at: float
    due: int
    answered: int
    refused: int
    errors: dict[str, int]
    ttft_p50: float | None
    ttft_p95: float | None
    whole_p50: float | None
    whole_p95: float | None


class Summary(msgspec.Struct, frozen=True):
    seconds: float  # from the start to the last answer
    bin_seconds: float
    all: Sum
    by_traffic: dict[str, Sum]
    errors: dict[str, int]
    gaps: Spread | None  # between two reads that brought tokens
    late: Spread | None  # the generator's own: due time to the moment of sending
    points: list[Point]
    ttft_curve: list[tuple[float, float]]  # (share, ms)
    whole_curve: list[tuple[float, float]]


def summary(records: Records) -> Summary:
    everything = range(len(records.due))
    ended = max(records.ended, default=0.0)
    width = max(1.0, math.ceil(ended / _MOST_POINTS))
    outcomes = Counter(records.outcome)
    good = [i for i in everything if records.outcome[i] == GOOD]
    return Summary(
        seconds=ended,
        bin_seconds=width,
        all=_sum(records, everything),
        by_traffic={
            name: _sum(records, [i for i in everything if records.traffic[i] == at])
            for at, name in enumerate(records.names)
        },
        errors={records.kinds[kind]: count for kind, count in sorted(outcomes.items()) if kind > REFUSED},
        gaps=records.gaps.spread(),
        late=spread(records.sent[i] - records.due[i] for i in everything if records.sent[i]),
        points=_points(records, width, ended),
        ttft_curve=_curve(_ttfts(records, good)),
        whole_curve=_curve(records.ended[i] - records.due[i] for i in good),
    )


def _sum(records: Records, which: Sequence[int]) -> Sum:
    outcomes = Counter(records.outcome[i] for i in which)
    good = [i for i in which if records.outcome[i] == GOOD]
    refused = [i for i in which if records.outcome[i] == REFUSED]
    return Sum(
        requests=len(which),
        good=len(good),
        refused=len(refused),
        refused_without_wait=sum(not records.told_to_wait[i] for i in refused),
        failed=len(which) - outcomes[GOOD] - outcomes[REFUSED],
        hits=sum(records.hit[i] for i in good),
        prompt_tokens=sum(records.prompt_tokens[i] for i in good),
        completion_tokens=sum(records.completion_tokens[i] for i in good),
        replayed_tokens=sum(records.completion_tokens[i] for i in good if records.hit[i]),
        ttft=spread(_ttfts(records, good)),
        whole=spread(records.ended[i] - records.due[i] for i in good),
    )


def _ttfts(records: Records, which: Iterable[int]) -> list[float]:
    return [records.first[i] - records.due[i] for i in which if records.streams[records.traffic[i]]]


def _points(records: Records, width: float, ended: float) -> list[Point]:
    bins = [_Bin() for _ in range(int(ended / width) + 1)]
    for i, outcome in enumerate(records.outcome):
        begun = bins[min(int(records.due[i] / width), len(bins) - 1)]
        over = bins[int(records.ended[i] / width)]
        begun.due += 1
        over.outcomes[outcome] += 1
        if outcome == GOOD:
            begun.whole.append(records.ended[i] - records.due[i])
            if records.streams[records.traffic[i]]:
                begun.ttft.append(records.first[i] - records.due[i])
    return [each.point(at * width, records.kinds) for at, each in enumerate(bins)]


class _Bin:
    def __init__(self) -> None:
        self.due = 0
        self.outcomes: Counter[int] = Counter()
        self.ttft: list[float] = []
        self.whole: list[float] = []

    def point(self, at: float, kinds: Sequence[str]) -> Point:
        ttft, whole = spread(self.ttft), spread(self.whole)
        return Point(
            at,
            due=self.due,
            answered=self.outcomes[GOOD],
            refused=self.outcomes[REFUSED],
            errors={kinds[kind]: count for kind, count in self.outcomes.items() if kind > REFUSED},
            ttft_p50=ttft and ttft.p50,
            ttft_p95=ttft and ttft.p95,
            whole_p50=whole and whole.p50,
            whole_p95=whole and whole.p95,
        )


def _curve(seconds: Iterable[float]) -> list[tuple[float, float]]:
    """As far as there are values for it: the share 0.999 needs a thousand."""
    ordered = sorted(seconds)
    shares = [share for share in _SHARES if (1 - share) * len(ordered) >= 1 - 1e-9]
    points = [(share, quantile(ordered, share) * 1000) for share in shares]
    return [*points, (1 - 1 / (2 * len(ordered)), ordered[-1] * 1000)] if ordered else []
