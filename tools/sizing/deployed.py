"""Our own Deployments, sized: the arguments that vLLM gets and the GPU that is selected, out of a built overlay.

Simulators and pods without a GPU are passed over: they have no GPU memory to fill.
"""

import msgspec

from extproc.errors import LlmMeshError
from tools.overlays.checks.gpus import accelerators
from tools.overlays.checks.serving import Arguments, parse, server_of
from tools.overlays.objects import Build, Workload
from tools.sizing.figures import CHECKPOINTS, GPUS, Gpu, Quantisation, labelled
from tools.sizing.memory import Settings, Sizing, refused, size


class SizingError(LlmMeshError):
    """A Deployment names something that figures.py does not know."""


class Deployed(msgspec.Struct, frozen=True):
    """A model Deployment of an overlay and what vLLM will find on its GPU."""

    overlay: str
    name: str
    checkpoint: str
    sizing: Sizing
    refusal: str  # why vLLM will not run there at all; "" = it will

    @property
    def title(self) -> str:
        return f"{self.overlay}: {self.name} on {self.sizing.gpu.name}"

    @property
    def share_tokens(self) -> int:
        """How long a request may be on average while --max-num-seqs of them run: above it vLLM preempts."""
        return self.sizing.kv_tokens // self.sizing.settings.max_num_seqs


def deployed(build: Build) -> list[Deployed]:
    """Raises SizingError."""
    return [_sized(build.name, w) for w in build.models() if w.gpus and "vllm-openai" in _image(w)]


def settings(arguments: Arguments) -> Settings:
    """vLLM's command line -> Settings. What is not given stays at vLLM's default."""
    return Settings(
        utilization=float(arguments.get("--gpu-memory-utilization", "0.92")),
        max_model_len=int(arguments.get("--max-model-len", "0")),
        max_num_seqs=int(arguments.get("--max-num-seqs", "0")),
        max_num_batched_tokens=int(arguments.get("--max-num-batched-tokens", "0")),
        kv_bits=8 if arguments.get("--kv-cache-dtype", "auto").startswith("fp8") else 16,
        shards=int(arguments.get("--tensor-parallel-size", "1")),
        eager="--enforce-eager" in arguments,
    )


def _sized(overlay: str, w: Workload) -> Deployed:
    arguments = parse(server_of(w) or {})
    checkpoint = arguments.get("", "") or arguments.get("--model", "")
    if checkpoint not in CHECKPOINTS:
        raise SizingError(f"{overlay}: {w.title}: add {checkpoint or 'its model'} to tools/sizing/figures.py")
    model, quantisation = CHECKPOINTS[checkpoint]
    gpu, wanted = _smallest(overlay, w), settings(arguments)
    return Deployed(
        overlay, w.name, checkpoint, size(model, quantisation, gpu, wanted), _why(quantisation, gpu, wanted)
    )


def _why(quantisation: Quantisation, gpu: Gpu, wanted: Settings) -> str:
    return refused(quantisation, gpu, wanted.kv_bits)


def _smallest(overlay: str, w: Workload) -> Gpu:
    """Of the GPUs that the pod may land on, the one with the least memory."""
    found = [gpu for gpu in GPUS if labelled(gpu) in accelerators(w)]
    if not found:
        raise SizingError(f"{overlay}: {w.title} selects no GPU that tools/sizing/figures.py knows")
    return min(found, key=lambda gpu: gpu.total_gib)


def _image(w: Workload) -> str:
    return str((server_of(w) or {}).get("image", ""))
