"""The admin port, for all workers together. It is no part of the API and needs no client.

/health   a report; 503 only where no worker serves
/started  200 as soon as a worker runs: what a mesh gives it (the store's certificates) may come later
/ready    200 while a worker takes requests: the store was reached once. That it is away later changes nothing: requests
          go on without it, by the failure policy
/live     200 while this process works; workers that end or hang are its own business
/metrics  Prometheus
/console  for people, behind the admin token: console/
"""

import asyncio
import time
from pathlib import Path

import msgspec
from aiohttp import web

from extproc import console, metrics
from extproc.exposition import Exposition
from extproc.status import Status

_STALE_SECONDS = 5.0


class Admin:
    def __init__(self, runtime: Path, metrics_dir: Path, workers: int, page: console.Options) -> None:
        self._runtime = runtime
        self._exposition = Exposition(runtime, metrics_dir, (metrics.WORKERS, metrics.WORKER_RESTARTS))
        self._workers = workers
        self._console = console.Console(page, self._exposition.read, self._report)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/started", self._started)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/live", self._live)
        app.router.add_get("/metrics", self._metrics)
        self._console.mount(app.router)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self._console.start(f"{host or '127.0.0.1'}:{port}")

    async def stop(self) -> None:
        await self._console.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def forget(self, pid: int) -> None:
        """A worker ended: its gauges end, its counters stay."""
        await asyncio.to_thread(self._exposition.forget, pid)

    async def _health(self, _request: web.Request) -> web.Response:
        health = self._report()
        status = 200 if health["status"] == "ok" or health["status"] == "degraded" else 503
        return web.Response(body=msgspec.json.encode(health), status=status, content_type="application/json")

    def _report(self) -> dict[str, object]:
        return summarize(self._statuses(), self._workers)

    async def _started(self, _request: web.Request) -> web.Response:
        return self._count(len(self._statuses()), "run")

    async def _ready(self, _request: web.Request) -> web.Response:
        return self._count(sum(s.serving for s in self._statuses()), "serve")

    def _count(self, workers: int, verb: str) -> web.Response:
        return web.Response(text=f"{workers} of {self._workers} workers {verb}\n", status=200 if workers else 503)

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        statuses = self._statuses()
        counts = {"wanted": self._workers, "alive": len(statuses), "serving": sum(s.serving for s in statuses)}
        for state, count in counts.items():
            metrics.WORKERS.labels(state).set(count)
        text, content_type = await asyncio.to_thread(self._exposition.render, request.headers.get("accept", ""))
        return web.Response(body=text, headers={"content-type": content_type})

    def _statuses(self) -> list[Status]:
        found = []
        for path in sorted(self._runtime.glob("worker-*.json")):
            status = msgspec.json.decode(path.read_bytes(), type=Status)
            if time.time() - status.time < _STALE_SECONDS:
                found.append(status)
        return found


def summarize(statuses: list[Status], workers: int) -> dict[str, object]:
    """`ok`; `degraded`: requests are answered, but something is away; `down`: no worker answers."""
    models = {m: "up" for s in statuses for m in s.models}
    models |= {m: "no healthy upstream" for s in statuses for m in s.models_down}
    redis = bool(statuses) and all(s.store_up for s in statuses)
    errors = sorted({s.config_error for s in statuses if s.config_error})
    whole = redis and len(statuses) == workers and not errors and all(state == "up" for state in models.values())
    return {
        "status": "down" if not statuses else "ok" if whole else "degraded",
        "redis": "up" if redis else "down",
        "models": models,
        "workers": {"wanted": workers, "alive": len(statuses), "pids": [s.pid for s in statuses]},
        "config": {"revisions": sorted({s.revision for s in statuses}), "errors": errors},
        "settlement_backlog": sum(s.backlog for s in statuses),
    }
