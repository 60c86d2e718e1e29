"""What a request costs in CPU, this tree against another commit: `make bench-against BASE=HEAD~1`.

Each tree runs its own code and its own bench, in turn, several times, on the packages that are installed here; medians
are compared, so that a machine's moods fall on both. It decides nothing: a change that costs much is to be seen.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from report import PLATFORM, ROOT, console
from rich.progress import track
from rich.table import Table

SCENARIOS = ("miss", "hit")
PARTS = ("Envoy", "processor", "Valkey")
NOTABLE = 0.2  # of a request's CPU

Costs = dict[tuple[str, str], list[float]]  # (scenario, part) -> µs a request, a run each


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the CPU of a request with another commit's.")
    parser.add_argument("base", nargs="?", default="HEAD~1")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-mesh-base-") as folder:
        base = Path(folder)
        try:
            name = _checkout(arguments.base, base)
            costs: tuple[Costs, Costs] = ({}, {})
            for _ in track(range(arguments.rounds), f"{name} and this tree in turn", console=console):
                for tree, found in ((base, costs[0]), (ROOT, costs[1])):
                    _run(tree, found)
        except subprocess.CalledProcessError as error:
            console.print(
                f"no comparison with {arguments.base}: {' '.join(error.cmd[:3])} … failed:", error.stderr[-800:]
            )
            return 1
    show(name, *costs)
    return 0


def _checkout(commit: str, folder: Path) -> str:
    """Its files into the folder; returns its short name."""
    git = ["git", "-C", str(ROOT)]
    archive = subprocess.run([*git, "archive", commit], capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    said = subprocess.run([*git, "rev-parse", "--short", commit], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def _run(tree: Path, costs: Costs) -> None:
    """One quick run of the tree's own bench. Its code comes before what is installed here."""
    wanted = [word for scenario in SCENARIOS for word in ("--only", scenario)]
    command = [sys.executable, str(tree / "tests" / "bench" / "run.py"), "--quick", *wanted]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    newest = max((tree / "bench-results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    scenarios = json.loads(newest.read_text())["results"]["scenarios"]
    for scenario in SCENARIOS:
        cpu = scenarios[scenario][PLATFORM]["cpu_us"]
        for part in PARTS:
            costs.setdefault((scenario, part), []).append(cpu[part])
        costs.setdefault((scenario, "together"), []).append(sum(cpu[part] for part in PARTS))


def change(before: list[float], after: list[float]) -> float:
    """Of the medians, as a share of the one before."""
    return statistics.median(after) / statistics.median(before) - 1


def show(name: str, before: Costs, after: Costs) -> None:
    table = Table("µs of CPU a request", name, "this tree", "change", title="against the commit before")
    for scenario, part in before:
        pair = before[scenario, part], after[scenario, part]
        by = change(*pair)
        style = "bold red" if by > NOTABLE else ""
        figures = (f"{statistics.median(values):.0f}" for values in pair)
        table.add_row(f"{scenario}: {part}", *figures, f"{by:+.0%}", style=style)
    console.print(table)
    worse = {scenario: change(before[scenario, "together"], after[scenario, "together"]) for scenario in SCENARIOS}
    for scenario, by in worse.items():
        if by > NOTABLE:
            console.print(f"A {scenario} costs {by:.0%} more CPU than before: look into it.", style="bold red")


if __name__ == "__main__":
    sys.exit(main())
