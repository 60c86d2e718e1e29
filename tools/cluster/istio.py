"""Istio on the one-machine control plane: the real installation manifest, and istiod as a process of this machine.

`istioctl manifest generate` gives what a cluster would get; of it only istiod's Deployment is left out. The
webhooks stay as they are: istiod validates and injects for this API server as for any other. What differs, and why:
- metrics providers, metadata exchange and the ALPN filter are off: the proxy here is upstream Envoy, without Istio's
  extensions;
- the Service istiod leads to this machine's end of the pods' bridge.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from extproc.local.process import Child, answers, free_port
from tools.cluster.binaries import istio_file, tool
from tools.cluster.control_plane import ControlPlane
from tools.cluster.network import run
from tools.cluster.pki import MASTERS

Json = dict[str, Any]
SPACE = "istio-system"
_START_SECONDS = 60.0
NAMES = ("istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local")
_LEFT_OUT = {"Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "CustomResourceDefinition"}
_WITH_CNI = ("--set", "components.cni.enabled=true", "--set", "values.pilot.cni.enabled=true")
_ENVIRONMENT = {
    "POD_NAMESPACE": SPACE,
    "CLUSTER_ID": "Kubernetes",
    "PILOT_CERT_PROVIDER": "istiod",
    "REVISION": "default",
    "ENABLE_NATIVE_SIDECARS": "true",
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_CROSS_CLUSTER_WORKLOAD_ENTRY": "false",
}


async def install(plane: ControlPlane, host_ip: str) -> None:
    """Everything but istiod itself."""
    text = await run(str(tool("istioctl")), "manifest", "generate", "--set", "profile=minimal", *_WITH_CNI)
    objects = [adapted(o) for o in yaml.load_all(text, yaml.CSafeLoader) if o and _wanted(o)]
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}
    listing = {"apiVersion": "v1", "kind": "List", "items": [space, *objects, _endpoints(host_ip)]}
    await plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(listing))


def _wanted(manifest: Json) -> bool:
    return manifest["kind"] not in _LEFT_OUT and "cni" not in manifest["metadata"]["name"]


def adapted(manifest: Json) -> Json:
    name = manifest["metadata"]["name"]
    if manifest["kind"] == "ConfigMap" and name == "istio":
        mesh = yaml.safe_load(manifest["data"]["mesh"])
        mesh["defaultProviders"] = {"metrics": []}
        manifest["data"]["mesh"] = yaml.safe_dump(mesh)
    if manifest["kind"] == "Service" and name == "istiod":
        del manifest["spec"]["selector"]  # its endpoints are made by hand
    return manifest


def _endpoints(host_ip: str) -> Json:
    ports = {"grpc-xds": 15010, "https-dns": 15012, "https-webhook": 15017, "http-monitoring": 15014}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "istiod-here", "namespace": SPACE, "labels": {"kubernetes.io/service-name": "istiod"}},
        "addressType": "IPv4",
        "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports.items()],
        "endpoints": [{"addresses": [host_ip], "conditions": {"ready": True}}],
    }


async def start(plane: ControlPlane, host_ip: str, log: Path) -> Child:
    """istiod, up. Raises StackError."""
    http = free_port()
    command = [str(tool("pilot-discovery")), "discovery", "--log_output_level=default:info", "--domain=cluster.local"]
    command += [f"--kubeconfig={plane.pki.kubeconfig('istiod', plane.server, MASTERS)}"]
    command += [f"--grpcAddr={host_ip}:15010", f"--secureGRPCAddr={host_ip}:15012", f"--httpsAddr={host_ip}:15017"]
    command += [f"--httpAddr=127.0.0.1:{http}", f"--monitoringAddr={host_ip}:15014", f"--ctrlz_port={free_port()}"]
    child = Child("istiod", command, log, _ENVIRONMENT)
    try:
        await child.up(partial(answers, f"http://127.0.0.1:{http}/ready"), _START_SECONDS)
    except BaseException:
        await child.stop()
        raise
    return child


@contextlib.asynccontextmanager
async def running(plane: ControlPlane, host_ip: str, log: Path) -> AsyncIterator[None]:
    """Istio's resources, and istiod for as long as the context lasts."""
    await install(plane, host_ip)
    child = await start(plane, host_ip, log)
    try:
        yield
    finally:
        await child.stop()


def proxy_files(envoy: Path) -> dict[str, Path]:
    """What Istio's proxy image has, with the upstream Envoy in it."""
    return {
        "/usr/local/bin/pilot-agent": tool("pilot-agent"),
        "/usr/local/bin/envoy": envoy,
        "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json": istio_file("tools/packaging/common/envoy_bootstrap.json"),
    }
