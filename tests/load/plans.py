"""The scenarios: who asks what, how often, and what is promised. A plan is data; keys are made while it is drawn up."""

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from orders import Traffic
from places import Place
from promises import Promise, at_once, counters, fair, hits, no_errors, no_later, sheds, soon, unharmed
from rig import CONFIG, DIRECT, PLATFORM
from schedule import Arrivals, Questions, Stage, constant, due_times, numbers, repeated

_COMPARED_SECONDS = 60.0  # a long scenario asks the bare backend for so long
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


class Wish(msgspec.Struct, frozen=True):
    """What the caller of `make load` may change. 0 = as the scenario has it."""

    seconds: float = 0.0
    per_minute: float = 0.0
    streams: int = 0


class Leg(msgspec.Struct, frozen=True):
    """One run of a plan."""

    name: str
    where: str
    traffics: tuple[Traffic, ...]


class Plan(msgspec.Struct, frozen=True):
    """The last leg is what the scenario is about, the others stand beside it."""

    legs: tuple[Leg, ...]
    promises: tuple[Promise, ...]
    patience_seconds: float = 30.0


class Scenario(msgspec.Struct, frozen=True):
    draw: Callable[[Place, Wish], Awaitable[Plan]]
    simulator: tuple[str, ...]  # arguments of the backend
    config: Path = CONFIG

    @property
    def about(self) -> str:
        return self.draw.__doc__ or ""


def fresh() -> int:
    """A first question that nobody asked before."""
    return secrets.randbelow(10**6) * 10**9


def _beside(place: Place, traffics: Callable[[float], tuple[Traffic, ...]], seconds: float) -> tuple[Leg, ...]:
    """The platform, and before it the bare backend where there is one."""
    direct = Leg(DIRECT, DIRECT, traffics(min(seconds, _COMPARED_SECONDS)))
    platform = Leg(PLATFORM, PLATFORM, traffics(seconds))
    return (direct, platform) if place.comparable else (platform,)


async def sustained(place: Place, wish: Wish) -> Plan:
    """1,000 requests a minute, Poisson, for an hour: two thirds streamed, 64 tokens each; 300 tokens of prompt."""
    rate = (wish.per_minute or 1000) / 60
    return await _chatting(place, wish.seconds or 3600, lambda share, s, seed: constant(share * rate, s, seed))


async def spike(place: Place, wish: Wish) -> Plan:
    """From nothing to 5,000 requests a minute at once, for a minute, then a tenth of it; answers as in sustained."""
    rate, length = (wish.per_minute or 5000) / 60, wish.seconds or 60

    def arrivals(share: float, seconds: float, seed: int) -> Arrivals:
        high, low = share * rate, share * rate / 10
        return Arrivals((Stage(seconds, high, high), Stage(seconds / 4, low, low)), seed)

    return await _chatting(place, length, arrivals)


async def _chatting(place: Place, seconds: float, arrivals: Callable[[float, float, int], Arrivals]) -> Plan:
    streamed, whole = await place.key("streaming"), await place.key("plain")
    ask = {"words": 200, "max_tokens": 64}

    def traffics(length: float) -> tuple[Traffic, ...]:
        questions = Questions(fresh())
        some, others = arrivals(2 / 3, length, 1), arrivals(1 / 3, length, 2)
        return (
            Traffic("streaming", **place.ask(streamed, **ask, **_STREAM), arrivals=some, questions=questions),
            Traffic("plain", **place.ask(whole, **ask), arrivals=others, questions=questions, stream=False),
        )

    return Plan(_beside(place, traffics, seconds), (no_errors, counters, soon, no_later))


STREAM_TOKEN_SECONDS = 1.0


async def streams(place: Place, wish: Wish) -> Plan:
    """5,000 streams open at a time, a token a second each: they begin at 100 a second, all run for ten seconds, and
    end as they began. No caller asks for usage, so it is taken out of every stream."""
    count, rate = wish.streams or 5000, (wish.per_minute or 6000) / 60
    ramp, together = count / rate, wish.seconds or 10.0
    tokens = round((ramp + together) / STREAM_TOKEN_SECONDS) + 1
    key = await place.key("streaming")
    ask = place.ask(key, stream=True, max_tokens=tokens)

    def traffics(_seconds: float) -> tuple[Traffic, ...]:
        return (Traffic("streaming", **ask, arrivals=constant(rate, ramp), questions=Questions(fresh())),)

    legs = _beside(place, traffics, ramp)
    return Plan(legs, (no_errors, at_once(count), counters, soon, no_later), tokens * STREAM_TOKEN_SECONDS + 30)


async def cache(place: Place, wish: Wish) -> Plan:
    """Prompts that repeat as Zipf's law says (exponent 1, half as many prompts as requests), temperature 0, 2,000 a
    minute for two minutes: how many answers come out of the cache."""
    key = await place.key("repeating")
    arrivals = constant((wish.per_minute or 2000) / 60, wish.seconds or 120, 3)
    count = len(due_times(arrivals))
    ask = place.ask(key, temperature=0, max_tokens=64, **_STREAM)

    def traffics(_seconds: float) -> tuple[Traffic, ...]:
        return (Traffic("repeating", **ask, arrivals=arrivals, questions=Questions(fresh(), pool=count // 2)),)

    legs = _beside(place, traffics, arrivals.seconds)
    possible = repeated(numbers(legs[-1].traffics[0].questions, count))
    return Plan(legs, (no_errors, hits(possible), counters, soon, no_later))


TENANT_TOKENS = 500  # a second, of each tenant
BURST_SECONDS = 10
_TENANT_COST = 100  # tokens that a request takes, about


async def tenants(place: Place, wish: Wish) -> Plan:
    """Four tenants ask for half of their token limit; then again beside a fifth that asks for ten times its own."""
    seconds = wish.seconds or 60
    limits = {"tokens_per_minute": TENANT_TOKENS * 60, "burst_tokens": TENANT_TOKENS * BURST_SECONDS}

    async def tenant(name: str, share: float, seed: int) -> Traffic:
        key = await place.key(name, **limits)
        ask = place.ask(key, words=36, max_tokens=48, **_STREAM)
        arrivals = constant(share * TENANT_TOKENS / _TENANT_COST, seconds, seed)
        return Traffic(name, **ask, arrivals=arrivals, questions=Questions(fresh()), may_be_refused=True)

    names = [f"tenant-{letter}" for letter in "abcd"]
    alone = [await tenant(name, 0.5, seed) for seed, name in enumerate(names, 4)]
    greedy = await tenant("greedy", 10.0, 9)
    legs = (Leg("without it", PLATFORM, tuple(alone)), Leg("beside it", PLATFORM, (*alone, greedy)))
    burst = float(limits["burst_tokens"])
    return Plan(legs, (no_errors, fair("greedy", TENANT_TOKENS * seconds + burst, burst), counters))


async def prompts(place: Place, wish: Wish) -> Plan:
    """Long prompts: 4 KB, 32 KB and 220 KB, 300 a minute for a minute, streamed, 32 tokens each."""
    rate, seconds = (wish.per_minute or 300) / 60, wish.seconds or 60
    sizes = {"4 KB": (800, 0.6), "32 KB": (6_400, 0.3), "220 KB": (44_000, 0.1)}
    keys = {name: await place.key(name.replace(" ", "-")) for name in sizes}

    def traffics(length: float) -> tuple[Traffic, ...]:
        return tuple(
            Traffic(
                name.replace(" ", "-"),
                **place.ask(keys[name], words=words, max_tokens=32, **_STREAM),
                arrivals=constant(share * rate, length, seed),
                questions=Questions(fresh()),
            )
            for seed, (name, (words, share)) in enumerate(sizes.items(), 20)
        )

    return Plan(_beside(place, traffics, seconds), (no_errors, counters, no_later), patience_seconds=60)


SEQUENCES, _TOKENS, _TOKEN_SECONDS = 64, 20, 0.02  # of the only replica, and of an answer there
CAPACITY = SEQUENCES / (_TOKENS * _TOKEN_SECONDS)  # requests a second


async def overload(place: Place, wish: Wish) -> Plan:
    """A replica that decodes 64 requests at once, 160 a second: half of that for half a minute, then twice as much as
    it can. One caller in twenty has priority."""
    seconds = wish.seconds or 30
    keys = {name: await place.key(name, priority=name) for name in ("high", "normal")}

    def traffics(load: float) -> tuple[Traffic, ...]:
        rates = {"high": CAPACITY / 20, "normal": load * CAPACITY - CAPACITY / 20}
        return tuple(
            Traffic(
                name,
                **place.ask(keys[name], max_tokens=_TOKENS, **_STREAM),
                arrivals=constant(rate, seconds, seed),
                questions=Questions(fresh()),
                may_be_refused=load > 1 and name == "normal",
            )
            for seed, (name, rate) in enumerate(rates.items(), 30)
        )

    legs = (Leg("half", PLATFORM, traffics(0.5)), Leg("twice", PLATFORM, traffics(2.0)))
    return Plan(legs, (no_errors, sheds("normal", CAPACITY), unharmed("high"), soon, counters))


async def flood(place: Place, wish: Wish) -> Plan:
    """What the gateway itself carries is found first, with a backend that answers at once; then half of it for ten
    seconds, then twice as much. Envoy turns away what is too much to be decided on."""
    seconds = wish.seconds or 10
    ask = place.ask(await place.key("plain"), max_tokens=_TOKENS)
    capacity = await place.capacity(ask)

    def traffic(load: float) -> Traffic:
        arrivals, questions = constant(load * capacity, seconds, 40), Questions(fresh())
        return Traffic("plain", **ask, arrivals=arrivals, questions=questions, stream=False, may_be_refused=load > 1)

    legs = tuple(Leg(name, PLATFORM, (traffic(load),)) for name, load in (("half", 0.5), ("twice", 2.0)))
    return Plan(legs, (no_errors, sheds("plain", capacity)))


def _timing(prefill_us: float, decode_ms: float) -> tuple[str, ...]:
    return ("--prefill-us-per-token", str(prefill_us), "--decode-ms-per-token", str(decode_ms))


SCENARIOS = {
    "sustained": Scenario(sustained, _timing(200, 15)),
    "spike": Scenario(spike, _timing(200, 15)),
    "streams": Scenario(streams, _timing(200, STREAM_TOKEN_SECONDS * 1000)),
    "cache": Scenario(cache, _timing(200, 15)),
    "tenants": Scenario(tenants, _timing(200, 15)),
    "prompts": Scenario(prompts, _timing(10, 15)),
    "flood": Scenario(flood, _timing(0, 0)),
    "overload": Scenario(
        overload,
        (*_timing(0, _TOKEN_SECONDS * 1000), "--max-num-seqs", str(SEQUENCES)),
        Path(__file__).parent / "overload.yaml",
    ),
}
