"""What the Prometheus operator and Prometheus's service discovery do in a cluster, for one that has neither.

Monitors as the API server has them become scrape configurations as the operator writes them; the API server's pods
become discovered targets with the labels that discovery gives them (role `pod`: one for each port of each container;
role `endpoints`: one for each port of each Service and pod). Which are kept, and under which labels, is left to
Prometheus's own relabelling.
"""

import json
import re
from typing import Any

import msgspec
import yaml

Json = dict[str, Any]
_POD, _SERVICE = "__meta_kubernetes_pod_", "__meta_kubernetes_service_"
_FOLDER = "/etc/prometheus"


class Found(msgspec.Struct, frozen=True):
    """What there is in the API server."""

    monitors: list[Json]  # PodMonitors and ServiceMonitors
    pods: list[Json]
    services: list[Json]
    rules: list[Json]


def files(found: Found, interval: str) -> dict[str, str]:
    """Prometheus's configuration. `interval` takes the place of the monitors' own: tests do not wait so long."""
    jobs = [(m, e, f"{m['kind']}-{_name(m)}-{i}") for m in found.monitors for i, e in enumerate(_endpoints(m))]
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [f"{_FOLDER}/rules.yml"],
        "scrape_configs": [_scrape(monitor, endpoint, job) for monitor, endpoint, job in jobs],
    }
    groups = [group for rule in found.rules for group in rule["spec"]["groups"]]
    texts = {"prometheus.yml": yaml.safe_dump(configuration), "rules.yml": yaml.safe_dump({"groups": groups})}
    return texts | {f"{job}.json": json.dumps(_discovered(monitor, found)) for monitor, _, job in jobs}


def _name(monitor: Json) -> str:
    return str(monitor["metadata"]["name"])


def _by_pod(monitor: Json) -> bool:
    return bool(monitor["kind"] == "PodMonitor")


def _endpoints(monitor: Json) -> list[Json]:
    found: list[Json] = monitor["spec"]["podMetricsEndpoints" if _by_pod(monitor) else "endpoints"]
    return found


# --- the operator -----------------------------------------------------------------------------------------------------


def _scrape(monitor: Json, endpoint: Json, job: str) -> Json:
    known = {"port", "path", "scheme", "interval", "honorLabels", "relabelings", "metricRelabelings", "tlsConfig"}
    assert endpoint.keys() <= known, f"{job}: the rig does not know {endpoint.keys() - known}"
    return {
        "job_name": job,
        "metrics_path": endpoint.get("path", "/metrics"),
        "scheme": endpoint.get("scheme", "http").lower(),
        "tls_config": _snake(endpoint.get("tlsConfig", {})),
        "honor_labels": endpoint.get("honorLabels", False),
        "file_sd_configs": [{"files": [f"{_FOLDER}/{job}.json"], "refresh_interval": "1s"}],
        "relabel_configs": [*_operators(monitor, endpoint), *map(_snake, endpoint.get("relabelings", ()))],
        "metric_relabel_configs": [_snake(rule) for rule in endpoint.get("metricRelabelings", ())],
    }


def _operators(monitor: Json, endpoint: Json) -> list[Json]:
    """The rules that the operator writes before the monitor's own."""
    rules = _selected(monitor["spec"]["selector"], _POD if _by_pod(monitor) else _SERVICE)
    if "port" in endpoint:
        port = f"{_POD}container_port_name" if _by_pod(monitor) else "__meta_kubernetes_endpoint_port_name"
        rules.append({"action": "keep", "source_labels": [port], "regex": endpoint["port"]})
    named = {"namespace": "__meta_kubernetes_namespace", "container": f"{_POD}container_name", "pod": f"{_POD}name"}
    rules += [{"source_labels": [source], "target_label": label} for label, source in named.items()]
    rules.append({"target_label": "job", "replacement": f"{monitor['metadata']['namespace']}/{_name(monitor)}"})
    if not _by_pod(monitor):
        rules.append({"source_labels": [f"{_SERVICE}name"], "target_label": "job"})
    return rules


def _selected(selector: Json, of: str) -> list[Json]:
    wanted = {label: [value] for label, value in selector.get("matchLabels", {}).items()}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", "the rig knows no other"
        wanted[expression["key"]] = expression["values"]
    return [
        {
            "action": "keep",
            "source_labels": [f"{of}label_{_plain(label)}", f"{of}labelpresent_{_plain(label)}"],
            "regex": f"({'|'.join(map(re.escape, values))});true",
        }
        for label, values in wanted.items()
    ]


def _snake(fields: Json) -> Json:
    return {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", name): value for name, value in fields.items()}


# --- discovery --------------------------------------------------------------------------------------------------------


def _discovered(monitor: Json, found: Found) -> list[Json]:
    home = monitor["metadata"]["namespace"]
    spaces = monitor["spec"].get("namespaceSelector", {}).get("matchNames", [home])
    pods = [p for p in found.pods if p["metadata"]["namespace"] in spaces and p["status"].get("podIP")]
    if _by_pod(monitor):
        return [target for pod in pods for target in _targets(pod)]
    return [target for service in found.services for pod in pods for target in _behind(service, pod)]


def _behind(service: Json, pod: Json) -> list[Json]:
    """The ports of a Service at one pod of its."""
    meta, wanted = service["metadata"], service["spec"].get("selector")
    labels = pod["metadata"].get("labels", {})
    if meta["namespace"] != pod["metadata"]["namespace"] or not wanted or not wanted.items() <= labels.items():
        return []
    own = {**_of_pod(pod), f"{_SERVICE}name": meta["name"], **_labels(_SERVICE, meta.get("labels", {}))}
    named = {
        p.get("name"): p["containerPort"]
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
        for p in container.get("ports", ())
    }
    return [
        {
            "targets": [f"{pod['status']['podIP']}:{named.get(port['targetPort'], port['targetPort'])}"],
            "labels": {**own, "__meta_kubernetes_endpoint_port_name": port.get("name", "")},
        }
        for port in service["spec"]["ports"]
    ]


def _targets(pod: Json) -> list[Json]:
    spec, ip = pod["spec"], pod["status"]["podIP"]
    found = []
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        for port in container.get("ports") or [{}]:
            number = str(port.get("containerPort", ""))
            own = {
                f"{_POD}container_name": container["name"],
                f"{_POD}container_port_name": port.get("name", ""),
                f"{_POD}container_port_number": number,
            }
            found.append({"targets": [f"{ip}:{number}" if number else ip], "labels": {**_of_pod(pod), **own}})
    return found


def _of_pod(pod: Json) -> dict[str, str]:
    meta = pod["metadata"]
    return {
        "__meta_kubernetes_namespace": meta["namespace"],
        f"{_POD}name": meta["name"],
        f"{_POD}ip": pod["status"]["podIP"],
        f"{_POD}node_name": pod["spec"].get("nodeName", ""),
        **_labels(_POD, meta.get("labels", {})),
    }


def _labels(of: str, labels: dict[str, str]) -> dict[str, str]:
    values = {f"{of}label_{_plain(label)}": value for label, value in labels.items()}
    return values | {f"{of}labelpresent_{_plain(label)}": "true" for label in labels}


def _plain(label: str) -> str:
    return re.sub("[^a-zA-Z0-9_]", "_", label)
