"""A control plane for all tests here, started once, with the machines of both clouds."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from mesh_rig import Mesh
from stack_rig import Caller, running

from tools.cluster.binaries import missing
from tools.cluster.control_plane import ControlPlane
from tools.cluster.mesh import MeshSettings
from tools.cluster.nodes import nodes, volumes

STORAGE_CLASSES = "efs-sc", "gp3", "zonal-rwx", "standard-rwo"


@pytest.fixture(scope="session")
def tools() -> list[str]:
    """What is not built of the pinned tools: nothing. Without them tests are left out, except in CI."""
    left = missing()
    reason = f"not built: {', '.join(left)}; run `make tools`"
    if left and os.environ.get("CI"):
        pytest.fail(reason)
    if left:
        pytest.skip(reason)
    return left


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control_plane(tools: list[str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """The Kubernetes API with nodes, volumes and resource definitions; pods are scheduled and Ready, but do not run."""
    assert not tools
    async with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        machines = [*nodes("aws"), *nodes("gke"), *volumes(STORAGE_CLASSES)]
        await asyncio.gather(plane.create(machines), plane.apply_crds())
        yield plane


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(control_plane: ControlPlane) -> AsyncIterator[str]:
    """A namespace of the test's own, held to the restricted pod-security profile."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await control_plane.kubectl("create", "namespace", name)
    await control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    await control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for built tools."""
    monkeypatch.setenv("LLM_MESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tools"


@pytest.fixture(scope="session")
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The overlay `fast` as a cluster runs it; the one of --mesh where that is given. Each test leaves it as it was."""
    request.getfixturevalue("tools")
    if request.config.getoption("--mesh"):
        yield Mesh(request.getfixturevalue("platform"))
        return
    with running(MeshSettings(tmp_path_factory.mktemp("mesh"), Path(__file__).parent / "fast")) as platform:
        yield Mesh(platform)


@pytest.fixture
def caller(mesh: Mesh) -> Iterator[Caller]:
    """A caller of a tenant of its own, without limits."""
    with Caller(mesh.platform) as caller:
        yield caller
