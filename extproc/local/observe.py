"""Prometheus beside the local stack: the rules of observability/, the targets that this stack has.

Labels are those that a cluster's monitors give (observability/collection/): `job`, and on vLLM's series `model` and
`arm`. What has no exporter here (GPUs, Kubernetes, Valkey) is not scraped. The program is Prometheus's own, found on
the path or built by `make tools`.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from extproc.local.process import Child, StackError, answers, free_port

if TYPE_CHECKING:
    from extproc.local.stack import Stack

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "observability" / "rules"


def program(name: str) -> Path:
    """prometheus or promtool: PROMETHEUS_DIR first, then the path, then what `make tools` built. Raises StackError."""
    folder = os.environ.get("PROMETHEUS_DIR")
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found:
        return Path(found)
    cache = Path(os.environ.get("LLM_MESH_CACHE") or "~/.cache/llm-mesh").expanduser()
    built = sorted(cache.glob(f"tools/prometheus-*/bin/{name}"), key=lambda path: path.stat().st_mtime)
    if built:
        return built[-1]
    raise StackError(f"no {name} here: install Debian's package `prometheus`, or build it with `make tools`")


def rule_groups() -> list[Json]:
    """The groups of the PrometheusRule objects, as Prometheus without its operator reads them."""
    objects = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yaml"))]
    return [group for o in objects for group in o["spec"]["groups"]]


def targets(processor: str, envoy: str, models: Mapping[str, str]) -> list[Json]:
    """Scrape configurations for addresses as host:port."""
    vllm = [{"targets": [address], "labels": {"model": name, "arm": "stable"}} for name, address in models.items()]
    return [
        {"job_name": "processor", "static_configs": [{"targets": [processor]}]},
        {"job_name": "envoy", "metrics_path": "/stats/prometheus", "static_configs": [{"targets": [envoy]}]},
        {"job_name": "vllm", "static_configs": vllm},
    ]


def write(directory: Path, scrapes: Sequence[Json], groups: Sequence[Json], interval: str = "5s") -> Path:
    """Prometheus's configuration in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}))
    configuration = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": list(scrapes),
    }
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path


async def observe(stack: "Stack", port: int = 0, groups: Sequence[Json] | None = None, interval: str = "5s") -> str:
    """Start Prometheus beside a running stack, which ends it with its other parts. The URL of its own pages."""
    port = port or free_port()
    directory = stack.settings.directory / "prometheus"
    admin, envoy = f"127.0.0.1:{stack.admin_port}", f"127.0.0.1:{stack.envoy_port}"
    scrapes = targets(admin, envoy, stack.models)
    configuration = write(directory, scrapes, rule_groups() if groups is None else groups, interval)
    child = Child("prometheus", _command(configuration, port), stack.settings.directory / "prometheus.log")
    stack.children[child.name] = child
    await child.start()
    url = f"http://127.0.0.1:{port}"
    await child.ready(partial(answers, f"{url}/-/ready"))
    return url


def _command(configuration: Path, port: int) -> list[str]:
    return [
        str(program("prometheus")),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={configuration.parent / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
