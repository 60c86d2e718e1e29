"""`make run OBSERVE=1`: Prometheus comes and goes with the platform, and knows its rules and its parts."""

import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from run_rig import started
from stack_rig import eventually

from extproc.local.observe import rule_groups
from extproc.local.process import free_port

pytestmark = pytest.mark.local


def test_prometheus_is_named_scrapes_the_platform_and_ends_with_it(tmp_path: Path) -> None:
    with started(tmp_path, OBSERVE=1, PROMETHEUS_PORT=free_port()) as run:
        run.ready()
        url = eventually(lambda: re.search(r"Prometheus: (\S+)", run.said))[1]
        with httpx.Client(base_url=f"{url}/api/v1") as prometheus:

            def jobs() -> set[str]:
                targets = prometheus.get("/targets").json()["data"]["activeTargets"]
                return {t["labels"]["job"] for t in targets if t["health"] == "up"}

            eventually(lambda: jobs() == {"processor", "envoy", "vllm"})
            groups = prometheus.get("/rules").json()["data"]["groups"]
            assert {g["name"] for g in groups} == {g["name"] for g in rule_groups()}
        children = run.children()
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=30) == 0
        assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
