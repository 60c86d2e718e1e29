"""A started `llm-mesh run`, as a person starts it, for the tests of what it says and does."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
from stack_rig import eventually

from extproc.local.process import free_port
from extproc.local.stack import ROOT

COMMAND = Path(sys.executable).parent / "llm-mesh"


class Run:
    """A started `llm-mesh run`, in a folder of its own and on free ports."""

    def __init__(self, directory: Path, output: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.env = directory / "env"
        self.process = process
        self._output = Path(output.name)

    @property
    def said(self) -> str:
        return self._output.read_text()

    @property
    def sockets(self) -> Path:
        (url,) = [line.partition("=")[2] for line in self.env.read_text().splitlines() if "LLM_MESH_REDIS" in line]
        return Path(url.removeprefix("unix://")).parent

    def ready(self) -> None:
        eventually(lambda: "Ctrl-C stops everything" in self.said or self.process.poll() is not None, seconds=40)
        assert self.process.poll() is None, self.said

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextlib.contextmanager
def started(folder: Path, **variables: int) -> Iterator[Run]:
    numbers = {"HTTP_PORT": free_port(), "HTTPS_PORT": free_port(), "ADMIN_PORT": free_port(), **variables}
    environment = {**os.environ, **{name: str(number) for name, number in numbers.items()}}
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "REDIS_URL", "LLM_MESH_REDIS", "BACKEND", "WORKERS"):
        environment.pop(name, None)
    directory = folder / "run"
    command = [COMMAND, "run", "--directory", directory, "--workers", "1", "--decode-ms-per-token", "0"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            yield Run(directory, output, process)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()
