"""What an hour of each GPU costs, machine included: the one table behind cost per million tokens.

On-demand list prices, without spot, commitments or taxes; put your own in. `name` is what the DCGM exporter says in its
label `modelName`.
"""

import msgspec


class GpuPrice(msgspec.Struct, frozen=True):
    name: str
    machine: str
    dollars_per_hour: float


GPU_PRICES = (
    GpuPrice("NVIDIA A10G", "AWS g5.xlarge, us-east-1", 1.006),
    GpuPrice("Tesla T4", "AWS g4dn.xlarge, us-east-1", 0.526),
    GpuPrice("NVIDIA L4", "GKE g2-standard-4, us-central1", 0.7069),
)
