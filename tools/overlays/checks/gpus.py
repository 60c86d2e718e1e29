"""GPUs: a pod that asks for one can get it, and gets one that its model runs on.

The table is what the clouds sell. A10G is Amazon's own part, GKE's nearest is L4; T4 (compute capability 7.5) has no
bfloat16.
"""

import re
from collections.abc import Iterator

import msgspec

from tools.overlays.checks.serving import Arguments, parse, server_of
from tools.overlays.objects import GPU, Build, Finding, Json, Workload, at

ACCELERATOR = "llm-mesh.dev/accelerator"
_GKE = "cloud.google.com/gke-accelerator"
_INSTANCE = "node.kubernetes.io/instance-type"
_TAINT = "nvidia.com/gpu"
_CLOUDS = {"production-aws": "aws", "production-gke": "gke"}


class Accelerator(msgspec.Struct, frozen=True):
    gke: str  # value of the cloud's own node label; "" = not sold there
    machines: str  # pattern of the instance types that carry it
    bfloat16: bool


KNOWN = {
    "a10g": Accelerator(gke="", machines=r"g5\.\w+", bfloat16=True),
    "t4": Accelerator(gke="nvidia-tesla-t4", machines=r"g4dn\.\w+|n1-standard-\d+", bfloat16=False),
    "l4": Accelerator(gke="nvidia-l4", machines=r"g6\.\w+|g2-standard-\d+", bfloat16=True),
}


def check(build: Build) -> Iterator[Finding]:
    cloud = next((c for name, c in _CLOUDS.items() if build.name.startswith(name)), "")
    for w in build.workloads():
        wanted = accelerators(w)
        if not w.gpus:
            if wanted:
                wrong = f"it selects {', '.join(sorted(wanted))} nodes and asks for no GPU"
                yield Finding(w.title, wrong, f"set resources.limits {GPU}: 1, or drop the selector")
            continue
        if not _tolerates(w.pod):
            wrong = f"it asks for a GPU and does not tolerate the taint {_TAINT}: it would stay Pending"
            yield Finding(w.title, wrong, f"add tolerations: [{{key: {_TAINT}, operator: Exists, effect: NoSchedule}}]")
        yield from _selection(w, wanted, cloud, production=build.name.startswith("production"))
        server = server_of(w)
        if server is not None:
            yield from _types(w, wanted, parse(server))


def accelerators(w: Workload) -> set[str]:
    """Which accelerators its selector and its required affinity permit, by the names of the table."""
    found: set[str] = set()
    for key, values in _required(w.pod).items():
        if key == _INSTANCE:
            found |= {n for n, part in KNOWN.items() for v in values if re.fullmatch(part.machines, v)}
        elif key in (ACCELERATOR, _GKE):
            ours = {part.gke: name for name, part in KNOWN.items() if key == _GKE}
            found |= {ours.get(v, v) for v in values}
    return found


def _required(pod: Json) -> dict[str, list[str]]:
    found = {key: [value] for key, value in (pod.get("nodeSelector") or {}).items()}
    path = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
    for term in at(pod, *path, default=[]):
        for e in term.get("matchExpressions") or []:
            if e.get("operator") == "In":
                found.setdefault(e["key"], []).extend(e.get("values") or [])
    return found


def _tolerates(pod: Json) -> bool:
    return any(
        t.get("key", _TAINT) == _TAINT
        and t.get("effect", "NoSchedule") == "NoSchedule"
        and (t.get("operator") == "Exists" or t.get("value") == "present")
        for t in pod.get("tolerations") or []
    )


def _selection(w: Workload, wanted: set[str], cloud: str, *, production: bool) -> Iterator[Finding]:
    if production and not wanted:
        yield Finding(w.title, "it takes any GPU", f"select {ACCELERATOR}: one of {', '.join(KNOWN)}")
    for machine in _required(w.pod).get(_INSTANCE, []):
        if not any(re.fullmatch(part.machines, machine) for part in KNOWN.values()):
            yield Finding(w.title, f"it permits {machine}, which has no GPU that we know", "name machines with its GPU")
    for name in sorted(wanted - set(KNOWN)):
        yield Finding(w.title, f"`{name}` is no accelerator we know", f"use one of {', '.join(KNOWN)}")
    if len(wanted & set(KNOWN)) > 1 and ACCELERATOR in (w.pod.get("nodeSelector") or {}):
        yield Finding(w.title, f"its selectors contradict: {', '.join(sorted(wanted))}", "let all name the same part")
    for name in sorted(wanted & set(KNOWN)):
        if cloud == "gke" and not KNOWN[name].gke:
            yield Finding(w.title, f"GKE has no {name} nodes: the part is Amazon's", "select l4, its nearest there")


def _types(w: Workload, wanted: set[str], arguments: Arguments) -> Iterator[Finding]:
    dtype = arguments.get("--dtype", "")
    for name in sorted(wanted & set(KNOWN)):
        if not KNOWN[name].bfloat16 and dtype not in {"half", "float16"}:
            wrong = f"it runs on {name}, which has no bfloat16, with --dtype {dtype or 'not set'}"
            yield Finding(w.title, wrong, "set --dtype=half")
