"""The load under which things break: plain and streamed, three tenants, three models, answers of known length."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
from books import REFILL_PER_MINUTE
from stack_rig import Caller, Platform
from traffic import Lane, Lanes, Outcome

from extproc.local.stack import Stack

REPLICATED, ALONE, SMALL = "llama2", "mistral", "codellama"  # models: two replicas, one with a fallback, one for queues
MOST_TOKENS = 28
_KNOWN = 25  # good answers of a lane: each worker has seen its key then
_SLOTS = 64
_TOKENS = 10_000_000  # a bucket that never runs dry, and says what was taken out


class Kind(msgspec.Struct, frozen=True):
    """What one lane asks for, and what is done to it."""

    tenant: str
    model: str
    stream: bool = False
    cached: bool = False  # five prompts that come again and again
    tokens: int = 0  # of the answer; 0 = from 4 to MOST_TOKENS - 1
    headers: Mapping[str, str] = {}
    leave_after: int = 0


STEADY = (
    Kind("plain", REPLICATED),
    Kind("plain", REPLICATED),
    Kind("plain", ALONE),
    Kind("stream", REPLICATED, stream=True),
    Kind("stream", REPLICATED, stream=True),
    Kind("stream", ALONE, stream=True),
    Kind("mixed", REPLICATED, cached=True),
    Kind("mixed", ALONE),
    Kind("mixed", SMALL, stream=True),
)


def body(kind: Kind, number: int) -> bytes:
    """The n-th request of a lane: none before it had as many words and as many tokens."""
    most = kind.tokens or 4 + number % (MOST_TOKENS - 4)
    words = 1 + number // (MOST_TOKENS - 4)
    fields: dict[str, object] = {"model": kind.model, "max_tokens": most, "min_tokens": most}
    if kind.cached:
        words, fields["max_tokens"], fields["min_tokens"], fields["temperature"] = 1 + number % 5, 8, 8, 0
    if kind.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**fields, "messages": [{"role": "user", "content": "w " * words}]}).encode()


class Mixture:
    """The steady lanes, and those that a fault adds, each with a user of its own. The tenants are new each time."""

    def __init__(self, platform: Platform, name: str) -> None:
        self.platform = platform
        self.began = time.monotonic()
        self.callers: dict[str, list[Caller]] = {}  # by tenant
        self.users: dict[str, list[str]] = {}
        self._name = name
        self.steady = Lanes([self.lane(kind) for kind in STEADY])
        self.staged: list[Lane] = []

    def lane(self, kind: Kind) -> Lane:
        tenant = f"{self._name}.{kind.tenant}"
        users = self.users.setdefault(tenant, [])
        users.append(f"{tenant}.{len(users)}")
        limits = {
            "tokens_per_minute": REFILL_PER_MINUTE,
            "burst_tokens": _TOKENS,
            "max_in_flight": _SLOTS,
            "budget_micros": 10**12,
        }
        models = [kind.model] if kind.headers else ["*"]  # what is staged stays there
        caller = Caller(self.platform, tenant=tenant, user=users[-1], limits=limits, models=models)
        self.callers.setdefault(tenant, []).append(caller)
        return Lane(
            caller,
            lambda number: body(kind, number),
            user=users[-1],
            headers=kind.headers,
            leave_after=kind.leave_after,
            pause_seconds=0.01 if kind.cached else 0.0,
        )

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """From the moment when every worker knows every key, to the end of every request."""
        try:
            with self.steady:
                for lane in self.steady.lanes:
                    _await(lane, _KNOWN)
                yield
        finally:
            for caller in (c for some in self.callers.values() for c in some):
                caller.__exit__()

    @contextlib.contextmanager
    def beside(self, kind: Kind, lanes: int) -> Iterator[list[Lane]]:
        """More lanes, for a while."""
        added = [self.lane(kind) for _ in range(lanes)]
        self.staged += added
        for lane in added:
            lane.start()
        try:
            yield added
        finally:
            for lane in added:
                lane.end.set()
            for lane in added:
                lane.join()

    def outcomes(self) -> list[Outcome]:
        lanes = (*self.steady.lanes, *self.staged)
        return sorted((o for lane in lanes for o in list(lane.outcomes)), key=lambda o: o.ended)


def _await(lane: Lane, good: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while lane.good() < good:
        assert time.monotonic() < deadline, f"{lane.good()} of {good} answers after {seconds} s: {lane.outcomes[-1:]}"
        time.sleep(0.02)


def cost(stack: Stack) -> Callable[[str, int, int], int]:
    """Micro-dollars by the stack's price list."""
    from extproc.chat import Usage
    from extproc.pricing import cost_micros

    models = stack.catalogue.models
    return lambda model, prompt, completion: cost_micros(Usage(prompt, completion), models[model])
