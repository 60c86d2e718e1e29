"""vLLM's memory accounting, as pure functions. Bytes unless a name says otherwise; `shards` = tensor parallel size.

    KV cache = gpu_memory_utilization × total − weights − peak activation − graphs and workspace

as in `determine_available_memory` of vllm/v1/worker/gpu_worker.py, 0.32.0. The first two terms are exact, activation is
worked out from the two largest allocations of the profiling run, and the last term is an assumption (OVERHEAD_BYTES).
"""

import math

import msgspec

from tools.sizing.figures import GIB, Gpu, Model, Quantisation

BLOCK_TOKENS = 16  # vLLM's default --block-size
LOGIT_COPIES = (
    4  # float32 arrays as large as the logits that sampling holds at once: logits, sorted, probabilities, mask
)
# CUDA graphs (0.5 to 0.9 GiB with the default capture sizes), kernel workspaces, fragmentation. vLLM measures them at
# each start; published logs of 7B to 14B models fit 0.4 to 1.9 GiB for this term, most of them 0.6 to 1.2.
OVERHEAD_BYTES = GIB
FP8_KV_MIN_CAPABILITY = 80  # FlashInfer; Triton, the only attention kernel that a T4 has, stores fp8 from 8.9 on


class Settings(msgspec.Struct, frozen=True):
    """Of one vLLM server. 0 = vLLM's default on that GPU, or the model's own context."""

    utilization: float = 0.9
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    kv_bits: int = 16
    shards: int = 1
    eager: bool = False  # --enforce-eager: no graphs, slower tokens


class Sizing(msgspec.Struct, frozen=True):
    """One model on one GPU (on each of `shards` GPUs)."""

    model: Model
    gpu: Gpu
    settings: Settings  # filled in: nothing is 0
    weight_bytes: float
    activation_bytes: float
    overhead_bytes: float
    block_bytes: int  # 0: an encoder keeps no KV cache

    @property
    def kv_bytes(self) -> float:
        """What is left for the KV cache; negative: the model does not load."""
        budget = self.gpu.total_gib * GIB * self.settings.utilization
        return budget - self.weight_bytes - self.activation_bytes - self.overhead_bytes

    @property
    def blocks(self) -> int:
        return max(0, int(self.kv_bytes // self.block_bytes)) if self.block_bytes else 0

    @property
    def kv_tokens(self) -> int:
        """vLLM prints it as `GPU KV cache size: … tokens`."""
        return self.blocks * BLOCK_TOKENS

    @property
    def concurrency(self) -> float:
        """vLLM prints it as `Maximum concurrency for … tokens per request: …x`."""
        return self.blocks / math.ceil(self.settings.max_model_len / BLOCK_TOKENS)

    def sequences(self, length_tokens: int) -> int:
        """How many requests of that length, prompt and answer together, are held at once."""
        return self.blocks // math.ceil(length_tokens / BLOCK_TOKENS)

    @property
    def starts(self) -> bool:
        """vLLM refuses to start when not even one request of max_model_len fits."""
        return self.kv_bytes > 0 if self.model.encoder else self.sequences(self.settings.max_model_len) >= 1


def kv_bytes_per_token(model: Model, kv_bits: int = 16, shards: int = 1) -> int:
    """Keys and values: 2 × layers × KV heads on this GPU × head size × bytes. KV heads are repeated, never split."""
    if model.encoder:
        return 0
    return 2 * model.layers * max(1, model.kv_heads // shards) * model.head_dim * kv_bits // 8


def weight_bytes(model: Model, quantisation: Quantisation, shards: int = 1) -> float:
    """Linear layers at the quantisation's bits, everything else at 16."""
    return (model.linear_parameters * quantisation.bits / 8 + model.plain_parameters * 2) / shards


def activation_bytes(model: Model, batched_tokens: int, sequences: int, shards: int = 1) -> float:
    """The larger peak of the profiling run: a feed-forward over a full batch, or sampling for all sequences.

    Feed-forward: tokens × (hidden and residual + the outputs of its matrices) × 2 bytes.
    Sampling: sequences × vocabulary × 4 bytes × LOGIT_COPIES; logits are gathered on each GPU.
    """
    feed_forward = batched_tokens * (2 * model.hidden + model.ffn_matrices * model.ffn / shards) * 2
    sampling = 0 if model.encoder else sequences * model.vocab * 4 * LOGIT_COPIES
    return max(feed_forward, sampling)


def refused(quantisation: Quantisation, gpu: Gpu, kv_bits: int = 16) -> str:
    """Why vLLM will not run it there, whatever the memory; empty if it will."""
    if gpu.capability < quantisation.min_capability:
        return f"{quantisation.name} needs compute capability {quantisation.min_capability / 10}"
    if kv_bits < 16 and gpu.capability < FP8_KV_MIN_CAPABILITY:
        return f"an fp8 KV cache needs compute capability {FP8_KV_MIN_CAPABILITY / 10}"
    return ""


def size(model: Model, quantisation: Quantisation, gpu: Gpu, settings: Settings | None = None) -> Sizing:
    s = _filled_in(settings or Settings(), model, gpu)
    return Sizing(
        model=model,
        gpu=gpu,
        settings=s,
        weight_bytes=weight_bytes(model, quantisation, s.shards),
        activation_bytes=activation_bytes(model, s.max_num_batched_tokens, s.max_num_seqs, s.shards),
        overhead_bytes=OVERHEAD_BYTES / 2 if s.eager or model.encoder else OVERHEAD_BYTES,
        block_bytes=BLOCK_TOKENS * kv_bytes_per_token(model, s.kv_bits, s.shards),
    )


def _filled_in(s: Settings, model: Model, gpu: Gpu) -> Settings:
    return msgspec.structs.replace(
        s,
        max_model_len=s.max_model_len or model.context_tokens,
        max_num_seqs=s.max_num_seqs or gpu.sequences,
        max_num_batched_tokens=s.max_num_batched_tokens or gpu.batched_tokens,
    )
