"""How full each model is, and who is turned away first when it fills up.

A model takes so many requests at once: `max_in_flight_per_replica` times the replicas that Envoy finds healthy. What
is under way is Envoy's own count, read a few times a second, and what was sent on since then: nothing is counted up and
down here, so nothing drifts when a process dies. The other gateways' counts come through the store, once a second.
Callers of low priority are turned away first, those of high priority last.

Pure: no IO, and `now` (monotonic seconds) comes in. envoy_clusters.py fetches the readings.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping

import msgspec

from extproc.config import Model, Priority

SHARES: dict[Priority, float] = {"low": 0.5, "normal": 1.0, "high": 1.25}  # of a model's room that each may fill
_STALE_SECONDS = 3.0  # what is older says nothing: better to send on than to turn away for no reason
_REMEMBERED = 10_000  # readings may never come
_KEPT = 0.9  # of what earlier readings said of how long requests take
_DEALT_KEPT = 0.99  # of how they were dealt out to the arms: counts are small


class Reading(msgspec.Struct, frozen=True):
    """One arm's replicas as this pod's Envoy sees them."""

    in_flight: int = 0
    replicas: int = 0  # that requests are sent to
    total: int = 0  # requests ever sent to them


class Readings(msgspec.Struct, frozen=True):
    """What crosses from the supervisor, which asks Envoy, to its workers: a small file."""

    at: float  # monotonic seconds, before Envoy was asked
    models: dict[str, dict[str, Reading]]  # by model and arm


class _Model:
    """What one worker knows of one model."""

    def __init__(self) -> None:
        self.arms: dict[str, Reading] = {}
        self.in_flight = 0  # of all arms, as it was read
        self.sent: deque[float] = deque(maxlen=_REMEMBERED)  # when, by this worker, since the reading
        self._dealt: defaultdict[str, float] = defaultdict(float)  # requests to each arm, lately
        self._busy = self._ended = 0.0  # request-seconds, and requests that ended, of the last readings that saw any
        self._ending = 0.0  # requests a second, just now

    @property
    def takes(self) -> float:
        """Seconds of a request: by Little's law, what is under way by what ends. 0 where nothing was seen yet."""
        if self._ended:
            return self._busy / self._ended
        return math.inf if self._busy else 0.0

    @property
    def replicas(self) -> float:
        """Requests are dealt out to arms by weight, so the arm that is filled first says how many count."""
        dealt = sum(self._dealt[arm] for arm in self.arms)
        if dealt < 1:
            return sum(each.replicas for each in self.arms.values())
        return min(each.replicas * dealt / self._dealt[arm] for arm, each in self.arms.items() if self._dealt[arm])

    def read(self, arms: Mapping[str, Reading], at: float, since_last: float) -> None:
        begun = {arm: max(0, each.total - self.arms[arm].total) for arm, each in arms.items() if arm in self.arms}
        in_flight = sum(each.in_flight for each in arms.values())
        ended = max(0, sum(begun.values()) - in_flight + self.in_flight)
        if self.arms and since_last and (ended or in_flight):
            self._busy = _KEPT * self._busy + in_flight * since_last
            self._ended = _KEPT * self._ended + ended
            self._ending += (ended / since_last - self._ending) / 2
        for arm, count in begun.items() if any(begun.values()) else ():
            self._dealt[arm] = _DEALT_KEPT * self._dealt[arm] + count
        self.arms, self.in_flight = dict(arms), in_flight
        self._forget(at)

    def under_way(self, since: float, now: float, workers: int) -> int:
        """Of those that were read some have ended since, and of those that were sent the ones that take no longer."""
        self._forget(now - self.takes)
        left = max(0.0, self.in_flight - self._ending * since)
        return round(left) + len(self.sent) * workers

    def _forget(self, until: float) -> None:
        while self.sent and self.sent[0] <= until:
            self.sent.popleft()


class Pressure:
    def __init__(self, workers: int) -> None:
        """`workers` in this pod: what one sends on between two readings, the others do as well."""
        self._workers = workers
        self._at = self._heard = -math.inf
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._elsewhere: Mapping[str, int] = {}

    def read(self, readings: Readings) -> None:
        since_last = readings.at - self._at if math.isfinite(self._at) else 0.0
        self._at = readings.at
        for name, arms in readings.models.items():
            self._models[name].read(arms, readings.at, since_last)
        for name in self._models.keys() - readings.models.keys():
            del self._models[name]

    def elsewhere(self, in_flight: Mapping[str, int], now: float) -> None:
        """What the other gateways have under way."""
        self._elsewhere, self._heard = in_flight, now

    def sent(self, model: str, now: float) -> None:
        self._models[model].sent.append(now)

    def in_flight(self, now: float) -> dict[str, int]:
        """Of this pod, for the other gateways."""
        return {name: model.in_flight for name, model in self._models.items() if model.arms and self._known(now)}

    def room(self, model: Model, now: float) -> float:
        """Requests that it takes at once from callers without priority; 0 = there is no limit, or nothing is known."""
        return model.max_in_flight_per_replica * self._models[model.name].replicas if self._known(now) else 0.0

    def under_way(self, model: str, now: float) -> int:
        """At all its replicas, from all gateways: what was read, what was sent since, less what has ended since."""
        here = self._models[model].under_way(min(now - self._at, _STALE_SECONDS), now, self._workers)
        return here + (self._elsewhere.get(model, 0) if now - self._heard <= _STALE_SECONDS else 0)

    def is_full(self, model: Model, priority: Priority, now: float) -> bool:
        """Whether this caller's request is one too many. Where no replica is left, Envoy says so itself."""
        if not model.max_in_flight_per_replica:
            return False
        room = self.room(model, now)
        return room > 0 and self.under_way(model.name, now) >= room * SHARES[priority]

    def _known(self, now: float) -> bool:
        return now - self._at <= _STALE_SECONDS
