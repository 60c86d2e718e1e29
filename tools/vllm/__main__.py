"""`make test-vllm`: sets a real vLLM up, starts it, runs tests against it and stops it.

python -m tools.vllm            the tests, first of a server that writes, then of one that embeds
python -m tools.vllm -k chat    … with these arguments for pytest
python -m tools.vllm --serve    a server until it is interrupted, for `make run BACKEND=` or `pytest --backend`
python -m tools.vllm --setup    the set-up alone
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from extproc import config
from extproc.local.process import StackError, require_free
from extproc.local.stack import ROOT
from tools.vllm import environment, server

_DIRECTORY = ROOT / ".run" / "vllm"
_NOTHING_TO_RUN = 5  # pytest's status where -k leaves none


class Suite(msgspec.Struct, frozen=True):
    """Tests that need a server with these flags."""

    what: str
    tests: tuple[str, ...]
    flags: tuple[str, ...] = ()


SUITES = (
    Suite("a server that writes", ("tests/vllm/test_same_answers.py", "tests/stack")),
    Suite("a server that embeds", ("tests/vllm/test_same_embeddings.py",), ("--runner=pooling", "--convert=embed")),
)


def main(arguments: list[str]) -> int:
    console = Console(highlight=False)
    try:
        environment.ensure(console)
        if arguments[:1] == ["--setup"]:
            return 0
        if arguments[:1] == ["--serve"]:
            return asyncio.run(_until_told(_serve(console, arguments[1:])))
        return asyncio.run(_until_told(_test(console, arguments)))
    except StackError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}")
        return 1


async def _until_told(work: Coroutine[Any, Any, int]) -> int:
    """Interrupted or terminated, it stops what it started."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 130


async def _serve(console: Console, flags: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vllm --serve")
    parser.add_argument("--port", type=int, default=8000)
    a, more = parser.parse_known_args(flags)
    require_free(a.port, "--port")
    console.print("starting vLLM …")
    async with server.running(_DIRECTORY, served_names(), *more, port=a.port) as url:
        console.print(f"vLLM {environment.VERSION}: {url}")
        await asyncio.Event().wait()
    return 0


async def _test(console: Console, arguments: list[str]) -> int:
    statuses = []
    for suite in SUITES:
        console.print(f"starting vLLM, {suite.what} …")
        async with server.running(_DIRECTORY, served_names(), *suite.flags) as url:
            statuses.append(await _pytest(*suite.tests, "--backend", url, *arguments))
    failed = [status for status in statuses if status not in (0, _NOTHING_TO_RUN)]
    return max(failed, default=0)


async def _pytest(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "pytest", *arguments, cwd=ROOT)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await process.wait()


def served_names(path: Path = ROOT / "overlays" / "base" / "llm-mesh.yaml") -> tuple[str, ...]:
    """What the shipped configuration calls its models: one server is all of them."""
    return tuple(model.served_name for model in config.load(path.read_bytes(), str(path)).models.values())


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
