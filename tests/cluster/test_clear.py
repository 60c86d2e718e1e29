"""What a cluster leaves that was killed outright, and how it is got rid of."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from extproc.local.stack import ROOT
from tools.cluster.network import Network

NUMBER = 9


@pytest.mark.usefixtures("tools")
def test_what_a_killed_cluster_left_is_ended() -> None:
    network, another = Network(NUMBER), Network(10 * NUMBER)
    asyncio.run(another.start())
    asyncio.run(network.start())
    namespace = asyncio.run(network.join())
    pod = subprocess.Popen(["ip", "netns", "exec", namespace.name, "sleep", "600"])
    files = Path(tempfile.mkdtemp(prefix=f"llm-mesh-pods{NUMBER}-"))
    others = Path(tempfile.mkdtemp(prefix=f"llm-mesh-pods{NUMBER}0-"))
    command = [sys.executable, "-m", "tools.cluster", "--clear", f"--number={NUMBER}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=dict(os.environ))
    assert "is left" in done.stdout
    assert pod.wait(timeout=10) == -signal.SIGKILL
    assert not list(Path("/run/netns").glob(f"{network.bridge}-*"))
    links = [link.name for link in Path("/sys/class/net").glob("llm-mesh*")]
    assert another.bridge in links
    assert not [name for name in links if name.partition(".")[0] == network.bridge]
    asyncio.run(another.clear())
    assert not files.exists()
    assert others.exists()
    others.rmdir()
