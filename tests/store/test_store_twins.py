"""Any sequence of claims, settlements, sweeps and time has the same answers in memory and in Redis."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rig import START_MS, Rig, Valkey, claim, command, fill, redis_rig, settlement

from extproc import limits
from extproc.admission import Admission, Claim, Limits, Outcome
from extproc.store import RedisStore

SOME_LIMITS = [
    Limits(),
    Limits(requests_per_minute=7, burst_requests=3),
    Limits(requests_per_minute=0, tokens_per_minute=6000, burst_tokens=1000),
    Limits(requests_per_minute=60, burst_requests=5, tokens_per_minute=999, burst_tokens=0, max_in_flight=2),
    Limits(requests_per_minute=60, burst_requests=0, tokens_per_minute=7, burst_tokens=500, budget_micros=1000),
]
STARTS = [START_MS, limits.month_ends_ms(START_MS) - 3000, limits.month_ends_ms(START_MS) - 1]

claims = st.builds(
    claim,
    user=st.sampled_from(["ada", "bob"]),
    key_id=st.sampled_from(["key-1", "key-2"]),
    tokens=st.integers(0, 1500),
    cost_micros=st.integers(0, 600),
    fingerprint=st.sampled_from(["", "", "f1", "f2", "f3"]),
    limits=st.sampled_from(SOME_LIMITS),
    cached_only=st.sampled_from([False, False, False, True]),
)
# together less than the ten minutes for which a settlement is remembered
steps = st.sampled_from([0, 1, 599, 600, 1000, 8571, 20_000])
fills = st.builds(fill, st.sampled_from(["f1", "f2", "f3"]), st.binary(max_size=700), st.sampled_from([5000, 60_000]))
outcomes = st.fixed_dictionaries(
    {
        "place": st.integers(0, 30),
        "tokens": st.integers(0, 2000),
        "cost_micros": st.integers(0, 900),
        "status": st.sampled_from([200, 0, 500]),
        "hit": st.booleans(),
        "arm": st.sampled_from(["", "stable", "canary"]),
        "fill": st.none()
        | st.builds(
            fill, st.sampled_from(["f1", "f2", "f3"]), st.binary(max_size=700), st.sampled_from([5000, 60_000])
        ),
    }
)
actions = st.lists(
    st.tuples(st.just("admit"), claims)
    | st.tuples(st.just("insist"), claims)
    | st.tuples(st.just("settle"), st.lists(outcomes, min_size=1, max_size=4))
    | st.tuples(st.just("later"), steps)
    | st.tuples(st.just("sweep"), st.sampled_from([0, 1000, 10_000])),
    max_size=25,
)


class Twins:
    """Memory and Redis, moved together; each answer is compared where it is given."""

    def __init__(self, memory: Rig, redis: Rig) -> None:
        self._rigs = (memory, redis)
        self._claims: list[Claim] = []

    async def both(self, verb: str, *arguments: Any) -> Any:
        here, there = [await getattr(rig.store, verb)(*arguments) for rig in self._rigs]
        assert here == there
        return here

    async def later(self, ms: int) -> None:
        for rig in self._rigs:
            await rig.later(ms)

    async def admit(self, one: Claim) -> Admission:
        self._claims.append(one)
        answer = await self.both("admit", one)
        assert isinstance(answer, Admission)
        return answer

    async def insist(self, one: Claim) -> None:
        """Come back when told to: not a millisecond earlier, and then it succeeds."""
        refused = await self.admit(one)
        if refused.outcome in (Outcome.ADMITTED, Outcome.HIT) or one.limits.max_in_flight or one.cached_only:
            return
        if refused.retry_after_ms > 100_000:  # a month: settlements would be forgotten on the way
            assert refused.outcome in (Outcome.BUDGET, Outcome.TOKENS, Outcome.REQUESTS)
            return
        await self.later(refused.retry_after_ms - 1)
        again = await self.admit(msgspec.structs.replace(one, fingerprint=""))
        assert again.outcome is refused.outcome
        assert again.retry_after_ms == 1
        await self.later(1)
        assert (await self.admit(msgspec.structs.replace(one, fingerprint=""))).outcome is Outcome.ADMITTED

    async def settle(self, results: list[dict[str, Any]]) -> None:
        if self._claims:
            await self.both("settle", [self._settlement(**result) for result in results])

    def _settlement(self, place: int, **result: Any) -> Any:
        return settlement(self._claims[place % len(self._claims)], **result)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module")
def redis_twin(runner: asyncio.Runner, valkey: Valkey) -> Iterator[Rig]:
    rig = runner.run(redis_rig(valkey.url))
    yield rig
    runner.run(rig.store.aclose())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(STARTS), todo=actions)
def test_the_twins_agree(runner: asyncio.Runner, redis_twin: Rig, start: int, todo: list[tuple[str, Any]]) -> None:
    runner.run(play(redis_twin, start, todo))


async def play(redis: Rig, start: int, todo: list[tuple[str, Any]]) -> None:
    assert isinstance(redis.store, RedisStore)
    await command(redis.store, "FLUSHALL")
    redis.store._announced.clear()
    memory = Rig()
    for rig in (memory, redis):
        await rig.at(start)
    twins = Twins(memory, redis)
    for verb, argument in todo:
        if verb == "sweep":
            await twins.both("sweep", argument)
        else:
            await getattr(twins, verb)(argument)
    await twins.both("shared", 500)
    await twins.both("usage", limits.day(start), limits.day(redis.now_ms))
