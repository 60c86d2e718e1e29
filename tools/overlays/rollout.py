"""How far a workload is, and why it is not further. Pure: what kubectl gave in, words out.

The rules are those of `kubectl rollout status`; the reasons are what one would look up by hand, in the order in which
they come: the scheduler's, the kubelet's, the container's own.
"""

from collections.abc import Sequence

import msgspec

from tools.overlays.objects import Json, at, selects, title

_ON_THE_WAY = {"ContainerCreating", "PodInitializing"}


class Progress(msgspec.Struct, frozen=True):
    title: str
    ready: int
    wanted: int
    done: bool
    why: str = ""  # it is not done; "" = it is, or nothing is known yet


def progress(o: Json, pods: Sequence[Json], events: Sequence[Json]) -> Progress:
    """`pods` and `events` of its namespace; the newest event last."""
    wanted, ready, done = _counts(o)
    why = "" if done else reason(o, pods, events)
    return Progress(title(o), ready, wanted, done, why)


def _counts(o: Json) -> tuple[int, int, bool]:
    status = o.get("status") or {}
    seen = status.get("observedGeneration", 0) >= o["metadata"].get("generation", 0)
    if o["kind"] == "DaemonSet":
        wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberAvailable", 0)
        return wanted, ready, seen and status.get("updatedNumberScheduled", 0) == wanted == ready
    wanted = at(o, "spec", "replicas", default=1)
    updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    ready = status.get("availableReplicas", 0)
    return wanted, ready, seen and updated == total == ready == wanted


def reason(o: Json, pods: Sequence[Json], events: Sequence[Json]) -> str:
    """Why its pods do not run; "" if they do, or are just on their way."""
    own = [p for p in pods if selects(at(o, "spec", "selector", default={}), at(p, "metadata", "labels", default={}))]
    waiting = [p for p in own if not _is_ready(p)]
    reasons = [words for p in waiting for words in _pod(p, events)]
    if not own:
        failures = [c for c in at(o, "status", "conditions", default=[]) if c["type"] == "ReplicaFailure"]
        reasons = [c.get("message", "") for c in failures] or _events(events, o["metadata"]["name"])
    return reasons[0] if reasons else ""


def _is_ready(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in at(pod, "status", "conditions", default=[]))


def _pod(pod: Json, events: Sequence[Json]) -> list[str]:
    """The reason of one pod; empty if it is just on its way."""
    for c in at(pod, "status", "conditions", default=[]):
        if c["type"] == "PodScheduled" and c["status"] == "False":
            return [_unscheduled(c.get("message", ""), pod, events)]
    statuses = [
        *at(pod, "status", "initContainerStatuses", default=[]),
        *at(pod, "status", "containerStatuses", default=[]),
    ]
    reasons = [words for s in statuses if (words := _container(s))]
    late = _events(events, pod["metadata"]["name"])
    return reasons or late


def _unscheduled(message: str, pod: Json, events: Sequence[Json]) -> str:
    """The scheduler's words without its thoughts on preemption, and of a claim what it waits for."""
    words = f"Pending: {message.partition(' no new claims')[0].partition(' preemption:')[0]}"
    claims = [at(v, "persistentVolumeClaim", "claimName", default="") for v in at(pod, "spec", "volumes", default=[])]
    if "PersistentVolumeClaim" not in message:
        return words
    return "; ".join([words, *(late for claim in claims if claim for late in _events(events, claim))])


def _container(s: Json) -> str:
    waiting = at(s, "state", "waiting", default={})
    ended = at(s, "lastState", "terminated", default=at(s, "state", "terminated", default={}))
    if waiting and waiting.get("reason") not in _ON_THE_WAY:
        words = f"{s['name']}: {waiting.get('reason', 'waiting')}: {waiting.get('message', '')}".rstrip(": ")
        return words + (f" (last end: {ended['reason']})" if ended.get("reason") else "")
    if at(s, "state", "running") is not None and not s.get("ready") and s.get("restartCount", 0) > 0:
        return f"{s['name']}: not ready, restarted {s['restartCount']} times ({ended.get('reason', 'unknown')})"
    return ""


def _events(events: Sequence[Json], name: str) -> list[str]:
    """The newest trouble of an object or of what it made (llama2 -> llama2-5d4f-x)."""
    troubles = [e for e in events if e.get("type") == "Warning" or e.get("reason") == "FailedBinding"]
    found = [e for e in troubles if at(e, "involvedObject", "name", default="").startswith(name)]
    return [f"{e.get('reason', '')}: {e.get('message', '')}" for e in found[-1:]]
