"""`make load` as it is called: the whole stack, and a gateway at an address. Promises of speed are left aside."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack_rig import Platform

pytestmark = pytest.mark.local
DRIVE = Path(__file__).with_name("drive.py")


def drive(
    folder: Path, *arguments: str, **environment: str
) -> tuple["subprocess.CompletedProcess[str]", dict[str, Any]]:
    """Run it; the figures that it left, or {}."""
    done = subprocess.run(
        [sys.executable, str(DRIVE), *arguments, "--results", str(folder)],
        capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    files = list(folder.glob("*.json"))
    return done, json.loads(files[0].read_text()) if files else {}


def kept(found: dict[str, Any]) -> dict[str, bool]:
    return {promise["name"]: promise["met"] for promise in found["promises"] if not promise["speed"]}


def test_the_platform_keeps_its_promises_under_a_short_load(tmp_path: Path) -> None:
    done, found = drive(tmp_path, "sustained", "--seconds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept(found) == {
        "errors, direct": True,
        "errors, platform": True,
        "counters agree, direct": True,
        "counters agree, platform": True,
    }
    told = found["runs"]["platform"]["result"]["summary"]
    assert told["all"]["requests"] == told["all"]["good"] > 10
    assert told["all"]["completion_tokens"] == 64 * told["all"]["good"]
    assert found["runs"]["platform"]["cost"]["cores"]["Envoy"] > 0
    (page,) = tmp_path.glob("*.html")
    assert page.read_text().count("<svg") >= 8


def test_a_gateway_at_an_address_is_asked_over_tls_with_the_key_that_was_given(
    platform: Platform, tmp_path: Path
) -> None:
    stack, key = platform.stack, platform.key()
    done, found = drive(
        tmp_path, "sustained", "--seconds", "2", "--per-minute", "600",
        BASE_URL=stack.https_url, API_KEY=key, CA_FILE=str(stack.ca_file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept(found) == {"errors, platform": True}
    assert found["runs"]["platform"]["result"]["summary"]["all"]["good"] > 0
    assert key not in json.dumps(found)
    assert key not in next(tmp_path.glob("*.html")).read_text()


def test_a_gateway_that_refuses_fails_the_run(platform: Platform, tmp_path: Path) -> None:
    done, found = drive(
        tmp_path, "sustained", "--seconds", "1", "--per-minute", "600",
        BASE_URL=platform.stack.base_url, API_KEY="sk-llm-nobody",
    )  # fmt: skip
    assert done.returncode == 1
    assert kept(found) == {"errors, platform": False}
    assert [*found["runs"]["platform"]["result"]["summary"]["errors"]] == ["HTTP 401 invalid_api_key"]


def test_a_scenario_that_needs_keys_of_its_own_says_so_elsewhere(tmp_path: Path) -> None:
    done, _ = drive(tmp_path, "tenants", BASE_URL="http://127.0.0.1:9/v1", API_KEY="sk-llm-nobody")
    assert done.returncode == 1
    assert "local stack only" in done.stdout
