"""What a cluster's Prometheus would scrape, against what the pods say and what the rules ask for."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_rig import built

from extproc.local.observe import targets
from observability import rules
from observability.__main__ import HERE
from observability.prices import GPU_PRICES
from tools.cluster.binaries import MODULES
from tools.overlays import build as kustomize
from tools.overlays.checks import check
from tools.overlays.objects import Build, at
from tools.sizing.machines import MACHINES

Json = dict[str, Any]
COMPONENT = HERE.parent / "overlays" / "components" / "observability"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("overlay")
    up = "/".join([".."] * (len(directory.resolve().parts) - 1))
    base, component = HERE.parent / "overlays" / "base", COMPONENT
    (directory / "kustomization.yaml").write_text(f"resources: [{up}{base}]\ncomponents: [{up}{component}]\n")
    return kustomize.build(directory)


def relabelled(monitor: str, labels: dict[str, str], step: str = "relabelings") -> dict[str, str] | None:
    """What Prometheus's relabelling makes of the labels; None where it drops the target. As much of it as we use."""
    endpoint = yaml.safe_load((HERE / "collection" / f"{monitor}.yaml").read_text())["spec"]
    endpoint = (endpoint.get("podMetricsEndpoints") or endpoint["endpoints"])[0]
    found = dict(labels)
    for rule in endpoint.get(step, []):
        value = ";".join(found.get(name, "") for name in rule.get("sourceLabels", []))
        match = re.fullmatch(rule.get("regex", "(.*)"), value, re.DOTALL)
        if rule.get("action") == "labeldrop":
            found = {k: v for k, v in found.items() if not re.fullmatch(rule["regex"], k)}
        elif rule.get("action") == "keep":
            if match is None:
                return None
        elif match is not None:
            replacement = re.sub(r"\$(\d)", r"\\\1", rule.get("replacement", "$1"))
            found[rule["targetLabel"]] = match.expand(replacement)
    return found


def pod(component: str, app: str, version: str = "", ip: str = "10.0.0.7") -> dict[str, str]:
    meta = "__meta_kubernetes_pod_"
    return {
        f"{meta}ip": ip,
        f"{meta}name": f"{app}-7f9c-abcde",
        f"{meta}container_port_name": "http-envoy-prom",
        f"{meta}label_app_kubernetes_io_component": component,
        f"{meta}label_app": app,
        f"{meta}label_version": version,
    }


@pytest.mark.parametrize(
    ("labels", "job", "model", "arm"),
    [
        (pod("gateway", "llm-gateway"), "envoy", None, None),
        (pod("store", "valkey"), "valkey", None, None),
        (pod("model", "mistral", "canary"), "vllm", "mistral", "canary"),
        (pod("model", "bge-small", "stable"), "vllm", "bge-small", "stable"),
    ],
    ids=["gateway", "store", "arm", "model"],
)
def test_pods_of_the_mesh_get_the_labels_that_the_rules_ask_for(
    labels: dict[str, str], job: str, model: str | None, arm: str | None
) -> None:
    found = relabelled("mesh", labels)
    assert found is not None
    assert (found.get("job"), found.get("model"), found.get("arm")) == (job, model, arm)
    assert found["__address__"] == "10.0.0.7:15020"
    assert found["instance"].endswith("-7f9c-abcde")


def test_a_pod_is_one_target_and_has_an_address_in_brackets_where_it_needs_them() -> None:
    labels = pod("gateway", "llm-gateway", ip="fd00::7")
    assert (relabelled("mesh", labels) or {})["__address__"] == "[fd00::7]:15020"
    assert relabelled("mesh", {**labels, "__meta_kubernetes_pod_container_port_name": "https"}) is None


def test_istios_names_become_envoys_own() -> None:
    """Names and labels as pilot-agent gave them out on a real gateway."""
    seen = {
        "__name__": "envoy_http_downstream_rq",
        "http_conn_manager_prefix": "outbound_0.0.0.0_8443",
        "response_code_class": "5xx",
    }
    assert relabelled("mesh", seen, "metricRelabelings") == {
        "__name__": "envoy_http_downstream_rq_xx",
        "envoy_http_conn_manager_prefix": "outbound_0.0.0.0_8443",
        "envoy_response_code_class": "5",
    }
    total = {"__name__": "envoy_http_downstream_rq_total", "http_conn_manager_prefix": "outbound_0.0.0.0_8443"}
    found = relabelled("mesh", total, "metricRelabelings") or {}
    assert found["__name__"] == "envoy_http_downstream_rq_total"
    name = "envoy_listener_ssl_certificate_kubernetes___llm_gateway_tls_expiration_unix_time_seconds"
    found = relabelled("mesh", {"__name__": name}, "metricRelabelings") or {}
    assert found["__name__"] == "envoy_listener_ssl_certificate_expiration_unix_time_seconds"


@pytest.mark.parametrize(
    ("pod_name", "model"),
    [
        ("mistral-7f9c-abcde", "mistral"),
        ("bge-small-7f9c-abcde", "bge-small"),
        ("mistral-canary-7f9c-abcde", "mistral"),
    ],
)
def test_a_gpu_belongs_to_the_model_of_its_pod(pod_name: str, model: str) -> None:
    seen = {"exported_namespace": "llm", "exported_pod": pod_name}
    assert (relabelled("dcgm", seen, "metricRelabelings") or {})["model"] == model
    other = {"exported_namespace": "other", "exported_pod": pod_name}
    assert "model" not in (relabelled("dcgm", other, "metricRelabelings") or {})


def test_the_local_prometheus_gives_the_same_jobs_and_labels() -> None:
    local = {scrape["job_name"]: scrape for scrape in targets("a:1", "b:2", {"mistral": "c:3"})}
    asked = {job for rule in rules.all_alerts() for job in re.findall(r'job="(\w+)"', rule.expr)}
    assert asked <= local.keys()
    assert local["vllm"]["static_configs"] == [{"targets": ["c:3"], "labels": {"model": "mistral", "arm": "stable"}}]


def test_a_gpus_price_is_that_of_a_machine_that_the_overlays_take() -> None:
    files = (HERE.parent / "overlays" / "components").glob("gpu-*/*.yaml")
    taken = {
        name
        for path in files
        for values in re.findall(r"values: \[(.*)\]", path.read_text())
        for name in values.split(", ")
    }
    for price in GPU_PRICES:
        machine = price.machine.split()[1].rstrip(",")
        gpu = next(m.gpu for m in MACHINES if m.name == machine)
        assert machine in taken
        assert price.name.lower().endswith(gpu)


# --- the component ----------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_the_platform_when_it_is_observed(overlay: Build) -> None:
    assert [str(f) for f in check(overlay)] == []


def test_agents_are_told_where_vllm_and_valkeys_exporter_listen(overlay: Build) -> None:
    for w in [*overlay.models(), *(w for w in overlay.workloads() if w.name == "valkey")]:
        port = w.annotations["prometheus.io/port"]
        assert w.annotations["prometheus.io/scrape"] == "true"
        ports = {str(p["containerPort"]) for c in w.containers() for p in c.get("ports") or []}
        listens = {
            e["value"].rpartition(":")[2] for c in w.containers() for e in c.get("env") or [] if "LISTEN" in e["name"]
        }
        assert port in ports | listens, w.title


def test_the_agents_port_is_open_to_the_namespace_of_prometheus(overlay: Build) -> None:
    for name, port in {"gateway": 9001, "models": 15020, "valkey": 15020}.items():
        policy = overlay.named("NetworkPolicy", name)
        rules_in = at(policy, "spec", "ingress", default=[])
        monitoring = [r for r in rules_in if "monitoring" in str(r.get("from"))]
        assert any(p["port"] == port for r in monitoring for p in r["ports"]), name


def test_the_processor_writes_its_request_log_and_reaches_the_collector(overlay: Build) -> None:
    gateway = next(w for w in overlay.workloads() if w.name == "llm-gateway")
    processor = next(c for c in gateway.containers() if c["name"] == "processor")
    plain = next(c for w in built("base").workloads() for c in w.containers() if c["name"] == "processor")
    assert processor["args"] == [*plain["args"], "--request-log"]
    endpoint = next(e["value"] for e in processor["env"] if e["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT")
    service = overlay.named("Service", "llm-collector")
    assert service is not None
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert host in endpoint
    assert int(endpoint.rpartition(":")[2]) in [p["port"] for p in service["spec"]["ports"]]


def test_dashboards_and_sources_arrive_where_grafana_looks(overlay: Build) -> None:
    boards = overlay.named("ConfigMap", "llm-dashboards")
    assert boards is not None
    assert boards["metadata"]["namespace"] == "monitoring"
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert boards["data"] == {path.name: path.read_text() for path in (HERE / "grafana").glob("*.json")}
    size = sum(len(text) for text in boards["data"].values())
    assert size < 900_000, "a ConfigMap holds 1 MiB"


def test_every_rules_file_is_deployed(overlay: Build) -> None:
    deployed = {o["metadata"]["name"]: o["spec"] for o in overlay.of("PrometheusRule")}
    assert deployed == {o["metadata"]["name"]: o["spec"] for o in rules.objects().values()}


def test_the_collector_reads_the_file_of_the_processors_container(overlay: Build) -> None:
    configuration = yaml.safe_load((HERE / "collector" / "collector.yaml").read_text())
    (pattern,) = configuration["receivers"]["file_log"]["include"]
    gateway = next(w for w in overlay.workloads() if w.name == "llm-gateway")
    (name,) = (c["name"] for c in gateway.containers() if "--request-log" in (c.get("args") or []))
    folder = f"/var/log/pods/{gateway.namespace}_{gateway.name}-7f9c-abcde_0a1b-2c3d"
    assert fnmatch(f"{folder}/{name}/0.log", pattern)
    mounts = at(overlay.named("DaemonSet", "llm-collector"), "spec", "template", "spec", "containers", default=[{}])[0][
        "volumeMounts"
    ]
    assert {"/var/log/pods", configuration["extensions"]["file_storage"]["directory"]} <= {
        m["mountPath"] for m in mounts
    }


def test_the_collector_reads_the_fields_that_the_processor_writes() -> None:
    text = (HERE / "collector" / "collector.yaml").read_text()
    written = Path(HERE.parent / "extproc" / "request_log.py").read_text()
    for name in set(re.findall(r"attributes\.request\.(\w+)", text)):
        assert name in written, name


def test_the_collectors_image_is_of_the_version_that_is_tested() -> None:
    pinned = dict(re.findall(r"^\t(\S+) v(\S+)$", (MODULES / "collector" / "go.mod").read_text(), re.MULTILINE))
    daemon_set = yaml.safe_load((HERE / "collector" / "daemon-set.yaml").read_text())
    (container,) = at(daemon_set, "spec", "template", "spec", "containers")
    name, tag = container["image"].split(":")
    assert name.endswith("/opentelemetry-collector-contrib")
    assert tag == pinned["go.opentelemetry.io/collector/otelcol"]
