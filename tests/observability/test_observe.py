"""Where the local Prometheus comes from, and what it is told."""

import stat
from pathlib import Path

import pytest
import yaml

from extproc.local.observe import program, rule_groups, targets, write
from extproc.local.process import StackError


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_DIR", raising=False)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_folder_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(executable(tmp_path / "path" / "prometheus").parent))
    assert program("prometheus") == tmp_path / "path" / "prometheus"
    monkeypatch.setenv("PROMETHEUS_DIR", str(executable(tmp_path / "mine" / "prometheus").parent))
    assert program("prometheus") == tmp_path / "mine" / "prometheus"


def test_what_was_built_is_found_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLM_MESH_CACHE", str(tmp_path))
    built = executable(tmp_path / "tools" / "prometheus-0123456789ab" / "bin" / "promtool")
    assert program("promtool") == built


def test_where_there_is_none_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLM_MESH_CACHE", str(tmp_path))
    with pytest.raises(StackError, match="install Debian's package `prometheus`, or build it with `make tools`"):
        program("prometheus")


def test_the_configuration_names_rules_and_targets(tmp_path: Path) -> None:
    scrapes = targets("127.0.0.1:1", "127.0.0.1:2", {"llama2": "127.0.0.1:3"})
    path = write(tmp_path / "prometheus", scrapes, rule_groups(), "5s")
    written = yaml.safe_load(path.read_text())
    assert [s["job_name"] for s in written["scrape_configs"]] == ["processor", "envoy", "vllm"]
    assert yaml.safe_load((path.parent / written["rule_files"][0]).read_text()) == {"groups": rule_groups()}
