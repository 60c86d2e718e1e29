"""The load generator itself, as a process, against servers that do what no good one does."""

import asyncio
import json
import threading
import time

import psutil
import pytest
from asking import chat
from orders import Order, Result, Traffic
from places import generate
from schedule import constant
from stack_rig import Backend

from extproc.local.process import free_port

ANSWER = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


def load(port: int, rate: float, seconds: float, **order: float) -> Result:
    traffic = Traffic("chat", **chat("key", stream=False), arrivals=constant(rate, seconds), stream=False)
    return asyncio.run(generate(Order("127.0.0.1", port, (traffic,), **order), lambda _progress: None))  # type: ignore[arg-type]


class Stalling(Backend):
    """Answers at once, but for one second in the middle, when it answers nobody."""

    def __init__(self, stall_at: int) -> None:
        super().__init__()
        self.count = 0
        self._stall_at = stall_at
        self._busy = threading.Lock()

    def answer(self, _method: str, _path: str, _body: bytes) -> bytes:
        with self._busy:
            self.count += 1
            if self.count == self._stall_at:
                time.sleep(1.0)  # the fault itself
        return ANSWER


class Silent(Backend):
    """Answers nobody until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def answer(self, _method: str, _path: str, _body: bytes) -> bytes:
        self.released.wait(20)
        return ANSWER


def port(backend: Backend) -> int:
    return int(backend.url.rpartition(":")[2])


@pytest.mark.parametrize("connections", [15_000, 8])
def test_a_server_that_stalls_for_a_second_can_not_hide_it(connections: int) -> None:
    """Also with few connections: what could not be sent waits, and its time runs."""
    with Stalling(stall_at=50) as backend:
        result = load(port(backend), rate=60, seconds=3, most_connections=connections)
    told = result.summary
    assert (told.all.good, told.errors, backend.count) == (180, {}, 180)
    assert told.all.whole is not None
    assert told.all.whole.max >= 1000
    assert told.all.whole.p95 >= 800  # 60 of 180 were due in that second: a third of them waited 0 to 1 s
    assert (result.held > 0) == (connections == 8)
    assert result.connections > 10 or connections == 8


def test_what_was_asked_is_answered_in_full_and_tokens_are_summed() -> None:
    with Stalling(stall_at=0) as backend:
        told = load(port(backend), rate=100, seconds=0.5).summary.all
    assert (told.requests, told.good, told.prompt_tokens, told.completion_tokens) == (50, 50, 150, 100)


def test_nobody_listening_is_an_error_of_its_own_kind() -> None:
    told = load(free_port(), rate=50, seconds=0.2).summary
    assert told.errors == {"no connection: ConnectionRefusedError": 10}
    assert told.all.failed == 10


def test_an_answer_that_does_not_come_is_given_up() -> None:
    with Silent() as backend:
        told = load(port(backend), rate=20, seconds=0.2, patience_seconds=1).summary
        backend.released.set()
    assert told.errors == {"no whole answer in time": 4}


def test_an_answer_of_the_wrong_shape_is_an_error() -> None:
    class Wrong(Backend):
        def answer(self, _method: str, _path: str, _body: bytes) -> bytes:
            return b'{"choices": []}'

    with Wrong() as backend:
        told = load(port(backend), rate=20, seconds=0.2).summary
    assert told.errors == {"an answer without usage": 4}


def test_a_load_that_is_given_up_leaves_no_process_behind() -> None:
    async def give_up(at: int) -> None:
        traffic = Traffic("chat", **chat("key"), arrivals=constant(10, 60), stream=False)
        async with asyncio.timeout(1.0):
            await generate(Order("127.0.0.1", at, (traffic,)), lambda _progress: None)

    with Silent() as backend:
        with pytest.raises(TimeoutError):
            asyncio.run(give_up(port(backend)))
        assert not [p for p in psutil.Process().children() if "generator.py" in " ".join(p.cmdline())]
        backend.released.set()
