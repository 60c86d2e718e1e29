"""One trial: the load begins, faults strike, the load goes on until all is well, the books are read."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import books
import mixture
from accounts import audit
from acts import LONGEST_TOKENS, SLOTS, Scene
from breaking import whole
from faults import Fault
from stack_rig import Platform, eventually, running, write_config
from verdicts import Strike, Verdict, judge

from extproc.local.stack import Settings

_SIMULATOR = ("--decode-ms-per-token", "2", "--prefill-us-per-token", "200", "--max-num-seqs", str(SLOTS))
_VALKEY = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "local")
_AFTER = 60  # good answers, before the load ends

Tell = Callable[[str], None]


@contextlib.contextmanager
def stage(directory: Path) -> Iterator[Platform]:
    """Two workers, two replicas of one model, a store that keeps a log as the delivered one does."""
    config = write_config(directory / "llm-mesh.yaml", lambda text: text.update(down_seconds=1))
    settings = Settings(
        directory,
        config=config,
        workers=2,
        drain_seconds=1.0,
        replicas={mixture.REPLICATED: 2},
        simulator=_SIMULATOR,
        valkey=_VALKEY,
    )
    with running(settings) as platform:
        eventually(lambda: whole(platform))
        yield platform


def trial(
    platform: Platform,
    name: str,
    plan: Sequence[tuple[float, Fault]],
    tell: Tell = lambda _: None,
) -> Verdict:
    """Faults one after the other, each after a pause of so many seconds."""
    load = mixture.Mixture(platform, f"{name.replace(' ', '-')}-{time.monotonic_ns()}")
    strikes: list[Strike] = []
    with load.flowing():
        for pause, fault in plan:
            eventually(lambda: whole(platform), 30)
            time.sleep(pause)
            tell(fault.name)
            strikes.append(strike(Scene(platform, load, fault.away), fault))
        eventually(lambda: whole(platform), 30)
        load.steady.more(_AFTER, 30)
    return conclude(load, name, strikes)


def strike(scene: Scene, fault: Fault) -> Strike:
    began = time.monotonic()
    fault.act(scene)
    return Strike(fault.name, fault.promise, began, time.monotonic())


def conclude(load: mixture.Mixture, name: str, strikes: Sequence[Strike]) -> Verdict:
    outcomes = load.outcomes()
    callers = [some[0] for some in load.callers.values()]
    books.settle(callers, sum(o.status == 200 for o in outcomes))
    kept = [books.read(caller, load.users[caller.tenant], load.began) for caller in callers]
    found = audit(outcomes, kept, mixture.cost(load.platform.stack), LONGEST_TOKENS)
    return judge(name, strikes, outcomes, found)
