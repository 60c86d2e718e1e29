"""`llm-mesh run` hands out the console: its address and a token of this run."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from stack_rig import NO_TLS, eventually

from extproc.local.process import free_port
from extproc.local.stack import ROOT

pytestmark = pytest.mark.local


def test_it_prints_the_consoles_address_and_a_token_that_opens_it(tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in ("HTTP_PORT", "HTTPS_PORT", "ADMIN_PORT")}
    others = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_MESH_", "REDIS_URL", "BACKEND", "WORKERS"))}
    command = [Path(sys.executable).parent / "llm-mesh", "run", "--directory", tmp_path / "run", "--workers", "1"]
    said, env = tmp_path / "said", tmp_path / "run" / "env"
    with said.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**others, **ports}, stdout=output, stderr=output)
    try:
        eventually(lambda: "Ctrl-C stops" in said.read_text() or process.poll() is not None, seconds=40)
        found = re.search(r"console: (http://127\.0\.0\.1:\d+/console/) +token: (\S+)", said.read_text())
        assert found, said.read_text()
        url, token = found.groups()
        assert ports["ADMIN_PORT"] in url
        with httpx.Client(verify=NO_TLS) as client:
            opened = client.post(url + "login", data={"token": token}, follow_redirects=True)
            assert (opened.status_code, str(opened.url)) == (200, url)
        assert f"export LLM_MESH_ADMIN_TOKEN={token}\n" in env.read_text()
        assert env.stat().st_mode & 0o777 == 0o600
        top = f". {env}; exec {command[0]} top --once"
        shown = subprocess.run(["bash", "-c", top], env=others, capture_output=True, text=True, timeout=60, check=False)
        assert "1/1 workers" in shown.stdout, shown.stderr
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
