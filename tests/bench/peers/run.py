"""The platform beside other gateways, on the same backend with the same client in the same rounds: `make bench-peers`.

    .venv/bin/python tests/bench/peers/run.py [--quick] [--peer NAME ...] [--only NAME ...] [--rate R] [--pin]

docs/peers.md says how each is configured, and why the comparison is fair or where it is not.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the bench's own parts

import peer_cache
import peer_report
import peer_scenarios as scenarios
import report
from figures import Outcome
from measure import Pace
from peer_catalogue import PEERS, Peer
from peer_rig import PeerRig
from rich.markup import escape
from scenarios import TOKEN_SECONDS

from extproc.local.process import StackError

_PLAIN, _PACED, _STREAMS = Pace(4.0, 5), Pace(8.0, 3), Pace(4.0, 3)
_QUICK, _QUICK_PACED = Pace(1.5, 1), Pace(3.0, 1)
_DECODE = ("--decode-ms-per-token", str(TOKEN_SECONDS * 1000))
_AT_ONCE, _DECODING = ("plain", "paced"), ("stream_few", "stream_light", "stream")


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.peers: tuple[Peer, ...] = tuple(p for p in PEERS if p.name in (arguments.peer or [p.name for p in PEERS]))
        self.versions: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.errors: list[str] = []

    async def run(self) -> None:
        peer_cache.ensure(peer_report.console, self.peers)
        self.versions = peer_cache.versions(self.peers)
        peer_report.console.print(", ".join(f"{name} {version}" for name, version in self.versions.items()) + "\n")
        quick = self.arguments.quick
        if self.wanted(_AT_ONCE):
            async with self.rig("at-once") as rig:
                await self.take("plain", partial(scenarios.plain, rig, _QUICK if quick else _PLAIN))
                pace = _QUICK_PACED if quick else _PACED
                await self.take("paced", partial(scenarios.paced, rig, pace, self.arguments.rate))
        if self.wanted(_DECODING):
            async with self.rig("decoding", *_DECODE) as rig:
                await self.streams(rig, _QUICK if quick else _STREAMS)

    async def streams(self, rig: PeerRig, pace: Pace) -> None:
        await self.take("stream_few", partial(scenarios.stream_few, rig, pace))
        await self.take("stream_light", partial(scenarios.stream_light, rig, pace))
        variants = list(rig.ports)
        if "stream_light" in self.outcomes:
            variants = scenarios.holding(self.outcomes["stream_light"])
        await self.take("stream", partial(scenarios.stream, rig, pace, variants))

    def wanted(self, names: tuple[str, ...]) -> bool:
        return not self.arguments.only or any(name in self.arguments.only for name in names)

    async def take(self, name: str, scenario: partial) -> None:
        if not self.wanted((name,)):
            return
        found = await scenario()
        self.outcomes[name] = found.outcome
        self.errors += found.errors.values()
        peer_report.show(name, scenario.func.__doc__ or "", found)

    def rig(self, name: str, *simulator: str) -> PeerRig:
        peer_report.console.print(f"starting {', '.join(p.name for p in self.peers)} …", style="dim")
        return PeerRig(self.folder / name, self.peers, simulator, pinned=self.arguments.pin)

    def conclude(self) -> int:
        table = peer_report.markdown(self.outcomes, self.versions, self.arguments.rate)
        results = {"peers": self.versions, "scenarios": self.outcomes}
        path = report.save(vars(self.arguments), results, [], self.errors)
        path.with_suffix(".md").write_text(table)
        peer_report.console.print(f"results: {escape(str(path))}, as a table in {path.with_suffix('.md').name}")
        return 1 if self.errors else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the platform beside other gateways.")
    parser.add_argument("--quick", action="store_true", help="one short round of each scenario")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peer", action="append", choices=names, default=[], help="only these; may be given often")
    scenario_names = [*_AT_ONCE, *_DECODING]
    parser.add_argument("--only", action="append", choices=scenario_names, default=[], help="only these scenarios")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second in `paced`")
    parser.add_argument("--pin", action="store_true", help="gateways on core 0, backend and load client on core 1")
    return parser.parse_args()


async def until_told(bench: Bench) -> None:
    """Interrupted or terminated, it stops what it started."""
    task = asyncio.ensure_future(bench.run())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def main() -> int:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # cached bytecode halves every start
    with tempfile.TemporaryDirectory(prefix="llm-mesh-peers-") as folder:
        bench = Bench(parse(), Path(folder))
        try:
            asyncio.run(until_told(bench))
        except StackError as error:
            peer_report.console.print(f"[red]error:[/red] {escape(str(error))}")
            return 1
        except asyncio.CancelledError:
            return 130
        return bench.conclude()


if __name__ == "__main__":
    sys.exit(main())
