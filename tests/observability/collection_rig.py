"""Where a cluster's logs and spans go, on this machine: the collector with our configuration, Loki, and Jaeger in the
place of Tempo, which is no Go module and takes the same OTLP. All of them are the real programs.

The container runtime is played: `Runtime` puts the processor's output into a file, in containerd's frame.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml
from stack_rig import Platform
from stores_rig import Jaeger, Loki

from extproc.local.process import Child, answers, free_port
from observability.__main__ import HERE
from tools.cluster.binaries import COLLECTION, tool
from tools.cluster.build import build

SHIPPED = HERE / "collector" / "collector.yaml"
POD = "llm-gateway-765c689975-8g5wr"
_POD_FOLDER = f"llm_{POD}_0a1b2c3d-0000-4000-8000-000000000001"
_LOOPBACK = "127.0.0.1"
_LOKI = "http://loki-gateway.monitoring.svc.cluster.local"
_TEMPO = "tempo.monitoring.svc.cluster.local:4317"
_JAEGER = {  # what listens by itself -> our name for it, where somebody asks there
    "admin.http.": "jaeger-admin",
    "query.http-server.": "jaeger",
    "collector.otlp.grpc.": "spans",
    "collector.otlp.http.": "",
    "collector.grpc-server.": "",
    "collector.http-server.": "",
    "query.grpc-server.": "",
    "http-server.": "",
    "processor.jaeger-binary.server-": "",
    "processor.jaeger-compact.server-": "",
    "processor.zipkin-compact.server-": "",
}


class Collection:
    """Made before the platform, whose processor is told `environment`; `beside` starts the three programs."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.runtime = Runtime(directory / "pods")
        self._ports: dict[str, int] = {}

    def at(self, name: str) -> str:
        """The address that is kept for this listener."""
        return f"{_LOOPBACK}:{self._port(name)}"

    def _port(self, name: str) -> int:
        while name not in self._ports:
            if (port := free_port()) not in self._ports.values():
                self._ports[name] = port
        return self._ports[name]

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.at('otlp-http')}", "OTEL_BSP_SCHEDULE_DELAY": "100"}

    @contextmanager
    def beside(self, platform: Platform) -> Iterator[None]:
        for recipe in COLLECTION:
            build(recipe)
        self.runtime.reads(platform.stack.children["processor"].log)
        self._start(platform, "loki", f"http://{self.at('loki')}/ready", *self._loki())
        quiet = {"OTEL_TRACES_SAMPLER": "always_off"}  # of itself: it would send its own spans to port 4317
        self._start(platform, "jaeger", f"http://{self.at('jaeger-admin')}/", *self._jaeger(), **quiet)
        self.runtime.catch_up()
        self._start(platform, "collector", f"http://{self.at('health')}/", f"--config={self._collector()}")
        with Loki(self.at("loki")) as self.loki, Jaeger(self.at("jaeger")) as self.jaeger:
            yield

    def _start(self, platform: Platform, name: str, ready: str, *arguments: str, **environment: str) -> None:
        child = Child(name, [str(tool(name)), *arguments], self.directory / f"{name}.log", environment)
        platform.stack.children[name] = child
        platform.stack._probes[name] = partial(answers, ready)
        platform.do(platform.stack.restart(name))

    def said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def _collector(self) -> Path:
        """What is shipped, with the addresses and folders of this machine, and without a port for its own metrics."""
        text = SHIPPED.read_text()
        (self.directory / "offsets").mkdir()
        for shipped, here in {
            "0.0.0.0:13133": self.at("health"),
            "0.0.0.0:4317": self.at("otlp-grpc"),
            "0.0.0.0:4318": self.at("otlp-http"),
            "/var/log/pods/": f"{self.directory}/pods/",
            "/var/lib/collector": str(self.directory / "offsets"),
            _LOKI: f"http://{self.at('loki')}",
            _TEMPO: self.at("spans"),
        }.items():
            assert text.count(shipped) == 1, f"{SHIPPED} no longer says {shipped}"
            text = text.replace(shipped, here)
        configuration = yaml.safe_load(text)
        configuration["service"]["telemetry"] = {"metrics": {"level": "none"}}
        path = self.directory / "collector.yaml"
        path.write_text(yaml.safe_dump(configuration))
        return path

    def _loki(self) -> list[str]:
        data = self.directory / "loki"
        return [
            f"-config.file={Path(__file__).with_name('loki.yaml')}",
            f"-server.http-listen-address={_LOOPBACK}",
            f"-server.http-listen-port={self._port('loki')}",
            f"-server.grpc-listen-address={_LOOPBACK}",
            f"-server.grpc-listen-port={self._port('loki-grpc')}",
            f"-common.path-prefix={data}",
            f"-common.storage.filesystem.chunk-directory={data}/chunks",
            f"-common.storage.filesystem.rules-directory={data}/rules",
        ]

    def _jaeger(self) -> list[str]:
        return [f"--{flag}host-port={self.at(listener or flag)}" for flag, listener in _JAEGER.items()]


class Runtime:
    """Writes what a container said into its log file, each line in the runtime's frame."""

    def __init__(self, pods: Path) -> None:
        self._said = Path()
        self._read = 0
        self.file = pods / _POD_FOLDER / "processor" / "0.log"
        self.file.parent.mkdir(parents=True)

    def reads(self, said: Path) -> None:
        self._said = said

    def catch_up(self) -> None:
        """What was said since the last time. Stops at the last whole line."""
        text = self._said.read_bytes()[self._read :]
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        self.write(*(("F", line) for line in text.decode().splitlines()))

    def rotate(self) -> None:
        """As the kubelet does with a file that is large enough."""
        self.file.rename(self.file.with_name("0.log.20261123-220000"))

    def write(self, *lines: tuple[str, str]) -> None:
        """Each is whole (F), or a part (P) of one that ends with the next F."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "000Z")
        with self.file.open("a") as file:
            file.writelines(f"{now} stdout {tag} {line}\n" for tag, line in lines)
