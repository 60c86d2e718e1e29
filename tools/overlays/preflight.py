"""What a cluster must have before an overlay can be applied to it, each with the command that brings it.

Reads the cluster, changes nothing.
"""

from collections.abc import Iterable, Iterator

from extproc.errors import LlmMeshError
from tools.overlays.checks.references import secret_keys
from tools.overlays.kubectl import ClusterError, Kubectl
from tools.overlays.objects import Build, at

_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_BRINGS = {
    "istio.io": "install Istio 1.27 or newer, with its CNI plugin (docs/deployment.md)",
    "keda.sh": "install KEDA, or leave its component out of the overlay",
    "monitoring.coreos.com": "install the Prometheus operator, or leave the component observability out of the overlay",
    "cert-manager.io": "install cert-manager, or leave its component out of the overlay",
    "karpenter.sh": "install Karpenter, or leave its component out of the overlay",
    "k8s.aws": "install Karpenter for AWS, or leave its component out of the overlay",
    "admissionregistration.k8s.io": "use Kubernetes 1.30 or newer, or leave the admission component out of the overlay",
}


_OTHERS = {
    "monitoring": "install the Prometheus operator into it, or leave the component observability out of the overlay"
}


class PreflightError(LlmMeshError):
    """Something is missing in the cluster; the message says what, and the command that brings it."""


def reachable(kubectl: Kubectl) -> str:
    """Context and address of the cluster. Raises PreflightError."""
    try:
        kubectl.run("get", "--raw", "/readyz", "--request-timeout=10s")
        return kubectl.where()
    except ClusterError as error:
        known = ", ".join(kubectl.contexts()) or "none: set KUBECONFIG"
        raise PreflightError(
            f"no cluster answers: {error}\nchoose one with CONTEXT=NAME; there are: {known}"
        ) from error


def require_kinds(kubectl: Kubectl, build: Build) -> None:
    """Raises PreflightError for kinds that the cluster does not know."""
    brought = {at(o, "spec", "names", "kind") for o in build.of("CustomResourceDefinition")}
    wanted: dict[str, set[str]] = {}
    for o in build.objects:
        if o["kind"] not in brought:
            wanted.setdefault(o["apiVersion"], set()).add(o["kind"])
    missing = {version: kinds - _served(kubectl, version) for version, kinds in wanted.items()}
    lines = [f"  {', '.join(sorted(k))} ({v}): {_how(v)}" for v, k in sorted(missing.items()) if k]
    if lines:
        raise PreflightError("\n".join(["the cluster does not know:", *lines]))


def require_namespaces(kubectl: Kubectl, build: Build) -> None:
    """Raises PreflightError for namespaces that objects name and nobody makes: they are somebody else's."""
    made = {o["metadata"]["name"] for o in build.of("Namespace")}
    wanted = {at(o, "metadata", "namespace") for o in build.objects} - made - {None}
    missing = [name for name in sorted(wanted) if not kubectl.exists("namespace", name, "")]
    if missing:
        lines = [f"  {name}: {_OTHERS.get(name, 'make it, or mend the name')}" for name in missing]
        raise PreflightError("\n".join(["these namespaces are not in the cluster:", *lines]))


def require_secrets(kubectl: Kubectl, build: Build, names: Iterable[str]) -> None:
    """Raises PreflightError for those of these Secrets that people must create; says how, never what."""
    made = {at(o, "spec", "secretName") for o in build.of("Certificate")}  # cert-manager's, once it is applied
    wanted = [s for s in dict.fromkeys(names) if s not in made]
    missing = [s for s in wanted if not kubectl.exists("secret", s, build.namespace)]
    if missing:
        lines = ["these Secrets are not in the cluster; create each, and come again:"]
        raise PreflightError("\n".join([*lines, *(f"  {how_to_create(build, s)}" for s in missing)]))


def require_storage(kubectl: Kubectl, build: Build) -> None:
    """Raises PreflightError for claims that nobody would ever bind: their pods would wait for ever."""
    bound = {c["metadata"]["name"] for c in kubectl.get("pvc", build.namespace) if at(c, "status", "phase") == "Bound"}
    classes = kubectl.get("storageclasses", "")
    known = {c["metadata"]["name"] for c in classes} | {
        at(v, "spec", "storageClassName") for v in kubectl.get("pv", "")
    }
    default = any(at(c, "metadata", "annotations", _DEFAULT_CLASS) == "true" for c in classes)
    for claim, wanted in _claims(build):
        if claim not in bound and wanted is None and not default:
            do = "name one in the overlay, or mark one as default"
            raise PreflightError(f"the claim {claim} names no storage class, and the cluster has no default one: {do}")
        if claim not in bound and wanted and wanted not in known:
            there = ", ".join(sorted(filter(None, known))) or "none"
            raise PreflightError(f"the claim {claim} names the storage class {wanted}; there are: {there}")


def _claims(build: Build) -> Iterator[tuple[str, str | None]]:
    """(name, storage class) of each claim, those of StatefulSets' first pods among them."""
    for o in build.of("PersistentVolumeClaim"):
        yield o["metadata"]["name"], at(o, "spec", "storageClassName")
    for o in build.of("StatefulSet"):
        for template in at(o, "spec", "volumeClaimTemplates", default=[]):
            name = f"{template['metadata']['name']}-{o['metadata']['name']}-0"
            yield name, at(template, "spec", "storageClassName")


def how_to_create(build: Build, secret: str) -> str:
    """The kubectl command; values are read from files or standard input, so that no shell history keeps them."""
    tls = {at(server, "tls", "credentialName") for o in build.of("Gateway") for server in at(o, "spec", "servers")}
    if secret in tls:
        return f"kubectl --namespace={build.namespace} create secret tls {secret} --cert=CHAIN.pem --key=KEY.pem"
    keys = sorted(secret_keys(build).get(secret, set())) or ["KEY"]
    first, *others = keys
    files = [f"--from-file={first}=/dev/stdin", *(f"--from-file={key}=FILE" for key in others)]
    return f"kubectl --namespace={build.namespace} create secret generic {secret} {' '.join(files)}"


def _served(kubectl: Kubectl, version: str) -> set[str]:
    path = f"/apis/{version}" if "/" in version else f"/api/{version}"
    try:
        return {r["kind"] for r in kubectl.raw(path)["resources"]}
    except ClusterError:
        return set()


def _how(version: str) -> str:
    group = version.partition("/")[0]
    return next((words for suffix, words in _BRINGS.items() if group.endswith(suffix)), "install what defines it")
