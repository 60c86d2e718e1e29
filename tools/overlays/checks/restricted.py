"""Pods pass the `restricted` Pod Security Standard, as the API server would judge them, and carry no needless token.

A namespace of the build that is labelled with a weaker level is judged by it: node agents need more, and say so there.
"""

from collections.abc import Iterator

from tools.overlays.objects import AUTO, Build, Finding, Json, Workload, at

_LEVEL = "pod-security.kubernetes.io/enforce"
_VOLUMES = {
    "name",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_PROFILES = ("RuntimeDefault", "Localhost")


def check(build: Build) -> Iterator[Finding]:
    levels = {o["metadata"]["name"]: at(o, "metadata", "labels", _LEVEL) for o in build.of("Namespace")}
    for w in build.workloads():
        if levels.get(w.namespace) not in ("privileged", "baseline"):
            yield from _pod(w)
            for c in w.containers():
                if c.get("image") != AUTO:
                    yield from _container(w, c)
        yield from _token(build, w)


def _pod(w: Workload) -> Iterator[Finding]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if w.pod.get(field):
            yield Finding(w.title, f"{field}: it shares the node's", "leave it out")
    for v in w.pod.get("volumes") or []:
        if set(v) - _VOLUMES:
            kind = ", ".join(sorted(set(v) - _VOLUMES))
            yield Finding(w.title, f"the volume {v['name']} is a {kind}", "use a claim, an emptyDir or a projection")
    if at(w.pod, "securityContext", "sysctls"):
        yield Finding(w.title, "it sets sysctls", "leave them out")


def _container(w: Workload, c: Json) -> Iterator[Finding]:
    for words, good, do in _rules(w.pod.get("securityContext") or {}, c.get("securityContext") or {}):
        if not good:
            yield Finding(w.title, f"its container {c['name']} {words}", do)
    if any(p.get("hostPort") for p in c.get("ports") or []):
        yield Finding(w.title, f"its container {c['name']} takes a port of the node", "leave hostPort out")


def _rules(pod: Json, own: Json) -> Iterator[tuple[str, bool, str]]:
    """(what is wrong, whether it is right, what to do)."""
    merged = {**pod, **own}
    capabilities = own.get("capabilities") or {}
    yield "is privileged", not own.get("privileged"), "leave `privileged` out"
    yield "may gain privileges", own.get("allowPrivilegeEscalation") is False, "set allowPrivilegeEscalation: false"
    yield "keeps capabilities", "ALL" in (capabilities.get("drop") or []), "set capabilities: {drop: [ALL]}"
    added = set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}
    yield f"adds {', '.join(sorted(added))}", not added, "leave capabilities.add out"
    yield "may run as root", merged.get("runAsNonRoot") is True, "set runAsNonRoot: true"
    yield "runs as root", merged.get("runAsUser") != 0, "set runAsUser to a number above 0"
    profile = at(merged, "seccompProfile", "type")
    yield "has no seccomp profile", profile in _PROFILES, "set seccompProfile: {type: RuntimeDefault}"


def _token(build: Build, w: Workload) -> Iterator[Finding]:
    name = w.pod.get("serviceAccountName", "default")
    account = build.named("ServiceAccount", name) or {}
    mounted = w.pod.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
    if mounted and name not in _bound(build):
        wrong = f"it carries the token of `{name}`, which may do nothing with it"
        yield Finding(w.title, wrong, "set automountServiceAccountToken: false in the ServiceAccount")


def _bound(build: Build) -> set[str]:
    """Accounts that were given a role: they need their token."""
    bindings = build.of("RoleBinding", "ClusterRoleBinding")
    return {s["name"] for o in bindings for s in o.get("subjects") or [] if s.get("kind") == "ServiceAccount"}
