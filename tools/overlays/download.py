"""`make download-models`: the model files into the shared cache volume, before a model is deployed.

The Jobs of components/model-download are put on top of an overlay, so that namespace, volume and storage class are that
overlay's; only they and what they name is applied.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from extproc.errors import LlmMeshError
from tools.overlays import build as kustomize
from tools.overlays import preflight
from tools.overlays.checks.references import secret_keys
from tools.overlays.kubectl import ClusterError, Kubectl
from tools.overlays.live import shown
from tools.overlays.objects import Build, Json, at, workload
from tools.overlays.rollout import reason

_COMPONENT = kustomize.OVERLAYS / "components" / "model-download"
_POLL_SECONDS = 3.0
_LAST_LINES = 20


class DownloadError(LlmMeshError):
    """A Job failed or took too long; the message has its last words."""


def run(name: str, kubectl: Kubectl, console: Console, timeout_seconds: float) -> int:
    """Raises DownloadError, PreflightError, BuildError or ClusterError, each with what to do."""
    build = jobs_of(kustomize.find(name))
    console.print(f"models of {escape(name)} -> {escape(preflight.reachable(kubectl))}")
    kubectl.apply(build.of("Namespace"))
    preflight.require_secrets(kubectl, build, secret_keys(build))
    preflight.require_storage(kubectl, build)
    bring_in(build, kubectl, console, timeout_seconds)
    return 0


def bring_in(build: Build, kubectl: Kubectl, console: Console, timeout_seconds: float) -> None:
    """Start the Jobs and follow them to their end. Raises DownloadError."""
    _clear(kubectl, build)
    kubectl.apply(build.objects)
    _follow(kubectl, build, console, timeout_seconds)


def jobs_of(overlay: Path) -> Build:
    """The Jobs on top of the overlay, with what they name. Raises DownloadError where there is nothing to fetch."""
    with tempfile.TemporaryDirectory() as directory:
        kustomization = {"resources": [_relative(overlay, directory)], "components": [_relative(_COMPONENT, directory)]}
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        whole = kustomize.build(Path(directory))
    wanted = {("Job", o["metadata"]["name"]) for o in whole.of("Job")} | _named(whole)
    objects = [o for o in whole.objects if o["kind"] == "Namespace" or (o["kind"], o["metadata"]["name"]) in wanted]
    if not any(o["kind"] == "PersistentVolumeClaim" for o in objects):
        raise DownloadError(f"{overlay.name} has no volume for models: they are simulated, there is nothing to fetch")
    return Build(overlay.name, tuple(objects))


def _relative(path: Path, to: str) -> str:
    return os.path.relpath(path.resolve(), Path(to).resolve())


def _named(build: Build) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for o in build.of("Job"):
        pod = workload(o).pod
        found |= {
            ("ServiceAccount", pod.get("serviceAccountName", "")),
            ("PriorityClass", pod.get("priorityClassName", "")),
        }
        for v in pod.get("volumes") or []:
            found.add(("PersistentVolumeClaim", at(v, "persistentVolumeClaim", "claimName", default="")))
            found.add(("ConfigMap", at(v, "configMap", "name", default="")))
    return found


def _clear(kubectl: Kubectl, build: Build) -> None:
    """A Job that has ended can not be started again: the next run is a new one, and finds the files that are there."""
    ours = {o["metadata"]["name"] for o in build.of("Job")}
    for o in kubectl.get("jobs", build.namespace):
        if o["metadata"]["name"] in ours and _end(o):
            kubectl.run("delete", "job", o["metadata"]["name"], f"--namespace={build.namespace}", "--wait")


def _follow(kubectl: Kubectl, build: Build, console: Console, timeout_seconds: float) -> None:
    """Watch the Jobs until all are complete. Raises DownloadError as soon as one has failed."""
    names = {o["metadata"]["name"] for o in build.of("Job")}
    began = time.monotonic()
    with shown(console) as show:
        while True:
            jobs = [o for o in kubectl.get("jobs", build.namespace) if o["metadata"]["name"] in names]
            took = time.monotonic() - began
            show(_table(_rows(kubectl, build.namespace, jobs), took))
            failed = [o["metadata"]["name"] for o in jobs if _end(o) == "Failed"]
            if failed:
                words = _log(kubectl, build.namespace, failed[0], _LAST_LINES)
                raise DownloadError(f"{failed[0]} failed:\n{words or 'its pods are gone, and their logs'}")
            if len(jobs) == len(names) and all(_end(o) == "Complete" for o in jobs):
                return
            if took > timeout_seconds:
                raise DownloadError(f"not done after {timeout_seconds:.0f} s (TIMEOUT=); the Jobs go on, look again")
            time.sleep(_POLL_SECONDS)


def _rows(kubectl: Kubectl, namespace: str, jobs: Sequence[Json]) -> Iterator[tuple[str, str, str]]:
    """(mark, Job, its end, or why it waits, or its last word)."""
    pods = kubectl.get("pods", namespace)
    events = kubectl.get("events", namespace, "--sort-by=.lastTimestamp")
    for o in jobs:
        name, end = o["metadata"]["name"], _end(o)
        mark = {"Complete": "[green]✓[/green]", "Failed": "[red]✗[/red]"}.get(end, "…")
        yield mark, name, end or reason(o, pods, events) or _log(kubectl, namespace, name, 1) or "on its way"


def _table(rows: Iterable[tuple[str, str, str]], took: float) -> Table:
    table = Table("", "", "", box=None, show_header=False, caption=f"{took:.0f} s", caption_justify="left")
    for mark, name, words in rows:
        table.add_row(mark, escape(name), escape(words))
    return table


def _end(job: Json) -> str:
    """Complete, Failed, or "" while it runs."""
    conditions = at(job, "status", "conditions", default=[])
    return next((c["type"] for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), "")


def _log(kubectl: Kubectl, namespace: str, job: str, lines: int) -> str:
    try:
        return kubectl.run("logs", f"job/{job}", f"--namespace={namespace}", f"--tail={lines}").strip()
    except ClusterError:
        return ""  # no pod, or none that has begun
