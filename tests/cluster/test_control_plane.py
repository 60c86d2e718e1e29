"""The Kubernetes half of the one-machine control plane does what manifests are checked against it for."""

import asyncio
import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools.cluster.binaries import MODULES
from tools.cluster.control_plane import ControlPlane, KubectlError

Json = dict[str, Any]
pytestmark = pytest.mark.asyncio(loop_scope="session")

UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
GPU = {"resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "3", "memory": "12Gi"}}}
TOLERANT = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}


def pod(container: Json | None = None, **spec: Any) -> Json:
    sole = {"name": "main", "image": "example.com/image:1", "securityContext": UNPRIVILEGED, **(container or {})}
    return {"metadata": {"name": "pod", "labels": {"app": "test"}}, "spec": {"containers": [sole], **spec}}


def deployment(template: Json, replicas: int = 1) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "test"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "test"}}, "template": template},
    }


def claim(name: str, storage_class: str, mode: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": [mode],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": "100Gi"}},
        },
    }


async def rolled_out(plane: ControlPlane, namespace: str, wanted: Json) -> list[Json]:
    """The nodes of the deployment's pods once all are ready."""
    wanted["spec"]["template"]["metadata"].pop("name")
    await plane.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(wanted))
    await plane.kubectl("rollout", "status", "-n", namespace, "deployment/test", "--timeout=20s")
    pods = json.loads(await plane.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    names = {pod["spec"]["nodeName"] for pod in pods}
    found: list[Json] = json.loads(await plane.kubectl("get", "nodes", "-o", "json"))["items"]
    return [node for node in found if node["metadata"]["name"] in names]


async def created(plane: ControlPlane, namespace: str, *objects: Json) -> str:
    return "".join([await plane.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(o)) for o in objects])


async def refusal(plane: ControlPlane, namespace: str, wanted: Json) -> str:
    """What the API server says once it refuses the object; a new policy needs a moment."""
    for _ in range(100):
        try:
            await plane.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", input=json.dumps(wanted))
        except KubectlError as error:
            return str(error)
        await asyncio.sleep(0.1)
    raise AssertionError("it was accepted all the time")


async def test_the_server_is_the_version_that_is_pinned(control_plane: ControlPlane) -> None:
    pinned = re.search(r"k8s\.io/kubernetes (\S+)", (MODULES / "kubernetes" / "go.mod").read_text())
    version = json.loads(await control_plane.kubectl("version", "-o", "json"))
    assert pinned
    assert version["serverVersion"]["gitVersion"] == pinned[1]
    assert version["serverVersion"]["minor"] == version["clientVersion"]["minor"]


@pytest.mark.parametrize(
    ("selected", "accelerator"),
    [
        ({"llm-mesh.dev/accelerator": "a10g", "eks.amazonaws.com/capacityType": "SPOT"}, "a10g"),
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-t4", "cloud.google.com/gke-spot": "true"}, "t4"),
    ],
)
async def test_ten_replicas_with_a_gpu_become_ready_on_ten_spot_nodes_of_their_pool(
    control_plane: ControlPlane, namespace: str, selected: dict[str, str], accelerator: str
) -> None:
    template = pod(GPU, nodeSelector=selected, **TOLERANT)
    found = await rolled_out(control_plane, namespace, deployment(template, replicas=10))
    labels = [node["metadata"]["labels"] for node in found]
    assert len(found) == 10
    assert {(label["llm-mesh.dev/accelerator"], label["llm-mesh.dev/capacity"]) for label in labels} == {
        (accelerator, "spot")
    }
    assert len({label["topology.kubernetes.io/zone"] for label in labels}) == 3


async def test_a_pod_without_toleration_stays_off_the_gpu_nodes(control_plane: ControlPlane, namespace: str) -> None:
    found = await rolled_out(control_plane, namespace, deployment(pod(), replicas=6))
    assert found
    assert all("nvidia.com/gpu" not in node["status"]["allocatable"] for node in found)


async def test_a_pod_that_wants_a_gpu_without_toleration_stays_pending_and_the_scheduler_says_why(
    control_plane: ControlPlane, namespace: str
) -> None:
    await created(control_plane, namespace, {"apiVersion": "v1", "kind": "Pod", **pod(GPU)})
    reason = '-o=jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}'
    await control_plane.kubectl(
        "wait", "-n", namespace, "pod/pod", "--for=condition=PodScheduled=False", "--timeout=20s"
    )
    assert "untolerated taint" in await control_plane.kubectl("get", "-n", namespace, "pod/pod", reason)


async def test_a_native_sidecar_runs_and_an_init_container_is_over(control_plane: ControlPlane, namespace: str) -> None:
    common = {"image": "example.com/image:1", "securityContext": UNPRIVILEGED}
    inits = [{"name": "first", **common}, {"name": "sidecar", "restartPolicy": "Always", **common}]
    await created(control_plane, namespace, {"apiVersion": "v1", "kind": "Pod", **pod(initContainers=inits)})
    await control_plane.kubectl("wait", "-n", namespace, "pod/pod", "--for=condition=Ready", "--timeout=20s")
    found = json.loads(await control_plane.kubectl("get", "-n", namespace, "pod/pod", "-o", "json"))
    states = {status["name"]: set(status["state"]) for status in found["status"]["initContainerStatuses"]}
    assert states == {"first": {"terminated"}, "sidecar": {"running"}}


async def test_claims_of_a_shared_and_of_a_single_volume_bind(control_plane: ControlPlane, namespace: str) -> None:
    """Without a StorageClass, and with one that waits for the pod, as the clouds' classes do."""
    waiting = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "gp3"},
        "provisioner": "ebs.csi.aws.com",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    claims = [claim("shared", "efs-sc", "ReadWriteMany"), claim("single", "gp3", "ReadWriteOnce")]
    await created(control_plane, namespace, waiting, *claims)
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("shared", "single")]
    assert await rolled_out(control_plane, namespace, deployment(pod(volumes=volumes)))
    await control_plane.kubectl("delete", "storageclass", "gp3")


async def test_pod_security_refuses_a_privileged_container(control_plane: ControlPlane, namespace: str) -> None:
    privileged = {"apiVersion": "v1", "kind": "Pod", **pod({"securityContext": {"privileged": True}})}
    assert 'violates PodSecurity "restricted:latest"' in await refusal(control_plane, namespace, privileged)


async def test_an_admission_policy_is_enforced_where_it_is_bound(control_plane: ControlPlane, namespace: str) -> None:
    group = "admissionregistration.k8s.io"
    policy = {
        "apiVersion": f"{group}/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"{namespace}-no-latest"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ]
            },
            "validations": [
                {"expression": "object.spec.containers.all(c, !c.image.endsWith(':latest'))", "message": "no latest"}
            ],
        },
    }
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": f"{namespace}-no-latest"},
        "spec": {
            "policyName": f"{namespace}-no-latest",
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
        },
    }
    await created(control_plane, namespace, policy, binding)
    kind = {"apiVersion": "v1", "kind": "Pod"}
    assert "no latest" in await refusal(control_plane, namespace, kind | pod({"image": "example.com/image:latest"}))
    await created(control_plane, namespace, kind | pod())


async def test_the_schemas_of_istio_are_enforced(control_plane: ControlPlane, namespace: str) -> None:
    route: Json = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "test"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "weight": 100}]}]},
    }
    await created(control_plane, namespace, route)
    route["spec"]["http"][0]["route"][0]["weight"] = "all"
    assert "weight" in await refusal(control_plane, namespace, route)


async def test_a_token_names_its_service_account_and_audience(control_plane: ControlPlane, namespace: str) -> None:
    await control_plane.kubectl("create", "serviceaccount", "gateway", "-n", namespace)
    token = await control_plane.token(namespace, "gateway", "istio-ca")
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["aud"] == ["istio-ca"]
    assert claims["sub"] == f"system:serviceaccount:{namespace}:gateway"


@pytest.mark.usefixtures("tools")
async def test_it_starts_within_fifteen_seconds_and_leaves_nothing_running(tmp_path: Path) -> None:
    began = time.monotonic()
    async with ControlPlane(tmp_path / "plane") as plane:
        seconds = time.monotonic() - began
        processes = [psutil.Process(child.pid) for child in plane.children.values()]
        assert len(processes) == 5
    assert seconds < 15
    assert not [process for process in processes if process.is_running()]
    assert not (tmp_path / "plane" / "etcd").exists()
