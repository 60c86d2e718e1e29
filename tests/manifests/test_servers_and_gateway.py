"""Command lines, GPUs, the gateway's pod and what Envoy is told of it: each mistake is found, with what to do."""

import pytest
from manifest_rig import Broken, Change, Json, findings, found

LLAMA = ("Deployment", "llama2")
GATEWAY = ("Deployment", "llm-gateway")
POD = ("spec", "template", "spec")


def value_of(b: Broken, filter_name: str) -> Json:
    value: Json = b.get("EnvoyFilter", filter_name)["spec"]["configPatches"][0]["patch"]["value"]
    return value


def three_workers(b: Broken) -> None:
    processor = b.container(*GATEWAY, "processor")
    processor["args"] = ["--workers=3" if a.startswith("--workers") else a for a in processor["args"]]


def ordinary_container(b: Broken) -> None:
    pod = b.pod(*GATEWAY)
    pod["containers"] += pod.pop("initContainers")


def unmount_sockets(b: Broken) -> None:
    proxy = b.container(*GATEWAY, "istio-proxy")
    proxy["volumeMounts"] = [m for m in proxy["volumeMounts"] if m["name"] != "sockets"]


def simulate(b: Broken, *words: str) -> None:
    server = b.container(*LLAMA, "vllm")
    server["image"] = "ghcr.io/llm-mesh/llm-mesh:0.1.0"
    server["args"] = ["sim", "--model=meta-llama/Llama-2-7b-chat-hf", "--max-model-len=4096", "--port", "8000"]
    server["args"] += ["--max-num-queued-reqs=96", *words]


SERVERS: dict[str, tuple[Change, str]] = {
    "another name than the configuration's": (
        lambda b: b.argument("llama2", "--served-model-name", "llama2"),
        "it serves llama2, but llama2 is served as meta-llama/Llama-2-7b-chat-hf -> set --served-model-name=meta-llama",
    ),
    "a shorter context than the configuration promises": (
        lambda b: b.argument("llama2", "--max-model-len", "2048"),
        "--max-model-len is 2048, but context_tokens of llama2 is 4096",
    ),
    "no context length, which is the checkpoint's": (
        lambda b: b.argument("llama2", "--max-model-len", None),
        "--max-model-len is not set, but context_tokens of llama2 is 4096",
    ),
    "a queue that is full before the gateway turns callers away": (
        lambda b: b.argument("llama2", "--max-num-queued-reqs", "64"),
        "--max-num-queued-reqs is 64, but callers of high priority may fill 64 × 1.25 -> set --max-num-queued-reqs=96",
    ),
    "a queue without an end": (
        lambda b: b.argument("llama2", "--max-num-queued-reqs", None),
        "--max-num-queued-reqs is not set",
    ),
    "a flag with a letter too few": (
        lambda b: b.argument("llama2", "--max-num-seq", "256"),
        "vLLM 0.32.0 has no flag --max-num-seq -> mend it: vllm-flags-0.32.0.txt has them all",
    ),
    "a negation of no flag": (
        lambda b: b.argument("llama2", "--no-prefix-cache", ""),
        "vLLM 0.32.0 has no flag --no-prefix-cache",
    ),
    "the flag that vLLM dropped": (
        lambda b: b.argument("llama2", "--disable-log-requests", ""),
        "--disable-log-requests: vLLM has no such flag any more: quiet is its default -> leave it out",
    ),
    "code of strangers": (
        lambda b: b.argument("llama2", "--trust-remote-code", ""),
        "--trust-remote-code: it runs code of whoever owns the model's repository",
    ),
    "tools without a parser": (
        lambda b: b.argument("mistral", "--enable-auto-tool-choice", ""),
        "Deployment mistral: --enable-auto-tool-choice without --tool-call-parser",
    ),
    "a parser that nobody may use": (
        lambda b: b.argument("mistral", "--tool-call-parser", "mistral"),
        "Deployment mistral: --tool-call-parser without --enable-auto-tool-choice",
    ),
    "a dtype that is none": (lambda b: b.argument("llama2", "--dtype", "fp16"), "--dtype can not be fp16"),
    "bfloat16 on a T4": (
        lambda b: b.argument("mistral", "--dtype", "bfloat16"),
        "it runs on t4, which has no bfloat16, with --dtype bfloat16 -> set --dtype=half",
    ),
    "a dtype that the checkpoint chooses, on a T4": (
        lambda b: b.argument("mistral", "--dtype", None),
        "it runs on t4, which has no bfloat16, with --dtype not set",
    ),
    "AWQ of a checkpoint that was not quantised": (
        lambda b: b.argument("llama2", "--quantization", "awq"),
        "--quantization=awq, but meta-llama/Llama-2-7b-chat-hf is no AWQ checkpoint",
    ),
    "another version of vLLM": (
        lambda b: b.container(*LLAMA, "vllm").update(image="docker.io/vllm/vllm-openai:v0.20.0"),
        "its image is docker.io/vllm/vllm-openai:v0.20.0, but the flags are known for vLLM 0.32.0",
    ),
    "another port than it declares": (
        lambda b: b.argument("llama2", "--port", "9000"),
        "Deployment llama2: it listens on 9000, which its ports do not declare",
    ),
    "answers that are cut off when a pod goes": (
        lambda b: b.argument("llama2", "--shutdown-timeout", None),
        "Deployment llama2: vLLM cuts its answers off when its pod goes -> set --shutdown-timeout",
    ),
    "a kubelet that does not wait for the last answer": (
        lambda b: b.put(*LLAMA, *POD, "terminationGracePeriodSeconds", 600),
        "--shutdown-timeout 870 + preStop 15 s is more than terminationGracePeriodSeconds 600",
    ),
    "neither vLLM nor the simulator": (
        lambda b: b.container(*LLAMA, "vllm").update(image="docker.io/library/nginx:1.29"),
        "Deployment llama2: no container runs vLLM or the simulator",
    ),
    "a simulator with another context": (
        lambda b: simulate(b, "--max-model-len=8192"),
        "--max-model-len is 8192, but context_tokens of llama2 is 4096",
    ),
    "a simulator with another model": (
        lambda b: simulate(b, "--model=llama2"),
        "it serves llama2, but llama2 is served as meta-llama/Llama-2-7b-chat-hf",
    ),
}
GPUS: dict[str, tuple[Change, str]] = {
    "a GPU without toleration": (
        lambda b: b.put(*LLAMA, *POD, "tolerations", None),
        "it asks for a GPU and does not tolerate the taint nvidia.com/gpu: it would stay Pending -> add tolerations",
    ),
    "a toleration of another taint": (
        lambda b: b.put(*LLAMA, *POD, "tolerations", 0, "key", "nvidia.com/gpus"),
        "does not tolerate the taint nvidia.com/gpu",
    ),
    "a selected accelerator and no GPU": (
        lambda b: b.container(*LLAMA, "vllm")["resources"]["limits"].pop("nvidia.com/gpu"),
        "Deployment llama2: it selects a10g nodes and asks for no GPU",
    ),
    "an accelerator that nobody sells": (
        lambda b: b.put(*LLAMA, *POD, "nodeSelector", "llm-mesh.dev/accelerator", "a10"),
        "`a10` is no accelerator we know -> use one of a10g, t4, l4",
    ),
    "selectors that contradict": (
        lambda b: b.put(*LLAMA, *POD, "nodeSelector", "cloud.google.com/gke-accelerator", "nvidia-l4"),
        "its selectors contradict: a10g, l4",
    ),
}
FILTERS: dict[str, tuple[Change, str]] = {
    "a worker more than Envoy has sockets": (
        three_workers,
        "/var/run/llm-mesh/worker-1.sock, /var/run/llm-mesh/worker-2.sock -> let the processor's --workers and",
    ),
    "sockets in another folder": (
        lambda b: b.container(*GATEWAY, "processor")["args"].append("--sockets=/run/elsewhere"),
        "EnvoyFilter llm-cluster-ext-proc: its endpoints are /var/run/llm-mesh/worker-0.sock",
    ),
    "sockets that the proxy does not mount": (
        unmount_sockets,
        "its container istio-proxy does not mount /var/run/llm-mesh, where the sockets are",
    ),
    "a processor beside the proxy instead of before it": (
        ordinary_container,
        "`processor` is an ordinary container: Envoy could serve before it and after it",
    ),
    "a gateway without processor": (
        lambda b: b.drop(*GATEWAY),
        "gateway: no pod has a container `processor`: nobody would decide",
    ),
    "clusters that nobody adds": (
        lambda b: (b.drop("EnvoyFilter", "llm-cluster-ext-proc"), b.drop("EnvoyFilter", "llm-cluster-receipts")),
        "Deployment llm-gateway: no EnvoyFilter adds a cluster of the processor's sockets",
    ),
    "no decision": (lambda b: b.drop("EnvoyFilter", "llm-ext-proc"), "no EnvoyFilter brings llm.ext_proc"),
    "a filter that lets everybody in without the processor": (
        lambda b: value_of(b, "llm-ext-proc")["typed_config"].update(failure_mode_allow=True),
        "EnvoyFilter llm-ext-proc: failure_mode_allow: without the processor everybody would be let in",
    ),
    "a usage filter without its code": (
        lambda b: value_of(b, "llm-usage")["typed_config"]["default_source_code"].update(inline_string="-- file"),
        "EnvoyFilter llm-usage: mesh/lua/usage.lua was not put into it",
    ),
    "clients that name their route themselves": (
        lambda b: value_of(b, "llm-connection-manager")["typed_config"].pop("early_header_mutation_extensions"),
        "gateway: no EnvoyFilter takes the headers x-llm-* off: a client could choose its route past the decision",
    ),
    "keys in the clear": (
        lambda b: b.put("Gateway", "llm", "spec", "servers", 1, "tls", None),
        "Gateway llm: port 80 is plain HTTP: keys would travel in the clear -> add tls: {httpsRedirect: true}",
    ),
    "a filter of a route that was renamed": (
        lambda b: b.put("VirtualService", "decision", "spec", "http", 0, "name", "undecided-post"),
        "EnvoyFilter llm-decision-route: it changes the route `undecided`, which no VirtualService has",
    ),
    "Istio's buffer of 32 KiB": (
        lambda b: b.drop("EnvoyFilter", "llm-listener-buffer"),
        "would refuse prompts with 413 -> add one with per_connection_buffer_limit_bytes: 4259840",
    ),
    "a buffer that is a byte too small": (
        lambda b: value_of(b, "llm-listener-buffer").update(per_connection_buffer_limit_bytes=4259839),
        "4259839 is below max_body_bytes (4194304) + 65536 -> set it to 4259840",
    ),
    "streams that outlive their reservation": (
        lambda b: value_of(b, "llm-connection-manager")["typed_config"]["common_http_protocol_options"].update(
            max_stream_duration="3600s"
        ),
        "EnvoyFilter llm-connection-manager: max_stream_duration 3600s is not below reservation_seconds (3600)",
    ),
}


@pytest.mark.parametrize(("change", "words"), SERVERS.values(), ids=SERVERS)
def test_a_server_that_would_not_keep_its_promise_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), GPUS.values(), ids=GPUS)
def test_a_gpu_that_can_not_be_had_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), FILTERS.values(), ids=FILTERS)
def test_a_gateway_that_does_not_fit_its_filters_is_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize("flag", ["--no-enable-prefix-caching", "--enforce-eager"])
def test_flags_may_be_switched_off_and_need_no_value(flag: str) -> None:
    assert findings(lambda b: b.argument("llama2", flag, "")) == []


def test_a_value_may_follow_its_flag_as_a_word_of_its_own() -> None:
    def change(b: Broken) -> None:
        b.argument("llama2", "--max-model-len", None)
        b.container(*LLAMA, "vllm")["args"] += ["--max-model-len", "4096"]

    assert findings(change) == []


def test_a_simulator_needs_no_gpu_and_may_say_how_slow_it_is() -> None:
    def change(b: Broken) -> None:
        simulate(b, "--decode-ms-per-token=15")
        b.container(*LLAMA, "vllm")["resources"]["limits"].pop("nvidia.com/gpu")
        b.put(*LLAMA, *POD, "nodeSelector", None)

    assert findings(change) == []
