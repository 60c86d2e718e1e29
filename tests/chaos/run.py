"""Break the platform in every way of the table, then at random, and see whether it keeps its promises: `make chaos`.

    tests/chaos/run.py [--only NAME ...] [--random-seconds S] [--seed N]

Everything is started here, on free ports of this machine. Results go to chaos-results/. Exits with 1 if a promise is
broken. A run is repeated with the seed that it prints.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import chaos_report
from faults import BY_NAME, FAULTS, Fault, drawn
from stack_rig import Platform
from trial import stage, trial
from verdicts import Verdict


class Run:
    """One platform after the other: what a trial leaves broken is thrown away."""

    def __init__(self, folder: Path) -> None:
        self.verdicts: list[Verdict] = []
        self._folder = folder
        self._stages = 0
        self._open = ExitStack()
        self._platform: Platform | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def take(self, name: str, plan: Sequence[tuple[float, Fault]]) -> None:
        try:
            verdict = trial(self._stage(), name, plan, chaos_report.tell)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a promise that was not kept
            verdict = Verdict(name, broken=(f"{type(error).__name__}: {error}",))
            self._platform = None
        chaos_report.show_line(verdict)
        self.verdicts.append(verdict)

    def _stage(self) -> Platform:
        if self._platform is None:
            self._open.close()
            self._stages += 1
            folder = self._folder / str(self._stages)
            folder.mkdir()
            self._platform = self._open.enter_context(stage(folder))
        return self._platform


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break the platform and see whether it keeps its promises.")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), default=[], help="may be given several times")
    parser.add_argument("--random-seconds", type=float, default=60.0, help="of random faults after the table; 0 = none")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of the random faults")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="llm-mesh-chaos-") as folder, Run(Path(folder)) as run:
        for fault in FAULTS:
            if not arguments.only or fault.name in arguments.only:
                run.take(fault.name, [(0.0, fault)])
        if arguments.random_seconds:
            plan = drawn(arguments.seed, arguments.random_seconds)
            chaos_report.announce(arguments.seed, plan)
            run.take("random", plan)
    chaos_report.show(run.verdicts)
    chaos_report.save(run.verdicts, arguments.seed)
    return 0 if all(verdict.kept for verdict in run.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
