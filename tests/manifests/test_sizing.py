"""Sizing: known figures, worked out by hand, and each Deployment of the overlays on the GPU that it gets."""

import re

import msgspec
import pytest
import yaml

from tools.overlays.build import build, overlays
from tools.overlays.objects import Build, Workload, at
from tools.sizing.__main__ import BEGIN, DOCUMENT, END, all_deployed, everything, filled_in, main
from tools.sizing.deployed import Deployed, SizingError, deployed, settings
from tools.sizing.figures import (
    A10G,
    AWQ,
    BGE_SMALL,
    CODELLAMA_7B,
    FP8,
    FP16,
    GIB,
    H100,
    KIB,
    L4,
    LLAMA_2_7B,
    LLAMA_31_8B,
    LLAMA_31_70B,
    MISTRAL_7B,
    NEMO_12B,
    QWEN_25_7B,
    QWEN_25_14B,
    T4,
    Model,
)
from tools.sizing.machines import MACHINES, Machine, holds
from tools.sizing.memory import Settings, activation_bytes, kv_bytes_per_token, refused, size, weight_bytes
from tools.sizing.published import LINES, Line
from tools.sizing.tables import NO_KERNEL, NO_ROOM, WEIGHTS_ONLY, cell

R1_LLAMA2 = Settings(utilization=0.9, max_model_len=4096, max_num_seqs=256, max_num_batched_tokens=8192)
R1_MISTRAL = Settings(utilization=0.85, max_model_len=8192)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LLAMA_2_7B, 6_738_415_616),
        (CODELLAMA_7B, 6_738_546_688),
        (MISTRAL_7B, 7_241_732_096),
        (LLAMA_31_8B, 8_030_261_248),
        (QWEN_25_7B, 7_615_616_512),
        (QWEN_25_14B, 14_770_033_664),
        (NEMO_12B, 12_247_782_400),
        (LLAMA_31_70B, 70_553_706_496),
        (BGE_SMALL, 33_360_000),
    ],
    ids=lambda value: value.name if isinstance(value, Model) else "",
)
def test_the_layers_add_up_to_the_parameters_that_the_checkpoint_has(model: Model, parameters: int) -> None:
    assert model.parameters == parameters


def test_llama_2_keeps_half_a_mebibyte_for_each_token() -> None:
    assert kv_bytes_per_token(LLAMA_2_7B) == 2 * 32 * 32 * 128 * 2 == 512 * KIB


def test_grouped_queries_make_mistrals_cache_a_quarter_of_llama_2s() -> None:
    assert kv_bytes_per_token(MISTRAL_7B) == 128 * KIB


def test_kv_heads_are_shared_out_over_gpus_and_never_split() -> None:
    assert kv_bytes_per_token(QWEN_25_7B, shards=2) * 2 == kv_bytes_per_token(QWEN_25_7B)
    assert kv_bytes_per_token(QWEN_25_7B, shards=8) == kv_bytes_per_token(QWEN_25_7B, shards=4)


def test_weights_are_as_large_as_vllm_says_after_loading() -> None:
    """`Model loading took 12.55 GiB` and `13.49 GiB` in logs of these two."""
    assert weight_bytes(LLAMA_2_7B, FP16) / GIB == pytest.approx(12.55, abs=0.01)
    assert weight_bytes(MISTRAL_7B, FP16) / GIB == pytest.approx(13.49, abs=0.01)


def test_awq_is_as_large_as_the_checkpoint_on_disk() -> None:
    """Mistral-7B-Instruct-v0.2-AWQ is one file of 4.15 GB."""
    assert weight_bytes(MISTRAL_7B, AWQ) / 1e9 == pytest.approx(4.15, abs=0.01)


def test_a_larger_batch_and_more_sequences_leave_less_for_the_cache() -> None:
    small = activation_bytes(LLAMA_2_7B, 2048, 256)
    assert activation_bytes(LLAMA_2_7B, 8192, 256) > small
    assert activation_bytes(LLAMA_2_7B, 2048, 1024) > small


def test_llama2_on_an_a10g_holds_two_full_requests_and_not_256() -> None:
    """By hand: 22.06 × 0.9 = 19.85 GiB; − 12.55 weights − 0.63 activation − 1 graphs = 5.67 GiB = 11,6xx tokens."""
    s = size(LLAMA_2_7B, FP16, A10G, R1_LLAMA2)
    assert s.kv_bytes / GIB == pytest.approx(5.67, abs=0.01)
    assert s.kv_tokens == pytest.approx(5.67 * GIB / (512 * KIB), rel=0.01)
    assert s.sequences(4096) == 2
    assert s.kv_tokens < 256 * 4096


def test_mistral_awq_on_a_t4_holds_seven_full_requests() -> None:
    """By hand: 14.56 × 0.85 = 12.38 GiB; − 3.87 weights − 0.20 activation − 1 graphs = 7.31 GiB at 128 KiB a token."""
    s = size(MISTRAL_7B, AWQ, T4, R1_MISTRAL)
    assert s.kv_tokens == pytest.approx(7.31 * GIB / (128 * KIB), rel=0.01)
    assert s.sequences(8192) == 7


def test_the_cache_is_handed_out_in_whole_blocks() -> None:
    s = size(LLAMA_2_7B, FP16, A10G, R1_LLAMA2)
    assert s.kv_tokens % 16 == 0
    assert s.sequences(4097) == s.sequences(4112)


def test_concurrency_is_the_number_that_vllm_prints() -> None:
    s = size(LLAMA_2_7B, FP16, A10G, R1_LLAMA2)
    assert s.concurrency == pytest.approx(s.kv_tokens / 4096)


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    plain, fp8 = (size(LLAMA_2_7B, FP16, A10G, Settings(kv_bits=bits)) for bits in (16, 8))
    assert fp8.kv_tokens == pytest.approx(2 * plain.kv_tokens, abs=16)


def test_a_model_larger_than_its_gpu_does_not_start() -> None:
    assert not size(LLAMA_2_7B, FP16, T4).starts
    assert size(LLAMA_2_7B, FP16, T4).kv_tokens == 0


def test_a_model_that_loads_still_does_not_start_without_room_for_one_full_request() -> None:
    assert not size(CODELLAMA_7B, FP16, A10G).starts  # 16,384 tokens
    assert size(CODELLAMA_7B, FP16, A10G, Settings(max_model_len=4096)).starts


def test_an_encoder_needs_room_for_its_weights_alone() -> None:
    s = size(BGE_SMALL, FP16, T4)
    assert s.starts
    assert s.kv_tokens == 0


def test_a_t4_runs_awq_and_has_no_fp8_cache() -> None:
    assert not refused(AWQ, T4)
    assert "8.0" in refused(FP16, T4, kv_bits=8)
    assert not refused(FP16, A10G, kv_bits=8)


def test_cells_tell_no_room_no_kernel_and_weights_only_apart() -> None:
    assert cell(LLAMA_2_7B, FP16, T4, Settings()) == NO_ROOM
    assert cell(LLAMA_2_7B, AWQ, T4, Settings(kv_bits=8)) == NO_KERNEL
    assert cell(LLAMA_2_7B, FP8, A10G, Settings()).endswith(WEIGHTS_ONLY)
    assert not cell(LLAMA_2_7B, FP8, L4, Settings()).endswith(WEIGHTS_ONLY)


def test_vllms_larger_defaults_on_an_h100_are_counted() -> None:
    s = size(LLAMA_31_8B, FP16, H100)
    assert (s.settings.max_num_batched_tokens, s.settings.max_num_seqs) == (8192, 1024)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.model.name}-{line.settings.shards}x{line.gpu.name}")
def test_what_vllm_printed_elsewhere_is_within_a_third_of_what_is_computed(line: Line) -> None:
    assert abs(line.error) < 0.34


def test_the_command_line_of_vllm_becomes_settings() -> None:
    arguments = {"": "m", "--max-model-len": "4096", "--gpu-memory-utilization": "0.9", "--kv-cache-dtype": "fp8_e4m3"}
    read = settings(arguments)
    assert (read.max_model_len, read.utilization, read.kv_bits, read.shards) == (4096, 0.9, 8, 1)
    assert settings({}).utilization == 0.92  # vLLM's default


BUILDS = {directory.name: directory for directory in overlays()}


@pytest.fixture(scope="module")
def found() -> list[Deployed]:
    return all_deployed()


def test_every_overlay_with_gpus_has_its_models_sized(found: list[Deployed]) -> None:
    assert {"llama2", "mistral", "codellama"} <= {d.name for d in found if d.overlay == "production-aws"}


def test_every_deployment_runs_on_the_gpu_that_its_overlay_selects(found: list[Deployed]) -> None:
    assert not [f"{d.title}: {d.refusal}" for d in found if d.refusal]


def test_every_deployment_holds_one_request_of_its_whole_context(found: list[Deployed]) -> None:
    """Otherwise vLLM ends at its start, after the node was paid for and the model loaded."""
    short = [f"{d.title}: {d.sizing.kv_tokens:,} tokens" for d in found if not d.sizing.starts]
    assert not short


def test_a_deployment_that_does_not_fit_is_noticed() -> None:
    whole = build(BUILDS["production-aws"])
    broken = _with_argument(whole, "llama2", "--max-model-len", "16384")
    assert [d.name for d in deployed(broken) if not d.sizing.starts] == ["llama2"]


def test_a_model_without_figures_is_named() -> None:
    whole = build(BUILDS["production-aws"])
    with pytest.raises(SizingError, match="somebody/else"):
        deployed(_with_argument(whole, "llama2", "", "somebody/else"))


@pytest.mark.parametrize("name", BUILDS)
def test_every_model_pod_finds_a_machine_that_its_overlay_permits(name: str) -> None:
    """The card is not enough: the pod's cores and memory must be there beside what the node keeps."""
    for w in build(BUILDS[name]).models():
        if w.gpus and (permitted := _permitted(w)):
            assert any(holds(m, *_asks(w)) for m in permitted), f"{name}: {w.title} fits on none of its machines"


def test_the_smallest_machines_do_not_hold_a_7b_pod() -> None:
    smallest = [m for m in MACHINES if m.cores == 4]
    assert {m.gpu for m in smallest} == {"a10g", "t4", "l4"}
    assert not [m.name for m in smallest if holds(m, 4.1, 16.1)]
    assert not [m.name for m in MACHINES if m.cores == 8 and not holds(m, 4.1, 16.1)]


def test_the_document_holds_the_tables_that_the_code_computes() -> None:
    """`python -m tools.sizing --markdown` writes them."""
    document = DOCUMENT.read_text()
    assert BEGIN in document
    assert END in document
    assert filled_in(document, everything()) == document


def test_the_command_prints_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "T4", "--model", "mistral-7b"]) == 0
    out = capsys.readouterr().out
    assert "Mistral-7B-v0.2" in out
    assert "A10G" not in out


def test_the_command_says_which_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "B17"]) == 1
    assert "A10G" in capsys.readouterr().err


def _with_argument(whole: Build, name: str, flag: str, value: str) -> Build:
    """The build with one argument of one Deployment changed; flag "" is the model."""
    objects = yaml.safe_load(yaml.safe_dump(list(whole.objects)))
    for o in objects:
        if o["kind"] == "Deployment" and o["metadata"]["name"] == name:
            for c in o["spec"]["template"]["spec"]["containers"]:
                if "vllm-openai" in c["image"]:
                    pattern = rf"^{flag}=.*" if flag else r"^[^-].*"
                    c["args"] = [re.sub(pattern, f"{flag}={value}" if flag else value, a) for a in c["args"]]
    return msgspec.structs.replace(whole, objects=tuple(objects))


def _permitted(w: Workload) -> list[Machine]:
    """By the instance types of its required affinity; none named: none known."""
    path = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
    expressions = [e for term in at(w.pod, *path, default=[]) for e in term["matchExpressions"]]
    named = {v for e in expressions if e["key"] == "node.kubernetes.io/instance-type" for v in e["values"]}
    assert named <= {m.name for m in MACHINES}
    return [m for m in MACHINES if m.name in named]


def _asks(w: Workload) -> tuple[float, float]:
    """Cores and GiB that its containers request, the injected proxy's 0.1 and 0.125 with them."""
    requests = [c["resources"]["requests"] for c in w.pod["containers"]]
    cores = sum(float(r["cpu"].removesuffix("m")) / (1000 if r["cpu"].endswith("m") else 1) for r in requests)
    return cores + 0.1, sum(float(r["memory"].removesuffix("Gi")) for r in requests) + 0.125
