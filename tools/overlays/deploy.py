"""`make deploy`: an overlay into a cluster, checked before, followed until everything runs.

Order: checks, cluster, kinds, namespaces, Secrets, everything else, rollouts. What is found missing is said before
anything but the namespace was changed.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from extproc.errors import LlmMeshError
from tools.overlays import build as kustomize
from tools.overlays import preflight
from tools.overlays.checks import check
from tools.overlays.checks.references import expected_secrets
from tools.overlays.kubectl import ClusterError, Kubectl
from tools.overlays.live import shown
from tools.overlays.objects import NAMESPACE, PART_OF, Build, Json, Workload, title
from tools.overlays.rollout import Progress, progress

_POLL_SECONDS = 2.0
_KINDS = "deployments,statefulsets,daemonsets"
_DATA = ("PersistentVolumeClaim", "Secret")


class DeployError(LlmMeshError):
    """The overlay was not deployed, or does not come up; the message says why."""


def run(name: str, kubectl: Kubectl, console: Console, timeout_seconds: float, *, force: bool = False) -> int:
    """Raises DeployError, PreflightError, BuildError or ClusterError, each with what to do."""
    build = kustomize.build(kustomize.find(name))
    if findings := check(build):
        raise DeployError("\n".join([f"{name} is not sound (make overlays):", *(f"  {f}" for f in findings)]))
    bring_up(build, kubectl, console, timeout_seconds, force=force)
    console.print(_next(), highlight=False)
    return 0


def bring_up(build: Build, kubectl: Kubectl, console: Console, timeout_seconds: float, *, force: bool) -> None:
    """Everything after the checks. Raises as `run` does."""
    console.print(f"{escape(build.name)} -> {escape(preflight.reachable(kubectl))}")
    preflight.require_kinds(kubectl, build)
    preflight.require_namespaces(kubectl, build)
    kubectl.apply(build.of("Namespace"))
    preflight.require_secrets(kubectl, build, expected_secrets(build))
    preflight.require_storage(kubectl, build)
    lines = _applied(kubectl, build, force=force)
    console.print(f"[green]✓[/green] {len(lines)} objects applied")
    _say_leftovers(kubectl, build, console)
    took = follow(kubectl, build, console, timeout_seconds)
    console.print(f"[green]✓[/green] everything runs, after {took:.0f} s")


def _applied(kubectl: Kubectl, build: Build, *, force: bool) -> list[str]:
    try:
        return kubectl.apply(build.objects, force=force)
    except ClusterError as error:
        if "conflict" not in str(error):
            raise
        do = "Somebody else set these fields. Put their value into the overlay, or take the fields over with FORCE=1."
        raise DeployError(f"{str(error).partition('Please review')[0].strip()}\n{do}") from error


def follow(kubectl: Kubectl, build: Build, console: Console, timeout_seconds: float) -> float:
    """Watch the rollouts until all are done; seconds it took. Raises DeployError after the time-out."""
    workloads = [w for w in build.workloads() if w.long_running]
    began = time.monotonic()
    told: dict[str, Progress] = {}
    with shown(console) as show:
        while True:
            states = _states(kubectl, workloads)
            took = time.monotonic() - began
            if console.is_terminal:
                show(_table(states, took))
            else:
                _say_changes(states, told, console)
            if all(s.done for s in states):
                return took
            if took > timeout_seconds:
                raise DeployError(_late(states, timeout_seconds))
            time.sleep(_POLL_SECONDS)


def _states(kubectl: Kubectl, workloads: Sequence[Workload]) -> list[Progress]:
    found: list[Progress] = []
    for namespace in sorted({w.namespace for w in workloads}):
        wanted = {w.title for w in workloads if w.namespace == namespace}
        pods = kubectl.get("pods", namespace)
        events = kubectl.get("events", namespace, "--sort-by=.lastTimestamp")
        objects = [o for o in kubectl.get(_KINDS, namespace) if title(o) in wanted]
        found += [progress(o, pods, events) for o in objects]
        found += [Progress(t, 0, 1, done=False, why="it is gone") for t in wanted - {title(o) for o in objects}]
    return found


def _say_leftovers(kubectl: Kubectl, build: Build, console: Console) -> None:
    """Objects of ours that no overlay names any more stay in the cluster until somebody deletes them.

    Data is not spoken of: a StatefulSet's claims are in no overlay either.
    """
    ours = [o for o in build.objects if o["metadata"].get("namespace") == build.namespace and o["kind"] not in _DATA]
    kinds = sorted({_plural(o) for o in ours})
    known = {(o["kind"], o["metadata"]["name"]) for o in build.objects}
    there = [] if not kinds else kubectl.get(",".join(kinds), build.namespace, f"--selector={PART_OF}=llm-mesh")
    left = [o for o in there if (o["kind"], o["metadata"]["name"]) not in known]
    for o in left:
        if not o["metadata"].get("ownerReferences"):
            delete = f"kubectl -n {build.namespace} delete {_plural(o)}/{o['metadata']['name']}"
            console.print(f"[yellow]![/yellow] {escape(title(o))} is not in this overlay: {delete}")


def _plural(o: Json) -> str:
    """The kind with its group, as kubectl takes it."""
    group = o["apiVersion"].rpartition("/")[0]
    return f"{o['kind']}.{o['apiVersion'].rpartition('/')[2]}.{group}".lower() if group else o["kind"].lower()


# --- for people -------------------------------------------------------------------------------------------------------


def _table(states: Sequence[Progress], took: float) -> Table:
    table = Table("", "", "ready", "", box=None, show_header=False, caption=f"{took:.0f} s", caption_justify="left")
    for s in states:
        mark = "[green]✓[/green]" if s.done else "…"
        table.add_row(mark, escape(s.title), f"{s.ready}/{s.wanted}", escape(s.why))
    return table


def _say_changes(states: Sequence[Progress], told: dict[str, Progress], console: Console) -> None:
    for s in states:
        if told.get(s.title) != s:
            console.print(f"{'✓' if s.done else '…'} {s.title} {s.ready}/{s.wanted} {s.why}".rstrip(), markup=False)
            told[s.title] = s


def _late(states: Sequence[Progress], timeout_seconds: float) -> str:
    lines = [f"  {s.title} {s.ready}/{s.wanted}: {s.why or 'on its way'}" for s in states if not s.done]
    return "\n".join([f"not ready after {timeout_seconds:.0f} s (TIMEOUT=):", *lines])


def _next() -> str:
    kubectl = f"kubectl -n {NAMESPACE}"
    key = f"{kubectl} exec deploy/llm-gateway -c processor -- llm-mesh keys create --tenant NAME --user NAME"
    return f"a key:   {key}\naddress: {kubectl} get service llm-gateway\nthen:    make smoke BASE_URL=… API_KEY=…"
