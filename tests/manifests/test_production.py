"""What only production has: machines of a cloud, spot, autoscaling. Mistakes in it are found, requirements are kept."""

import re

import pytest
from manifest_rig import Broken, Change, built, found

from extproc import config
from extproc.local.stack import ROOT
from tools.overlays.checks.availability import at_least
from tools.overlays.checks.gpus import accelerators
from tools.overlays.objects import at

AWS, GKE = "production-aws", "production-gke"
POD = ("spec", "template", "spec")
TERM = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", 0)
MACHINES = (*POD, *TERM, "matchExpressions", 0, "values")


def any_gpu(b: Broken) -> None:
    pod = b.pod("Deployment", "llama2")
    del pod["nodeSelector"]
    del pod["affinity"]


def dear_first(b: Broken) -> None:
    b.get("ConfigMap", "cluster-autoscaler-priority-expander")["data"]["priorities"] = (
        "10:\n  - .*spot.*\n50:\n  - .*on-demand.*\n"
    )


BROKEN: dict[str, tuple[str, Change, str]] = {
    "any GPU will do": (AWS, any_gpu, "Deployment llama2: it takes any GPU -> select llm-mesh.dev/accelerator: one of"),
    "machines with another GPU": (
        AWS,
        lambda b: b.put("Deployment", "llama2", *MACHINES, ["g4dn.2xlarge"]),
        "Deployment llama2: its selectors contradict: a10g, t4",
    ),
    "machines without a GPU": (
        AWS,
        lambda b: b.put("Deployment", "llama2", *MACHINES, ["m7i.4xlarge"]),
        "Deployment llama2: it permits m7i.4xlarge, which has no GPU that we know -> name machines with its GPU",
    ),
    "Amazon's part on GKE": (
        GKE,
        lambda b: b.put("Deployment", "llama2", *POD, "nodeSelector", {"llm-mesh.dev/accelerator": "a10g"}),
        "Deployment llama2: GKE has no a10g nodes: the part is Amazon's -> select l4, its nearest there",
    ),
    "bfloat16 on GKE's T4": (
        GKE,
        lambda b: b.argument("mistral", "--dtype", "auto"),
        "Deployment mistral: it runs on t4, which has no bfloat16, with --dtype auto",
    ),
    "a cloud's label for a part that it does not sell": (
        GKE,
        lambda b: b.put(
            "Deployment", "llama2", *POD, "nodeSelector", "cloud.google.com/gke-accelerator", "nvidia-a10g"
        ),
        "Deployment llama2: `nvidia-a10g` is no accelerator we know",
    ),
    "on-demand before spot": (AWS, dear_first, "the highest number is taken first -> give spot the highest number"),
    "an autoscaler of a model that went": (
        AWS,
        lambda b: b.drop("Deployment", "codellama"),
        "ScaledObject codellama: it scales `codellama`, which is not in the build",
    ),
    "replicas beside the autoscaler's": (
        AWS,
        lambda b: b.put("Deployment", "llama2", "spec", "replicas", 2),
        "ScaledObject llama2: Deployment llama2 sets replicas too",
    ),
    "a monitor of nobody": (
        AWS,
        lambda b: b.put("PodMonitor", "llm-mesh", "spec", "selector", "matchExpressions", 0, "values", ["proxy"]),
        "PodMonitor llm-mesh: it selects app.kubernetes.io/component: proxy, and no pod of this build is labelled so",
    ),
    "a monitor of a port that is not there": (
        GKE,
        lambda b: b.put("PodMonitor", "llm-processor", "spec", "podMetricsEndpoints", 0, "port", "metrics"),
        "PodMonitor llm-processor: it asks the port metrics, which Deployment llm-gateway does not name",
    ),
    "a misspelt metric": (
        GKE,
        lambda b: b.put(
            "ScaledObject", "llama2", "spec", "triggers", 1, "metadata", "query", "sum(vllm:requests_waiting)"
        ),
        "ScaledObject llama2: its query reads vllm:requests_waiting, which nothing here exports",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_that_only_production_can_have_is_found(name: str, change: Change, words: str) -> None:
    found(change, words, name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (AWS, {"llama2": "a10g", "mistral": "t4", "codellama": "a10g", "bge-small": "t4"}),
        (GKE, {"llama2": "l4", "mistral": "t4", "codellama": "l4", "bge-small": "t4"}),
    ],
)
def test_each_model_is_on_the_part_that_it_was_sized_for(name: str, parts: dict[str, str]) -> None:
    assert {w.name: accelerators(w) for w in built(name).models()} == {m: {part} for m, part in parts.items()}


@pytest.mark.parametrize("name", [AWS, GKE])
def test_models_scale_at_once_and_shrink_slowly_between_their_bounds(name: str) -> None:
    build = built(name)
    catalogue = config.load((ROOT / "overlays" / "base" / "llm-mesh.yaml").read_bytes(), "base")
    for w in build.models():
        spec = next(o["spec"] for o in build.of("ScaledObject") if o["spec"]["scaleTargetRef"]["name"] == w.name)
        behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert spec["maxReplicaCount"] == 10
        assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert behaviour["scaleUp"]["policies"] == [{"type": "Percent", "value": 100, "periodSeconds": 15}]
        assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 300
        assert behaviour["scaleDown"]["policies"] == [{"type": "Percent", "value": 50, "periodSeconds": 60}]
        thresholds = {
            t.get("name", t["type"]): at(t, "metadata", "threshold") or t["metadata"]["value"] for t in spec["triggers"]
        }
        assert thresholds.items() >= {"gpu": "70", "waiting": "5", "cpu": "80"}.items()
        assert int(thresholds["room"]) == catalogue.models[w.name].max_in_flight_per_replica * 3 / 4


@pytest.mark.parametrize("name", [AWS, GKE])
def test_llama2_and_mistral_have_two_and_three_replicas_at_the_quietest_hour(name: str) -> None:
    least = {w.name: at_least(built(name), w) for w in built(name).models()}
    assert least == {"llama2": 2, "mistral": 3, "codellama": 0, "bge-small": 1}


def test_the_sizes_of_the_servers_are_those_that_were_asked_for() -> None:
    wanted = {
        "llama2": ["--max-model-len=4096", "--gpu-memory-utilization=0.9", "--max-num-seqs=256"],
        "mistral": ["--max-model-len=8192", "--gpu-memory-utilization=0.85", "--dtype=half"],
        "codellama": ["--max-model-len=4096"],
    }
    for w in built("base").models():
        server = w.pod["containers"][0]
        assert set(wanted.get(w.name, [])) <= set(server["args"])
        shm = next(v for v in w.pod["volumes"] if v["name"] == "dshm")["emptyDir"]
        assert shm == {"medium": "Memory", "sizeLimit": "8Gi"}
        assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
        if w.name in wanted:
            figures = [
                at(server, "resources", part, kind) for part in ("requests", "limits") for kind in ("cpu", "memory")
            ]
            assert [int(re.sub(r"\D", "", str(f))) for f in figures] == [4, 16, 8, 24]


@pytest.mark.parametrize("name", [AWS, GKE])
def test_models_like_spot_and_the_gateway_and_the_store_refuse_it(name: str) -> None:
    for w in built(name).workloads():
        if w.kind == "DaemonSet":
            continue  # on every node
        affinity = at(w.pod, "affinity", "nodeAffinity", default={})
        liked = {
            e["key"]
            for p in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
            for e in p["preference"]["matchExpressions"]
        }
        terms = at(affinity, "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", default=[])
        refused = [{e["key"] for e in t["matchExpressions"] if e["operator"] == "NotIn"} for t in terms]
        if w.labels["app.kubernetes.io/component"] == "model":
            assert "llm-mesh.dev/capacity" in liked
        else:
            assert all("llm-mesh.dev/capacity" in keys for keys in refused)
            assert refused


@pytest.mark.parametrize("name", ["staging", AWS, GKE])
def test_what_serves_people_is_watched(name: str) -> None:
    kinds = {o["kind"] for o in built(name).objects}
    assert {"PodMonitor", "ServiceMonitor", "PrometheusRule"} <= kinds
    monitored = {o["metadata"]["name"] for o in built(name).of("PodMonitor")}
    assert monitored == {"llm-processor", "llm-mesh"}


def test_each_clouds_gpu_metrics_are_asked_where_its_exporter_gives_them_out() -> None:
    """The GPU operator's Service on AWS; on GKE that of NVIDIA's chart dcgm-exporter."""
    exporters = {
        AWS: ("app", "nvidia-dcgm-exporter", "gpu-metrics"),
        GKE: ("app.kubernetes.io/name", "dcgm-exporter", "metrics"),
    }
    for name, (key, value, port) in exporters.items():
        (monitor,) = built(name).of("ServiceMonitor")
        assert monitor["spec"]["selector"]["matchExpressions"] == [{"key": key, "operator": "In", "values": [value]}]
        assert [e["port"] for e in monitor["spec"]["endpoints"]] == [port]
