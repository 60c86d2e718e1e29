"""The machines and volumes that the overlays count on, as KWOK nodes and ready-made PersistentVolumes.

Labels and taints are those that the clouds' own node pools carry; what pods can get of a machine (allocatable) is what
EKS and GKE leave of it, so a pod that is too big for its pool stays Pending here as it would there.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

Json = dict[str, Any]

_REGIONS = {"aws": "us-east-1", "gke": "us-central1"}
_ZONES = {"aws": ("a", "b", "c"), "gke": ("-a", "-b", "-c")}  # after the region's name
_GKE_ACCELERATORS = {"l4": "nvidia-l4", "t4": "nvidia-tesla-t4"}
_PODS = "110"


class Pool(msgspec.Struct, frozen=True):
    """Equal machines; cores and memory are what is left of the machine's for pods."""

    cloud: str
    machine: str
    count: int
    cores: str
    memory: str
    accelerator: str = ""
    spot: bool = False

    @property
    def name(self) -> str:
        machine = self.machine.replace(".", "-")
        return "-".join(filter(None, (self.cloud, self.accelerator or "cpu", machine, "spot" if self.spot else "")))


def _pools(cloud: str, machine: str, cores: str, memory: str, accelerator: str) -> tuple[Pool, Pool]:
    """On demand and spot."""
    return (
        Pool(cloud, machine, 12, cores, memory, accelerator),
        Pool(cloud, machine, 24, cores, memory, accelerator, spot=True),
    )


# Memory as Karpenter reckons it for AWS (92.5 % of the machine's, less 11 MiB a pod and 355 MiB), and for GKE by its
# formula (less 25 % of the first 4 GiB, 20 % of the next 4, 10 % of the next 8, 6 % of the rest, and 100 MiB). A model
# of 7 billion parameters asks for 16 GiB, which a machine of 16 GiB does not have left.
POOLS = (
    Pool("aws", "m7i.4xlarge", 3, "15890m", "57691Mi"),
    *_pools("aws", "g5.2xlarge", "7910m", "29317Mi", "a10g"),
    *_pools("aws", "g4dn.2xlarge", "7910m", "29636Mi", "t4"),
    *_pools("aws", "g4dn.xlarge", "3920m", "14481Mi", "t4"),
    Pool("gke", "n2-standard-16", 3, "15890m", "59824Mi"),
    *_pools("gke", "g2-standard-8", "7910m", "29023Mi", "l4"),
    *_pools("gke", "n1-standard-8", "7910m", "27098Mi", "t4"),
    *_pools("gke", "n1-standard-4", "3920m", "12700Mi", "t4"),
)


def nodes(cloud: str) -> list[Json]:
    """The Node objects of `aws` or `gke`: to be created, not applied, which would drop their status."""
    return [_node(pool, number) for pool in POOLS if pool.cloud == cloud for number in range(pool.count)]


def volumes(classes: Iterable[str], each: int = 6) -> list[Json]:
    """Volumes that claims of these storage classes bind to, whatever access they ask for; no StorageClass is needed."""
    return [_volume(name, number) for name in classes for number in range(each)]


def _node(pool: Pool, number: int) -> Json:
    name = f"{pool.name}-{number}"
    region, zones = _REGIONS[pool.cloud], _ZONES[pool.cloud]
    labels = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": pool.machine,
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": region + zones[number % len(zones)],
        "llm-mesh.dev/capacity": "spot" if pool.spot else "on-demand",
        **_cloud_labels(pool),
    }
    resources = {"cpu": pool.cores, "memory": pool.memory, "pods": _PODS, "ephemeral-storage": "90Gi"}
    taints = []
    if pool.accelerator:
        labels["llm-mesh.dev/accelerator"] = pool.accelerator
        resources["nvidia.com/gpu"] = "1"
        taints.append({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": taints},
        "status": {"capacity": resources, "allocatable": resources},
    }


def _cloud_labels(pool: Pool) -> dict[str, str]:
    if pool.cloud == "aws":
        return {
            "eks.amazonaws.com/capacityType": "SPOT" if pool.spot else "ON_DEMAND",
            "karpenter.sh/capacity-type": "spot" if pool.spot else "on-demand",
        }
    labels = {"cloud.google.com/gke-provisioning": "spot" if pool.spot else "standard"}
    if pool.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    if pool.accelerator:
        labels["cloud.google.com/gke-accelerator"] = _GKE_ACCELERATORS[pool.accelerator]
    return labels


def _volume(storage_class: str, number: int) -> Json:
    name = f"{storage_class or 'unclassed'}-{number}"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": storage_class,
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": f"/nowhere/{name}"},  # nobody mounts it
        },
    }
