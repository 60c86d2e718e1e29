"""What is known of models, quantisations and GPUs. Data and derived counts; the arithmetic of memory is in memory.py.

Model figures: the `config.json` of each checkpoint. Quantisations: what 0.32.0 of vLLM asks of a GPU
(`get_min_capability` of its quantisation classes). GPUs: the memory that CUDA reports, as vLLM sees it, from published
start-up logs and out-of-memory messages: error correction and the driver take 1 to 2 GiB of what the box says.
"""

import msgspec

KIB, GIB = 2**10, 2**30
GROUP = 128  # weights that share a scale in AWQ and GPTQ checkpoints


class Model(msgspec.Struct, frozen=True):
    """A transformer. `ffn_matrices` is 3 for gated ones (Llama), 2 for BERT; an encoder keeps no KV cache."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context_tokens: int
    ffn_matrices: int = 3
    encoder: bool = False
    tied: bool = False  # input and output embedding are one
    other_parameters: int = 0  # biases, positions, pooler

    @property
    def linear_parameters(self) -> int:
        """What a quantisation makes smaller: layers × (q + k + v + o + feed-forward)."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + self.ffn_matrices * self.hidden * self.ffn)

    @property
    def plain_parameters(self) -> int:
        """What stays at 16 bits: embeddings, output head, norms, biases."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + (2 * self.layers + 1) * self.hidden + self.other_parameters

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.plain_parameters


class Quantisation(msgspec.Struct, frozen=True):
    name: str
    bits: float  # per weight of the linear layers, scales and zero points included
    min_capability: int  # vLLM refuses below
    native_capability: int = 0  # below it the weights are small, but arithmetic is 16-bit (Marlin)


class Gpu(msgspec.Struct, frozen=True):
    name: str
    capability: int  # 75 = compute capability 7.5
    total_gib: float  # as CUDA reports it
    where: str
    batched_tokens: int = 2048  # vLLM's defaults for the API server on this GPU
    sequences: int = 256


LLAMA_2_7B = Model("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32000, 4096)
CODELLAMA_7B = Model("CodeLlama-7B", 32, 4096, 32, 32, 128, 11008, 32016, 16384)
MISTRAL_7B = Model("Mistral-7B-v0.2", 32, 4096, 32, 8, 128, 14336, 32000, 32768)
LLAMA_31_8B = Model("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, 131072)
QWEN_25_7B = Model("Qwen2.5-7B", 28, 3584, 28, 4, 128, 18944, 152064, 32768, other_parameters=28 * 4608)
QWEN_25_14B = Model("Qwen2.5-14B", 48, 5120, 40, 8, 128, 13824, 152064, 32768, other_parameters=48 * 7168)
NEMO_12B = Model("Mistral-Nemo-12B", 40, 5120, 32, 8, 128, 14336, 131072, 131072)
LLAMA_31_70B = Model("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256, 131072)
BGE_SMALL = Model(
    "bge-small-en-v1.5", 12, 384, 12, 12, 32, 1536, 30522, 512, ffn_matrices=2, encoder=True, tied=True,
    other_parameters=512 * 384 + 2 * 384 + 12 * (7 * 384 + 1536) + 384 + 384 * 385,
)  # fmt: skip
MODELS = (LLAMA_2_7B, CODELLAMA_7B, MISTRAL_7B, LLAMA_31_8B, QWEN_25_7B, NEMO_12B, QWEN_25_14B, LLAMA_31_70B, BGE_SMALL)

FP16 = Quantisation("16-bit", 16, 0)  # float16, or bfloat16 from compute capability 8.0 on
FP8 = Quantisation("fp8", 8, 75, native_capability=89)
GPTQ_INT8 = Quantisation("GPTQ int8", 8 + (16 + 8) / GROUP, 75)
AWQ = Quantisation("AWQ int4", 4 + (16 + 4) / GROUP, 75)
QUANTISATIONS = (FP16, FP8, GPTQ_INT8, AWQ)

T4 = Gpu("T4", 75, 14.56, "AWS g4dn, GCP n1")
L4 = Gpu("L4", 89, 22.04, "AWS g6, GCP g2")
A10G = Gpu("A10G", 86, 22.06, "AWS g5")
A100_40 = Gpu("A100 40", 80, 39.42, "AWS p4d, GCP a2-highgpu")
L40S = Gpu("L40S", 89, 44.39, "AWS g6e")
A100_80 = Gpu("A100 80", 80, 79.14, "AWS p4de, GCP a2-ultragpu")
H100 = Gpu("H100", 90, 79.11, "AWS p5, GCP a3", batched_tokens=8192, sequences=1024)
GPUS = (T4, L4, A10G, A100_40, L40S, A100_80, H100)

CHECKPOINTS = {
    "meta-llama/Llama-2-7b-chat-hf": (LLAMA_2_7B, FP16),
    "codellama/CodeLlama-7b-Instruct-hf": (CODELLAMA_7B, FP16),
    "TheBloke/Mistral-7B-Instruct-v0.2-AWQ": (MISTRAL_7B, AWQ),
    "BAAI/bge-small-en-v1.5": (BGE_SMALL, FP16),
}


def labelled(gpu: Gpu) -> str:
    """The value of the node label `llm-mesh.dev/accelerator`."""
    return gpu.name.lower().replace(" ", "-")
