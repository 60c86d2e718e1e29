"""Pods and what stands round them: each mistake is found, by its name and with what to do."""

import pytest
from manifest_rig import Broken, Change, Json, findings, found

LLAMA = ("Deployment", "llama2")
GATEWAY = ("Deployment", "llm-gateway")
POD = ("spec", "template", "spec")


def vllm(b: Broken) -> Json:
    return b.container(*LLAMA, "vllm")


def secret_key(name: str) -> Json:
    return {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}


def lock(b: Broken, **fields: object) -> None:
    vllm(b)["securityContext"].update(fields)


def bind(b: Broken, account: str) -> None:
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "llm"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    b.add("RoleBinding", "reader", subjects=[subject], roleRef=role)
    b.objects[-1]["apiVersion"] = "rbac.authorization.k8s.io/v1"


REFERENCES: dict[str, tuple[Change, str]] = {
    "a Secret in a variable": (
        lambda b: vllm(b)["env"].append(secret_key("hf-token")),
        "needs the Secret `hf-token`, which nobody declares -> add it to the annotation llm-mesh.dev/expects-secrets",
    ),
    "a Secret in a volume": (
        lambda b: b.pod(*LLAMA)["volumes"].append({"name": "s", "secret": {"secretName": "keys"}}),
        "it needs the Secret `keys`",
    ),
    "a Secret of all variables": (
        lambda b: vllm(b).update(envFrom=[{"secretRef": {"name": "settings"}}]),
        "it needs the Secret `settings`",
    ),
    "a Secret to pull images": (
        lambda b: b.pod(*LLAMA).update(imagePullSecrets=[{"name": "registry"}]),
        "it needs the Secret `registry`",
    ),
    "the gateway's certificate": (
        lambda b: b.put("Namespace", "llm", "metadata", "annotations", None),
        "Gateway llm: it needs the Secret `llm-gateway-tls`, which nobody declares",
    ),
    "a ConfigMap": (
        lambda b: b.drop("ConfigMap", "llm-mesh"),
        "Deployment llm-gateway: it names the ConfigMap `llm-mesh`, which is not in the build",
    ),
    "a claim": (
        lambda b: b.drop("PersistentVolumeClaim", "model-cache"),
        "Deployment llama2: it names the PersistentVolumeClaim `model-cache`",
    ),
    "a priority class": (
        lambda b: b.put(*LLAMA, *POD, "priorityClassName", "llm-urgent"),
        "Deployment llama2: it names the PriorityClass `llm-urgent`",
    ),
    "an account": (
        lambda b: b.drop("ServiceAccount", "llama2"),
        "Deployment llama2: it names the ServiceAccount `llama2`",
    ),
    "the account that all have": (
        lambda b: b.put(*LLAMA, *POD, "serviceAccountName", None),
        "Deployment llama2: it runs as the account `default` -> give it a ServiceAccount: it is its mesh identity",
    ),
}
RESTRICTED: dict[str, tuple[Change, str]] = {
    "a privileged container": (lambda b: lock(b, privileged=True), "its container vllm is privileged"),
    "a way to more privileges": (lambda b: lock(b, allowPrivilegeEscalation=True), "may gain privileges -> set"),
    "capabilities that are kept": (lambda b: lock(b, capabilities={}), "its container vllm keeps capabilities"),
    "capabilities that are added": (
        lambda b: lock(b, capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_BIND_SERVICE"]}),
        "its container vllm adds SYS_ADMIN ->",
    ),
    "root": (lambda b: lock(b, runAsUser=0), "its container vllm runs as root"),
    "nobody says that it is not root": (
        lambda b: b.put(*LLAMA, *POD, "securityContext", "runAsNonRoot", None),
        "its container vllm may run as root",
    ),
    "no seccomp profile": (
        lambda b: b.put(*LLAMA, *POD, "securityContext", "seccompProfile", None),
        "its container vllm has no seccomp profile",
    ),
    "a profile that is none": (
        lambda b: lock(b, seccompProfile={"type": "Unconfined"}),
        "its container vllm has no seccomp profile",
    ),
    "an init container, which is judged too": (
        lambda b: b.container(*GATEWAY, "processor").update(securityContext={}),
        "its container processor may gain privileges",
    ),
    "the node's network": (lambda b: b.put(*LLAMA, *POD, "hostNetwork", True), "hostNetwork: it shares the node's"),
    "a folder of the node": (
        lambda b: b.pod(*LLAMA)["volumes"].append({"name": "logs", "hostPath": {"path": "/var/log"}}),
        "the volume logs is a hostPath",
    ),
    "a port of the node": (
        lambda b: vllm(b)["ports"][0].update(hostPort=8000),
        "its container vllm takes a port of the node",
    ),
    "a token that is good for nothing": (
        lambda b: b.put(*LLAMA, *POD, "automountServiceAccountToken", True),
        "it carries the token of `llama2`, which may do nothing with it",
    ),
}
RUNNING: dict[str, tuple[Change, str]] = {
    "no memory limit": (
        lambda b: vllm(b)["resources"]["limits"].pop("memory"),
        "Deployment llama2: its container vllm has no limits.memory",
    ),
    "no requests": (
        lambda b: vllm(b)["resources"].pop("requests"),
        "its container vllm has no requests.cpu, requests.memory",
    ),
    "an image without a version": (
        lambda b: b.container("StatefulSet", "valkey", "valkey").update(image="localhost:5000/valkey"),
        "its container valkey runs localhost:5000/valkey: the same name can be another program tomorrow",
    ),
    "the latest image": (
        lambda b: b.container(*GATEWAY, "processor").update(image="ghcr.io/llm-mesh/llm-mesh:latest"),
        "its container processor runs ghcr.io/llm-mesh/llm-mesh:latest",
    ),
    "a model without startup probe": (
        lambda b: vllm(b).pop("startupProbe"),
        "its container vllm has no startupProbe -> add them; a startupProbe covers the loading of a model",
    ),
    "a sidecar without probes": (
        lambda b: [b.container(*GATEWAY, "processor").pop(p) for p in ("readinessProbe", "livenessProbe")],
        "its container processor has no readinessProbe, livenessProbe",
    ),
    "replicas on one node": (
        lambda b: b.put(*LLAMA, *POD, "topologySpreadConstraints", None),
        "Deployment llama2: 2 replicas may all stand on one node",
    ),
    "replicas of an autoscaler on one node": (
        lambda b: b.put(*GATEWAY, *POD, "topologySpreadConstraints", None),
        "Deployment llm-gateway: 2 replicas may all stand on one node",
    ),
    "spread of other pods": (
        lambda b: b.put(*LLAMA, *POD, "topologySpreadConstraints", 0, "labelSelector", {"matchLabels": {"app": "x"}}),
        "its topologySpreadConstraints count other pods",
    ),
    "replicas that may all go at once": (
        lambda b: b.drop("PodDisruptionBudget", "llama2"),
        "Deployment llama2: no PodDisruptionBudget keeps one of it up in a drain",
    ),
    "a budget that no drain gets past": (
        lambda b: b.put("PodDisruptionBudget", "llama2", "spec", "maxUnavailable", 0),
        "PodDisruptionBudget llama2: it never lets a pod go: no node could be drained",
    ),
    "a budget as large as the replicas": (
        lambda b: b.put("PodDisruptionBudget", "llama2", "spec", "minAvailable", 2),
        "PodDisruptionBudget llama2: it never lets a pod go",
    ),
    "a budget of nobody": (
        lambda b: b.put("PodDisruptionBudget", "llama2", "spec", "selector", "matchLabels", "app", "llama3"),
        "PodDisruptionBudget llama2: it covers no pod of this build",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFERENCES.values(), ids=REFERENCES)
def test_what_a_pod_names_and_nobody_brings_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), RESTRICTED.values(), ids=RESTRICTED)
def test_what_the_restricted_profile_refuses_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), RUNNING.values(), ids=RUNNING)
def test_pods_that_would_not_stay_up_are_found(change: Change, words: str) -> None:
    found(change, words)


def test_a_secret_with_a_value_does_not_belong_into_a_repository() -> None:
    found(
        lambda b: b.add("Secret", "hf-token", data={"token": "aGZfeA=="}),
        "Secret hf-token: it carries its value into the repository",
    )


def test_a_declared_or_optional_secret_is_fine() -> None:
    def change(b: Broken) -> None:
        b.put(
            "Namespace", "llm", "metadata", "annotations", "llm-mesh.dev/expects-secrets", "llm-gateway-tls, hf-token"
        )
        vllm(b)["env"].append(secret_key("hf-token"))
        optional = {"name": "perhaps", "key": "token", "optional": True}
        vllm(b)["env"].append({"name": "OTHER", "valueFrom": {"secretKeyRef": optional}})

    assert findings(change) == []


def test_a_token_is_carried_by_those_who_were_given_a_role() -> None:
    def change(b: Broken) -> None:
        b.put(*LLAMA, *POD, "automountServiceAccountToken", True)
        bind(b, "llama2")

    assert findings(change) == []


def test_a_namespace_may_say_that_its_pods_need_more() -> None:
    def change(b: Broken) -> None:
        b.put("Namespace", "llm", "metadata", "labels", "pod-security.kubernetes.io/enforce", "privileged")
        b.put(*LLAMA, *POD, "hostNetwork", True)

    assert findings(change) == []
