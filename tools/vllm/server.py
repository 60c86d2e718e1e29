"""One vLLM server on this machine, as `vllm serve` starts it in a cluster, but for weights and speed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from extproc.local.process import Child, answers, free_port
from tools.vllm import environment

_START_SECONDS = 600.0  # 40 s where nothing else runs
_FLAGS = (
    "--enforce-eager",
    "--dtype=float32",
    "--enable-prefix-caching",
    "--enable-prompt-tokens-details",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    '--override-generation-config={"max_new_tokens": 256}',  # the model never ends by itself
)
_CALM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def command(port: int, names: tuple[str, ...], *more: str) -> list[str]:
    program = str(environment.python().with_name("vllm"))
    served = ("--served-model-name", *names)
    return [program, "serve", str(environment.model()), "--host=127.0.0.1", f"--port={port}", *served, *_FLAGS, *more]


@asynccontextmanager
async def running(directory: Path, names: tuple[str, ...], *more: str, port: int = 0) -> AsyncIterator[str]:
    """A server's URL. Raises StackError, which names the log, if it does not start."""
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    child = Child("vllm", command(port, names, *more), directory / "vllm.log", _CALM)
    child.log.unlink(missing_ok=True)
    url = f"http://127.0.0.1:{port}"
    try:
        await child.up(partial(answers, f"{url}/health"), _START_SECONDS)
        yield url
    finally:
        await asyncio.shield(child.stop())
