"""Prometheus as a pod of the cluster, in the namespace `monitoring`, with an identity of the mesh beside it.

The pod is as docs/deployment.md has kube-prometheus-stack make it: its user, and a proxy that intercepts nothing and
leaves its certificates.
"""

import json
from pathlib import Path
from typing import Any

from mesh_rig import Json, Mesh
from operator_rig import Found, files
from prometheus_rig import Asked
from stack_rig import eventually

from tools.cluster.mesh import MONITORING

NAME = "prometheus"
_ANNOTATIONS = {
    "traffic.sidecar.istio.io/includeInboundPorts": "",
    "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
    "proxy.istio.io/config": "proxyMetadata: {OUTPUT_CERTS: /etc/istio-certs}",
    "sidecar.istio.io/userVolumeMount": '[{"name": "istio-certs", "mountPath": "/etc/istio-certs"}]',
}


class PrometheusPod(Asked):
    """From `with` on it is ready and has found its targets; `discover` looks again."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.apply(_object("v1", "ServiceAccount"))
        self._write()
        self.apply(_object("apps/v1", "Deployment", spec=_workload()))
        self.kubectl("rollout", "status", "deployment", NAME, "--timeout=60s")
        (self.pod,) = mesh.pods(NAME)
        super().__init__(f"http://{self.pod.ip}:9090")

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.kubectl("delete", "deployment,serviceaccount,configmap", NAME)

    @property
    def certificates(self) -> Path:
        return self.pod.volume("istio-certs")

    def discover(self) -> None:
        """What operator, its reloader and discovery do all the time."""
        before = self._written
        self._write()
        arrived = self.pod.volume("configuration") / "prometheus.yml"
        if self._written != before:
            eventually(lambda: arrived.read_text() == self._written)
            assert self.http.post(f"http://{self.pod.ip}:9090/-/reload").status_code == 200

    def _write(self) -> None:
        def all_of(kinds: str) -> list[Json]:
            found: list[Json] = self._mesh.get(kinds, "--all-namespaces")["items"]
            return found

        monitors = all_of("podmonitors,servicemonitors")
        found = Found(monitors, all_of("pods"), all_of("services"), all_of("prometheusrules"))
        data = files(found, "1s")
        self._written = data["prometheus.yml"]
        self.apply(_object("v1", "ConfigMap", data=data))

    def targets(self) -> list[Json]:
        found: list[Json] = self.http.get("/targets", params={"state": "active"}).json()["data"]["activeTargets"]
        return found

    def await_up(self) -> list[Json]:
        """Every target is up."""

        def up() -> bool:
            found = self.targets()
            return bool(found) and all(t["health"] == "up" for t in found)

        try:
            eventually(up)
        except AssertionError as error:
            raise AssertionError([(t["scrapeUrl"], t["lastError"]) for t in self.targets()]) from error
        return self.targets()

    def apply(self, manifest: Json) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=json.dumps(manifest))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self._mesh.kubectl(f"--namespace={MONITORING}", *arguments, text=text)


def _object(version: str, kind: str, **fields: Any) -> Json:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": NAME, "namespace": MONITORING}, **fields}


def _workload() -> Json:
    labels = {"app": NAME, "sidecar.istio.io/inject": "true"}
    mounts = {"configuration": "/etc/prometheus", "data": "/prometheus", "istio-certs": "/etc/prometheus-certs"}
    container = {
        "name": NAME,
        "image": "quay.io/prometheus/prometheus:v3.5.0",
        "args": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--enable-feature=exemplar-storage",
            "--web.enable-lifecycle",
        ],
        "ports": [{"name": "web", "containerPort": 9090}],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": "web"}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    pod = {
        "serviceAccountName": NAME,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 2000, "runAsNonRoot": True},
        "containers": [container],
        "volumes": [
            {"name": "configuration", "configMap": {"name": NAME}},
            {"name": "data", "emptyDir": {}},
            {"name": "istio-certs", "emptyDir": {"medium": "Memory"}},
        ],
    }
    template = {"metadata": {"labels": labels, "annotations": _ANNOTATIONS}, "spec": pod}
    return {"selector": {"matchLabels": {"app": NAME}}, "template": template}
