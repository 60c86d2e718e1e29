"""The mesh's doors, selectors, autoscaling and fields: each mistake is found, by its name and with what to do."""

import pytest
from manifest_rig import Broken, Change, findings, found

from tools.overlays.checks import schemas
from tools.overlays.checks.scaling import exported, unknown_metrics
from tools.overlays.objects import Build

LLAMA = ("Deployment", "llama2")
GATEWAY_HPA = ("HorizontalPodAutoscaler", "llm-gateway")


def scale(b: Broken, query: str = "sum(vllm:num_requests_waiting)", **fields: object) -> None:
    trigger = {"type": "prometheus", "metadata": {"serverAddress": "http://p:9090", "query": query, "threshold": "5"}}
    spec = {"scaleTargetRef": {"name": "llama2"}, "minReplicaCount": 1, "maxReplicaCount": 10, "triggers": [trigger]}
    b.get(*LLAMA)["spec"].pop("replicas", None)
    b.add("ScaledObject", "llama2-scaler", spec={**spec, **fields})
    b.objects[-1]["apiVersion"] = "keda.sh/v1alpha1"


def expander(b: Broken, priorities: str) -> None:
    b.add("ConfigMap", "cluster-autoscaler-priority-expander", data={"priorities": priorities})


def pools(b: Broken, **weights: int) -> None:
    for capacity, weight in weights.items():
        wanted = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [capacity.replace("_", "-")]}
        spec = {"weight": weight, "template": {"spec": {"requirements": [wanted]}}}
        b.add("NodePool", capacity, spec=spec)
        b.objects[-1]["apiVersion"] = "karpenter.sh/v1"


DOORS: dict[str, tuple[Change, str]] = {
    "no mutual TLS": (
        lambda b: b.drop("PeerAuthentication", "strict"),
        "namespace: no PeerAuthentication demands mutual TLS",
    ),
    "permissive TLS": (
        lambda b: b.put("PeerAuthentication", "strict", "spec", "mtls", "mode", "PERMISSIVE"),
        "PeerAuthentication strict: it lets plain text in",
    ),
    "a port in plain text": (
        lambda b: b.put("PeerAuthentication", "strict", "spec", "portLevelMtls", {8000: {"mode": "DISABLE"}}),
        "PeerAuthentication strict: it lets plain text in",
    ),
    "strict for some pods only": (
        lambda b: b.put("PeerAuthentication", "strict", "spec", "selector", {"matchLabels": {"app": "llama2"}}),
        "no PeerAuthentication demands mutual TLS",
    ),
    "no default": (
        lambda b: b.drop("AuthorizationPolicy", "default-deny"),
        "namespace: there is no default-deny AuthorizationPolicy",
    ),
    "everybody everywhere": (
        lambda b: b.put("AuthorizationPolicy", "default-deny", "spec", {"action": "ALLOW", "rules": [{}]}),
        "AuthorizationPolicy default-deny: an empty rule lets everybody reach everything",
    ),
    "a caller that is nobody": (
        lambda b: b.put(
            "AuthorizationPolicy",
            "valkey",
            "spec",
            "rules",
            0,
            "from",
            0,
            "source",
            "principals",
            ["cluster.local/ns/llm/sa/gateway"],
        ),
        "it lets in cluster.local/ns/llm/sa/gateway, which no ServiceAccount of this build is",
    ),
    "a call without identity": (
        lambda b: b.put("DestinationRule", "llama2", "spec", "trafficPolicy", "tls", "mode", "DISABLE"),
        "DestinationRule llama2: tls mode DISABLE takes the mesh's identity away",
    ),
    "a namespace without proxies": (
        lambda b: b.put("Namespace", "llm", "metadata", "labels", "istio-injection", "disabled"),
        "Namespace llm: its pods get no proxy",
    ),
    "a model outside the mesh": (
        lambda b: b.put(*LLAMA, "spec", "template", "metadata", "labels", "sidecar.istio.io/inject", "false"),
        "Deployment llama2: it is left out of the mesh: whoever reaches its address is answered",
    ),
    "a policy of nobody": (
        lambda b: b.put("AuthorizationPolicy", "valkey", "spec", "selector", "matchLabels", "app", "redis"),
        "AuthorizationPolicy valkey: it selects app: redis, and no pod of this build is labelled so",
    ),
    "a filter of nobody": (
        lambda b: b.put("EnvoyFilter", "llm-usage", "spec", "workloadSelector", "labels", "istio", "ingressgateway"),
        "EnvoyFilter llm-usage: it selects istio: ingressgateway, and no pod",
    ),
    "a gateway of nobody": (
        lambda b: b.put("Gateway", "llm", "spec", "selector", "istio", "ingressgateway"),
        "Gateway llm: it selects istio: ingressgateway, and no pod",
    ),
    "an object that nobody could tell from others'": (
        lambda b: b.put("Service", "llama2", "metadata", "labels", "app.kubernetes.io/part-of", None),
        "Service llama2: it is not labelled app.kubernetes.io/part-of: llm-mesh",
    ),
    "an object without namespace": (
        lambda b: b.put("Service", "llama2", "metadata", "namespace", None),
        "Service llama2: it has no namespace -> let the kustomization set `namespace: llm`",
    ),
}
SCALING: dict[str, tuple[Change, str]] = {
    "a target that is not there": (
        lambda b: b.put(*GATEWAY_HPA, "spec", "scaleTargetRef", "name", "gateway"),
        "HorizontalPodAutoscaler llm-gateway: it scales `gateway`, which is not in the build",
    ),
    "replicas that every deploy would set back": (
        lambda b: b.put("Deployment", "llm-gateway", "spec", "replicas", 2),
        "Deployment llm-gateway sets replicas too: every deploy would conflict with the autoscaler, or undo it",
    ),
    "a container that is not in the pod": (
        lambda b: b.put(*GATEWAY_HPA, "spec", "metrics", 0, "containerResource", "container", "envoy"),
        "it measures the container envoy, which Deployment llm-gateway has not",
    ),
    "a minimum above the maximum": (
        lambda b: b.put(*GATEWAY_HPA, "spec", "minReplicas", 11),
        "its minimum 11 is above its maximum 10",
    ),
    "two autoscalers": (
        lambda b: (scale(b), scale(b)),
        "ScaledObject llama2-scaler scales llama2 as well: they would fight",
    ),
    "a metric of an older vLLM": (
        lambda b: scale(b, "avg(vllm:gpu_cache_usage_perc)"),
        "ScaledObject llama2-scaler: its query reads vllm:gpu_cache_usage_perc, which nothing here exports",
    ),
    "spot nodes last": (
        lambda b: expander(b, "10: ['.*spot.*']\n50: ['.*on-demand.*']\n"),
        "spot has 10, on-demand 50: the highest number is taken first -> give spot the highest number",
    ),
    "spot nodes and on-demand ones alike": (
        lambda b: expander(b, "50: ['.*spot.*']\n10: ['.*t4.*']\n50: ['.*']\n"),
        "no pattern names spot nodes",  # a later key of the same number takes the first one's place
    ),
    "spot pools last": (
        lambda b: pools(b, spot=10, on_demand=50),
        "NodePools: a spot pool has the weight 10, an on-demand pool 50",
    ),
}
FIELDS: dict[str, tuple[Change, str]] = {
    "an unknown field of a built-in kind": (
        lambda b: b.put(*LLAMA, "spec", "template", "spec", "tolerationz", []),
        "Deployment llama2: spec.template.spec: Additional properties are not allowed ('tolerationz' was unexpected)",
    ),
    "text where a number is due": (
        lambda b: b.put(*LLAMA, "spec", "replicas", "two"),
        "Deployment llama2: spec.replicas: 'two' is not of type",
    ),
    "a version that Kubernetes dropped": (
        lambda b: b.put("PodDisruptionBudget", "llama2", "apiVersion", "policy/v1beta1"),
        "PodDisruptionBudget llama2: Kubernetes 1.36.0 has no PodDisruptionBudget in policy/v1beta1",
    ),
}
CUSTOM_FIELDS: dict[str, tuple[Change, str]] = {
    "an unknown field of a custom kind, which the API server would drop": (
        lambda b: b.put("VirtualService", "llama2", "spec", "http", 0, "retry", {"attempts": 2}),
        "VirtualService llama2: spec.http.0: Additional properties are not allowed ('retry' was unexpected)",
    ),
    "a word that is none of the choices": (
        lambda b: b.put("PeerAuthentication", "strict", "spec", "mtls", "mode", "STRICTLY"),
        "PeerAuthentication strict: spec.mtls.mode: 'STRICTLY' is not one of",
    ),
    "a field of KEDA with a letter too few": (
        lambda b: scale(b, cooldownPeriods=300),
        "ScaledObject llama2-scaler: spec: Additional properties are not allowed ('cooldownPeriods' was unexpected)",
    ),
}


@pytest.mark.parametrize(("change", "words"), DOORS.values(), ids=DOORS)
def test_a_door_that_stands_open_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), SCALING.values(), ids=SCALING)
def test_scaling_that_would_not_work_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), FIELDS.values(), ids=FIELDS)
def test_fields_that_kubernetes_does_not_have_are_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), CUSTOM_FIELDS.values(), ids=CUSTOM_FIELDS)
def test_fields_that_a_custom_kind_does_not_have_are_found(change: Change, words: str) -> None:
    if not schemas.documents():
        pytest.skip("the resource definitions are not built; run `make tools`")
    found(change, words)


def test_a_scaled_model_and_spot_first_are_fine() -> None:
    def change(b: Broken) -> None:
        scale(b, 'sum(vllm:num_requests_waiting{model_name="x"}) / count(up{job="vllm"})')
        expander(b, "50: ['.*spot.*']\n10: ['.*']\n")
        pools(b, spot=50, on_demand=10)

    assert findings(change) == []


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ("sum(vllm:num_requests_waiting) by (pod)", set()),
        ("avg by (pod) (DCGM_FI_DEV_GPU_UTIL{namespace='llm'})", set()),
        ("histogram_quantile(0.95, sum(rate(llm_request_duration_seconds_bucket[5m])) by (le))", set()),
        ("sum(rate(llm_request_total[1m])) or vector(0)", {"llm_request_total"}),
        ("a_metric * on (pod) group_left (node) kube_pod_info > bool 1e3", {"a_metric"}),
    ],
)
def test_the_metrics_of_a_query_are_told_from_its_functions_and_labels(query: str, unknown: set[str]) -> None:
    assert unknown_metrics(Build("none", ()), query) == unknown


def test_a_recording_rule_gives_a_metric() -> None:
    rule = {"record": "llm:waiting", "expr": "sum(vllm:num_requests_waiting)"}
    spec = {"groups": [{"name": "g", "rules": [rule]}]}
    build = Build("one", ({"kind": "PrometheusRule", "metadata": {"name": "r"}, "spec": spec},))
    assert unknown_metrics(build, "llm:waiting + llm:running") == {"llm:running"}


def test_our_own_metrics_are_known_by_the_names_that_prometheus_sees() -> None:
    assert {"llm_requests_total", "llm_request_duration_seconds_bucket", "llm_store_up"} <= exported()
    assert "llm_requests" not in exported()


def test_a_field_that_no_schema_knows_and_no_check_can_read_is_said_without_a_traceback() -> None:
    filters = ("EnvoyFilter", "llm-listener-buffer", "spec", "configPatches", 0, "patch", "value")
    found(
        lambda b: b.put(*filters, "per_connection_buffer_limit_bytes", "4MiB"),
        "build: it can not be read (gateway: ValueError: invalid literal",
    )
