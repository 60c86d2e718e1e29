"""What an hour of each GPU costs, machine included: the one table behind cost per million tokens.

On-demand list prices, Linux, without spot, commitments or taxes: put in what you pay. Of each GPU it is the machine
that the overlays take for a model of 7 billion parameters; the smaller one of bge-small costs less, larger ones more.
`name` is what the DCGM exporter says in its label `modelName`. It does not tell clouds apart: a T4 on GKE is
n1-standard-8 and the GPU, 0.38 + 0.35.

Source: copies of the clouds' lists in public repositories, read in November 2026, GKE's rounded to the cent. None was
read at its origin.
"""

import msgspec


class GpuPrice(msgspec.Struct, frozen=True):
    name: str
    machine: str
    dollars_per_hour: float


GPU_PRICES = (
    GpuPrice("NVIDIA A10G", "AWS g5.2xlarge, us-east-1", 1.212),
    GpuPrice("Tesla T4", "AWS g4dn.2xlarge, us-east-1", 0.752),
    GpuPrice("NVIDIA L4", "GKE g2-standard-8, us-central1", 0.85),
)
