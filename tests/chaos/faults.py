"""The table of faults: what is done, and what may come of it. docs/chaos.md says it for people."""

import random
from collections.abc import Callable

import msgspec
from acts import (
    Scene,
    break_configuration,
    change_configuration,
    cut_streams,
    fill_queue,
    kill_envoy,
    kill_model,
    kill_processor,
    kill_replica,
    kill_valkey,
    kill_worker,
    late_valkey,
    leave_streams,
    lose_a_second,
    restart_workers,
    slow_valkey,
    stop_envoy,
    stop_replica,
    stop_valkey,
    stop_worker,
)
from verdicts import May, Promise

AWAY_SECONDS = 1.5
_PAUSE_SECONDS = 0.2, 3.0  # between two random faults
_TYPICAL_SECONDS = 4.0  # of a random fault, with its pause and what follows


class Fault(msgspec.Struct, frozen=True):
    name: str
    act: Callable[[Scene], None]
    promise: Promise
    away: float = AWAY_SECONDS

    @property
    def what(self) -> str:
        return (self.act.__doc__ or "").strip().split("\n")[0].rstrip(".")


_HELD = Promise(longest_seconds=AWAY_SECONDS + 5.0)
_CUT_SECONDS = 1.5  # Envoy closes the connection of a cut stream a second later (delayed_close_timeout)
_MESSAGE_SECONDS = 2.0  # Envoy waits so long for a worker's word (message_timeout)

FAULTS = (
    Fault("rolling restart", restart_workers, Promise()),
    Fault("configuration changed", change_configuration, Promise()),
    Fault("configuration broken", break_configuration, Promise()),
    Fault("worker killed", kill_worker, Promise(fail=May.UNDER_WAY, lose_receipts=True)),
    Fault(
        "worker stopped",
        stop_worker,
        Promise(fail=May.UNTIL_BACK, lose_receipts=True, recovered_seconds=_MESSAGE_SECONDS + 1.0),
        away=_MESSAGE_SECONDS + 0.5,
    ),
    Fault("processor killed", kill_processor, Promise(fail=May.UNTIL_BACK, lose_receipts=True, recovered_seconds=4.0)),
    Fault(
        "Envoy killed",
        kill_envoy,
        Promise(fail=May.UNTIL_BACK, be_cut=May.UNDER_WAY, lose_receipts=True, recovered_seconds=3.0),
    ),
    Fault("Envoy stopped", stop_envoy, _HELD),
    Fault("Valkey killed", kill_valkey, Promise()),
    Fault("Valkey loses a second", lose_a_second, Promise(lose_writes=True)),
    Fault("Valkey stopped", stop_valkey, Promise()),
    Fault("Valkey slow", slow_valkey, Promise()),
    Fault("Valkey too slow", late_valkey, Promise()),
    Fault("replica stopped", stop_replica, _HELD),
    Fault("replica killed", kill_replica, Promise(be_cut=May.UNDER_WAY, recovered_seconds=_CUT_SECONDS)),
    Fault(
        "model killed",  # one request a second and worker tries it again (down_seconds)
        kill_model,
        Promise(fail=May.UNTIL_BACK, be_cut=May.UNDER_WAY, recovered_seconds=AWAY_SECONDS + 1.5),
    ),
    Fault("queue filled", fill_queue, Promise(be_refused=True, longest_seconds=15.0)),
    Fault("streams cut", cut_streams, Promise(be_refused=True)),
    Fault("clients leave", leave_streams, Promise()),
)
BY_NAME = {fault.name: fault for fault in FAULTS}


def drawn(seed: int, seconds: float) -> list[tuple[float, Fault]]:
    """A plan for about so long: the same for the same seed."""
    chance = random.Random(seed)
    return [
        (chance.uniform(*_PAUSE_SECONDS), chance.choice(FAULTS))
        for _ in range(max(1, round(seconds / _TYPICAL_SECONDS)))
    ]
