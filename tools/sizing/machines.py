"""What a GPU machine has left for pods: a card that holds the model is no use on a machine that can not hold the pod.

The kubelet keeps a part for itself, by formulas that EKS and GKE publish. System pods take some of what is left: a few
hundredths of a core and half a GiB.
"""

import msgspec

KEPT_BY_KERNEL = 0.03  # of the memory on the box: firmware, kernel, page tables
EVICTION_GIB = 0.1
DAEMONS_CORES, DAEMONS_GIB = 0.3, 0.5


class Machine(msgspec.Struct, frozen=True):
    name: str
    gpu: str
    cores: int
    memory_gib: int
    max_pods: int = 0  # AWS: by network interfaces; the kubelet's share follows from it. 0 = GKE

    @property
    def free_cores(self) -> float:
        """6 % of the first core, 1 % of the second, 0.5 % of two more, 0.25 % of the rest are kept, on both clouds."""
        kept = 0.06 + 0.01 + 0.005 * min(2, self.cores - 2) + 0.0025 * max(0, self.cores - 4)
        return self.cores - kept - DAEMONS_CORES

    @property
    def free_gib(self) -> float:
        usable = self.memory_gib * (1 - KEPT_BY_KERNEL)
        kept = (255 + 11 * self.max_pods) / 1024 if self.max_pods else _gke_keeps(usable)
        return usable - kept - EVICTION_GIB - DAEMONS_GIB


MACHINES = (
    Machine("g5.xlarge", "a10g", 4, 16, 58),
    Machine("g5.2xlarge", "a10g", 8, 32, 58),
    Machine("g5.4xlarge", "a10g", 16, 64, 234),
    Machine("g4dn.xlarge", "t4", 4, 16, 29),
    Machine("g4dn.2xlarge", "t4", 8, 32, 29),
    Machine("g4dn.4xlarge", "t4", 16, 64, 29),
    Machine("g2-standard-4", "l4", 4, 16),
    Machine("g2-standard-8", "l4", 8, 32),
    Machine("g2-standard-12", "l4", 12, 48),
    Machine("g2-standard-16", "l4", 16, 64),
    Machine("n1-standard-4", "t4", 4, 15),
    Machine("n1-standard-8", "t4", 8, 30),
    Machine("n1-standard-16", "t4", 16, 60),
)


def holds(machine: Machine, cores: float, memory_gib: float) -> bool:
    return cores <= machine.free_cores and memory_gib <= machine.free_gib


def _gke_keeps(usable_gib: float) -> float:
    """A quarter of the first 4 GiB, a fifth of the next 4, a tenth of the next 8, 6 % up to 128."""
    kept, below = 0.0, 0.0
    for upto, share in ((4, 0.25), (8, 0.2), (16, 0.1), (128, 0.06)):
        kept += max(0.0, min(usable_gib, upto) - below) * share
        below = upto
    return kept
