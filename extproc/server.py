"""`llm-mesh worker`: one process of the processor, wired up: store, gRPC services, housekeeping, drain.

SIGTERM: the health service says NOT_SERVING while requests are still taken, until Envoy has noticed; then the server
stops, and what waits to be settled is settled.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from extproc import config, metrics, wire
from extproc.processor import Processor
from extproc.request_log import RequestLog
from extproc.settling import Settler
from extproc.store import RedisStore
from extproc.worker import Options, Worker

log = logging.getLogger("llm-mesh")
_POLL_SECONDS = 1.0
_FIRST_SECONDS = 0.2  # between two looks for a store that was never reached
_SWEEP_SECONDS = 30.0
_LOAD_SECONDS = 0.05
_SOCKET_MODE = 0o660  # Envoy may run as another user of the group that owns the sockets' directory
_LAST_SETTLE_SECONDS = 5.0  # for what the store did not take before the end
_READY = "llm_mesh"  # the health service's name, as in mesh/envoyfilter/cluster-ext-proc.yaml


def _handlers(processor: Processor, settler: Settler) -> list[grpc.GenericRpcHandler]:
    process = grpc.unary_unary_rpc_method_handler(processor.process, request_deserializer=wire.parse_request)
    logs = grpc.stream_unary_rpc_method_handler(settler.stream_access_logs, request_deserializer=wire.parse_access_logs)
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
        ("grpc.http2.max_ping_strikes", 0),  # Envoy pings every second: taken for abuse, receipts under way were lost
        ("grpc.so_reuseport", 1),
    ]


def _wake_gently() -> None:
    """Batch scheduling, where there is such a thing: gRPC's poller wakes five times a request, and by default each time
    it pushes the thread aside that works on the requests. 8–12 % less CPU (docs/decisions/007)."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def serve(options: Options) -> None:
    """Run one worker until SIGTERM or SIGINT, then drain."""
    _wake_gently()  # before gRPC makes its threads: they inherit it
    catalogue = config.load(Path(options.config).read_bytes(), options.config)
    store = RedisStore(options.redis_url, timeout_seconds=options.redis_timeout_seconds)
    await store.start()
    worker = Worker(options, catalogue, store)
    server = grpc.aio.server(options=_server_options(catalogue.config.max_body_bytes))
    settler = Settler(worker, RequestLog(sys.stdout.fileno()) if options.request_log else None)
    server.add_generic_rpc_handlers(_handlers(Processor(worker), settler))
    health = grpc_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    worker.read_load()
    await worker.poll()
    server.add_insecure_port(options.bind)
    if options.bind.startswith("unix:"):
        Path(options.bind.removeprefix("unix:")).chmod(_SOCKET_MODE)
    await server.start()
    await _tell(health, serving=worker.serves())
    worker.write_status()
    parent = os.getppid()
    gc.collect()
    gc.freeze()  # what lives as long as the worker is not looked through again
    gc.set_threshold(50_000, 20, 50)  # requests leave no cycles behind: the default looks every third one
    housekeeping = [
        asyncio.create_task(_every_second(worker, settler, parent, stopping)),
        asyncio.create_task(_announce(worker, health, stopping)),
        asyncio.create_task(_every_half_minute(worker)),
        *([asyncio.create_task(_watch_load(worker))] if options.load_file else []),
    ]
    await stopping.wait()
    await _tell(health, serving=False)
    await asyncio.sleep(options.drain_seconds)
    settler.stop()
    await server.stop(grace=5.0)
    for task in housekeeping:
        task.cancel()
    await asyncio.gather(*housekeeping, return_exceptions=True)
    await _settle_rest(settler)
    if worker.tracer:
        worker.tracer.close()
    await store.aclose()


async def _settle_rest(settler: Settler) -> None:
    """What is not settled now stays charged as it was reserved: a store that is away gets a moment to come back."""
    deadline = time.monotonic() + _LAST_SETTLE_SECONDS
    await settler.retry_backlog()
    while settler.backlog and time.monotonic() < deadline:
        await asyncio.sleep(_LAST_SETTLE_SECONDS / 50)
        await settler.retry_backlog()
    if settler.backlog:
        log.error("%d requests are not settled: Redis is away", len(settler.backlog))


async def _tell(health: Any, *, serving: bool) -> None:
    answers = health_pb2.HealthCheckResponse
    for name in ("", _READY):
        await health.set(name, answers.SERVING if serving else answers.NOT_SERVING)


async def _announce(worker: Worker, health: Any, stopping: asyncio.Event) -> None:
    """To Envoy's health checks, once, that requests can come."""
    while not worker.serves():
        await asyncio.sleep(_FIRST_SECONDS)
        await worker.poll()
    if not stopping.is_set():
        await _tell(health, serving=True)
        worker.write_status()


async def _every_second(worker: Worker, settler: Settler, parent: int, stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _POLL_SECONDS
        await asyncio.sleep(_POLL_SECONDS)
        worker.measure(max(0.0, loop.time() - due))
        if os.getppid() != parent:
            stopping.set()  # where the kernel does not end orphans
        try:
            await worker.poll()
            worker.reload()
            worker.write_status()
            await settler.retry_backlog()
            worker.backlog = len(settler.backlog)
            metrics.BACKLOG.set(worker.backlog)
        except Exception:
            log.exception("housekeeping failed")


async def _watch_load(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_LOAD_SECONDS)
        try:
            worker.read_load()
        except Exception:
            log.exception("housekeeping failed")


async def _every_half_minute(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            await worker.sweep()
            worker.watch_certificates()
        except Exception:
            log.exception("housekeeping failed")
