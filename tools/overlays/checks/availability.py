"""Pods that stay up: known needs, known versions, known health, never all on one node or gone at once."""

from collections.abc import Iterator

from tools.overlays.objects import AUTO, GPU, Build, Finding, Json, Workload, at, selects, title


def check(build: Build) -> Iterator[Finding]:
    for w in build.workloads():
        for c in w.containers():
            yield from _resources(w, c)
            yield from _image(w, c)
        for c in w.servers():
            yield from _probes(w, c)
        if w.long_running and w.kind != "DaemonSet" and at_least(build, w) > 1:
            yield from _spread(build, w)
    yield from _budgets(build)


def at_least(build: Build, w: Workload) -> int:
    """How many pods there are at the quietest hour: the autoscaler's minimum where there is one."""
    for kind, field, default in (("HorizontalPodAutoscaler", "minReplicas", 1), ("ScaledObject", "minReplicaCount", 0)):
        for o in build.of(kind):
            if at(o, "spec", "scaleTargetRef", "name") == w.name:
                return int(at(o, "spec", field, default=default))
    return w.replicas


def _resources(w: Workload, c: Json) -> Iterator[Finding]:
    if c.get("image") == AUTO and not c.get("resources"):
        return  # Istio's injection sets its own
    requests, limits = at(c, "resources", "requests", default={}), at(c, "resources", "limits", default={})
    missing = [f"requests.{r}" for r in ("cpu", "memory") if r not in requests]
    missing += [] if "memory" in limits else ["limits.memory"]
    if missing:
        yield Finding(w.title, f"its container {c['name']} has no {', '.join(missing)}", "set them under resources")


def _image(w: Workload, c: Json) -> Iterator[Finding]:
    image = str(c.get("image", ""))
    name, _, digest = image.partition("@")
    tag = name.rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
    if image != AUTO and not digest and tag in ("", "latest"):
        wrong = f"its container {c['name']} runs {image or 'no image'}: the same name can be another program tomorrow"
        yield Finding(w.title, wrong, "name a version as tag, or a digest")


def _probes(w: Workload, c: Json) -> Iterator[Finding]:
    if c.get("image") == AUTO:
        return
    wanted = ["readinessProbe", "livenessProbe"]
    wanted += ["startupProbe"] if GPU in at(c, "resources", "limits", default={}) else []
    missing = [p for p in wanted if p not in c]
    if missing:
        do = "add them; a startupProbe covers the loading of a model, then the others are quick"
        yield Finding(w.title, f"its container {c['name']} has no {', '.join(missing)}", do)


def _spread(build: Build, w: Workload) -> Iterator[Finding]:
    if not w.pod.get("topologySpreadConstraints") and not at(w.pod, "affinity", "podAntiAffinity"):
        wrong = f"{at_least(build, w)} replicas may all stand on one node"
        yield Finding(w.title, wrong, "add topologySpreadConstraints over kubernetes.io/hostname")
    for entry in w.pod.get("topologySpreadConstraints") or []:
        if not selects(entry.get("labelSelector") or {}, w.labels):
            yield Finding(w.title, "its topologySpreadConstraints count other pods", "select its own labels")
    if not any(selects(at(o, "spec", "selector", default={}), w.labels) for o in build.of("PodDisruptionBudget")):
        yield Finding(w.title, "no PodDisruptionBudget keeps one of it up in a drain", "add one with maxUnavailable: 1")


def _budgets(build: Build) -> Iterator[Finding]:
    for o in build.of("PodDisruptionBudget"):
        spec = o["spec"]
        covered = [w for w in build.workloads() if selects(spec.get("selector") or {}, w.labels)]
        if not covered:
            yield Finding(title(o), "it covers no pod of this build", "mend its selector, or take it away")
        least = spec.get("minAvailable", 0)
        tight = isinstance(least, int) and covered and least >= sum(max(1, at_least(build, w)) for w in covered)
        if tight or least == "100%" or spec.get("maxUnavailable") in (0, "0%"):
            yield Finding(title(o), "it never lets a pod go: no node could be drained", "let it be maxUnavailable: 1")
