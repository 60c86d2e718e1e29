"""The admission policies in a real API server: what kubectl edit breaks is refused with what to do, the rest passes."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tools.cluster.control_plane import ControlPlane, KubectlError
from tools.overlays.build import OVERLAYS

Json = dict[str, Any]
pytestmark = pytest.mark.asyncio(loop_scope="session")

DECIDED: Json = {"headers": {"x-llm-model": {"exact": "llama2"}}}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
TOLERANT: Json = {"tolerations": [TOLERATION], "nodeSelector": {"llm-mesh.dev/accelerator": "t4"}}
ONE_OF = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]}
AFFINE: Json = {
    "tolerations": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [ONE_OF]}]}
        }
    },
}


def routes(*http: Json) -> Json:
    spec = {"hosts": ["*"], "gateways": ["llm"], "http": list(http)}
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "r"}, "spec": spec}


def route(*weights: int | None, name: str = "llama2", match: list[Json] | None = None) -> Json:
    shares = [{} if weight is None else {"weight": weight} for weight in weights]
    return {
        "name": name,
        "match": [DECIDED] if match is None else match,
        "route": [{"destination": {"host": "llama2"}, **share} for share in shares],
    }


def workload(image: str = "example.com/image:1", kind: str = "Deployment", *, gpu: bool = False, **pod: Any) -> Json:
    limits = {"nvidia.com/gpu": "1"} if gpu else {"memory": "1Gi"}
    container = {"name": "vllm", "image": image, "resources": {"limits": limits}}
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [container], **pod}}
    spec: Json = {"selector": {"matchLabels": {"app": "a"}}, "template": template}
    if kind == "Job":
        template["spec"]["restartPolicy"] = "Never"
        spec = {"template": template}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "w"}, "spec": spec}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(control_plane: ControlPlane) -> AsyncIterator[str]:
    """A namespace of the platform's, once the policies are in force there."""
    directory = str(OVERLAYS / "components" / "admission")
    name = f"guarded-{uuid.uuid4().hex[:8]}"
    await control_plane.kubectl("apply", "--server-side", "--kustomize", directory)
    await control_plane.kubectl("create", "namespace", name)
    await control_plane.kubectl("label", "namespace", name, "app.kubernetes.io/part-of=llm-mesh")
    while "can be another program" not in await answer(control_plane, name, workload("example.com/image")):
        pass  # each try is a request; policies are in force within a second
    while "let them add up" not in await answer(control_plane, name, routes(route(1, 1))):
        pass
    yield name
    await control_plane.kubectl("delete", "--kustomize", directory)
    await control_plane.kubectl("delete", "namespace", name, "--wait=false")


async def answer(plane: ControlPlane, namespace: str, o: Json) -> str:
    """What the API server says of the object, which is not stored."""
    try:
        command = ("create", "--dry-run=server", f"--namespace={namespace}", "--filename=-")
        return await plane.kubectl(*command, input=json.dumps(o))
    except KubectlError as error:
        return str(error)


FINE: dict[str, Json] = {
    "weights of 100": routes(route(90, 10)),
    "a single destination, which needs no weight": routes(route(None)),
    "a weight that is left out, which is 0": routes(route(100, None)),
    "a route that answers by itself": routes({"match": [{"uri": {"prefix": "/"}}], "directResponse": {"status": 503}}),
    "a decided route that asks for more": routes(route(100, match=[{**DECIDED, "uri": {"prefix": "/v1/"}}])),
    "a GPU with toleration and selector": workload(gpu=True, **TOLERANT),
    "a GPU chosen by affinity": workload(gpu=True, **AFFINE),
    "no GPU": workload(),
    "Istio's own image": workload("auto"),
    "a digest": workload("example.com/image@sha256:" + "0" * 64),
    "a registry with a port": workload("localhost:5000/image:1.2"),
}
REFUSED: dict[str, tuple[Json, str]] = {
    "weights above 100": (
        routes(route(100), route(90, 20, name="mistral")),
        "the weights of the route mistral are 90 + 20: let them add up to 100",
    ),
    "a weight that was forgotten": (routes(route(90, None)), "the weights of the route llama2 are 90 + 0"),
    "a route for everybody": (
        routes(route(100, name="all", match=[])),
        "the route all would take requests that nobody has decided on: add match: [{headers: {x-llm-model:",
    ),
    "a second match for everybody": (
        routes(route(100, match=[DECIDED, {"uri": {"prefix": "/"}}])),
        "the route llama2 would take requests",
    ),
    "a match by prefix": (
        routes(route(100, match=[{"headers": {"x-llm-model": {"prefix": "l"}}}])),
        "the route llama2 would take requests",
    ),
    "a GPU without toleration": (
        workload(gpu=True, nodeSelector={"llm-mesh.dev/accelerator": "t4"}),
        "does not tolerate the taint of GPU nodes, so it would stay Pending: add tolerations:",
    ),
    "a GPU with another toleration": (
        workload(gpu=True, **{**TOLERANT, "tolerations": [{"key": "spot", "operator": "Exists"}]}),
        "does not tolerate the taint of GPU nodes",
    ),
    "any GPU": (
        workload(gpu=True, tolerations=[TOLERATION], nodeSelector={"llm-mesh.dev/capacity": "spot"}),
        "it takes any GPU, also one that its model does not run on: select one by nodeSelector:",
    ),
    "the latest image": (workload("example.com/image:latest"), "the image of vllm can be another program tomorrow"),
    "an image without a tag behind a port": (workload("localhost:5000/image"), "the image of vllm can be another"),
    "a Job with the latest image": (workload("example.com/image:latest", "Job"), "the image of vllm can be another"),
    "an init container with the latest image": (
        workload(initContainers=[{"name": "fetch", "image": "busybox"}]),
        "the image of fetch can be another program tomorrow: name a version as its tag, or a digest",
    ),
}


@pytest.mark.parametrize("o", FINE.values(), ids=FINE)
async def test_what_is_right_passes(control_plane: ControlPlane, guarded: str, o: Json) -> None:
    assert "created (server dry run)" in await answer(control_plane, guarded, o)


@pytest.mark.parametrize(("o", "words"), REFUSED.values(), ids=REFUSED)
async def test_what_is_wrong_is_refused_with_what_to_do(
    control_plane: ControlPlane, guarded: str, o: Json, words: str
) -> None:
    assert words in await answer(control_plane, guarded, o)


async def test_an_edit_is_judged_like_a_new_object(control_plane: ControlPlane, guarded: str) -> None:
    await control_plane.kubectl(
        "create", f"--namespace={guarded}", "--filename=-", input=json.dumps(routes(route(90, 10)))
    )
    patch = '[{"op": "replace", "path": "/spec/http/0/route/0/weight", "value": 95}]'
    with pytest.raises(KubectlError, match=r"llama2 are 95 \+ 10: let them add up to 100"):
        await control_plane.kubectl(
            "patch", "virtualservice", "r", f"--namespace={guarded}", "--type=json", f"--patch={patch}"
        )


async def test_other_namespaces_are_left_alone(control_plane: ControlPlane, guarded: str, namespace: str) -> None:
    assert guarded != namespace
    assert "created (server dry run)" in await answer(control_plane, namespace, routes(route(90, 20, match=[])))


async def test_the_expressions_pass_the_type_check_of_the_api_server(control_plane: ControlPlane, guarded: str) -> None:
    assert guarded
    text = await control_plane.kubectl("get", "validatingadmissionpolicies", "--output=json")
    policies = [p for p in json.loads(text)["items"] if p["metadata"]["name"].startswith("llm-mesh-")]
    assert len(policies) == 2
    assert [p["status"].get("typeChecking", {}).get("expressionWarnings", []) for p in policies] == [[], []]
