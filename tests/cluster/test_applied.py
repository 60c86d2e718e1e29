"""Every overlay on a real API server, with Istio's own admission and injection, on the machines of its cloud."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from mesh_rig import built

from extproc.local.process import StackError
from extproc.local.stack import ROOT
from tools.cluster import istio
from tools.cluster.binaries import tool
from tools.cluster.control_plane import ControlPlane
from tools.cluster.mesh import MONITORING, gateway_secret, namespace, only
from tools.cluster.network import Network, run
from tools.cluster.nodes import nodes, volumes

pytestmark = pytest.mark.asyncio(loop_scope="session")
Json = dict[str, Any]
OVERLAYS = {"dev": "aws", "staging": "aws", "production-aws": "aws", "production-gke": "gke"}
CLASSES = "", "efs-sc", "gp3", "zonal-rwx", "standard-rwo"
ROLLOUT_SECONDS = 60


@pytest_asyncio.fixture(loop_scope="session", params=OVERLAYS)
async def applied(
    request: pytest.FixtureRequest, tools: list[str], tmp_path: Path
) -> AsyncIterator[tuple[str, ControlPlane]]:
    """A cluster of its own with the overlay applied, and its pods scheduled."""
    assert not tools
    name = request.param
    network = Network(1)
    await network.start()
    async with ControlPlane(tmp_path) as plane:
        await asyncio.gather(
            plane.create([*nodes(OVERLAYS[name]), *volumes(CLASSES), namespace(MONITORING)]), plane.apply_crds()
        )
        async with istio.running(plane, network.host_ip, tmp_path / "istiod.log"):
            text = built(ROOT / "overlays" / name)
            await plane.kubectl("apply", "--server-side", "--filename=-", input=only(text, "Namespace"))
            secret = gateway_secret(tmp_path / "gateway-ca.pem")
            await plane.kubectl("apply", "--server-side", "--filename=-", input=secret)
            await plane.kubectl("apply", "--server-side", "--filename=-", input=text)
            yield name, plane
    await network.clear()


async def test_an_overlay_is_taken_injected_and_scheduled_where_it_belongs(applied: tuple[str, ControlPlane]) -> None:
    name, plane = applied
    await rolled_out(plane)
    pods: list[Json] = json.loads(await plane.kubectl("get", "pods", "-n=llm", "-o=json"))["items"]
    machines = {
        n["metadata"]["name"]: n["metadata"]["labels"]
        for n in json.loads(await plane.kubectl("get", "nodes", "-o=json"))["items"]
    }
    assert pods
    for pod in pods:
        labels = pod["metadata"]["labels"]
        machine = machines[pod["spec"]["nodeName"]]
        containers = pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
        if "batch.kubernetes.io/job-name" not in labels:
            assert "istio-proxy" in {c["name"] for c in containers}, labels
        gpus = sum(int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in containers)
        assert bool(gpus) == ("llm-mesh.dev/accelerator" in machine), (labels, machine)
        if name.startswith("production") and labels.get("app") in WANTED[OVERLAYS[name]]:
            assert machine["llm-mesh.dev/accelerator"] == WANTED[OVERLAYS[name]][labels["app"]]
    assert [finding for finding in await analyzed(plane) if finding["code"] != OF_EVERY_ENVOY_FILTER] == []


async def analyzed(plane: ControlPlane) -> list[Json]:
    """What `istioctl analyze` warns of."""
    command = ("analyze", f"--kubeconfig={plane.kubeconfig}", "-n=llm", "--failure-threshold=Error", "--output=json")
    found: list[Json] = json.loads(await run(str(tool("istioctl")), *command))
    return [finding for finding in found if finding["level"] in {"Error", "Warning"}]


OF_EVERY_ENVOY_FILTER = "IST0133"  # "exposes internal implementation details"
WANTED = {
    "aws": {"llama2": "a10g", "mistral": "t4", "codellama": "a10g"},
    "gke": {"llama2": "l4", "mistral": "t4", "codellama": "l4"},
}


async def rolled_out(plane: ControlPlane) -> None:
    kinds = "deployments,statefulsets,daemonsets"
    found = json.loads(await plane.kubectl("get", kinds, "--all-namespaces", "-o=json"))["items"]
    names = [(f"-n={o['metadata']['namespace']}", f"{o['kind']}/{o['metadata']['name']}") for o in found]
    try:
        wait = f"--timeout={ROLLOUT_SECONDS}s"
        await asyncio.gather(*(plane.kubectl("rollout", "status", *name, wait) for name in names))
    except StackError as error:
        pending = await plane.kubectl("get", "events", "--all-namespaces", "--field-selector=type=Warning")
        raise AssertionError(f"{error}\n{pending}") from error
