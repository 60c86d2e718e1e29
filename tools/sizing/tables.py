"""The tables of docs/sizing.md and of the command, as rows of text; Markdown and rich differ only in their frames."""

import msgspec

from tools.sizing.deployed import Deployed
from tools.sizing.figures import GIB, GPUS, LLAMA_31_70B, MODELS, QUANTISATIONS, Gpu, Model, Quantisation
from tools.sizing.memory import Settings, refused, size

TYPICAL_TOKENS = 1024  # a prompt of 768 tokens and an answer of 256
NO_ROOM, NO_KERNEL, WEIGHTS_ONLY = "–", "✗", "†"
SHARDS = (1, 2, 4, 8)
SMALL = tuple(m for m in MODELS if m is not LLAMA_31_70B)


class Table(msgspec.Struct, frozen=True):
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def matrix(settings: Settings, models: tuple[Model, ...] = SMALL, gpus: tuple[Gpu, ...] = GPUS) -> Table:
    """Each model at each quantisation on each GPU."""
    rows = [
        (m.name, q.name, gib(size(m, q, gpus[0], settings).weight_bytes), *(cell(m, q, g, settings) for g in gpus))
        for m in models
        if not m.encoder
        for q in QUANTISATIONS
    ]
    return Table("One GPU", ("model", "weights", "GiB", *(g.name for g in gpus)), tuple(rows))


def parallel(settings: Settings, model: Model = LLAMA_31_70B, gpus: tuple[Gpu, ...] = GPUS[2:]) -> Table:
    """A model that is too large for one GPU, over several."""
    rows = []
    for q in QUANTISATIONS:
        for shards in SHARDS:
            each = msgspec.structs.replace(settings, shards=shards)
            weights = gib(size(model, q, gpus[0], each).weight_bytes)
            rows.append((q.name, str(shards), weights, *(cell(model, q, g, each) for g in gpus)))
    return Table(model.name, ("weights", "GPUs", "GiB a GPU", *(g.name for g in gpus)), tuple(rows))


def ours(found: list[Deployed]) -> Table:
    """The Deployments of the overlays; overlays that give a model the same GPU and arguments share a row."""
    columns = (
        "overlays", "model", "GPU", "utilization", "weights GiB", "activation GiB", "KV cache GiB", "KV cache tokens",
        "at full length", f"at {TYPICAL_TOKENS:,}", "--max-num-seqs", "tokens each then",
    )  # fmt: skip
    together: dict[tuple[str, ...], list[str]] = {}
    for d in found:
        together.setdefault(_row(d), []).append(d.overlay)
    rows = ((", ".join(names), *row) for row, names in sorted(together.items()))
    return Table("The overlays", columns, tuple(rows))


def cell(model: Model, quantisation: Quantisation, gpu: Gpu, settings: Settings) -> str:
    """`KV tokens · requests at full context · requests of TYPICAL_TOKENS`."""
    if refused(quantisation, gpu, settings.kv_bits):
        return NO_KERNEL
    s = size(model, quantisation, gpu, settings)
    if not s.sequences(TYPICAL_TOKENS):
        return NO_ROOM
    mark = WEIGHTS_ONLY if gpu.capability < quantisation.native_capability else ""
    return f"{thousands(s.kv_tokens)} · {s.sequences(model.context_tokens)} · {s.sequences(TYPICAL_TOKENS):,}{mark}"


def gib(count: float) -> str:
    return f"{count / GIB:.1f}" if count >= GIB else f"{count / GIB:.2f}"


def thousands(tokens: int) -> str:
    return f"{tokens / 1000:.1f}k" if tokens < 100_000 else f"{tokens / 1000:,.0f}k"


def _row(d: Deployed) -> tuple[str, ...]:
    s = d.sizing
    head = (d.name, s.gpu.name, f"{s.settings.utilization:g}", gib(s.weight_bytes), gib(s.activation_bytes))
    if s.model.encoder:
        return (*head, *("no KV cache", "", "", ""), str(s.settings.max_num_seqs), "")
    return (
        *head,
        gib(s.kv_bytes),
        f"{s.kv_tokens:,}",
        f"{s.sequences(s.settings.max_model_len)} × {s.settings.max_model_len:,}",
        str(s.sequences(TYPICAL_TOKENS)),
        str(s.settings.max_num_seqs),
        f"{d.share_tokens:,}",
    )
