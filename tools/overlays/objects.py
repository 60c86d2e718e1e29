"""Kubernetes objects as the checks see them: JSON, with the few ways of looking at it that many checks share.

Knows the shape of built-in workloads and nothing of this platform but its labels.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

Json = dict[str, Any]
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
GPU = "nvidia.com/gpu"
NAMESPACE = "llm"
AUTO = "auto"  # the image of a container that Istio's injection fills in
_LONG_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")
_WORKLOADS = (*_LONG_RUNNING, "Job", "CronJob", "Pod")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, for the person who will mend it."""

    where: str  # the object, as `title` names it
    wrong: str
    do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.wrong} -> {self.do}"


class Build(msgspec.Struct, frozen=True):
    """What Kustomize made of one overlay."""

    name: str
    objects: tuple[Json, ...]
    text: str = ""

    def of(self, *kinds: str) -> list[Json]:
        return [o for o in self.objects if o["kind"] in kinds]

    def named(self, kind: str, name: str) -> Json | None:
        return next((o for o in self.of(kind) if o["metadata"]["name"] == name), None)

    @property
    def namespace(self) -> str:
        """Where it is deployed to: the namespace that it brings."""
        return next((str(o["metadata"]["name"]) for o in self.of("Namespace")), NAMESPACE)

    def workloads(self) -> "list[Workload]":
        return [workload(o) for o in self.of(*_WORKLOADS)]

    def models(self) -> "list[Workload]":
        """Deployments that answer for a model: its label `app` is the model's name, `version` the arm."""
        return [w for w in self.workloads() if w.kind == "Deployment" and w.labels.get(COMPONENT) == "model"]


class Workload(msgspec.Struct, frozen=True):
    """An object that makes pods."""

    source: Json
    labels: dict[str, str]  # of its pods
    annotations: dict[str, str]
    pod: Json  # the pod's spec

    @property
    def kind(self) -> str:
        return str(self.source["kind"])

    @property
    def name(self) -> str:
        return str(self.source["metadata"]["name"])

    @property
    def title(self) -> str:
        return title(self.source)

    @property
    def namespace(self) -> str:
        return str(self.source["metadata"].get("namespace", ""))

    @property
    def long_running(self) -> bool:
        return self.kind in _LONG_RUNNING

    @property
    def replicas(self) -> int:
        return int(at(self.source, "spec", "replicas", default=1))

    @property
    def gpus(self) -> int:
        """Of one pod."""
        return sum(int(at(c, "resources", "limits", GPU, default=0)) for c in self.containers())

    def containers(self) -> list[Json]:
        return [*self.pod.get("initContainers", []), *self.pod.get("containers", [])]

    def servers(self) -> list[Json]:
        """Containers that run as long as the pod: the ordinary ones, and native sidecars."""
        sidecars = [c for c in self.pod.get("initContainers", []) if c.get("restartPolicy") == "Always"]
        return [*sidecars, *self.pod.get("containers", [])] if self.long_running else []


def workload(o: Json) -> Workload:
    if o["kind"] == "Pod":
        template = o
    elif o["kind"] == "CronJob":
        template = o["spec"]["jobTemplate"]["spec"]["template"]
    else:
        template = o["spec"]["template"]
    metadata = template.get("metadata") or {}
    return Workload(o, metadata.get("labels") or {}, metadata.get("annotations") or {}, template["spec"])


def title(o: Json) -> str:
    return f"{o['kind']} {o['metadata']['name']}"


def at(value: Any, *path: str | int, default: Any = None) -> Any:
    """What stands at the path, or the default where a step is missing or empty."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return default
        if value is None:
            return default
    return value


def service_of(host: str) -> str:
    """The Service behind a host, by its short or its full name."""
    return host.partition(".")[0]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def selects(selector: Json, labels: dict[str, str]) -> bool:
    """A LabelSelector with matchLabels, as this project writes them; expressions are not read: taken as a match."""
    return matches(selector.get("matchLabels") or {}, labels)


def envoy_patches(build: Build, apply_to: str) -> Iterator[tuple[Json, Json]]:
    """(EnvoyFilter, the value that it merges or adds) for each patch of that kind."""
    for o in build.of("EnvoyFilter"):
        for patch in at(o, "spec", "configPatches", default=[]):
            if patch.get("applyTo") == apply_to:
                yield o, at(patch, "patch", "value", default={})


def seconds(text: str) -> float:
    """An Istio or Envoy duration: 10s, 1.5m, 1h, 250ms."""
    for unit, factor in (("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)):
        if text.endswith(unit) and text.removesuffix(unit).replace(".", "", 1).isdecimal():
            return float(text.removesuffix(unit)) * factor
    raise ValueError(f"`{text}` is no duration such as 30s")
