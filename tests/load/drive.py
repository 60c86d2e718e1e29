"""A load test of the platform: `make load SCENARIO=sustained`.

    .venv/bin/python tests/load/drive.py SCENARIO ... [--seconds S] [--per-minute N] [--streams N] [--workers N]

Without --base-url everything is started here. Results go to load-results/: figures as JSON with the versions that they
belong to, and a page with plots. Ends with 1 if a scenario broke a promise.
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import results
import terminal
from places import Deployed, Found, Local, Place
from plans import SCENARIOS, Leg, Plan, Scenario, Wish
from promises import Verdict
from rig import Rig

from extproc.errors import LlmMeshError

_WARM = Wish(seconds=1, per_minute=600)


async def run(name: str, arguments: argparse.Namespace) -> list[Verdict]:
    scenario = SCENARIOS[name]
    async with _place(scenario, arguments) as place:
        wish = Wish(arguments.seconds, arguments.per_minute, arguments.streams)
        await _warm(place)
        plan = await scenario.draw(place, wish)
        runs = {leg.name: await _drive(place, plan, leg, f"{name}, {leg.name}:") for leg in plan.legs}
    verdicts = [verdict for promise in plan.promises for verdict in promise(runs)]
    terminal.show(name, scenario.about, runs)
    terminal.show_verdicts(verdicts)
    head = results.head(name, scenario.about, vars(arguments), local=place.comparable)
    data, page = results.save(arguments.results, head, runs, verdicts)
    terminal.console.print(f"figures: {data}\nreport:  {page}", soft_wrap=True, highlight=False)
    return verdicts


@asynccontextmanager
async def _place(scenario: Scenario, arguments: argparse.Namespace) -> AsyncIterator[Place]:
    if arguments.base_url:
        yield Deployed(arguments.base_url, arguments.api_key, arguments.ca_file, arguments.model)
        return
    with tempfile.TemporaryDirectory(prefix="llm-mesh-load-") as folder:
        async with Rig(
            Path(folder), scenario.simulator, workers=arguments.workers, beside=False, config=scenario.config
        ) as rig:
            yield Local(rig)


async def _warm(place: Place) -> None:
    """A few requests, so that no first one pays for imports and connections."""
    if not place.comparable:
        return
    for leg in (await SCENARIOS["spike"].draw(place, _WARM)).legs:
        await place.drive(leg.where, leg.traffics, 30.0, lambda _progress: None)


async def _drive(place: Place, plan: Plan, leg: Leg, title: str) -> Found:
    seconds = max(traffic.arrivals.seconds for traffic in leg.traffics)
    with terminal.Live(title, seconds) as live:
        return await place.drive(leg.where, leg.traffics, plan.patience_seconds, live.show)


def parse() -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(description="Load the platform and say whether it keeps its promises.")
    parser.add_argument("scenario", nargs="+", choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=0, help="of the load; as the scenario has it")
    parser.add_argument("--per-minute", type=float, default=0, help="requests; as the scenario has it")
    parser.add_argument("--streams", type=int, default=0, help="at a time, of the scenario streams")
    parser.add_argument("--workers", type=int, default=1, help="of the processor that is started here")
    parser.add_argument("--enforce", action="store_true", help="promises of speed decide too")
    parser.add_argument("--base-url", default=env("BASE_URL", ""), help="a deployed gateway instead (BASE_URL)")
    parser.add_argument("--api-key", default=env("API_KEY", ""), help=argparse.SUPPRESS)
    parser.add_argument("--ca-file", default=env("CA_FILE", ""), help="that signed its certificate (CA_FILE)")
    parser.add_argument("--model", default=env("MODEL", ""), help="to ask it for; its default (MODEL)")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="where figures and report go")
    arguments = parser.parse_args()
    if arguments.base_url and not arguments.api_key:
        parser.error("BASE_URL needs an API_KEY")
    return arguments


def main() -> int:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # cached bytecode halves every start
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)  # children's too
    arguments = parse()
    kept = True
    for name in arguments.scenario:
        try:
            verdicts = asyncio.run(run(name, arguments))
        except LlmMeshError as error:
            terminal.console.print(f"{name}: {error}", style="red", highlight=False, soft_wrap=True)
            kept = False
            continue
        except KeyboardInterrupt:
            terminal.console.print(f"{name}: stopped, without a report")
            return 130
        kept &= all(v.met for v in verdicts if arguments.enforce or not v.speed)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
