"""Whatever selects pods selects some, and whoever is let in exists.

A selector with a wrong letter is accepted by every API server and does nothing: a door that everybody thinks is shut,
a filter that no proxy ever gets. Selectors of our own labels (`llm-mesh.dev/…: "true"`) are for pods that people start.
"""

from collections.abc import Iterator

from tools.overlays.objects import NAMESPACE, Build, Finding, Json, at, matches, title

_SELECTORS: dict[str, tuple[str, ...]] = {
    "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
    "AuthorizationPolicy": ("spec", "selector", "matchLabels"),
    "PeerAuthentication": ("spec", "selector", "matchLabels"),
    "RequestAuthentication": ("spec", "selector", "matchLabels"),
    "Telemetry": ("spec", "selector", "matchLabels"),
    "EnvoyFilter": ("spec", "workloadSelector", "labels"),
    "Sidecar": ("spec", "workloadSelector", "labels"),
    "Gateway": ("spec", "selector"),
}
_OPT_IN = "llm-mesh.dev/"
_LATER = {"app": "model-download"}  # pods that `make download-models` brings
_ACCOUNT = f"cluster.local/ns/{NAMESPACE}/sa/"


def check(build: Build) -> Iterator[Finding]:
    pods = [_LATER, *(w.labels for w in build.workloads())]
    for o in build.objects:
        path = _SELECTORS.get(o["kind"], ())
        wanted = at(o, *path, default={}) if path else {}
        opt_in = all(key.startswith(_OPT_IN) for key in wanted)
        if not opt_in and not any(matches(wanted, labels) for labels in pods):
            yield Finding(title(o), f"it selects {_words(wanted)}, and no pod of this build is labelled so", "mend it")
    yield from _pod_monitors(build)
    for o in build.of("ServiceMonitor"):
        wanted = at(o, "spec", "selector", "matchLabels", default={})
        if not any(matches(wanted, at(s, "metadata", "labels", default={})) for s in build.of("Service")):
            yield Finding(title(o), f"it selects {_words(wanted)}, and no Service is labelled so", "mend it")
    for o in build.of("AuthorizationPolicy"):
        for name in sorted(_accounts(o)):
            if name != "*" and build.named("ServiceAccount", name) is None:
                wrong = f"it lets in {_ACCOUNT}{name}, which no ServiceAccount of this build is"
                yield Finding(title(o), wrong, "mend the principal: it is the caller's ServiceAccount")


def _pod_monitors(build: Build) -> Iterator[Finding]:
    """A monitor that finds no pod, or no such port, is accepted by every API server too."""
    for o in build.of("PodMonitor"):
        wanted = at(o, "spec", "selector", "matchLabels", default={})
        listed = at(o, "spec", "selector", "matchExpressions", default=[])
        among = {e["key"]: e["values"] for e in listed if e["operator"] == "In"}
        found = [w for w in build.workloads() if matches(wanted, w.labels) and _among(among, w.labels)]
        if not found:
            words = _words(wanted | {key: " or ".join(values) for key, values in among.items()})
            yield Finding(title(o), f"it selects {words}, and no pod of this build is labelled so", "mend it")
        for port in filter(None, (e.get("port") for e in at(o, "spec", "podMetricsEndpoints", default=[]))):
            for w in found:
                if port not in {p.get("name") for c in w.containers() for p in c.get("ports") or []}:
                    yield Finding(title(o), f"it asks the port {port}, which {w.title} does not name", "mend it")


def _among(wanted: dict[str, list[str]], labels: dict[str, str]) -> bool:
    return all(labels.get(key) in values for key, values in wanted.items())


def _accounts(o: Json) -> set[str]:
    sources = [f.get("source") or {} for rule in at(o, "spec", "rules", default=[]) for f in rule.get("from") or []]
    principals = [p for source in sources for p in source.get("principals") or []]
    return {p.removeprefix(_ACCOUNT) for p in principals if p.startswith(_ACCOUNT)}


def _words(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())
