"""`llm-mesh serve`: N workers, restarted when they die, and the admin port.

The supervisor is on no request's path. Workers are separate processes (one grpc.aio event loop uses one core), each on
its own Unix socket; Envoy sees them as endpoints of one cluster. On SIGTERM the workers drain, then it ends.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from extproc import config, console, envoy_clusters, metrics
from extproc.admin import Admin

log = logging.getLogger("llm-mesh")
_RESTART_SECONDS = 0.1  # then doubling while a worker keeps dying at once
_MAX_RESTART_SECONDS = 5.0
_STOP_SECONDS = 15.0
_HUNG_SECONDS = 10.0
# gRPC's older poller: one thread less is woken per message, 10 % less CPU (docs/decisions/007).
_GRPC_EXPERIMENTS = ",".join(
    "-event_engine_" + part for part in ("listener", "client", "for_all_other_endpoints", "callback_cq")
)


class ServeOptions(msgspec.Struct, frozen=True):
    config: str
    sockets: str  # directory of worker-N.sock; "" = `bind` is used
    bind: str  # host:port shared by all workers (SO_REUSEPORT), where there are no sockets
    workers: int
    replicas: int  # of this whole process, over the cluster
    redis_url: str
    admin_host: str
    admin_port: int
    drain_seconds: float
    redis_timeout_ms: int
    request_log: bool = False
    admin_token: str = ""  # for the console; "" = none
    admin_token_file: str = ""  # ditto, read again when it changes
    envoy_admin: str = ""  # host:port of the Envoy beside; "" = full models are not noticed


async def supervise(options: ServeOptions) -> None:
    config.load(Path(options.config).read_bytes(), options.config)  # refuse to start on a bad file, with its line
    runtime = Path(tempfile.mkdtemp(prefix="llm-mesh-"))
    metrics_dir = runtime / "metrics"
    metrics_dir.mkdir()
    if options.sockets:
        Path(options.sockets).mkdir(parents=True, exist_ok=True)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    page = console.Options(options.redis_url, options.config, options.admin_token, options.admin_token_file)
    admin = Admin(runtime, metrics_dir, options.workers, page)
    await admin.start(options.admin_host, options.admin_port)
    load = envoy_clusters.watch(options.envoy_admin, _load_file(runtime)) if options.envoy_admin else asyncio.sleep(0)
    watching = asyncio.create_task(load)
    try:
        await asyncio.gather(
            *(_keep(i, options, runtime, metrics_dir, stopping, admin) for i in range(options.workers))
        )
    finally:
        watching.cancel()
        await admin.stop()
        shutil.rmtree(runtime, ignore_errors=True)


def _load_file(runtime: Path) -> Path:
    return runtime / "load.json"


async def _keep(
    index: int, options: ServeOptions, runtime: Path, metrics_dir: Path, stopping: asyncio.Event, admin: Admin
) -> None:
    """One worker, started again whenever it ends by itself."""
    wait = _RESTART_SECONDS
    loop = asyncio.get_running_loop()
    restarts = metrics.WORKER_RESTARTS.labels(str(index))
    while not stopping.is_set():
        began = loop.time()
        worker = await _start(index, options, runtime, metrics_dir)
        ended = asyncio.create_task(worker.wait())
        stop = asyncio.create_task(stopping.wait())
        hung = asyncio.create_task(_hung(_status_file(runtime, index)))
        await asyncio.wait({ended, stop, hung}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        hung.cancel()
        if hung.done() and not ended.done():
            log.error("worker %d says nothing for %.0f s: ending it", index, _HUNG_SECONDS)
            worker.kill()
            await ended
        if not ended.done():
            await _drain(worker, options.drain_seconds)
        _status_file(runtime, index).unlink(missing_ok=True)  # nobody is to take its last word for news
        await admin.forget(worker.pid)
        if not stopping.is_set():
            restarts.inc()
            log.error("worker %d ended with status %s: starting it again", index, worker.returncode)
            wait = (
                _RESTART_SECONDS if loop.time() - began > _MAX_RESTART_SECONDS else min(2 * wait, _MAX_RESTART_SECONDS)
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), wait)


async def _start(index: int, options: ServeOptions, runtime: Path, metrics_dir: Path) -> asyncio.subprocess.Process:
    bind = f"unix:{Path(options.sockets).resolve()}/worker-{index}.sock" if options.sockets else options.bind
    arguments = {
        "config": options.config,
        "bind": bind,
        "redis": options.redis_url,
        "index": index,
        "shares": options.workers * options.replicas,
        "status-file": _status_file(runtime, index),
        "drain-seconds": options.drain_seconds,
        "redis-timeout-ms": options.redis_timeout_ms,
        "workers": options.workers,
        "gateway": f"{socket.gethostname()}/{runtime.name}",
        "load-file": _load_file(runtime) if options.envoy_admin else "",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "extproc",
        "worker",
        *(f"--{name}={value}" for name, value in arguments.items()),
        *(["--request-log"] if options.request_log else []),
        env={"GRPC_EXPERIMENTS": _GRPC_EXPERIMENTS, **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)},
        start_new_session=True,  # Ctrl-C reaches the supervisor, which drains them
    )


def _status_file(runtime: Path, index: int) -> Path:
    return runtime / f"worker-{index}.json"


async def _hung(status: Path) -> None:
    """Returns when a worker that wrote its status each second has stopped doing so."""
    status.unlink(missing_ok=True)
    while True:
        await asyncio.sleep(1.0)
        if status.exists() and time.time() - status.stat().st_mtime > _HUNG_SECONDS:
            return


async def _drain(worker: asyncio.subprocess.Process, drain_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.terminate()
    try:
        await asyncio.wait_for(worker.wait(), drain_seconds + _STOP_SECONDS)
    except TimeoutError:
        worker.kill()
        await worker.wait()
