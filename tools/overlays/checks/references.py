"""What pods and gateways name is there: ConfigMaps, Secrets, claims, priority classes, accounts.

Secrets are never in the repository. The Namespace says in an annotation which ones it expects; `make deploy` looks for
them in the cluster.
"""

from collections.abc import Iterator

from tools.overlays.objects import Build, Finding, Json, Workload, at, title

EXPECTS = "llm-mesh.dev/expects-secrets"
_GIVEN = {"PriorityClass": {"system-cluster-critical", "system-node-critical"}, "ServiceAccount": {"default"}}
_GIVEN_MAPS = {"kube-root-ca.crt", "istio-ca-root-cert"}


def check(build: Build) -> Iterator[Finding]:
    for w in build.workloads():
        yield from _workload(build, w)
    for o in build.of("Gateway"):
        for server in at(o, "spec", "servers", default=[]):
            name = at(server, "tls", "credentialName")
            if name and name not in expected_secrets(build):
                yield _unexpected(title(o), name)
    for o in build.of("Secret"):
        if o.get("data") or o.get("stringData"):
            yield Finding(
                title(o), "it carries its value into the repository", f"create it by hand, declare it: {EXPECTS}"
            )


def expected_secrets(build: Build) -> list[str]:
    texts = [at(o, "metadata", "annotations", EXPECTS, default="") for o in build.of("Namespace")]
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def secret_keys(build: Build) -> dict[str, set[str]]:
    """Secret -> the keys that pods read from it by name."""
    found: dict[str, set[str]] = {}
    for w in build.workloads():
        for name, key in _secrets(w):
            found.setdefault(name, set()).update({key} if key else set())
    return found


def _workload(build: Build, w: Workload) -> Iterator[Finding]:
    for name in sorted({name for name, _ in _secrets(w)}):
        if name not in expected_secrets(build) and not build.named("Secret", name):
            yield _unexpected(w.title, name)
    for name in sorted(_config_maps(w) - _GIVEN_MAPS):
        yield from _named(build, w, "ConfigMap", name)
    for v in w.pod.get("volumes") or []:
        yield from _named(build, w, "PersistentVolumeClaim", at(v, "persistentVolumeClaim", "claimName"))
    yield from _named(build, w, "PriorityClass", w.pod.get("priorityClassName"))
    yield from _named(build, w, "ServiceAccount", w.pod.get("serviceAccountName"))
    if not w.pod.get("serviceAccountName"):
        yield Finding(w.title, "it runs as the account `default`", "give it a ServiceAccount: it is its mesh identity")


def _named(build: Build, w: Workload, kind: str, name: str | None) -> Iterator[Finding]:
    if name and name not in _GIVEN.get(kind, ()) and not build.named(kind, name):
        yield Finding(w.title, f"it names the {kind} `{name}`, which is not in the build", "add it, or mend the name")


def _unexpected(where: str, name: str) -> Finding:
    return Finding(where, f"it needs the Secret `{name}`, which nobody declares", f"add it to the annotation {EXPECTS}")


def _secrets(w: Workload) -> Iterator[tuple[str, str]]:
    """(name, key or "") of every Secret that must be there."""
    for c in w.containers():
        for e in c.get("env") or []:
            yield from _required(at(e, "valueFrom", "secretKeyRef"))
        for e in c.get("envFrom") or []:
            yield from _required(e.get("secretRef"))
    for source in _volumes(w):
        secret = source.get("secret")
        yield from _required(secret and {"name": secret.get("secretName") or secret.get("name"), **secret})
    for entry in w.pod.get("imagePullSecrets") or []:
        yield entry["name"], ""


def _required(ref: Json | None) -> Iterator[tuple[str, str]]:
    if ref and not ref.get("optional"):
        yield ref["name"], ref.get("key", "")


def _config_maps(w: Workload) -> set[str]:
    refs = [at(e, "valueFrom", "configMapKeyRef") for c in w.containers() for e in c.get("env") or []]
    refs += [e.get("configMapRef") for c in w.containers() for e in c.get("envFrom") or []]
    refs += [source.get("configMap") for source in _volumes(w)]
    return {r["name"] for r in refs if r and not r.get("optional")}


def _volumes(w: Workload) -> Iterator[Json]:
    for v in w.pod.get("volumes") or []:
        yield v
        yield from at(v, "projected", "sources", default=[])
