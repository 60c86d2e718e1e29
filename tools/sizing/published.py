"""Start-up lines of vLLM that other people published, beside what memory.py computes: how far to trust the tables.

They come from public run logs on other versions than ours; before 0.21 vLLM did not count its CUDA graphs. What is
missing is a line of our own Deployments: whoever runs them adds it here.
"""

import msgspec

from tools.sizing.figures import A10G, A100_80, FP16, L4, LLAMA_2_7B, MISTRAL_7B, QWEN_25_7B, QWEN_25_14B, Gpu, Model
from tools.sizing.memory import Settings, Sizing, size
from tools.sizing.tables import Table


class Line(msgspec.Struct, frozen=True):
    """`GPU KV cache size: … tokens`, 16-bit weights."""

    vllm: str
    model: Model
    gpu: Gpu
    settings: Settings
    kv_tokens: int

    @property
    def computed(self) -> Sizing:
        return size(self.model, FP16, self.gpu, self.settings)

    @property
    def error(self) -> float:
        """0.1 = a tenth too much was computed."""
        return self.computed.kv_tokens / self.kv_tokens - 1


_L4 = Settings(max_model_len=4096, max_num_seqs=128)
_L4_TWO, _L4_FOUR = msgspec.structs.replace(_L4, shards=2), msgspec.structs.replace(_L4, shards=4)
LINES = (
    Line("0.28.0", QWEN_25_7B, L4, _L4, 62_512),
    Line("0.28.0", QWEN_25_7B, L4, _L4_TWO, 446_192),
    Line("0.28.0", QWEN_25_7B, L4, _L4_FOUR, 1_170_336),
    Line("0.28.0", QWEN_25_14B, L4, _L4_TWO, 54_224),
    Line("0.28.0", QWEN_25_14B, L4, _L4_FOUR, 267_360),
    Line("0.9.0", MISTRAL_7B, A10G, Settings(utilization=0.92, max_model_len=8192), 50_496),
    Line("before 0.21", LLAMA_2_7B, A100_80, Settings(max_model_len=2048), 119_536),
)


def comparison() -> Table:
    rows = tuple(
        (
            f"{line.model.name}, {line.settings.shards} × {line.gpu.name}",
            line.vllm,
            f"{line.kv_tokens:,}",
            f"{line.computed.kv_tokens:,}",
            f"{line.error:+.0%}",
        )
        for line in LINES
    )
    return Table("Computed and published", ("model", "vLLM", "published tokens", "computed", "off by"), rows)
