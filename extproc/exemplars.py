"""Exemplars: from a bucket of a histogram to the trace of a request in it.

prometheus_client keeps none where processes share a directory of metrics. So each worker remembers the last traced
request of every bucket and writes them to a file once a second, and the admin port puts the newest of all workers into
what it shows to scrapers that understand them (OpenMetrics). Where nothing is traced nothing is kept or written.
"""

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import msgspec
from prometheus_client import Histogram
from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar as Shown
from prometheus_client.utils import floatToGoString

_BUCKET = "_bucket"
_FILE = "exemplars-"


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """As a worker writes it."""

    metric: str
    labels: dict[str, str]  # the bucket's `le` too
    trace_id: str
    value: float
    time: float  # epoch seconds


class Exemplars:
    """One worker's. There are as many as buckets were hit, at most."""

    def __init__(self) -> None:
        self._last: dict[tuple[Histogram, tuple[str, ...], int], tuple[str, float, float]] = {}
        self._changed = False

    def put(self, metric: Histogram, labels: tuple[str, ...], value: float, trace_id: str, time: float) -> None:
        bucket = bisect_left(metric._upper_bounds, value)  # noqa: SLF001
        self._last[metric, labels, bucket] = trace_id, value, time
        self._changed = True

    def all(self) -> list[Exemplar]:
        return [
            Exemplar(metric._name, _labels(metric, labels, bucket), *rest)  # noqa: SLF001
            for (metric, labels, bucket), rest in self._last.items()
        ]

    def write(self, folder: Path, index: int) -> None:
        """Where something has changed."""
        if self._changed:
            self._changed = False
            part = folder / f"{_FILE}{index}.part"
            part.write_bytes(msgspec.json.encode(self.all()))
            part.replace(part.with_suffix(".json"))


def _labels(metric: Histogram, labels: tuple[str, ...], bucket: int) -> dict[str, str]:
    bound = floatToGoString(metric._upper_bounds[bucket])  # type: ignore[no-untyped-call]  # noqa: SLF001
    return {**dict(zip(metric._labelnames, labels, strict=True)), "le": bound}  # noqa: SLF001


def read(folder: Path) -> list[Exemplar]:
    return [
        each
        for path in sorted(folder.glob(f"{_FILE}*.json"))
        for each in msgspec.json.decode(path.read_bytes(), type=list[Exemplar])
    ]


def attach(families: Iterable[Metric], exemplars: Iterable[Exemplar]) -> None:
    """To the buckets that they belong to; the newest counts."""
    newest: dict[tuple[str, frozenset[tuple[str, str]]], Exemplar] = {}
    for each in sorted(exemplars, key=lambda e: e.time):
        newest[each.metric + _BUCKET, frozenset(each.labels.items())] = each
    for family in families:
        family.samples = [
            sample._replace(exemplar=Shown({"trace_id": found.trace_id}, found.value, found.time))
            if (found := newest.get((sample.name, frozenset(sample.labels.items()))))
            else sample
            for sample in family.samples
        ]
