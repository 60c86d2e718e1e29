"""A real Prometheus in the cluster finds, by our own monitors, all that the rules and dashboards ask for."""

import re
from collections.abc import Iterator

import pytest
import yaml
from mesh_rig import Json, Mesh
from prometheus_pod import PrometheusPod
from prometheus_rig import panels, queries
from stack_rig import Caller, eventually
from test_identity import SCRAPE, say, status

from extproc.local.stack import ROOT
from observability.dashboards import boards

APPS = {"llm-gateway": "envoy", "valkey": "valkey"} | dict.fromkeys(
    ("llama2", "mistral", "codellama", "bge-small"), "vllm"
)
AUTOSCALING = ROOT / "overlays" / "components" / "autoscaling" / "scaled-object"
# Panels that ask each of the jobs, over what Istio renames and what only Istio's agent knows.
PANELS = {
    "service": ("By model", "By status class, as Envoy answers", "In flight", "Receipts", "Certificates: time left"),
    "models": ("Running", "KV cache in use, fullest replica", "Requests by arm"),
    "cost": ("Dollars/h by arm",),
}


@pytest.fixture(scope="module")
def prometheus(mesh: Mesh) -> Iterator[PrometheusPod]:
    with PrometheusPod(mesh) as prometheus:
        yield prometheus


def test_every_pod_is_scraped_once_for_each_thing_that_it_tells(mesh: Mesh, prometheus: PrometheusPod) -> None:
    found = prometheus.await_up()
    pods = [(job, pod.name) for app, job in APPS.items() for pod in mesh.pods(app)]
    pods += [("processor", pod.name) for pod in mesh.pods("llm-gateway")]
    assert sorted((t["labels"]["job"], t["labels"]["instance"]) for t in found) == sorted(pods)


def test_a_models_series_name_model_arm_and_pod(mesh: Mesh, prometheus: PrometheusPod) -> None:
    (pod,) = mesh.pods("mistral")
    eventually(lambda: prometheus.ask('vllm:num_requests_running{job="vllm"}'))
    wanted = {"model": "mistral", "arm": "stable", "pod": pod.name, "namespace": "llm", "instance": pod.name}
    (series,) = prometheus.ask('vllm:num_requests_running{model="mistral"}')
    assert wanted.items() <= series["metric"].items()


def asked() -> list[tuple[str, str]]:
    found = boards()
    chosen = {(board, p["title"]): p for board in PANELS for p in panels(found[board])}
    return [
        (f"{board} / {title}", expr)
        for board, titles in PANELS.items()
        for title in titles
        for expr in queries(chosen[board, title])
    ]


def test_dashboards_have_data_and_no_rule_fails(prometheus: PrometheusPod, caller: Caller) -> None:
    prometheus.await_up()
    left = dict(asked())

    def all_answered() -> bool:
        assert caller.chat(model="mistral", max_tokens=2).status_code == 200
        for where, expr in list(left.items()):
            if prometheus.ask(expr):
                del left[where]
        return not left

    try:
        eventually(all_answered, 60)
    except AssertionError:
        pytest.fail(f"no data: {left}")
    groups = prometheus.http.get("/rules").json()["data"]["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []


def test_a_new_arm_is_found_by_its_own_name(mesh: Mesh, prometheus: PrometheusPod) -> None:
    with mesh.arm("llama2"):
        prometheus.discover()
        eventually(lambda: prometheus.ask('up{model="llama2", arm="canary"} == 1'))
    eventually(lambda: not mesh.get("pods", "--selector=app=llama2,version=canary")["items"], 60)
    prometheus.discover()
    eventually(lambda: "canary" not in {target["labels"].get("arm") for target in prometheus.targets()})


@pytest.mark.parametrize("model", ["llama2", "mistral", "codellama", "bge-small"])
def test_the_autoscaler_counts_each_waiting_request_once(mesh: Mesh, prometheus: PrometheusPod, model: str) -> None:
    """What it adds up is one series for each pod of the model."""
    scaled = yaml.safe_load((AUTOSCALING / f"{model}.yaml").read_text())
    (query,) = [t["metadata"]["query"] for t in scaled["spec"]["triggers"] if "waiting" in str(t.get("name"))]
    waiting = re.fullmatch(r"sum\((.+)\)", query)
    assert waiting
    pods = {pod.name for pod in mesh.pods(model)}
    eventually(lambda: sorted(s["metric"]["pod"] for s in prometheus.ask(waiting[1])) == sorted(pods))


def test_prometheus_alone_may_read_a_models_own_port(mesh: Mesh, prometheus: PrometheusPod) -> None:
    """Its identity opens /metrics and nothing else; test_identity.py has the others, who are refused."""
    certificates = prometheus.certificates
    assert status(say(mesh, "llama2", 8000, SCRAPE, certificates)) == "200"
    assert status(say(mesh, "llama2", 8000, SCRAPE)) == "closed"
    ask = SCRAPE.replace(b"/metrics", b"/v1/models")
    assert status(say(mesh, "llama2", 8000, ask, certificates)) == "403"
    assert say(mesh, "valkey", 6379, b"PING\r\n", certificates) == b""


def test_the_network_lets_prometheus_alone_to_what_is_not_behind_an_identity(
    mesh: Mesh, prometheus: PrometheusPod
) -> None:
    """NetworkPolicies are read here, not enforced: no network plugin is on this machine."""
    policies = mesh.get("networkpolicies")["items"]
    pods = {pod["metadata"]["name"]: pod for pod in mesh.get("pods")["items"]}
    for target in prometheus.await_up():
        port = int(target["scrapeUrl"].split("/")[2].rpartition(":")[2])
        labels = pods[target["labels"]["instance"]]["metadata"]["labels"]
        assert opened_to(policies, labels, port) == [{"kubernetes.io/metadata.name": "monitoring"}], (labels, port)


def opened_to(policies: list[Json], labels: dict[str, str], port: int) -> list[Json | str]:
    """Whom the policies let to a port of a pod: labels of a namespace, or what else stands there."""
    found: list[Json | str] = []
    held = False
    for policy in policies:
        spec = policy["spec"]
        if "Ingress" in spec["policyTypes"] and spec["podSelector"].get("matchLabels", {}).items() <= labels.items():
            held = True
            for rule in spec.get("ingress", ()):
                if "ports" not in rule or port in [p["port"] for p in rule["ports"]]:
                    found += [_whom(peer) for peer in rule.get("from", [{}])]
    return found if held else [_whom({})]


def _whom(peer: Json) -> Json | str:
    labels: Json | None = peer.get("namespaceSelector", {}).get("matchLabels")
    return labels or str(peer or "everybody")


def test_the_guides_own_monitor_reads_models_over_the_mesh(mesh: Mesh, prometheus: PrometheusPod) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    (monitor,) = [found for found in map(yaml.safe_load, blocks) if found.get("kind") == "ServiceMonitor"]
    prometheus.apply(monitor)
    try:
        prometheus.discover()
        models = [app for app, job in APPS.items() if job == "vllm"]
        wanted = {(model, pod.ip + ":8000") for model in models for pod in mesh.pods(model)}

        def up() -> set[tuple[str, str]]:
            found = prometheus.ask('up{job=~"' + "|".join(models) + '"} == 1')
            return {(s["metric"]["job"], s["metric"]["instance"]) for s in found}

        try:
            eventually(lambda: up() == wanted)
        except AssertionError:
            pytest.fail(str([(t["scrapeUrl"], t["lastError"]) for t in prometheus.targets()]))
    finally:
        prometheus.kubectl("delete", "servicemonitor", monitor["metadata"]["name"])
        prometheus.discover()
