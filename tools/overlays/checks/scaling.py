"""Autoscaling: what is scaled exists, by metrics that exist, and spot nodes are taken first."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from prometheus_client.metrics import MetricWrapperBase

from extproc import metrics
from tools.overlays.checks.serving import VERSION
from tools.overlays.objects import Build, Finding, Json, at, title, workload

_LIST = Path(__file__).parents[1] / f"vllm-metrics-{VERSION}.tsv"
_PARTS = ("_bucket", "_sum", "_count")
_FOREIGN = ("DCGM_FI_", "istio_", "envoy_", "kube_", "container_", "node_", "keda_", "up", "valkey_", "redis_")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*+(?!\s*\()")  # a name before a bracket is a function
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NOT_NAMES = re.compile(r'"[^"]*"|\'[^\']*\'|\{[^}]*\}|\[[^\]]*\]|\b\d\w*\b')
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


def check(build: Build) -> Iterator[Finding]:
    scaled: dict[str, Json] = {}
    for o in build.of("HorizontalPodAutoscaler", "ScaledObject"):
        yield from _target(build, o)
        name = str(at(o, "spec", "scaleTargetRef", "name", default=""))
        if name in scaled:
            yield Finding(
                title(o), f"{title(scaled[name])} scales {name} as well: they would fight", "keep one of them"
            )
        scaled[name] = o
    for o in build.of("ScaledObject"):
        for trigger in at(o, "spec", "triggers", default=[]):
            for name in sorted(unknown_metrics(build, str(at(trigger, "metadata", "query", default="")))):
                wrong = f"its query reads {name}, which nothing here exports"
                yield Finding(title(o), wrong, f"use a name of {_LIST.name}, extproc/metrics.py, DCGM or a rule")
    for o in build.of("ConfigMap"):
        if o["metadata"]["name"] == "cluster-autoscaler-priority-expander":
            yield from _expander(o)
    yield from _pools(build)


def _target(build: Build, o: Json) -> Iterator[Finding]:
    spec = o["spec"]
    name = str(at(spec, "scaleTargetRef", "name", default=""))
    target = build.named(at(spec, "scaleTargetRef", "kind", default="Deployment"), name)
    if target is None:
        yield Finding(title(o), f"it scales `{name}`, which is not in the build", "mend scaleTargetRef")
    elif "replicas" in target["spec"]:
        wrong = f"{title(target)} sets replicas too: every deploy would conflict with the autoscaler, or undo it"
        yield Finding(title(o), wrong, "take `replicas` out of it where an autoscaler is")
    elif missing := _containers(spec) - {c["name"] for c in workload(target).containers()}:
        wrong = f"it measures the container {', '.join(sorted(missing))}, which {title(target)} has not"
        yield Finding(title(o), wrong, "mend its metrics")
    least = spec.get("minReplicas", spec.get("minReplicaCount", 0))
    most = spec.get("maxReplicas", spec.get("maxReplicaCount", 100))
    if least > most:
        yield Finding(title(o), f"its minimum {least} is above its maximum {most}", "mend them")


def _containers(spec: Json) -> set[str]:
    return {name for m in spec.get("metrics") or [] if (name := at(m, "containerResource", "container"))}


def unknown_metrics(build: Build, query: str) -> set[str]:
    """Names in a PromQL expression that no known exporter and no recording rule of the build gives."""
    names = set(re.findall(_NAME, _GROUPING.sub(" ", _NOT_NAMES.sub(" ", query)))) - _OPERATORS
    known = exported() | {str(r["record"]) for r in _rules(build) if "record" in r}
    return {n for n in names if n not in known and not n.startswith(_FOREIGN)}


def exported() -> set[str]:
    """Sample names of vLLM and of the processor."""
    rows = [line.split("\t") for line in _LIST.read_text().splitlines() if not line.startswith("#")]
    rows += [[f"{m._name}_total" if m._type == "counter" else m._name, str(m._type)] for m in _own()]  # noqa: SLF001
    names = {name for name, _ in rows}
    return names | {name + part for name, kind in rows if kind in ("histogram", "summary") for part in _PARTS}


def _own() -> list[MetricWrapperBase]:
    return [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]


def _rules(build: Build) -> Iterator[Json]:
    for o in build.of("PrometheusRule"):
        for group in at(o, "spec", "groups", default=[]):
            yield from group.get("rules") or []


def _expander(o: Json) -> Iterator[Finding]:
    """Cluster autoscaler takes the HIGHEST number first."""
    priorities: dict[int, list[str]] = yaml.safe_load(at(o, "data", "priorities", default="")) or {}
    spot = [n for n, patterns in priorities.items() if any("spot" in p for p in patterns)]
    rest = [n for n, patterns in priorities.items() if not any("spot" in p for p in patterns)]
    if not spot:
        yield Finding(title(o), "no pattern names spot nodes", "add their node groups with the highest number")
    elif rest and max(rest) >= min(spot):
        wrong = f"spot has {min(spot)}, on-demand {max(rest)}: the highest number is taken first"
        yield Finding(title(o), wrong, "give spot the highest number")


def _pools(build: Build) -> Iterator[Finding]:
    """Karpenter takes the pool with the highest weight first."""
    capacity = "karpenter.sh/capacity-type"
    weights: dict[bool, list[int]] = {True: [], False: []}
    for o in build.of("NodePool"):
        wanted = at(o, "spec", "template", "spec", "requirements", default=[])
        values = [v for r in wanted if r.get("key") == capacity for v in r.get("values") or []]
        weights["spot" in values].append(int(at(o, "spec", "weight", default=0)))
    if weights[True] and weights[False] and max(weights[False]) >= min(weights[True]):
        wrong = f"a spot pool has the weight {min(weights[True])}, an on-demand pool {max(weights[False])}"
        yield Finding("NodePools", wrong, "give spot the highest weight: it is taken first")
