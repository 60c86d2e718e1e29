"""What is measured. A scenario is a function from a rig to outcomes; its variants differ in the port alone."""

import secrets
from collections.abc import Awaitable, Callable

import msgspec
from asking import chat
from figures import Outcome
from load import Load
from measure import Pace, compare, everywhere, fresh, measure
from rig import PLATFORM, Rig

POOL = 100  # prompts that the cache holds in `hit`
STREAMS = 500
TOKEN_SECONDS = 0.02  # between two tokens of a stream
TOKENS = 16  # of a plain answer
BYPASS = {"settled": 1, "backend": 1, "bypass": 1}
MISS = {"settled": 1, "backend": 1, "miss": 1, "filled": 1}
HIT = {"settled": 1, "hit": 1}
REFUSED = {"settled": 1, "refused": 1}

Scenario = Callable[[Rig, Pace], Awaitable[Outcome]]


def plain(key: str, words: int = 60) -> dict[str, bytes]:
    """Temperature 0: looked up in the cache, and stored."""
    return chat(key, words, temperature=0, max_tokens=TOKENS)


async def miss(rig: Rig, pace: Pace) -> Outcome:
    """New prompts at temperature 0: key, limits, budget, cache look-up, backend, metering, cache fill."""
    return await compare(rig, pace, everywhere(Load(0, **plain(rig.stack.api_key))), MISS)


async def bypass(rig: Rig, pace: Pace) -> Outcome:
    """The same, sampled: answers are neither looked up nor stored."""
    load = Load(0, **chat(rig.stack.api_key, max_tokens=TOKENS))
    return await compare(rig, pace, everywhere(load), BYPASS)


async def hit(rig: Rig, pace: Pace) -> Outcome:
    """Prompts whose answers are in the cache; direct and Envoy only ask the backend."""
    load = await cached(rig)
    return await compare(rig, pace, everywhere(load), HIT)


async def cached(rig: Rig) -> Load:
    load = Load(0, **plain(rig.stack.api_key), pool=POOL, first=fresh())
    await measure(rig, PLATFORM, msgspec.structs.replace(load, connections=20, count=POOL), MISS)
    return load


async def limited(rig: Rig, pace: Pace) -> Outcome:
    """Every request is refused with 429: the one before the first left the token bucket in debt."""
    return await compare(rig, pace, {PLATFORM: await indebted(rig)}, REFUSED)


async def indebted(rig: Rig) -> Load:
    key = await rig.stack.create_key(tenant="limited", user=secrets.token_hex(4), limits={"tokens_per_minute": 1})
    load = Load(0, **plain(key), first=fresh())
    await measure(rig, PLATFORM, msgspec.structs.replace(load, connections=1, count=1), MISS)
    return msgspec.structs.replace(load, first=0, status=429, needle=b"rate_limit_exceeded")


async def paced(rig: Rig, pace: Pace) -> Outcome:
    """500 requests a second at fixed due times, new prompts at temperature 0: what a caller waits longer."""
    load = Load(0, **plain(rig.stack.api_key), rate=500.0, connections=64)
    return await compare(rig, pace, everywhere(load), MISS)


async def large(rig: Rig, pace: Pace) -> Outcome:
    """Prompts of 220 KB, new, at temperature 0."""
    return await compare(rig, pace, everywhere(Load(0, **plain(rig.stack.api_key, words=44_000))), MISS)


async def stream(rig: Rig, pace: Pace) -> Outcome:
    """500 streams at a time, 50 chunks a second each, sampled, without include_usage: the usage event is stripped."""
    return await streams(rig, pace, STREAMS)


async def stream_light(rig: Rig, pace: Pace) -> Outcome:
    """100 streams at a time: what a chunk costs where nothing is late and no two chunks are joined."""
    return await streams(rig, pace, STREAMS // 5)


async def streams(rig: Rig, pace: Pace, connections: int) -> Outcome:
    """Each stream lasts as long as a run; connections begin one after the other, so that they do not end together."""
    load = streaming(rig, connections, pace.seconds)
    return await compare(rig, pace, everywhere(load), {**BYPASS, "events": events(load)})


def streaming(rig: Rig, connections: int, seconds: float) -> Load:
    ask = chat(rig.stack.api_key, stream=True, max_tokens=round(seconds / TOKEN_SECONDS))
    return Load(0, **ask, connections=connections, stream=True, ramp_seconds=seconds, needle=b"[DONE]")


def events(load: Load) -> int:
    """The role, a chunk for each token, [DONE]."""
    return round(load.ramp_seconds / TOKEN_SECONDS) + 2


AT_ONCE: tuple[Scenario, ...] = (miss, bypass, hit, limited, paced)  # the simulated backend takes no time
FIXED: tuple[Scenario, ...] = (large,)  # a backend that does not read the prompt
DECODING: tuple[Scenario, ...] = (stream_light, stream)  # TOKEN_SECONDS a token
