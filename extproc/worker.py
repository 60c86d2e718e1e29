"""What one worker knows, and its housekeeping: configuration, keys, health, calibration, once a second.

The processor decides with it and the settler writes to it; both run in one event loop, so nothing here is locked. The
store's word is fetched once a second for all workers' common knowledge. A restart loses the keys it has seen and the
settlements that wait for the store.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

import msgspec

from extproc import config, keys, metrics, tracing
from extproc.admission import Store
from extproc.envoy_clusters import Reader
from extproc.errors import ConfigError, StoreUnavailable
from extproc.exemplars import Exemplars
from extproc.health import Health
from extproc.pressure import Pressure
from extproc.status import Status
from extproc.store import MemoryStore

log = logging.getLogger("llm-mesh")
_OVERDUE_MS = 900_000  # a reservation this old counts as unsettled; few streams last so long
_ALONE_SECONDS = 30.0  # a worker that has never reached the store knows no key: it waits for so long before it serves
_RATIO_WEIGHT = 0.05  # of one receipt in the tokens-per-byte average


class Options(msgspec.Struct, frozen=True):
    """What a worker is started with; everything else is in the configuration file."""

    config: str
    bind: str  # "unix:/dir/worker-0.sock" or "host:port"
    redis_url: str
    index: int = 0
    shares: int = 1  # workers in all, over all replicas: limits are divided by it while the store is away
    status_file: str = ""
    drain_seconds: float = 2.0  # serving on while Envoy's health check notices
    redis_timeout_seconds: float = 0.1
    request_log: bool = False  # a JSON line a request on standard output
    gateway: str = ""  # this pod's name among the gateways
    load_file: str = ""  # where the supervisor leaves what Envoy says of the replicas; "" = nowhere
    workers: int = 1  # in this pod


class Worker:
    def __init__(self, options: Options, catalogue: config.Catalogue, store: Store) -> None:
        self.options = options
        self.catalogue = catalogue
        self.store = store
        self.local = MemoryStore(now_ms)  # decides while the store is away
        self.keys = keys.KeyRing(store, catalogue.config.key_grace_seconds)
        self.health = Health(catalogue.config.down_seconds * 1000)
        self.pressure = Pressure(options.workers)
        self._load = Reader(Path(options.load_file))
        self.ratios: dict[str, float] = {}
        self.tracer = tracing.Tracer() if tracing.wanted() else None
        self.exemplars = Exemplars()
        self.store_up = True
        self.reached = False  # the store, once
        self._begun = time.monotonic()
        self._store_away = ""  # why, as it was told last
        self.config_error = ""
        self.backlog = 0  # the settler's, for the status
        self._learned: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._config_digest = _digest(options.config)
        self._cpu_seconds = 0.0

    # --- what receipts teach ------------------------------------------------------------------------------------------

    def tokens_per_byte(self, model: config.Model) -> float:
        return self.ratios.get(model.name, model.tokens_per_byte)

    def is_up(self, model: config.Model) -> bool:
        return self.health.is_up(model.name, now_ms())

    def is_full(self, model: config.Model, priority: config.Priority) -> bool:
        return self.pressure.is_full(model, priority, time.monotonic())

    def sent(self, name: str) -> None:
        """A request is on its way to a model: if that one is marked, the others wait for this one's receipt."""
        self.pressure.sent(name, time.monotonic())
        self.health.begin_trial(name, now_ms())

    def learn(self, name: str, ratio: float) -> None:
        """One receipt's prompt tokens per body byte into the model's average, which all tenants share: no text of one
        may move it by more than half or double of what is configured."""
        model = self.catalogue.models.get(name)
        if model is not None:
            old = self.tokens_per_byte(model)
            bounded = min(max(ratio, model.tokens_per_byte / 2), model.tokens_per_byte * 2)
            self.ratios[name] = old + _RATIO_WEIGHT * (bounded - old)
            self._learned.add(name)

    def observe(self, model: str, reached: bool) -> None:
        """One receipt's word on its upstream."""
        news = self.health.observe(model, reached, now_ms())
        if news is not None:
            log.warning("model %s is %s", model, "passed over: no healthy upstream" if news else "back")
            task = asyncio.get_running_loop().create_task(self._publish(model, news))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, model: str, until_ms: int) -> None:
        try:
            await self.store.mark_down(model, until_ms)
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("publish").inc()

    def serves(self) -> bool:
        """Whether requests are to be sent here. A store that goes away later changes nothing."""
        return self.reached or time.monotonic() - self._begun > _ALONE_SECONDS

    # --- what happens every second ------------------------------------------------------------------------------------

    async def poll(self) -> None:
        try:
            shared = await self.store.shared(_OVERDUE_MS)
        except StoreUnavailable as error:
            why = str(error)
            if self.store_up or why != self._store_away:  # trouble may change while it lasts, and each kind is told
                log.error("Redis is away: %s", why)  # noqa: TRY400  not a fault of ours
            self.store_up, self._store_away = False, why
        else:
            if not self.store_up:
                log.warning("Redis is back")
            self.store_up = self.reached = True
            self.keys.confirm(shared.keys_revision)
            self.health.merge(shared.down_until_ms, now_ms())
            await self._share_ratios(shared.tokens_per_byte)
            metrics.UNSETTLED.set(shared.unsettled)
            await self._share_load()
        metrics.STORE_UP.set(self.store_up)
        down, now = self.health.down(), time.monotonic()
        for name, model in self.catalogue.models.items():
            metrics.MODEL_UP.labels(name).set(name not in down)
            metrics.IN_FLIGHT.labels(name).set(self.pressure.under_way(name, now))
            metrics.ROOM.labels(name).set(self.pressure.room(model, now))

    async def _share_ratios(self, shared: dict[str, float]) -> None:
        learned, self._learned = self._learned, set()
        try:
            for model in learned:
                await self.store.share_ratio(model, self.ratios[model])
        except StoreUnavailable:
            self._learned |= learned
        self.ratios.update({m: r for m, r in shared.items() if m not in learned | self._learned})

    async def _share_load(self) -> None:
        if self.options.load_file:
            with contextlib.suppress(StoreUnavailable):
                ours = self.pressure.in_flight(time.monotonic())
                others = await self.store.share_load(self.options.gateway, ours)
                self.pressure.elsewhere(others, time.monotonic())

    def read_load(self) -> None:
        """Several times a second: what Envoy said since."""
        news = self._load.news()
        if news is not None:
            self.pressure.read(news)

    async def sweep(self) -> None:
        try:
            metrics.SWEPT.inc(await self.store.sweep(self.catalogue.config.reservation_seconds * 1000))
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("sweep").inc()

    def watch_certificates(self) -> None:
        for name, expires in self.store.certificates().items():
            metrics.CERTIFICATE_EXPIRY.labels(name).set(expires)

    def measure(self, lag_seconds: float) -> None:
        """How busy this process is; the lag is how late its loop was."""
        spent, self._cpu_seconds = self._cpu_seconds, time.process_time()
        metrics.WORKER_CPU.labels(str(self.options.index)).inc(self._cpu_seconds - spent)
        metrics.WORKER_LAG.set(lag_seconds)

    def adopt(self, catalogue: config.Catalogue) -> None:
        for name in self.catalogue.models.keys() - catalogue.models.keys():
            metrics.ROOM.labels(name).set(0)  # its gauges are not set any more, and it is to raise no alarm
        self.catalogue = catalogue
        self.keys.grace_seconds = catalogue.config.key_grace_seconds
        self.health.down_ms = catalogue.config.down_seconds * 1000

    def status(self) -> Status:
        return Status(
            index=self.options.index,
            pid=os.getpid(),
            time=time.time(),
            revision=self.catalogue.revision,
            config_error=self.config_error,
            serving=self.serves(),
            store_up=self.store_up,
            models=list(self.catalogue.models),
            models_down=[m for m in self.health.down() if m in self.catalogue.models],
            backlog=self.backlog,
        )

    def reload(self) -> None:
        """Take a changed file; keep the last good configuration if it is unusable."""
        path = self.options.config
        digest = _digest(path)
        if digest == self._config_digest:
            return
        self._config_digest = digest
        try:
            self.adopt(config.load(Path(path).read_bytes(), path))
        except (ConfigError, OSError) as error:
            self.config_error = str(error)
            metrics.CONFIG_REFUSED.set(1)
            metrics.CONFIG_RELOADS.labels("refused").inc()
            log.error("configuration kept at %s: %s", self.catalogue.revision, error)  # noqa: TRY400  says it all
        else:
            self.config_error = ""
            metrics.CONFIG_REFUSED.set(0)
            metrics.CONFIG_RELOADS.labels("taken").inc()
            log.info("configuration %s", self.catalogue.revision)

    def write_status(self) -> None:
        if self.options.status_file:
            path = Path(self.options.status_file)
            part = path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(self.status()))
            part.replace(path)
            self.exemplars.write(path.parent, self.options.index)


def _digest(path: str) -> str:
    """Of the file's bytes: a ConfigMap is swapped by a link, so neither its inode nor its time is a sure sign."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
