"""How full each model is, and who is turned away first when it fills up.

A model takes so many requests at once: `max_in_flight_per_replica` times the replicas that Envoy finds healthy. What
is under way is Envoy's own count, read a few times a second, and what was sent on since then: nothing is counted up and
down here, so nothing drifts when a process dies. The other gateways' counts come through the store, once a second.
Callers of low priority are turned away first, those of high priority last.

Pure: no IO, and `now` (seconds) comes in. envoy_clusters.py fetches the readings.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping

import msgspec

from extproc.config import Model, Priority

SHARES: dict[Priority, float] = {"low": 0.5, "normal": 1.0, "high": 1.25}  # of a model's room that each may fill
_STALE_SECONDS = 3.0  # an older reading says nothing: better to send on than to turn away for no reason
_REMEMBERED = 10_000  # readings may never come
_KEPT = 0.9  # of what earlier readings said about how long requests take


class Reading(msgspec.Struct, frozen=True):
    """One model's replicas as this pod's Envoy sees them."""

    in_flight: int = 0
    replicas: int = 0  # that requests are sent to
    total: int = 0  # requests ever sent to them


class Readings(msgspec.Struct, frozen=True):
    """What crosses from the supervisor, which asks Envoy, to its workers: a small file."""

    at: float  # monotonic seconds
    models: dict[str, Reading]


class _Model:
    """What one worker knows of one model."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.sent: deque[float] = deque(maxlen=_REMEMBERED)  # when, by this worker, since the reading
        self._busy = self._ended = 0.0  # request-seconds, and requests that ended, of the last readings that saw any

    @property
    def seconds(self) -> float:
        """How long a request takes: by Little's law, what is under way by what ends. 0 where nothing was seen yet."""
        if self._ended:
            return self._busy / self._ended
        return math.inf if self._busy else 0.0

    def read(self, reading: Reading, at: float, seconds: float) -> None:
        ended = max(0, reading.total - self.reading.total - reading.in_flight + self.reading.in_flight)
        if seconds and (ended or reading.in_flight):
            self._busy = _KEPT * self._busy + reading.in_flight * seconds
            self._ended = _KEPT * self._ended + ended
        self.reading = reading
        self._forget(at)

    def under_way(self, since: float, now: float, workers: int) -> int:
        """Of those that were read some have ended since, and of those that were sent the ones that take no longer."""
        takes = self.seconds
        self._forget(now - takes)
        left = self.reading.in_flight * (max(0.0, 1 - since / takes) if takes else 1.0)
        return round(left) + len(self.sent) * workers

    def _forget(self, until: float) -> None:
        while self.sent and self.sent[0] <= until:
            self.sent.popleft()


class Pressure:
    def __init__(self, workers: int) -> None:
        """`workers` in this pod: what one sends on between two readings, the others do as well."""
        self._workers = workers
        self._at = float("-inf")
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._elsewhere: Mapping[str, int] = {}

    def read(self, readings: Readings) -> None:
        """The first one says nothing about how fast requests end."""
        seconds = readings.at - self._at if self._at > 0 else 0.0
        self._at = readings.at
        for name, reading in readings.models.items():
            self._models[name].read(reading, readings.at, seconds)
        for name in self._models.keys() - readings.models.keys():
            del self._models[name]

    def elsewhere(self, in_flight: Mapping[str, int]) -> None:
        """What the other gateways have under way."""
        self._elsewhere = in_flight

    def sent(self, model: str, now: float) -> None:
        self._models[model].sent.append(now)

    def in_flight(self) -> dict[str, int]:
        """Of this pod, for the other gateways."""
        return {name: model.reading.in_flight for name, model in self._models.items() if model.reading.replicas}

    def replicas(self, model: str) -> int:
        return self._models[model].reading.replicas

    def under_way(self, model: str, now: float) -> int:
        """At all its replicas, from all gateways: what was read, what was sent since, less what has ended since."""
        here = self._models[model].under_way(min(now - self._at, _STALE_SECONDS), now, self._workers)
        return here + self._elsewhere.get(model, 0)

    def is_full(self, model: Model, priority: Priority, now: float) -> bool:
        """Whether this caller's request is one too many. False as long as nothing is known, and for a model without any
        replica: Envoy says that itself."""
        most = model.max_in_flight_per_replica
        if not most or now - self._at > _STALE_SECONDS:
            return False
        room = most * self.replicas(model.name)
        return room > 0 and self.under_way(model.name, now) >= room * SHARES[priority]
