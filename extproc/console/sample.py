"""The workers' metrics at one moment, cut down to what the console shows; and what happened between two such moments.

Pure: metric families in, values out. Only metrics.py names metrics: what is picked here is named by those objects.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import msgspec
from prometheus_client import Metric
from prometheus_client.registry import Collector

from extproc import metrics

_COUNTS = {
    metrics.PROMPT: "prompt_tokens",
    metrics.GENERATED: "completion_tokens",
    metrics.COST: "cost_micros",
    metrics.ARM_GENERATED: "completion_tokens",
    metrics.ARM_COST: "cost_micros",
}
_HISTOGRAMS = {
    metrics.TTFT: "ttft",
    metrics.TPOT: "token",
    metrics.DURATION: "duration",
    metrics.OVERHEAD: "overhead",
    metrics.ARM_TTFT: "ttft",
    metrics.ARM_DURATION: "duration",
}
ANSWERED = "good", "failed", "refused", "rejected"
REQUESTS = *ANSWERED, "left"


class Tally(msgspec.Struct):
    """What was counted for one model or arm. Buckets are cumulative, as Prometheus has them: bound -> count."""

    counts: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}

    def add(self, field: str, amount: float) -> None:
        self.counts[field] = self.counts.get(field, 0.0) + amount

    def observe(self, field: str, bound: float, count: float) -> None:
        buckets = self.buckets.setdefault(field, {})
        buckets[bound] = buckets.get(bound, 0.0) + count

    def merge(self, other: Self) -> None:
        for field, amount in other.counts.items():
            self.add(field, amount)
        for field, buckets in other.buckets.items():
            for bound, count in buckets.items():
                self.observe(field, bound, count)

    def count(self, *fields: str) -> int:
        return round(sum(self.counts.get(field, 0.0) for field in fields))


NOTHING = Tally()


class Sample(msgspec.Struct):
    """`at` is monotonic seconds, `time_ms` the epoch's. Counters grow from sample to sample."""

    at: float
    time_ms: int
    total: Tally
    models: dict[str, Tally] = {}
    arms: dict[tuple[str, str], Tally] = {}
    refused: dict[str, float] = {}
    worker_cpu_seconds: dict[str, float] = {}
    unsettled: int = 0
    in_flight: dict[str, int] = {}
    room: dict[str, int] = {}  # 0 = no limit


def take(families: Iterable[Metric], at: float, time_ms: int) -> Sample:
    sample = Sample(at, time_ms, Tally())
    for family in families:
        read = _READERS.get(family.name)
        if read is not None:
            for one in family.samples:
                read(sample, one.labels, one.value)
    for tally in sample.models.values():
        sample.total.merge(tally)
    return sample


class Change:
    """From one tally to a later one. A counter that fell was started anew: it counts from nothing."""

    def __init__(self, before: Tally, after: Tally, seconds: float) -> None:
        self._before = before
        self._after = after
        self._seconds = max(seconds, 0.001)

    def count(self, *fields: str) -> float:
        return sum(_grown(self._before.counts.get(f, 0.0), self._after.counts.get(f, 0.0)) for f in fields)

    def per_second(self, *fields: str) -> float:
        return self.count(*fields) / self._seconds

    def ratio(self, part: str, *whole: str) -> float | None:
        of = self.count(*whole)
        return self.count(part) / of if of else None

    def observed(self, field: str) -> int:
        return round(max(self._buckets(field).values(), default=0.0))

    def quantile(self, field: str, q: float) -> float | None:
        return quantile(self._buckets(field), q)

    def _buckets(self, field: str) -> dict[float, float]:
        before = self._before.buckets.get(field, {})
        return {b: _grown(before.get(b, 0.0), n) for b, n in self._after.buckets.get(field, {}).items()}


def quantile(buckets: dict[float, float], q: float) -> float | None:
    """As Prometheus's histogram_quantile: linear within a bucket; beyond the last finite bound it is that bound."""
    ordered = [(0.0, 0.0), *sorted(buckets.items())]
    rank = q * ordered[-1][1]
    if not rank:
        return None
    for (low, below), (high, upto) in pairwise(ordered):
        if upto >= rank:
            return low if high == float("inf") else low + (high - low) * (rank - below) / (upto - below)
    return None


def _grown(before: float, after: float) -> float:
    return after - before if after >= before else after


def _tally_of(sample: Sample, labels: dict[str, str]) -> Tally:
    if "arm" in labels:
        return sample.arms.setdefault((labels["model"], labels["arm"]), Tally())
    return sample.models.setdefault(labels["model"], Tally())


def _read_requests(sample: Sample, labels: dict[str, str], value: float) -> None:
    _tally_of(sample, labels).add(_outcome(labels["status"]), value)


def _outcome(status: str) -> str:
    if status == "429":
        return "refused"
    return {"0": "left", "4": "rejected", "5": "failed"}.get(status[0], "good")


def _read_lookups(sample: Sample, labels: dict[str, str], value: float) -> None:
    _tally_of(sample, labels).add(labels["result"], value)


def _read_refused(sample: Sample, labels: dict[str, str], value: float) -> None:
    sample.refused[labels["reason"]] = sample.refused.get(labels["reason"], 0.0) + value


def _read_cpu(sample: Sample, labels: dict[str, str], value: float) -> None:
    sample.worker_cpu_seconds[labels["worker"]] = value


def _read_unsettled(sample: Sample, _labels: dict[str, str], value: float) -> None:
    sample.unsettled = round(value)


def _read_in_flight(sample: Sample, labels: dict[str, str], value: float) -> None:
    sample.in_flight[labels["model"]] = round(value)


def _read_room(sample: Sample, labels: dict[str, str], value: float) -> None:
    sample.room[labels["model"]] = round(value)


def _count_reader(field: str) -> Any:
    return lambda sample, labels, value: _tally_of(sample, labels).add(field, value)


def _bucket_reader(field: str) -> Any:
    def read(sample: Sample, labels: dict[str, str], value: float) -> None:
        if "le" in labels:
            _tally_of(sample, labels).observe(field, float(labels["le"]), value)

    return read


def _name(metric: Collector) -> str:
    return next(iter(metric.collect())).name


_READERS = {
    _name(metric): read
    for metric, read in (
        *((metric, _count_reader(field)) for metric, field in _COUNTS.items()),
        *((metric, _bucket_reader(field)) for metric, field in _HISTOGRAMS.items()),
        (metrics.REQUESTS, _read_requests),
        (metrics.ARM_REQUESTS, _read_requests),
        (metrics.CACHE_LOOKUPS, _read_lookups),
        (metrics.REFUSED, _read_refused),
        (metrics.WORKER_CPU, _read_cpu),
        (metrics.UNSETTLED, _read_unsettled),
        (metrics.IN_FLIGHT, _read_in_flight),
        (metrics.ROOM, _read_room),
    )
}
