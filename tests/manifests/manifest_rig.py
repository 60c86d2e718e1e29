"""What the manifest tests stand on: every overlay built once, and copies of a build to break."""

import functools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from tools.overlays import build as kustomize
from tools.overlays.checks import check
from tools.overlays.objects import Build

Json = dict[str, Any]
NAMES = [path.name for path in kustomize.overlays()]


@functools.cache
def built(name: str) -> Build:
    return kustomize.build(kustomize.find(name))


class Broken:
    """A copy of a build in which things can be changed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: list[Json] = deepcopy(list(built(name).objects))

    def get(self, kind: str, name: str) -> Json:
        return next(o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name)

    def put(self, kind: str, name: str, *path_and_value: Any) -> None:
        """Set what stands at the path: steps, then the value. None takes it away."""
        *path, last, value = path_and_value
        inner: Any = self.get(kind, name)
        for step in path:
            inner = inner[step] if isinstance(inner, list) else inner.setdefault(step, {})
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    def pod(self, kind: str, name: str) -> Json:
        spec: Json = self.get(kind, name)["spec"]["template"]["spec"]
        return spec

    def container(self, kind: str, name: str, container: str) -> Json:
        pod = self.pod(kind, name)
        return next(c for c in [*pod["containers"], *pod.get("initContainers", [])] if c["name"] == container)

    def drop(self, kind: str, name: str) -> None:
        self.objects.remove(self.get(kind, name))

    def add(self, kind: str, name: str, **fields: Any) -> None:
        labels = {"app.kubernetes.io/part-of": "llm-mesh"}
        metadata = {"name": name, "namespace": "llm", "labels": labels}
        self.objects.append({"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields})

    def argument(self, model: str, flag: str, value: str | None) -> None:
        """Set a flag of a model's server, or take it away."""
        server = self.container("Deployment", model, "vllm")
        server["args"] = [a for a in server["args"] if a.partition("=")[0] != flag]
        if value is not None:
            server["args"].append(f"{flag}={value}" if value else flag)


Change = Callable[[Broken], None]


def findings(change: Change, name: str = "base") -> list[str]:
    """What the checks say of the changed build, as people read it."""
    broken = Broken(name)
    change(broken)
    return [str(f) for f in check(Build(name, tuple(broken.objects)))]


def found(change: Change, words: str, name: str = "base") -> None:
    """The change is noticed, with these words in one finding and with something to do."""
    said = findings(change, name)
    assert any(words in f for f in said), "\n".join(said) or "nothing was found"
    assert all(f.split(" -> ", 1)[1] for f in said)
