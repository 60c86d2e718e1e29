"""What happened to each request of a run, as the generator notes it. Pure.

Times are kept for each request, so percentiles are exact; only the gaps between tokens, of which there are millions,
are counted in buckets 2 % wide.
"""

import math
from array import array
from collections.abc import Sequence

from quantiles import Spread

REFUSALS = {429, 503}  # the caller's limit, the model's room
PENDING, GOOD, REFUSED = 0, 1, 2  # outcomes; the kinds of errors come after them


class Records:
    """What happened to each request, in order of due times. Seconds since the start; 0 = it did not happen."""

    def __init__(
        self, due: "array[float]", traffic: Sequence[int], names: Sequence[str], streams: Sequence[bool]
    ) -> None:
        count = len(due)
        self.names = names
        self.streams = streams
        self.traffic = array("H", traffic)
        self.due = due
        self.sent, self.first, self.ended = (array("d", bytes(8 * count)) for _ in range(3))
        self.outcome = array("H", bytes(2 * count))
        self.hit, self.told_to_wait = bytearray(count), bytearray(count)
        self.prompt_tokens, self.completion_tokens = (array("L", bytes(8 * count)) for _ in range(2))
        self.kinds: list[str] = ["pending", "good", "refused"]
        self.gaps = Gaps()

    def kind(self, error: str) -> int:
        """The outcome that stands for an error."""
        if error not in self.kinds:
            self.kinds.append(error)
        return self.kinds.index(error)


class Gaps:
    """A histogram with buckets 1/32 of a doubling wide, from 1 µs up."""

    def __init__(self) -> None:
        self.counts = array("L", bytes(8 * 1200))
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[int(math.log2(max(seconds, 1e-6) * 1e6) * 32)] += 1
        self.sum += seconds

    def spread(self) -> Spread | None:
        count = sum(self.counts)
        if not count:
            return None
        shares = [0.5, 0.95, 0.99, 0.999, 1.0]
        p50, p95, p99, p999, most = (self._at(math.ceil(share * count)) for share in shares)
        return Spread(count, self.sum / count * 1000, p50, p95, p99, p999, most)

    def _at(self, rank: int) -> float:
        """The middle of the bucket that holds the gap of this rank, in milliseconds."""
        passed = 0
        for bucket, count in enumerate(self.counts):
            passed += count
            if passed >= rank:
                return float(2 ** ((bucket + 0.5) / 32) / 1000)
        raise ValueError(rank)
