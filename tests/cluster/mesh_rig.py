"""What the tests of a running mesh stand on: kubectl, arms and weights, what the gateway's Envoy says."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from stack_rig import NO_TLS, Platform, eventually

from tools.cluster.binaries import beside_python
from tools.cluster.pod import Pod

Json = dict[str, Any]
CANARY = "canary"


class Mesh:
    """A platform that runs as a cluster runs it, and what a person with kubectl can do to it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.stack = platform.stack

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        output: str = self.platform.do(self.stack.kubectl(*arguments, text=text))
        return output

    def get(self, *what: str) -> Json:
        found: Json = json.loads(self.kubectl("get", *what, "--output=json"))
        return found

    def apply(self, manifest: Json) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=json.dumps(manifest))

    def kustomize(self, overlay: Path) -> None:
        """Apply an overlay as a deployment does: to all namespaces that it names."""
        command = ("apply", "--server-side", "--force-conflicts", "--filename=-")
        self.platform.do(self.stack.plane.kubectl(*command, input=built(overlay)))
        self.settled()

    def patch(self, kind: str, name: str, operations: list[Json]) -> None:
        self.kubectl("patch", kind, name, "--type=json", f"--patch={json.dumps(operations)}")

    def pods(self, app: str) -> list[Pod]:
        found: list[Pod] = self.stack.pods(app)
        return found

    def settled(self) -> None:
        """Every rollout is through."""
        self.platform.do(self.stack.rolled_out())

    def door(self, pod: Pod, port: int = 8000) -> str:
        address: str = self.platform.do(self.stack.door(lambda: pod, port))
        return f"http://{address}"

    # --- weights ------------------------------------------------------------------------------------------------------

    def weigh(self, model: str, stable: int, canary: int) -> None:
        """Set the weights of a model's route, and wait until the gateway's Envoy has them."""
        weights = {"stable": stable, CANARY: canary}
        operations = [
            {"op": "replace", "path": f"/spec/http/0/route/{i}/weight", "value": weight}
            for i, weight in enumerate(weights.values())
        ]
        self.patch("virtualservice", model, operations)
        wanted = {arm: weight for arm, weight in weights.items() if weight}
        eventually(lambda: self.weights(model) == wanted)

    def weights(self, model: str) -> dict[str, int]:
        """What the gateway's Envoy routes by: subset -> weight."""
        for route in self.routes():
            if route.get("name") == model:
                action = route["route"]
                clusters = action.get("weighted_clusters", {}).get("clusters") or [{"name": action["cluster"]}]
                return {c["name"].split("|")[2]: c.get("weight", 100) for c in clusters}
        return {}

    @contextlib.contextmanager
    def arm(self, model: str) -> Iterator[Pod]:
        """A second arm of a model, without weight; the first one has all of it again at the end."""
        manifest = self.get("deployment", model)
        meta = manifest["metadata"]
        manifest["metadata"] = {"name": f"{model}-{CANARY}", "labels": meta.get("labels", {})}
        manifest.pop("status")
        manifest["spec"]["replicas"] = 1
        manifest["spec"]["selector"]["matchLabels"]["version"] = CANARY
        manifest["spec"]["template"]["metadata"]["labels"]["version"] = CANARY
        self.apply(manifest)
        try:
            self.settled()
            (pod,) = [p for p in self.pods(model) if p.manifest["metadata"]["labels"]["version"] == CANARY]
            yield pod
        finally:
            self.weigh(model, 100, 0)
            self.kubectl("delete", "deployment", f"{model}-{CANARY}")

    # --- the gateway's Envoy ------------------------------------------------------------------------------------------

    def envoy(self, path: str) -> str:
        with httpx.Client(verify=NO_TLS) as client:
            return client.get(f"http://127.0.0.1:{self.stack.envoy_port}{path}").text

    def routes(self) -> list[Json]:
        """Of the HTTPS listener."""
        dump = json.loads(self.envoy("/config_dump?resource=dynamic_route_configs"))
        found = [c["route_config"] for c in dump["configs"]]
        hosts = [h for c in found if c["name"].startswith("https.") for h in c.get("virtual_hosts", ())]
        return [route for host in hosts for route in host.get("routes", ())]

    def ejected(self, model: str) -> int:
        """How many of a model's replicas the gateway passes over for the errors it has seen."""
        found = json.loads(self.envoy("/clusters?format=json"))["cluster_statuses"]
        hosts = [h for c in found if f"|stable|{model}." in c["name"] for h in c.get("host_statuses", ())]
        return sum(bool(host["health_status"].get("failed_outlier_check")) for host in hosts)


def count(pod_url: str, marker: str) -> int:
    """How many requests with the marker have reached a simulated backend."""
    with httpx.Client(verify=NO_TLS) as client:
        return client.get(f"{pod_url}/sim/requests").text.count(marker)


def built(overlay: Path) -> str:
    command = [beside_python("kubectl"), "kustomize", str(overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
