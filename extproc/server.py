"""One worker: the grpc.aio edge of the processor. All waiting is here and in the store; all deciding elsewhere.

`Process` sees each request twice (headers, then the whole body), answers with one decision and closes its stream, so
that no byte of the answer ever passes through Python. `StreamAccessLogs` brings the receipts, which are settled in
batches. A request that can not be decided is refused: a stream that ended without a decision would let it pass.
"""

import asyncio
import hashlib
import itertools
import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from extproc import chat, config, decision, keys, metrics, models_api, receipt, tracing, wire
from extproc.admission import Admission, Claim, Limits, Settlement
from extproc.errors import ApiError, ConfigError, StoreUnavailable, invalid, not_found, too_large, unsupported_media
from extproc.health import Health
from extproc.store import MemoryStore, RedisStore

log = logging.getLogger("llm-mesh")
_POLL_SECONDS = 1.0
_SWEEP_SECONDS = 30.0
_OVERDUE_MS = 120_000  # a reservation this old counts as unsettled
_MAX_BACKLOG = 100_000  # settlements kept while the store is away
_BATCH = 256
_RATIO_WEIGHT = 0.05  # of one receipt in the tokens-per-byte average
_READY = "llm_mesh"  # the health service's name for all of it


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


class Status(msgspec.Struct, frozen=True):
    """What a worker tells the admin port, once a second."""

    index: int
    pid: int
    time: float
    revision: str
    config_error: str
    store_up: bool
    models: list[str]
    models_down: list[str]
    backlog: int


class Worker:
    def __init__(self, options: Options, catalogue: config.Catalogue, store: RedisStore) -> None:
        self.options = options
        self.catalogue = catalogue
        self.store = store
        self.local = MemoryStore(_now_ms)
        self.keys = keys.KeyRing(store, catalogue.config.key_grace_seconds)
        self.health = Health(catalogue.config.down_seconds * 1000)
        self.ratios: dict[str, float] = {}
        self.backlog: deque[Settlement] = deque(maxlen=_MAX_BACKLOG)
        self.tracer = tracing.Tracer() if tracing.wanted() else None
        self.store_up = True
        self.config_error = ""
        self._ids = (f"{secrets.token_hex(8)}-{n:x}" for n in itertools.count())
        self._learned: set[str] = set()

    # --- the decision -------------------------------------------------------------------------------------------------

    async def process(self, _requests: AsyncIterator[Any], context: Any) -> None:
        message = await context.read()
        if message is grpc.aio.EOF:
            return
        began = time.perf_counter()
        head = wire.read_head(message)
        catalogue = self.catalogue
        endpoint = "models" if models_api.is_ours(head.path) else chat.PATHS.get(head.path, "")
        ticket = decision.Ticket(next(self._ids), endpoint)
        try:
            caller = await self._authenticate(head, catalogue)
            key = caller.key
            ticket = msgspec.structs.replace(ticket, tenant=key.tenant, user=key.user, key_id=key.key_id)
            if head.method == "GET":
                await context.write(wire.answer(models_api.answer(catalogue, head.path, key.models), ticket))
                return
            check_head(head, catalogue.config.max_body_bytes)
            await context.write(wire.CONTINUE)
            spent = time.perf_counter() - began
            message = await context.read()
            if message is grpc.aio.EOF:  # the client left; nothing may be taken for a decision
                await context.abort(grpc.StatusCode.CANCELLED, "no body came")
            began = time.perf_counter() - spent
            reply = await self._decide(head, wire.read_body(message), caller, catalogue, ticket, began)
        except ApiError as error:
            reply = wire.reject(decision.Reject(error, {}, ticket))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            log.exception("request failed")
            failure = ApiError(500, "internal_error", "The request could not be decided.", kind="server_error")
            reply = wire.reject(decision.Reject(failure, {}, ticket))
        await context.write(reply)

    async def _authenticate(self, head: wire.Head, catalogue: config.Catalogue) -> decision.Caller:
        digest = keys.digest(keys.bearer(head.get("authorization")))
        record = self.keys.recall(digest) or await self.keys.find(digest)
        keys.check(record, _now_ms())
        if head.path not in chat.PATHS and not models_api.is_ours(head.path):
            raise not_found(head.method, head.path)
        if (head.method == "POST") != (head.path in chat.PATHS) or head.method not in {"GET", "POST"}:
            raise not_found(head.method, head.path)
        return decision.Caller(record, catalogue.limits_of(record.tenant, record.limits))

    async def _decide(
        self,
        head: wire.Head,
        body: bytes,
        caller: decision.Caller,
        catalogue: config.Catalogue,
        ticket: decision.Ticket,
        began: float,
    ) -> bytes:
        if len(body) > catalogue.config.max_body_bytes:
            raise too_large(catalogue.config.max_body_bytes)
        prompt = chat.read_prompt(chat.PATHS[head.path], body)
        now_ms = _now_ms()
        plan = decision.plan(
            catalogue,
            caller,
            prompt,
            ticket.request_id,
            head.get("cache-control").lower(),
            lambda model: self.ratios.get(model.name, model.tokens_per_byte),
            lambda model: self.health.is_up(model.name, now_ms),
        )
        asked = time.perf_counter()
        admission = await self._admit(plan.claim)
        answered = time.perf_counter()
        traced = tracing.begin(head.get("traceparent")) if self.tracer else None
        ticket = msgspec.structs.replace(
            plan.ticket,
            store_us=int((answered - asked) * 1e6),
            decided_us=int((answered - began) * 1e6),
            trace=traced.header() if traced else "",
            parent=traced.parent if traced else "",
        )
        verdict = decision.decide(msgspec.structs.replace(plan, ticket=ticket), admission)
        if isinstance(verdict, decision.Forward):
            limit = catalogue.config.cache.max_entry_bytes
            return wire.forward(verdict, head, limit, traced.header() if traced else "")
        if isinstance(verdict, decision.Replay):
            return wire.replay(verdict)
        return wire.reject(verdict)

    async def _admit(self, claim: Claim) -> Admission:
        """The store's answer, or while it is away that of our share of the limits, kept in this process."""
        try:
            return await self.store.admit(claim)
        except StoreUnavailable:
            metrics.LOCAL_ADMISSIONS.inc()
            metrics.STORE_ERRORS.labels("admit").inc()
            share = divide(claim.limits, self.options.shares)
            return await self.local.admit(msgspec.structs.replace(claim, limits=share, fingerprint=""))

    # --- the settlement -----------------------------------------------------------------------------------------------

    async def stream_access_logs(self, _requests: AsyncIterator[Any], context: Any) -> bytes:
        while True:
            message = await context.read()
            if message is grpc.aio.EOF:
                return b""
            try:
                batch = [s for r in wire.read_receipts(message) for s in self._account(r)]
            except Exception:
                log.exception("an access-log message could not be read")
                continue
            if batch:
                await self._settle(batch)

    def _account(self, r: receipt.Receipt) -> Iterator[Settlement]:
        """One receipt into metrics, health, calibration and trace; what comes out is the store's part."""
        charged = receipt.charge(r)
        settlement = receipt.settlement(r, charged, self.catalogue.config.cache)
        metrics.count(r, charged, settlement.cost_micros, settlement.fill is not None)
        ticket = r.ticket
        if r.upstream or r.unreachable:
            self._observe_health(ticket.model, r)
        if charged.exact and ticket.prompt_bytes and charged.usage.prompt_tokens:
            self._learn(ticket, charged.usage.prompt_tokens / ticket.prompt_bytes)
        if self.tracer is not None:
            self.tracer.record(r, charged.usage, settlement.cost_micros)
        if ticket.tenant and ticket.endpoint in chat.PATHS.values():
            yield settlement

    def _observe_health(self, model: str, r: receipt.Receipt) -> None:
        if not r.unreachable and not r.status:
            return  # the client left before anything was known
        news = self.health.observe(model, not r.unreachable, _now_ms())
        if news is not None:
            log.warning("model %s is %s", model, "passed over: no healthy upstream" if news else "back")
            _background(self.store.mark_down(model, news))

    def _learn(self, ticket: decision.Ticket, ratio: float) -> None:
        model = self.catalogue.models.get(ticket.model)
        if model is not None:
            old = self.ratios.get(ticket.model, model.tokens_per_byte)
            self.ratios[ticket.model] = old + _RATIO_WEIGHT * (ratio - old)
            self._learned.add(ticket.model)

    async def _settle(self, batch: Sequence[Settlement]) -> None:
        try:
            first = await self.store.settle(batch)
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("settle").inc()
            dropped = max(0, len(self.backlog) + len(batch) - _MAX_BACKLOG)
            metrics.SETTLEMENTS.labels("dropped").inc(dropped)
            self.backlog.extend(batch)
            return
        applied = sum(first)
        metrics.SETTLEMENTS.labels("applied").inc(applied)
        if applied < len(first):
            metrics.SETTLEMENTS.labels("duplicate").inc(len(first) - applied)

    async def retry_backlog(self) -> None:
        """Settle what waited for the store, oldest first. A settlement that had arrived after all is a duplicate."""
        while self.backlog:
            batch = [self.backlog.popleft() for _ in range(min(_BATCH, len(self.backlog)))]
            before = len(self.backlog)
            await self._settle(batch)
            if len(self.backlog) > before:
                return

    # --- what happens every second ------------------------------------------------------------------------------------

    async def poll(self) -> None:
        try:
            shared = await self.store.shared(_OVERDUE_MS)
        except StoreUnavailable:
            self.store_up = False
        else:
            self.store_up = True
            self.keys.confirm(shared.keys_revision)
            self.health.merge(shared.down_until_ms, _now_ms())
            await self._share_ratios(shared.tokens_per_byte)
            metrics.UNSETTLED.set(shared.unsettled)
            await self.retry_backlog()
        metrics.STORE_UP.set(self.store_up)
        metrics.BACKLOG.set(len(self.backlog))
        down = self.health.down()
        for model in self.catalogue.models:
            metrics.MODEL_UP.labels(model).set(model not in down)

    async def _share_ratios(self, shared: dict[str, float]) -> None:
        learned, self._learned = self._learned, set()
        try:
            for model in learned:
                await self.store.share_ratio(model, self.ratios[model])
        except StoreUnavailable:
            self._learned |= learned
        self.ratios.update({m: r for m, r in shared.items() if m not in learned})

    async def sweep(self) -> None:
        try:
            metrics.SWEPT.inc(await self.store.sweep(self.catalogue.config.reservation_seconds * 1000))
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("sweep").inc()

    def adopt(self, catalogue: config.Catalogue) -> None:
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
            store_up=self.store_up,
            models=list(self.catalogue.models),
            models_down=self.health.down(),
            backlog=len(self.backlog),
        )


def check_head(head: wire.Head, max_body_bytes: int) -> None:
    """Raises ApiError for a body that need not be waited for."""
    length = head.get("content-length")
    if length.isdigit() and int(length) > max_body_bytes:
        raise too_large(max_body_bytes)
    media = head.get("content-type").partition(";")[0].strip().lower()
    if media != "application/json":
        raise unsupported_media(f"Send the body as `Content-Type: application/json`, not `{media or 'nothing'}`.")
    encoding = head.get("content-encoding").strip().lower()
    if encoding not in {"", "identity"}:
        raise unsupported_media("Compressed request bodies are not supported: send it without Content-Encoding.")
    if head.end_of_stream:
        raise invalid("The request body is empty: a JSON object is needed.")


def divide(limits: Limits, shares: int) -> Limits:
    """One worker's share of limits that it can not ask the store about. A limit stays a limit: at least 1."""

    def share(value: int) -> int:
        return max(1, value // shares) if value else 0

    return Limits(
        requests_per_minute=share(limits.requests_per_minute),
        burst_requests=share(limits.burst_requests),
        tokens_per_minute=share(limits.tokens_per_minute),
        burst_tokens=share(limits.burst_tokens),
        budget_micros=0,  # money spent before is known to the store alone
        max_in_flight=share(limits.max_in_flight),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_tasks: set[asyncio.Task[Any]] = set()


def _background(work: Any) -> None:
    async def run() -> None:
        try:
            await work
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("publish").inc()

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# --- running one ------------------------------------------------------------------------------------------------------


def _handlers(worker: Worker) -> list[grpc.GenericRpcHandler]:
    process = grpc.stream_stream_rpc_method_handler(worker.process, request_deserializer=wire.parse_request)
    logs = grpc.stream_unary_rpc_method_handler(worker.stream_access_logs, request_deserializer=wire.parse_access_logs)
    return [
        grpc.method_handlers_generic_handler(wire.PROCESS, {"Process": process}),
        grpc.method_handlers_generic_handler(wire.ACCESS_LOGS, {"StreamAccessLogs": logs}),
    ]


def _server_options(max_body_bytes: int) -> list[tuple[str, int]]:
    room = max(16 << 20, 2 * max_body_bytes)  # an access-log message may carry several bodies for the cache
    return [
        ("grpc.max_receive_message_length", room),
        ("grpc.max_send_message_length", room),
        ("grpc.http2.lookahead_bytes", 4 << 20),  # a large prompt without waiting for window updates
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", 1),
    ]


async def serve(options: Options) -> None:
    """Run one worker until SIGTERM or SIGINT, then drain."""
    catalogue = config.load(Path(options.config).read_bytes(), options.config)
    store = RedisStore(options.redis_url, timeout_seconds=options.redis_timeout_seconds)
    await store.start()
    worker = Worker(options, catalogue, store)
    server = grpc.aio.server(options=_server_options(catalogue.config.max_body_bytes))
    server.add_generic_rpc_handlers(_handlers(worker))
    health = grpc_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await worker.poll()
    server.add_insecure_port(options.bind)
    await server.start()
    await _set_health(health, health_pb2.HealthCheckResponse.SERVING)
    _write_status(worker)
    parent = os.getppid()
    housekeeping = [
        asyncio.create_task(_every_second(worker, parent, stopping)),
        asyncio.create_task(_every_half_minute(worker)),
    ]
    await stopping.wait()
    await _set_health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
    await asyncio.sleep(options.drain_seconds)
    await server.stop(grace=5.0)
    for task in housekeeping:
        task.cancel()
    await asyncio.gather(*housekeeping, return_exceptions=True)
    await worker.retry_backlog()
    if worker.tracer:
        worker.tracer.close()
    await store.aclose()


async def _set_health(health: Any, status: Any) -> None:
    for name in ("", _READY):
        await health.set(name, status)


async def _every_second(worker: Worker, parent: int, stopping: asyncio.Event) -> None:
    seen = _digest(worker.options.config)
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        if os.getppid() != parent:
            stopping.set()  # the supervisor is gone: no orphan stays behind
        try:
            await worker.poll()
            seen = _reload(worker, seen)
            _write_status(worker)
        except Exception:
            log.exception("housekeeping failed")


async def _every_half_minute(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            await worker.sweep()
        except Exception:
            log.exception("sweep failed")


def _digest(path: str) -> str:
    """Of the file's bytes: a ConfigMap is swapped by a link, so neither its inode nor its time is a sure sign."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def _reload(worker: Worker, seen: str) -> str:
    """Take a changed file; keep the last good configuration if it is unusable. Returns the digest now seen."""
    path = worker.options.config
    digest = _digest(path)
    if digest == seen:
        return seen
    try:
        worker.adopt(config.load(Path(path).read_bytes(), path))
    except (ConfigError, OSError) as error:
        worker.config_error = str(error)
        metrics.CONFIG_RELOADS.labels("refused").inc()
        log.error("configuration kept at %s: %s", worker.catalogue.revision, error)  # noqa: TRY400  says it all
    else:
        worker.config_error = ""
        metrics.CONFIG_RELOADS.labels("taken").inc()
        log.info("configuration %s", worker.catalogue.revision)
    return digest


def _write_status(worker: Worker) -> None:
    if worker.options.status_file:
        path = Path(worker.options.status_file)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(worker.status()))
        part.replace(path)
