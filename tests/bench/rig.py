"""What is measured: the platform, and beside it the same Envoy without our filters before the same backend.

`Rig` starts both, knows the port of each variant, and reads what each part says of itself: CPU time, memory, counters.
"""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil
from load import Load, Tally
from process_tree import pin

from extproc.local.bootstrap import bootstrap
from extproc.local.process import Child, StackError, answers, free_port
from extproc.local.stack import Settings, Stack, envoy_program

HERE = Path(__file__).parent
CONFIG = HERE / "llm-mesh.yaml"
DIRECT, ENVOY, PLATFORM = "direct", "Envoy only", "platform"
PROCESSOR = "processor"
MESSAGES = "messages"
ALONE = "admitted without the store"
CACHE = ("hit", "miss", "bypass")


class Rig:
    """`simulator` are more arguments for the simulated backend; with `fixed` backend.py takes its place.

    Without `beside` there is no plain Envoy.
    """

    def __init__(
        self,
        directory: Path,
        simulator: Iterable[str] = (),
        *,
        fixed: bool = False,
        pinned: bool = False,
        workers: int = 1,
        beside: bool = True,
        config: Path = CONFIG,
    ) -> None:
        self.pinned = pinned
        self.beside = beside
        self.ports: dict[str, int] = {}
        self.parts: dict[str, list[psutil.Process]] = {}
        self.backend: Child | None = None
        simulated = ("--no-enable-prefix-caching", "--max-num-seqs", "100000", *simulator)
        settings = Settings(directory, config, workers=workers, simulator=simulated, drain_seconds=0.1)
        if fixed:
            port = free_port()
            settings = msgspec.structs.replace(settings, backend=f"http://127.0.0.1:{port}")
            self.backend = Child(
                "backend", [sys.executable, str(HERE / "backend.py"), str(port)], directory / "fixed.log"
            )
        self.stack = Stack(settings)

    async def __aenter__(self) -> Self:
        try:
            if self.backend:
                await self.backend.start()
                await self.backend.ready(partial(answers, self.stack.settings.backend + "/health"))
            await self.stack.__aenter__()
            await self._complete()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Who asks stops first."""
        if "plain" in self.stack.children:
            await self.stack.children["plain"].stop()
        await self.stack.stop()
        if self.backend:
            await self.backend.stop()

    async def _complete(self) -> None:
        ((self.model, address),) = self.stack.models.items()
        port = int(address.rpartition(":")[2])
        self.ports = {DIRECT: port, PLATFORM: self.stack.http_port}
        if self.beside:
            self.ports[ENVOY] = await self._start_plain()
        children = self.stack.children
        self.parts = {
            PLATFORM: [psutil.Process(children["envoy"].pid)],
            ENVOY: [psutil.Process(children["plain"].pid)] if self.beside else [],
            "supervisor": [psutil.Process(children[PROCESSOR].pid)],
            PROCESSOR: [psutil.Process(pid) for pid in self._health()["workers"]["pids"]],
            "Valkey": [psutil.Process(children["valkey"].pid)],
            "backend": [psutil.Process((self.backend or children[f"backend-{self.model}"]).pid)],
        }
        if self.pinned:
            self._pin()

    def _pin(self) -> None:
        """The gateway on the first core; backend and load client on the second."""
        for name, processes in self.parts.items():
            for process in processes:
                pin(process, 1 if name == "backend" else 0)

    async def _start_plain(self) -> int:
        site = self.stack._site()
        site = msgspec.structs.replace(site, http_port=free_port(), admin_port=free_port())
        path = self.stack.settings.directory / "plain.json"
        path.write_bytes(msgspec.json.encode(plain(bootstrap(self.stack.settings.mesh, site), self.model)))
        command = [envoy_program(), "-c", str(path), "--concurrency", str(self.stack.settings.envoy_concurrency)]
        child = Child("plain", [*command, "--use-dynamic-base-id", "--log-level", "warning"], path.with_suffix(".log"))
        self.stack.children["plain"] = child
        await child.start()
        await child.ready(partial(answers, f"http://127.0.0.1:{site.http_port}/health"))
        return site.http_port

    # --- load ---------------------------------------------------------------------------------------------------------

    async def drive(self, load: Load) -> Tally:
        """Run the load client."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "client.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if self.pinned:
            psutil.Process(process.pid).cpu_affinity([1])
        out, _ = await process.communicate(msgspec.json.encode(load))
        if process.returncode:
            raise StackError("the load client failed")
        return msgspec.json.decode(out, type=Tally)

    # --- what the parts say -------------------------------------------------------------------------------------------

    def cpu_seconds(self, variant: str) -> dict[str, float]:
        """Used since the start, by part; "Envoy" is that of the variant."""
        used = {name: sum(_cpu(p) for p in processes) for name, processes in self.parts.items()}
        envoys = {DIRECT: 0.0, ENVOY: used.pop(ENVOY), PLATFORM: used.pop(PLATFORM)}
        return {"Envoy": envoys[variant], **used}

    def others(self) -> Callable[[], float]:
        """Call it later: how many cores did processes that are not ours use since now?"""
        start, busy = time.monotonic(), self._others_seconds()
        return lambda: max(0.0, (self._others_seconds() - busy) / (time.monotonic() - start))

    def _others_seconds(self) -> float:
        machine, here = psutil.cpu_times(), os.times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        ours = sum(_cpu(p) for processes in self.parts.values() for p in processes)
        return float(busy - ours - sum(here[:4]))  # ours, and the load clients that ended

    def worker_megabytes(self) -> list[float]:
        return [p.memory_info().rss / 1e6 for p in self.parts[PROCESSOR]]

    def envoy_megabytes(self) -> float:
        return sum(p.memory_info().rss / 1e6 for p in self.parts[PLATFORM])

    def counts(self) -> dict[str, int]:
        """Counters since the start, by our own names."""
        processor = _get(self.stack.admin_url + "/metrics")
        backend = _get(f"http://127.0.0.1:{self.ports[DIRECT]}/metrics")
        envoy = _get(f"http://127.0.0.1:{self.stack.envoy_port}/stats")
        settled = (total(processor, "llm_settlements_total", f'result="{r}"') for r in ("applied", "duplicate"))
        lookups = {r: total(processor, "llm_cache_lookups_total", f'model="{self.model}",result="{r}"') for r in CACHE}
        return {
            "receipts dropped": stat(envoy, "access_logs.grpc_access_log.logs_dropped"),
            "receipts not sent": stat(envoy, "access_logs.grpc_access_log.grpc_entries_flush_failed"),
            ALONE: total(processor, "llm_local_admissions_total"),
            "backend": total(backend, "http_requests_total", 'handler="/v1/chat/completions"'),
            "settled": sum(settled),
            **lookups,
            "filled": total(processor, "llm_cache_fills_total"),
            "refused": total(processor, "llm_refused_total"),
            MESSAGES: stat(envoy, "http.gateway.ext_proc.stream_msgs_sent"),
        }

    def _health(self) -> Any:
        return msgspec.json.decode(_get(self.stack.admin_url + "/health"))


def plain(config: dict[str, Any], model: str) -> dict[str, Any]:
    """The platform's bootstrap without what is ours: no filters, no access log, one route."""
    config = deepcopy(config)
    resources = config["static_resources"]
    resources["clusters"] = [c for c in resources["clusters"] if c["name"] == f"model-{model}"]
    del resources["listeners"][1:]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["http_filters"][:-1], manager["access_log"], manager["local_reply_config"]
    route = {"match": {"prefix": "/"}, "route": {"cluster": f"model-{model}", "timeout": "0s"}}
    manager["route_config"]["virtual_hosts"] = [{"name": "llm", "domains": ["*"], "routes": [route]}]
    return config


def total(text: str, name: str, label: str = "") -> int:
    """The sum of a counter's samples that carry the label, out of a /metrics page."""
    lines = (line for line in text.splitlines() if line.startswith((name + "{", name + " ")) and label in line)
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))


def stat(text: str, name: str) -> int:
    """One of Envoy's counters."""
    line = next(line for line in text.splitlines() if line.startswith(name + ": "))
    return int(line.rpartition(" ")[2])


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310  our own processes
        body: bytes = response.read()
    return body.decode()
