"""/metrics: what all workers counted, read from the directory that they share, and what the supervisor knows.

Owns the files of workers that have ended: what they counted stays in the sums, but in one file for all of them, so
that a worker that keeps dying does not make every scrape slower. A scrape and such a merge exclude each other: in
between, what is merged would count twice.
"""

# mypy: disable-error-code="no-untyped-call"
# The library's multiprocess parts are not typed.

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from extproc import exemplars

_SUMS = "counter", "histogram"  # whose values add up
_ENDED = "ended"  # stands where another file has its process's number


class Exposition:
    """`folder` holds the workers' exemplars; `own` are metrics of this process."""

    def __init__(self, folder: Path, metrics_dir: Path, own: Sequence[Collector] = ()) -> None:
        self._folder = folder
        self._metrics_dir = metrics_dir
        self._own = own
        self._lock = threading.Lock()

    def read(self) -> list[Metric]:
        """What the workers counted, summed up. Reads files: not for an event loop."""
        with self._lock:
            return list(MultiProcessCollector(None, path=str(self._metrics_dir)).collect())

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, for a scraper's Accept header. Reads files, as above."""
        encode, content_type = choose_encoder(accept)
        families = self.read()
        exemplars.attach(families, exemplars.read(self._folder))
        for collector in self._own:
            families += collector.collect()
        registry = CollectorRegistry()
        registry.register(_Collected(families))
        return encode(registry), content_type

    def forget(self, pid: int) -> None:
        """A worker ended: its gauges end, its counters stay. Reads and writes files, as above."""
        with self._lock:
            mark_process_dead(pid, path=str(self._metrics_dir))
            for kind in _SUMS:
                path = self._metrics_dir / f"{kind}_{pid}.db"
                if path.exists():
                    if path.stat().st_size:  # else it ended before it wrote anything
                        _add(path, self._metrics_dir / f"{kind}_{_ENDED}.db")
                    path.unlink()


def _add(one: Path, total: Path) -> None:
    values = [(key, value) for key, value, _, _ in MmapedDict.read_all_values_from_file(one)]
    sums = MmapedDict(str(total))
    for key, value in values:
        sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
    sums.close()


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
