"""How far a rollout is, and why it is stuck, read off what the API server and the kubelet say."""

from typing import Any

import pytest

from tools.overlays.rollout import Progress, progress

Json = dict[str, Any]
LABELS = {"app": "llama2"}


def deployment(generation: int = 1, wanted: int = 2, **status: Any) -> Json:
    return {
        "kind": "Deployment",
        "metadata": {"name": "llama2", "generation": generation},
        "spec": {"replicas": wanted, "selector": {"matchLabels": LABELS}},
        "status": {"observedGeneration": 1, **status},
    }


def stateful_set(**status: Any) -> Json:
    return {**deployment(wanted=1, **status), "kind": "StatefulSet"}


def daemon_set(**status: Any) -> Json:
    return {**deployment(**status), "kind": "DaemonSet", "spec": {"selector": {"matchLabels": LABELS}}}


def pod(**status: Any) -> Json:
    return {"metadata": {"name": "llama2-5d-x", "labels": LABELS}, "spec": {"volumes": []}, "status": status}


def waiting(word: str, message: str = "", **more: Any) -> Json:
    return {"name": "vllm", "ready": False, "state": {"waiting": {"reason": word, "message": message}}, **more}


def event(name: str, word: str, message: str, kind: str = "Warning") -> Json:
    return {"type": kind, "involvedObject": {"name": name}, "reason": word, "message": message}


def why(*pods: Json, events: tuple[Json, ...] = (), **status: Any) -> str:
    return progress(deployment(**status), pods, events).why


ALL = {"updatedReplicas": 2, "replicas": 2, "availableReplicas": 2}


@pytest.mark.parametrize(
    ("o", "expected"),
    [
        (deployment(**ALL), Progress("Deployment llama2", 2, 2, done=True)),
        (deployment(generation=2, **ALL), Progress("Deployment llama2", 2, 2, done=False)),
        (deployment(**{**ALL, "replicas": 3}), Progress("Deployment llama2", 2, 2, done=False)),
        (deployment(**{**ALL, "updatedReplicas": 1}), Progress("Deployment llama2", 2, 2, done=False)),
        (deployment(**{**ALL, "availableReplicas": 1}), Progress("Deployment llama2", 1, 2, done=False)),
        (deployment(wanted=0), Progress("Deployment llama2", 0, 0, done=True)),
        (
            stateful_set(updatedReplicas=1, replicas=1, availableReplicas=1),
            Progress("StatefulSet llama2", 1, 1, done=True),
        ),
        (
            daemon_set(desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=3),
            Progress("DaemonSet llama2", 3, 3, done=True),
        ),
        (
            daemon_set(desiredNumberScheduled=3, updatedNumberScheduled=2, numberAvailable=3),
            Progress("DaemonSet llama2", 3, 3, done=False),
        ),
    ],
    ids=[
        "all new ones are available",
        "its controller has not seen the change yet",
        "an old pod is still there",
        "one is of the old version",
        "one is not available",
        "scaled to zero is done",
        "a stateful set",
        "a daemon set on all nodes",
        "a daemon set with an old pod",
    ],
)
def test_a_rollout_is_done_when_every_pod_is_new_and_available(o: Json, expected: Progress) -> None:
    assert progress(o, [], []) == expected


def test_a_pod_that_no_node_takes_is_explained_by_the_scheduler_without_its_thoughts_on_preemption() -> None:
    message = "0/9 nodes are available: 9 Insufficient nvidia.com/gpu. preemption: 0/9 nodes are available: 9 No."
    stuck = pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}])
    assert why(stuck) == "Pending: 0/9 nodes are available: 9 Insufficient nvidia.com/gpu."


def test_a_pod_that_waits_for_its_claim_says_what_the_claim_waits_for() -> None:
    message = "0/9 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    stuck = pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}])
    stuck["spec"]["volumes"] = [{"name": "m", "persistentVolumeClaim": {"claimName": "model-cache"}}, {"name": "tmp"}]
    events = (event("model-cache", "FailedBinding", "no storage class is set", kind="Normal"),)
    assert why(stuck, events=events) == f"Pending: {message}; FailedBinding: no storage class is set"


def test_a_container_that_can_not_start_is_explained_by_the_kubelet() -> None:
    stuck = pod(containerStatuses=[waiting("ImagePullBackOff", "manifest unknown")])
    assert why(stuck) == "vllm: ImagePullBackOff: manifest unknown"


def test_a_container_that_ends_again_and_again_says_how_it_ended() -> None:
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    stuck = pod(containerStatuses=[waiting("CrashLoopBackOff", "back-off 40s", lastState=last)])
    assert why(stuck) == "vllm: CrashLoopBackOff: back-off 40s (last end: OOMKilled)"


def test_a_container_that_was_restarted_and_is_not_ready_says_so() -> None:
    running = {"name": "vllm", "ready": False, "restartCount": 2, "state": {"running": {}}}
    stuck = pod(containerStatuses=[{**running, "lastState": {"terminated": {"reason": "Error"}}}])
    assert why(stuck) == "vllm: not ready, restarted 2 times (Error)"


def test_a_container_that_is_on_its_way_needs_no_reason() -> None:
    assert why(pod(containerStatuses=[waiting("ContainerCreating")])) == ""


def test_a_volume_that_can_not_be_mounted_is_known_from_the_newest_event() -> None:
    events = (
        event("llama2-5d-x", "FailedMount", "first"),
        event("llama2-5d-x", "FailedMount", "timed out"),
        event("llama2-5d-x", "Pulled", "fine", kind="Normal"),
        event("mistral-1", "FailedMount", "another's"),
    )
    assert why(pod(containerStatuses=[waiting("ContainerCreating")]), events=events) == "FailedMount: timed out"


def test_pods_that_are_refused_are_explained_by_the_one_who_may_not_make_them() -> None:
    refused = [{"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity restricted"}]
    assert why(conditions=refused) == "violates PodSecurity restricted"
    events = (event("llama2", "FailedCreate", "exceeded quota"),)
    assert progress(stateful_set(), [], events).why == "FailedCreate: exceeded quota"


def test_a_ready_pod_and_the_pods_of_others_are_not_asked() -> None:
    ready = pod(conditions=[{"type": "Ready", "status": "True"}], containerStatuses=[waiting("Odd")])
    other = pod(containerStatuses=[waiting("ImagePullBackOff")])
    other["metadata"]["labels"] = {"app": "mistral"}
    assert why(ready, other) == ""
