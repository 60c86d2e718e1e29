"""A model that is full turns callers away at once, those of low priority first, and costs them nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from stack_rig import Caller, Json, Metrics, Platform, ask, error_of, eventually, running, write_config

from extproc.local.stack import Settings

ROOM = 8  # of each model; callers of high priority may fill ten


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Models that take eight requests at once."""
    directory = tmp_path_factory.mktemp("small")

    def change(config: Json) -> None:
        for model in config["models"]:
            model["max_in_flight_per_replica"] = ROOM
        config["tenants"] = [{"name": "batch", "priority": "low", "limits": {"requests_per_minute": 0}}]

    path = write_config(directory / "llm-mesh.yaml", change)
    with running(Settings(directory, config=path, drain_seconds=0.1)) as platform:
        yield platform


@asynccontextmanager
async def held(platform: Platform, key: str, count: int) -> AsyncIterator[None]:
    """So many requests under way at llama2 that never end, until the block does."""

    async def hold(session: aiohttp.ClientSession) -> None:
        headers = {"authorization": f"Bearer {key}", "x-sim-delay-ms": "60000"}
        url = f"{platform.stack.base_url}/chat/completions"
        with suppress(aiohttp.ClientError):
            status = 503
            while status == 503:  # all come at once, which looks like more than it is
                status = (await session.post(url, json=ask(), headers=headers)).status

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(hold(session)) for _ in range(count)]
        await asyncio.to_thread(eventually, lambda: in_flight(platform) == count)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(eventually, lambda: in_flight(platform) == 0)


def in_flight(platform: Platform) -> float:
    return Metrics(platform).value("llm_model_in_flight", model="llama2")


@pytest.mark.local
async def test_who_is_turned_away_depends_on_priority(small: Platform) -> None:
    with (
        Caller(small, tenant="batch") as low,
        Caller(small, limits={"requests_per_minute": 0}) as normal,
        Caller(small, tenant=normal.tenant, priority="high", limits={"requests_per_minute": 0}) as high,
    ):
        async with held(small, high.key, ROOM // 2):
            refused = low.chat(max_tokens=1)
            assert (refused.status_code, normal.chat(max_tokens=1).status_code) == (503, 200)
        async with held(small, high.key, ROOM):
            refused = normal.chat(max_tokens=1)
            error = error_of(refused)
            assert (refused.status_code, error["type"], error["code"]) == (503, "server_error", "model_overloaded")
            assert refused.headers["retry-after"] == "2"
            assert high.chat(max_tokens=1).status_code == 200
            assert normal.chat(model="mistral", max_tokens=1).status_code == 200  # each model has its own room
        assert normal.chat(max_tokens=1).status_code == 200


@pytest.mark.local
async def test_a_full_model_charges_nothing_and_its_cache_answers_on(small: Platform) -> None:
    with Caller(small, limits={"tokens_per_minute": 100_000}) as caller, Caller(small, priority="high") as filler:
        question = ask(temperature=0, max_tokens=3)
        assert caller.http.post("/chat/completions", json=question).status_code == 200
        before = caller.settled(1)
        async with held(small, filler.key, ROOM):
            hit = caller.http.post("/chat/completions", json=question)
            assert (hit.status_code, hit.headers["x-llm-cache"]) == (200, "hit")
            for other in (
                ask(max_tokens=3),
                ask(temperature=0, max_tokens=3),
            ):  # what is never cached, and what could be
                assert caller.http.post("/chat/completions", json=other).status_code == 503
            account = caller.settled(4)
        assert (account["errors"], account["hits"]) == (2, 1)
        for what in ("cost_micros", "prompt_tokens", "completion_tokens"):
            assert account[what] == before[what]
        refused = Metrics(small).value("llm_refused_total", tenant=caller.tenant, reason="model_overloaded")
        assert refused == 2


async def test_room_follows_the_replicas_that_the_proxy_finds(platform: Platform, caller: Caller) -> None:
    """On whatever runs: Envoy's own word on replicas and on what is under way there."""

    def room() -> float:
        return Metrics(platform).value("llm_model_room", model="llama2")

    most = 64
    assert eventually(room) % most == 0
    async with held(platform, caller.key, 3):
        assert room() >= most
