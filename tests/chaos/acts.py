"""What is done to the platform, one function a fault. What is promised for it: faults.py.

An act returns when its cause is over: what was killed is up again, what was stopped runs. Its docstring's first line is
what people read.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import msgspec
import psutil
import yaml
from breaking import back_again, paused, whole, workers
from mixture import ALONE, MOST_TOKENS, REPLICATED, SMALL, Kind, Mixture
from stack_rig import Platform, connected, eventually, health

SLOTS = 16  # sequences that a simulated backend runs at a time
_LOST_SECONDS = 1.0  # what appendfsync everysec leaves to the kernel
_QUEUE_LANES = 60
LONGEST_TOKENS = 200  # of the answers that fill a queue


class Scene(msgspec.Struct, frozen=True):
    """What an act works on. `away` is how long it holds the fault."""

    platform: Platform
    mixture: Mixture
    away: float

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self.platform.stack.children[name].pid)

    def hold(self) -> None:
        """Let the load meet the fault for a while: that time is the fault itself."""
        time.sleep(self.away)


# --- the processor --------------------------------------------------------------------------------------------------


def kill_worker(scene: Scene) -> None:
    """kill -9 one of two workers."""
    dead = workers(scene.platform)[0]
    dead.kill()
    eventually(lambda: dead.pid not in health(scene.platform)["workers"]["pids"])


def stop_worker(scene: Scene) -> None:
    """SIGSTOP one of two workers."""
    with paused(workers(scene.platform)[0]):
        scene.hold()


def restart_workers(scene: Scene) -> None:
    """SIGTERM one worker after the other; each drains, the next follows when all is well."""
    for worker in workers(scene.platform):
        worker.send_signal(signal.SIGTERM)
        eventually(lambda worker=worker: worker.pid not in health(scene.platform)["workers"]["pids"])
        eventually(lambda: whole(scene.platform))


def kill_processor(scene: Scene) -> None:
    """kill -9 the whole processor, started again."""
    with back_again(scene.platform, "processor"):
        kill(scene, "processor")


def change_configuration(scene: Scene) -> None:
    """A changed configuration file, twice: another price order of aliases, then the first again."""
    path = scene.platform.stack.settings.config
    first = path.read_text()
    changed = yaml.safe_load(first)
    changed["aliases"].insert(0, {"pattern": "chaos-*", "model": ALONE})
    for text in (yaml.safe_dump(changed, sort_keys=False), first):
        before = revisions(scene.platform)
        path.write_text(text)
        eventually(lambda before=before: len(now := revisions(scene.platform)) == 1 and now != before)


def break_configuration(scene: Scene) -> None:
    """A configuration file that can not be read, then the good one again."""
    path = scene.platform.stack.settings.config
    good = path.read_text()
    path.write_text("models: [")
    eventually(lambda: health(scene.platform)["config"]["errors"])
    path.write_text(good)
    eventually(lambda: not health(scene.platform)["config"]["errors"])


# --- Envoy ------------------------------------------------------------------------------------------------------------


def kill_envoy(scene: Scene) -> None:
    """kill -9 Envoy, started again."""
    with back_again(scene.platform, "envoy"):
        kill(scene, "envoy")


def stop_envoy(scene: Scene) -> None:
    """SIGSTOP Envoy."""
    with paused(scene.process("envoy")):
        scene.hold()


# --- Valkey -----------------------------------------------------------------------------------------------------------


def kill_valkey(scene: Scene) -> None:
    """kill -9 Valkey, started again on its append-only file."""
    with back_again(scene.platform, "valkey"):
        kill(scene, "valkey")
        scene.hold()


def lose_a_second(scene: Scene) -> None:
    """A power cut for Valkey: kill -9, and its append-only file without the last second."""
    (log,) = (scene.platform.stack.children["valkey"].log.parent / "valkey").glob("appendonlydir/*.incr.aof")
    size = log.stat().st_size
    time.sleep(_LOST_SECONDS)
    with back_again(scene.platform, "valkey"):
        kill(scene, "valkey")
        os.truncate(log, size)


def stop_valkey(scene: Scene) -> None:
    """SIGSTOP Valkey."""
    with paused(scene.process("valkey")):
        scene.hold()


def slow_valkey(scene: Scene) -> None:
    """Every command waits up to 50 ms, half of the processor's time-out."""
    with blocked(scene, 0.05):
        scene.hold()


def late_valkey(scene: Scene) -> None:
    """Every command waits up to 300 ms, longer than the processor's time-out."""
    with blocked(scene, 0.3):
        scene.hold()


@contextlib.contextmanager
def blocked(scene: Scene, seconds: float) -> Iterator[None]:
    """Valkey does nothing for so long, one turn of its loop, and again."""
    turns = max(1, round(scene.away / seconds))
    with connected(scene.platform) as client:
        for _ in range(turns):
            client.execute_command("DEBUG", "SLEEP", seconds)
    yield


# --- backends ---------------------------------------------------------------------------------------------------------


def kill_replica(scene: Scene) -> None:
    """kill -9 one of two replicas of a model."""
    with back_again(scene.platform, f"backend-{REPLICATED}-2"):
        kill(scene, f"backend-{REPLICATED}-2")
        scene.hold()


def stop_replica(scene: Scene) -> None:
    """SIGSTOP one of two replicas of a model."""
    with paused(scene.process(f"backend-{REPLICATED}-2")):
        scene.hold()


def kill_model(scene: Scene) -> None:
    """kill -9 the only replica of a model that has a fallback."""
    with back_again(scene.platform, f"backend-{ALONE}"):
        kill(scene, f"backend-{ALONE}")
        scene.hold()


def fill_queue(scene: Scene) -> None:
    """60 long answers at once from a backend that runs 16."""
    kind = Kind("queue", SMALL, stream=True, tokens=LONGEST_TOKENS, headers={"x-sim-tokens": str(LONGEST_TOKENS)})
    with scene.mixture.beside(kind, _QUEUE_LANES) as lanes:
        eventually(lambda: all(lane.outcomes for lane in lanes), 30)


def cut_streams(scene: Scene) -> None:
    """Streams that the backend resets after eight events."""
    # Not from the model with two replicas: three in a row put a replica out, and the other may be out already. The one
    # that cuts may be full meanwhile.
    kind = Kind("cut", ALONE, stream=True, tokens=MOST_TOKENS, headers={"x-sim-cut-after": "8"})
    with scene.mixture.beside(kind, 8) as lanes:
        eventually(lambda: sum(len(lane.outcomes) for lane in lanes) >= 16)


def leave_streams(scene: Scene) -> None:
    """Clients that leave in the middle of their streams."""
    with scene.mixture.beside(Kind("leave", ALONE, stream=True, tokens=MOST_TOKENS, leave_after=8), 4) as lanes:
        eventually(lambda: sum(len(lane.outcomes) for lane in lanes) >= 40)


# --- parts ------------------------------------------------------------------------------------------------------------


def kill(scene: Scene, name: str) -> None:
    child = scene.platform.stack.children[name]
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: child.ended)


def revisions(platform: Platform) -> list[str]:
    found: list[str] = health(platform)["config"]["revisions"]
    return found
