"""`llm-mesh run` as a person uses it: what it says, what it leaves behind, and how it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from run_rig import COMMAND, started
from stack_rig import eventually

pytestmark = pytest.mark.local
CALL = """
import openai
print(openai.OpenAI().chat.completions.create(
    model="gpt-4o", messages=[{"role": "user", "content": "Hello!"}]).choices[0].message.content)
"""


def shell(script: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "SSL_"))}
    return subprocess.run(
        ["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_it_tells_how_to_call_it_and_every_call_works_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.ready()
        assert [part in run.said for part in ("valkey", "backends", "processor", "envoy")] == [True] * 4
        assert run.env.stat().st_mode & 0o777 == 0o600
        source = f"source {run.env}; "
        shown = run.said[run.said.index("  source ") : run.said.index("or with the openai package")]
        assert str(run.env) in shown
        by_curl = shell(shown)
        assert by_curl.returncode == 0, by_curl.stderr
        assert '"object":"chat.completion"' in by_curl.stdout
        by_python = shell(f"{source}{sys.executable} -W error -c '{CALL}'")
        assert by_python.returncode == 0, by_python.stderr
        assert by_python.stdout.strip()
        report = shell(f"{source}{COMMAND} usage --by tenant --csv")
        assert "local," in report.stdout, report.stderr

        children = run.children()
        assert len(children) >= 8  # Valkey, four backends, the processor and its worker, Envoy
        sockets = run.sockets
        assert sockets.is_dir()
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=10) == 0
        assert run.said.rstrip().endswith("stopping …")
        assert alive(children) == []
        assert not run.env.exists()
        assert not sockets.exists()


def test_a_stop_while_it_starts_leaves_nothing_behind_either(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        eventually(lambda: "valkey" in run.said, seconds=20)
        children = run.children()
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=15) == 130
        assert alive(children) == []
        assert not run.env.exists()
        assert "Traceback" not in run.said


def test_a_killed_run_takes_its_children_with_it(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.ready()
        children = run.children()
        run.process.kill()
        run.process.wait()
        eventually(lambda: alive(children) == [], seconds=10)
        shutil.rmtree(run.sockets)  # nobody is left to do it


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.ready()
        with started(tmp_path) as second:
            assert second.process.wait(timeout=20) == 1
            assert "another run uses" in second.said
        assert run.env.exists()


@pytest.mark.parametrize("variable", ["HTTP_PORT", "HTTPS_PORT", "ADMIN_PORT"])
def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(tmp_path, **{variable: port}) as run:
            assert run.process.wait(timeout=20) == 1
            assert f"port {port} on 127.0.0.1 is taken" in run.said
            assert f"{variable}={port + 10}" in run.said
            assert "Traceback" not in run.said
            assert not run.env.exists()


def test_a_backend_that_ends_is_said_and_lived_without(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.ready()
        (backend,) = [p for p in run.children() if "extproc.sim" in p.cmdline() and "codellama" in str(p.cmdline())]
        backend.kill()
        eventually(lambda: "! backend-codellama was ended by signal" in run.said)
        call = shell(f"source {run.env}; {sys.executable} -c '{CALL}'")
        assert call.returncode == 0, call.stderr
        (envoy,) = [p for p in run.children() if p.cmdline()[:1] and p.cmdline()[0].endswith("/envoy")]
        children = run.children()
        envoy.kill()
        assert run.process.wait(timeout=10) == 1
        assert "! envoy was ended by signal" in run.said
        assert alive(children) == []
        assert not run.env.exists()
