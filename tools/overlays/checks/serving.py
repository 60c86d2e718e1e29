"""The servers' command lines: what the configuration promises is what they serve, by flags that exist.

An unknown flag ends vLLM at its start, minutes after a deploy on a machine that is paid for; a wrong length or name
shows itself as a 400 or 404 to clients.
"""

from collections.abc import Iterator
from pathlib import Path

from extproc.config import Catalogue, Model
from extproc.pressure import SHARES
from tools.overlays.objects import Build, Finding, Json, Workload, at

VERSION = "0.32.0"
_LIST = Path(__file__).parents[1] / f"vllm-flags-{VERSION}.txt"
FLAGS = frozenset(line for line in _LIST.read_text().split() if line.startswith("--"))
_SIMULATED = frozenset({"--prefill-us-per-token", "--decode-ms-per-token", "--typical-completion-tokens"})
_CHOICES = {
    "--dtype": {"auto", "half", "float16", "bfloat16", "float", "float32"},
    "--runner": {"auto", "generate", "pooling", "draft"},
}
_REFUSED = {
    "--disable-log-requests": "vLLM has no such flag any more: quiet is its default",
    "--trust-remote-code": "it runs code of whoever owns the model's repository, and these models bring none",
}
Arguments = dict[str, str]


def check(build: Build, catalogue: Catalogue) -> Iterator[Finding]:
    for w in build.models():
        server = server_of(w)
        if server is None:
            wrong = "no container runs vLLM or the simulator"
            yield Finding(w.title, wrong, "name the image docker.io/vllm/vllm-openai, or start with the argument `sim`")
            continue
        arguments = parse(server)
        yield from _flags(w, server, arguments)
        model = catalogue.models.get(w.labels.get("app", ""))
        if model is not None:
            yield from _promises(w, model, server, arguments)
        if is_vllm(server):
            yield from _ending(w, server, arguments)
            yield from _tools(w, arguments)


def server_of(w: Workload) -> Json | None:
    return next((c for c in w.pod.get("containers", []) if is_vllm(c) or _is_simulator(c)), None)


def parse(container: Json) -> Arguments:
    """`["MODEL", "--a=b", "--c", "d", "--e"]` -> {"": "MODEL", "--a": "b", "--c": "d", "--e": ""}."""
    found: Arguments = {}
    last = ""
    for word in map(str, [*(container.get("command") or []), *(container.get("args") or [])]):
        if word.startswith("--"):
            last, _, value = word.partition("=")
            found[last] = value
        else:
            found[last] = f"{found.get(last, '')} {word}".strip()
    return found


def is_vllm(c: Json) -> bool:
    return "/vllm-openai" in str(c.get("image"))


def _is_simulator(c: Json) -> bool:
    return "sim" in [*(c.get("command") or []), *(c.get("args") or [])]


def _flags(w: Workload, server: Json, arguments: Arguments) -> Iterator[Finding]:
    if is_vllm(server) and not str(server["image"]).partition("@")[0].endswith(f":v{VERSION}"):
        wrong = f"its image is {server['image']}, but the flags are known for vLLM {VERSION}"
        yield Finding(w.title, wrong, f"use v{VERSION}, or bring tools/overlays/vllm-flags-*.txt up to date")
    known = FLAGS | (frozenset() if is_vllm(server) else _SIMULATED)
    for flag, value in arguments.items():
        name = flag if flag in known else f"--{flag.removeprefix('--no-')}"
        if flag in _REFUSED:
            yield Finding(w.title, f"{flag}: {_REFUSED[flag]}", "leave it out")
        elif flag and name not in known:
            yield Finding(w.title, f"vLLM {VERSION} has no flag {flag}", f"mend it: {_LIST.name} has them all")
        elif value not in _CHOICES.get(flag, {value}):
            yield Finding(w.title, f"{flag} can not be {value}", f"use one of {', '.join(sorted(_CHOICES[flag]))}")


def _tools(w: Workload, arguments: Arguments) -> Iterator[Finding]:
    """vLLM ends at its start with the one without the other, or refuses every request that lets the model choose."""
    automatic, parser = "--enable-auto-tool-choice" in arguments, "--tool-call-parser" in arguments
    if automatic and not parser:
        yield Finding(w.title, "--enable-auto-tool-choice without --tool-call-parser", "name the model's parser")
    if parser and not automatic:
        wrong = "--tool-call-parser without --enable-auto-tool-choice: `tools` are refused all the same"
        yield Finding(w.title, wrong, "set both, or neither")


def _ending(w: Workload, server: Json, arguments: Arguments) -> Iterator[Finding]:
    """Answers that run when a pod is told to go are finished, and the kubelet waits for them."""
    patience = int(arguments.get("--shutdown-timeout", "0") or "0")
    sleeps = int(at(server, "lifecycle", "preStop", "sleep", "seconds", default=0))
    grace = int(w.pod.get("terminationGracePeriodSeconds", 30))
    if not patience:
        yield Finding(w.title, "vLLM cuts its answers off when its pod goes", "set --shutdown-timeout=SECONDS")
    elif patience + sleeps > grace:
        wrong = f"--shutdown-timeout {patience} + preStop {sleeps} s is more than terminationGracePeriodSeconds {grace}"
        yield Finding(w.title, f"{wrong}: the kubelet kills it before", "raise the grace period, or lower the others")


def _promises(w: Workload, model: Model, server: Json, arguments: Arguments) -> Iterator[Finding]:
    of = arguments.get("", "").removeprefix("sim").strip() or arguments.get("--model", "")
    served = arguments.get("--served-model-name", of).split()
    if model.served_name not in served:
        wrong = f"it serves {' '.join(served) or 'nothing'}, but {model.name} is served as {model.served_name}"
        yield Finding(
            w.title, wrong, f"set --served-model-name={model.served_name}, or mend overlays/base/llm-mesh.yaml"
        )
    length = arguments.get("--max-model-len", "")
    if length != str(model.context_tokens):
        wrong = (
            f"--max-model-len is {length or 'not set'}, but context_tokens of {model.name} is {model.context_tokens}"
        )
        yield Finding(
            w.title, wrong, f"set --max-model-len={model.context_tokens}, or mend overlays/base/llm-mesh.yaml"
        )
    queue, most = int(arguments.get("--max-num-queued-reqs", "0") or "0"), model.max_in_flight_per_replica
    if most and queue < most * SHARES["high"]:
        wrong = f"--max-num-queued-reqs is {queue or 'not set'}, but callers of high priority may fill {most} × 1.25"
        yield Finding(
            w.title, wrong, f"set --max-num-queued-reqs={-(-most * 3 // 2)}: replicas that say 503 are ejected"
        )
    if "awq" in arguments.get("--quantization", "") and "awq" not in of.lower():
        wrong = f"--quantization={arguments['--quantization']}, but {of} is no AWQ checkpoint"
        yield Finding(w.title, wrong, "name a checkpoint that was quantised (…-AWQ), or leave --quantization out")
    port = arguments.get("--port", "8000")
    if int(port) not in {p["containerPort"] for p in server.get("ports") or []}:
        yield Finding(w.title, f"it listens on {port}, which its ports do not declare", "let both be 8000, named http")
