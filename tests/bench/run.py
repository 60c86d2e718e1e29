"""What the platform costs, beside the same Envoy without it and beside the bare backend: `make bench`.

    .venv/bin/python tests/bench/run.py [--quick] [--only NAME ...] [--soak SECONDS] [--pin] [--enforce]

Everything is started here, on free ports of this machine. Each scenario runs its variants in turn, several rounds;
figures are medians. Results go to bench-results/ with the versions that they belong to.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
import report
from figures import Outcome
from measure import BenchError, Pace
from rig import Rig
from scenarios import AT_ONCE, DECODING, FIXED, TOKEN_SECONDS, Scenario
from soak import Soak, soak
from targets import verdicts

_FULL, _FULL_STREAMS, _QUICK = Pace(4.0, 5), Pace(4.0, 3), Pace(0.7, 1)
_DECODE = ("--decode-ms-per-token", str(TOKEN_SECONDS * 1000))


class Bench:
    """One call of the program: what was asked, and what was found."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self.soaked: Soak | None = None
        self.errors: list[str] = []

    async def run(self) -> None:
        quick = self.arguments.quick
        await self.group(self.wanted(AT_ONCE), _QUICK if quick else _FULL)
        await self.group(self.wanted(FIXED), _QUICK if quick else _FULL, fixed=True)
        await self.group(self.wanted(DECODING), _QUICK if quick else _FULL_STREAMS, *_DECODE)
        if self.arguments.soak:
            await self.soak()

    def wanted(self, scenarios: Sequence[Scenario]) -> list[Scenario]:
        only = self.arguments.only
        return [s for s in scenarios if (s.__name__ in only if only else self.arguments.soak is None)]

    async def group(self, scenarios: Sequence[Scenario], pace: Pace, *simulator: str, fixed: bool = False) -> None:
        """Scenarios that share a rig."""
        if not scenarios:
            return
        async with self.rig(*simulator, fixed=fixed) as rig:
            for scenario in scenarios:
                try:
                    outcome = await scenario(rig, pace)
                except (BenchError, psutil.Error) as error:
                    self.failed(scenario.__name__, error)
                    continue
                self.outcomes[scenario.__name__] = outcome
                report.show(scenario.__name__, scenario.__doc__ or "", outcome)

    async def soak(self) -> None:
        async with self.rig(*_DECODE) as rig:
            try:
                self.soaked = await soak(rig, self.arguments.soak)
            except (BenchError, psutil.Error) as error:
                self.failed("soak", error)
                return
        report.show_soak(self.soaked)

    def rig(self, *simulator: str, fixed: bool = False) -> Rig:
        return Rig(self.folder, simulator, fixed=fixed, pinned=self.arguments.pin)

    def failed(self, name: str, error: Exception) -> None:
        self.errors.append(f"{name}: {error}")
        report.console.print(f"{name}: no figure. {error}\n", style="red", highlight=False)

    def conclude(self) -> int:
        """Print and store; return the exit code."""
        found = verdicts(self.outcomes, self.soaked)
        report.show_targets(found)
        results = {"scenarios": self.outcomes, "soak": self.soaked}
        path = report.save(vars(self.arguments), msgspec.to_builtins(results), found, self.errors)
        report.console.print(f"results: {path}")
        missed = self.arguments.enforce and not all(v.met for v in found)
        return 1 if self.errors or missed else 0


def parse() -> argparse.Namespace:
    names = [s.__name__ for s in (*AT_ONCE, *FIXED, *DECODING)]
    parser = argparse.ArgumentParser(description="Measure the platform beside plain Envoy and the bare backend.")
    parser.add_argument("--quick", action="store_true", help="one short round of each scenario")
    parser.add_argument("--only", action="append", choices=names, default=[], help="may be given several times")
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="only this, unless --only: mixed load: is it flat?"
    )
    parser.add_argument("--pin", action="store_true", help="gateway on core 0, backend and load client on core 1")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a target is missed")
    return parser.parse_args()


def main() -> int:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # cached bytecode halves every start
    with tempfile.TemporaryDirectory(prefix="llm-mesh-bench-") as folder:
        bench = Bench(parse(), Path(folder))
        asyncio.run(bench.run())
        return bench.conclude()


if __name__ == "__main__":
    sys.exit(main())
