"""The real server that `--backend` names, and a simulator started to say the same things."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from stack_rig import NO_TLS

from extproc.local.process import free_port

_START_SECONDS = 20.0


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    url = request.config.getoption("--backend")
    if not url:
        pytest.skip("compares with a real server: `make test-vllm`, or --backend URL")
    with httpx.Client(base_url=url, timeout=120, verify=NO_TLS) as client:
        yield client


@pytest.fixture(scope="session")
def model(real: httpx.Client) -> str:
    name: str = real.get("/v1/models").json()["data"][0]["id"]
    return name


@pytest.fixture(scope="session")
def simulated(real: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """It serves what the real one serves; tokens come a moment apart, so that events are not all joined."""
    cards = real.get("/v1/models").json()["data"]
    pooling = real.post("/v1/completions", json={}).status_code == 404
    flags = ["--model", cards[0]["root"], "--served-model-name", *(card["id"] for card in cards)]
    flags += ["--max-model-len", str(cards[0]["max_model_len"]), "--decode-ms-per-token", "3"]
    flags += ["--runner", "pooling" if pooling else "generate", "--enable-prompt-tokens-details"]
    log = tmp_path_factory.mktemp("simulator") / "log"
    with _running(flags, log) as url, httpx.Client(base_url=url, timeout=120, verify=NO_TLS) as client:
        yield client


@contextmanager
def _running(flags: list[str], log: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "extproc.sim", "--port", str(port), *flags]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not log.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
