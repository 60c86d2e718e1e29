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
    "PodMonitor": ("spec", "selector", "matchLabels"),
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
    for o in build.of("ServiceMonitor"):
        wanted = at(o, "spec", "selector", "matchLabels", default={})
        if not any(matches(wanted, at(s, "metadata", "labels", default={})) for s in build.of("Service")):
            yield Finding(title(o), f"it selects {_words(wanted)}, and no Service is labelled so", "mend it")
    for o in build.of("AuthorizationPolicy"):
        for name in sorted(_accounts(o)):
            if name != "*" and build.named("ServiceAccount", name) is None:
                wrong = f"it lets in {_ACCOUNT}{name}, which no ServiceAccount of this build is"
                yield Finding(title(o), wrong, "mend the principal: it is the caller's ServiceAccount")


def _accounts(o: Json) -> set[str]:
    sources = [f.get("source") or {} for rule in at(o, "spec", "rules", default=[]) for f in rule.get("from") or []]
    principals = [p for source in sources for p in source.get("principals") or []]
    return {p.removeprefix(_ACCOUNT) for p in principals if p.startswith(_ACCOUNT)}


def _words(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())
