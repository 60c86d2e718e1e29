"""`make deploy` and `make download-models` on a real API server: what is missing is said, what is stuck explained."""

import asyncio
import re
import uuid
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from extproc.local.stack import ROOT
from tools.cluster.control_plane import ControlPlane
from tools.overlays import deploy, download, preflight
from tools.overlays.deploy import DeployError
from tools.overlays.kubectl import Kubectl
from tools.overlays.objects import Build
from tools.overlays.preflight import PreflightError

Json = dict[str, Any]
pytestmark = pytest.mark.asyncio(loop_scope="session")
OURS = {"app.kubernetes.io/part-of": "llm-mesh"}
UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Site:
    """A small overlay in a namespace of its own, and what the commands say of it."""

    def __init__(self) -> None:
        self.namespace = f"deploy-{uuid.uuid4().hex[:8]}"
        self.kubectl = Kubectl()
        self.said = StringIO()
        self.objects: list[Json] = [self.object("v1", "Namespace", self.namespace)]

    def object(self, version: str, kind: str, name: str, **fields: Any) -> Json:
        where = {} if kind == "Namespace" else {"namespace": self.namespace}
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": OURS, **where}, **fields}

    def workload(self, name: str = "llama2", kind: str = "Deployment", **pod: Any) -> Json:
        container = {"name": "main", "image": "example.com/image:1", "securityContext": UNPRIVILEGED}
        template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], **pod}}
        spec = {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template}
        if kind == "Job":
            template["spec"]["restartPolicy"] = "Never"
            spec = {"template": template, "backoffLimit": 0}
        o = self.object("batch/v1" if kind == "Job" else "apps/v1", kind, name, spec=spec)
        self.objects.append(o)
        return o

    @property
    def build(self) -> Build:
        return Build("small", tuple(self.objects))

    def console(self) -> Console:
        return Console(file=self.said, width=200)

    def bring_up(self, seconds: float = 40, *, force: bool = False) -> str:
        deploy.bring_up(self.build, self.kubectl, self.console(), seconds, force=force)
        return self.said.getvalue()

    def applied(self, kinds: str) -> list[str]:
        return [
            o["metadata"]["name"]
            for o in self.kubectl.get(kinds, self.namespace, "--selector=app.kubernetes.io/part-of=llm-mesh")
        ]


@pytest.fixture
def site(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("KUBECACHEDIR", str(control_plane.directory / "kubectl"))
    return Site()


async def done(work: Callable[[], str]) -> str:
    """The commands wait; the control plane's own loop goes on."""
    return await asyncio.to_thread(work)


async def test_a_deploy_ends_when_every_pod_is_ready(site: Site) -> None:
    site.workload()
    said = await done(site.bring_up)
    assert "✓ 2 objects applied" in said
    assert "✓ Deployment llama2 2/2" in said
    assert "✓ everything runs" in said


async def test_a_missing_secret_stops_it_before_anything_but_the_namespace_is_made(site: Site) -> None:
    token = {"name": "T", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}}}
    site.workload()["spec"]["template"]["spec"]["containers"][0]["env"] = [token]
    site.objects[0]["metadata"]["annotations"] = {"llm-mesh.dev/expects-secrets": "hf-token"}
    command = f"kubectl --namespace={site.namespace} create secret generic hf-token --from-file=token=/dev/stdin"
    with pytest.raises(PreflightError, match=command):
        await done(site.bring_up)
    assert site.applied("deployments") == []
    site.kubectl.run(*command.split()[1:], stdin="a-token")
    assert "everything runs" in await done(site.bring_up)


async def test_kinds_that_the_cluster_does_not_know_are_said_with_what_brings_them(site: Site) -> None:
    site.objects.append(site.object("karpenter.sh/v1", "NodePool", "gpu", spec={}))
    site.objects.append(site.object("networking.istio.io/v1", "Gateways", "llm", spec={}))
    with pytest.raises(PreflightError) as caught:
        await done(site.bring_up)
    assert "NodePool (karpenter.sh/v1): install Karpenter" in str(caught.value)
    asked = re.search(
        r"\| Istio with its CNI plugin.*? \| (\S+) or newer", (ROOT / "docs" / "deployment.md").read_text()
    )
    assert asked
    assert f"Gateways (networking.istio.io/v1): install Istio {asked[1]} or newer" in str(caught.value)


async def test_a_namespace_of_somebody_elses_that_is_not_there_is_said_with_what_brings_it(site: Site) -> None:
    boards = site.object("v1", "ConfigMap", "boards", data={"a": "b"})
    boards["metadata"]["namespace"] = "monitoring"
    site.objects.append(boards)
    with pytest.raises(PreflightError, match="monitoring: install the Prometheus operator into it, or leave the"):
        await done(site.bring_up)
    assert not site.kubectl.exists("namespace", site.namespace, "")
    site.kubectl.run("create", "namespace", "monitoring")
    assert "everything runs" in await done(site.bring_up)
    site.kubectl.run("delete", "namespace", "monitoring", "--wait=false")


async def test_a_claim_that_nobody_would_bind_is_said_at_once(site: Site) -> None:
    spec: Json = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = site.object("v1", "PersistentVolumeClaim", "model-cache", spec=spec)
    site.objects.append(claim)
    with pytest.raises(PreflightError, match="model-cache names no storage class, and the cluster has no default one"):
        await done(site.bring_up)
    spec["storageClassName"] = "fast"
    with pytest.raises(
        PreflightError, match=r"the claim model-cache names the storage class fast; there are: .*efs-sc"
    ):
        await done(site.bring_up)
    spec["storageClassName"] = "efs-sc"
    assert "everything runs" in await done(site.bring_up)


async def test_pods_that_no_node_takes_are_explained_when_time_is_up(site: Site) -> None:
    site.workload(nodeSelector={"llm-mesh.dev/accelerator": "h100"})
    with pytest.raises(DeployError) as caught:
        await done(lambda: site.bring_up(seconds=1))
    assert "not ready after 1 s (TIMEOUT=):" in str(caught.value)
    assert "Deployment llama2 0/2: Pending: 0/" in str(caught.value)
    assert "didn't match Pod's node affinity/selector" in str(caught.value)


async def test_pods_that_are_refused_are_explained(site: Site) -> None:
    site.objects[0]["metadata"]["labels"] = {**OURS, "pod-security.kubernetes.io/enforce": "restricted"}
    site.workload(hostNetwork=True)
    with pytest.raises(DeployError, match=r'Deployment llama2 0/2: .*violates PodSecurity "restricted'):
        await done(lambda: site.bring_up(seconds=1))


async def test_fields_that_somebody_else_set_are_taken_only_by_force(site: Site) -> None:
    o = site.workload()
    await done(site.bring_up)
    site.kubectl.run(
        "patch",
        "deployment",
        "llama2",
        f"--namespace={site.namespace}",
        '--patch={"spec":{"replicas":1}}',
        "--field-manager=ann",
    )
    o["spec"]["replicas"] = 3
    with pytest.raises(DeployError, match=r'(?s)conflict with "ann".*\.spec\.replicas.*FORCE=1'):
        await done(site.bring_up)
    assert "✓ Deployment llama2 3/3" in await done(lambda: site.bring_up(force=True))


async def test_what_an_earlier_overlay_left_is_named_and_not_deleted(site: Site) -> None:
    site.workload("codellama")
    site.workload()
    await done(site.bring_up)
    site.objects.pop(1)
    said = await done(site.bring_up)
    command = f"kubectl -n {site.namespace} delete deployment.v1.apps/codellama"
    assert f"! Deployment codellama is not in this overlay: {command}" in said
    assert "Deployment llama2 is not" not in said
    assert site.applied("deployments") == ["codellama", "llama2"]
    site.kubectl.run(*command.split()[1:])


async def test_an_unknown_context_is_answered_with_those_that_there_are(site: Site) -> None:
    site.kubectl = Kubectl("staging")
    with pytest.raises(PreflightError, match=r"(?s)no cluster answers.*CONTEXT=NAME; there are: llm-mesh"):
        await done(site.bring_up)
    with pytest.raises(PreflightError, match="no cluster answers"):
        preflight.reachable(site.kubectl)


async def test_downloads_are_followed_to_their_end_and_can_be_run_again(site: Site) -> None:
    site.workload("download", "Job")

    def run() -> str:
        site.kubectl.apply(site.build.of("Namespace"))
        download.bring_in(site.build, site.kubectl, site.console(), 40)
        return site.said.getvalue()

    assert "✓  download  Complete" in await done(run)
    first = site.kubectl.get("jobs", site.namespace)[0]["metadata"]["uid"]
    await done(run)
    assert site.kubectl.get("jobs", site.namespace)[0]["metadata"]["uid"] != first


async def test_a_download_that_no_node_takes_is_given_up_and_goes_on(site: Site) -> None:
    site.workload("download", "Job", nodeSelector={"none": "such"})

    def run() -> str:
        site.kubectl.apply(site.build.of("Namespace"))
        download.bring_in(site.build, site.kubectl, site.console(), 2)
        return ""

    with pytest.raises(download.DownloadError, match="not done after 2 s"):
        await done(run)
    assert "download  Pending: 0/" in site.said.getvalue()
