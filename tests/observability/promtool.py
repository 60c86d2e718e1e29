"""promtool, and the rules as it reads them."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from observability import rules

Json = dict[str, Any]


def promtool() -> str:
    from extproc.local.observe import program

    return str(program("promtool"))


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool(), *map(str, arguments)], capture_output=True, text=True, check=False)


def write_rules(directory: Path, *names: str) -> Path:
    """The groups of these names (all, if none is named) as a file for Prometheus."""
    groups = [group.to_json() for group in rules.groups() if not names or group.name in names]
    path = directory / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    return path


def unit_test(directory: Path, groups: set[str], tests: list[Json], interval: str) -> str:
    """Run promtool's unit tests on these groups; what it complains of."""
    rule_file = write_rules(directory, *groups)
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [rule_file.name], "evaluation_interval": interval, "tests": tests}))
    done = check("test", "rules", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr
