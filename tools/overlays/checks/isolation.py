"""The mesh's own doors: mutual TLS everywhere, nobody answered without a policy, everything in a namespace."""

from collections.abc import Iterator

from tools.overlays.objects import COMPONENT, PART_OF, Build, Finding, at, title

CLUSTER_WIDE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "EC2NodeClass",
    "NodePool",
    "PriorityClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def check(build: Build) -> Iterator[Finding]:
    for o in build.objects:
        if o["kind"] not in CLUSTER_WIDE and not at(o, "metadata", "namespace"):
            yield Finding(title(o), "it has no namespace", "let the kustomization set `namespace: llm`")
        if at(o, "metadata", "labels", PART_OF) != "llm-mesh":
            wrong = f"it is not labelled {PART_OF}: llm-mesh, by which what is left over in a cluster is found"
            yield Finding(title(o), wrong, "let the kustomization set it under `labels`")
    yield from _meshed(build)
    yield from _mutual_tls(build)
    yield from _policies(build)
    for o in build.of("DestinationRule"):
        mode = at(o, "spec", "trafficPolicy", "tls", "mode")
        if mode in ("DISABLE", "SIMPLE"):
            yield Finding(title(o), f"tls mode {mode} takes the mesh's identity away", "use ISTIO_MUTUAL")


def _meshed(build: Build) -> Iterator[Finding]:
    """Without a proxy a pod is in no mesh: STRICT is the proxy's rule, not the network's."""
    for o in build.of("Namespace"):
        labels = at(o, "metadata", "labels", default={})
        if labels.get("istio-injection") != "enabled" and "istio.io/rev" not in labels:
            yield Finding(title(o), "its pods get no proxy", "label it istio-injection: enabled")
    for w in build.workloads():
        off = {**w.annotations, **w.labels}.get("sidecar.istio.io/inject") == "false"
        if off and w.labels.get(COMPONENT) in ("model", "gateway", "store"):
            wrong = "it is left out of the mesh: whoever reaches its address is answered"
            yield Finding(w.title, wrong, "drop sidecar.istio.io/inject")


def _mutual_tls(build: Build) -> Iterator[Finding]:
    rules = build.of("PeerAuthentication")
    if not any(not at(o, "spec", "selector") and at(o, "spec", "mtls", "mode") == "STRICT" for o in rules):
        yield Finding("namespace", "no PeerAuthentication demands mutual TLS", "add one with mtls: {mode: STRICT}")
    for o in rules:
        ports = at(o, "spec", "portLevelMtls", default={})
        modes = {at(o, "spec", "mtls", "mode"), *(p.get("mode") for p in ports.values())}
        if modes & {"PERMISSIVE", "DISABLE"}:
            yield Finding(title(o), "it lets plain text in", "use STRICT, for all ports")


def _policies(build: Build) -> Iterator[Finding]:
    policies = build.of("AuthorizationPolicy")
    if not any(not (o.get("spec") or {}) for o in policies):
        yield Finding("namespace", "there is no default-deny AuthorizationPolicy", "add one with an empty spec")
    for o in policies:
        spec = o.get("spec") or {}
        if spec.get("action", "ALLOW") == "ALLOW" and not spec.get("selector") and {} in (spec.get("rules") or []):
            yield Finding(
                title(o), "an empty rule lets everybody reach everything", "say from whom, and select to what"
            )
