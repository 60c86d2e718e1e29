"""Samples of the workers' metrics over time, and what they say now.

One sample every five seconds, so that the page has its history at once, and one a second at most while somebody looks.
A sample is a read of the workers' shared files in a thread: none of it is on a request's path. Where that read gets
slow (many tenants), samples get rarer: at most a twentieth of a core goes into them.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version

import msgspec
from prometheus_client import Metric

from extproc.console import ring, shapes
from extproc.console.sample import NOTHING, Sample, take

log = logging.getLogger("llm-mesh")
_FRESH_SECONDS = 0.9  # a poll a second finds a new sample each time
_SHARE = 20


class Sampler:
    def __init__(self, families: Callable[[], Iterable[Metric]], health: Callable[[], dict[str, object]]) -> None:
        self._families = families
        self._health = health
        self._ring = ring.Ring()
        self._reading = asyncio.Lock()
        self._took_seconds = 0.0
        self._started_ms = time.time_ns() // 1_000_000
        self._instance = socket.gethostname()
        self._version = version("llm-mesh")

    async def keep(self, wanted: Callable[[], bool]) -> None:
        """Until cancelled."""
        while True:
            if wanted():
                try:
                    await self.refresh(ring.STEP_SECONDS / 2)
                except Exception:
                    log.exception("the console could not read the metrics")
            await asyncio.sleep(ring.STEP_SECONDS)

    async def refresh(self, max_age_seconds: float = _FRESH_SECONDS) -> None:
        async with self._reading:
            if self._ring.age(time.monotonic()) >= max(max_age_seconds, _SHARE * self._took_seconds):
                self._ring.add(await asyncio.to_thread(self._take))

    def _take(self) -> Sample:
        began = time.monotonic()
        sample = take(self._families(), began, time.time_ns() // 1_000_000)
        self._took_seconds = time.monotonic() - began
        return sample

    async def live(self, since_ms: int) -> shapes.Live:
        await self.refresh()
        now, health = self._ring, msgspec.convert(self._health(), shapes.Health)
        return shapes.Live(
            time_ms=now.last.time_ms,
            started_ms=self._started_ms,
            instance=self._instance,
            version=self._version,
            rate_seconds=ring.RATE_SECONDS,
            ratio_seconds=ring.RATIO_SECONDS,
            history_seconds=ring.HISTORY_SECONDS,
            health=health,
            total=now.total(),
            totals=ring.totals(now.last.total),
            models=[self._model(name, health) for name in dict.fromkeys((*health.models, *now.last.models))],
            arms=now.arms(),
            refused=now.refused(),
            workers=now.busy(),
            unsettled=now.last.unsettled,
            history=now.history(since_ms),
        )

    def _model(self, name: str, health: shapes.Health) -> shapes.Model:
        last = self._ring.last
        return shapes.Model(
            name,
            health.models.get(name, ""),
            self._ring.model(name),
            ring.totals(last.models.get(name, NOTHING)),
            in_flight=last.in_flight.get(name, 0),
            room=last.room.get(name, 0),
        )
