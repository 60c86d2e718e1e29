"""Limits under real concurrency: exact across workers, told in headers, given back at settlement."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from stack_rig import (
    NO_TLS,
    Caller,
    Json,
    MakeCaller,
    Platform,
    ask,
    error_of,
    eventually,
    price,
    running,
    write_config,
)

from extproc.local.stack import Settings

HELLO = [{"role": "user", "content": "Hello"}]
SLOW = {"x-sim-hang": "1"}


async def burst(platform: Platform, key: str, count: int, body: Json) -> list[httpx.Response]:
    """So many requests at once, over enough connections that both workers get their part."""
    limits = httpx.Limits(max_connections=50)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=platform.stack.base_url, headers=headers, limits=limits, timeout=30) as http:
        return await asyncio.gather(*(http.post("/chat/completions", json=body) for _ in range(count)))


def remaining(answer: httpx.Response, unit: str) -> int:
    return int(answer.headers["x-ratelimit-remaining-" + unit])


def seconds_of(text: str) -> float:
    """OpenAI's durations: 450ms, 1.2s, 6m0s, 2h0m0s."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?(?:(\d+)ms)?", text)
    assert match, text
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_of_200_concurrent_requests_exactly_100_pass(platform: Platform) -> None:
    key = platform.key(limits={"requests_per_minute": 1, "burst_requests": 100})
    answers = await burst(platform, key, 200, ask(max_tokens=1))
    assert sorted({a.status_code for a in answers}) == [200, 429]
    assert sum(a.status_code == 200 for a in answers) == 100
    passed = sorted(remaining(a, "requests") for a in answers if a.status_code == 200)
    assert passed == list(range(100))
    assert all(error_of(a)["code"] == "rate_limit_exceeded" for a in answers if a.status_code == 429)


async def test_without_limits_of_its_own_a_key_has_100_requests_a_minute(platform: Platform) -> None:
    key = platform.key(limited=True)
    answers = await burst(platform, key, 110, ask(max_tokens=1))
    passed = sum(a.status_code == 200 for a in answers)
    assert 100 <= passed <= 104  # 1.67 come back each second
    assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"100"}
    assert {a.headers["x-ratelimit-limit-tokens"] for a in answers} == {"100000"}


def test_the_keys_of_one_user_share_a_bucket_and_other_users_have_their_own(make_caller: MakeCaller) -> None:
    limits = {"requests_per_minute": 1, "burst_requests": 4}
    first = make_caller(user="one", limits=limits)
    second = make_caller(tenant=first.tenant, user="one", limits=limits)
    other = make_caller(tenant=first.tenant, user="two", limits=limits)
    stranger = make_caller(user="one", limits=limits)
    statuses = [c.chat(max_tokens=1).status_code for c in (first, second, first, second, first, second)]
    assert statuses == [200, 200, 200, 200, 429, 429]
    assert [c.chat(max_tokens=1).status_code for c in (other, stranger)] == [200, 200]


def test_every_answer_tells_the_limits_and_what_remains(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 60, "tokens_per_minute": 60_000})
    plain, streamed = caller.chat(max_tokens=1), caller.chat(max_tokens=1, stream=True)
    for answer in (plain, streamed):
        assert answer.headers["x-ratelimit-limit-requests"] == "60"
        assert answer.headers["x-ratelimit-limit-tokens"] == "60000"
    assert remaining(plain, "requests") == 59
    assert 0.9 <= seconds_of(plain.headers["x-ratelimit-reset-requests"]) <= 1.0  # one a second comes back
    assert 59_900 <= remaining(plain, "tokens") < 60_000
    assert 0 < seconds_of(plain.headers["x-ratelimit-reset-tokens"]) < 0.1
    assert not [name for name in caller.http.get("/models").headers if name.startswith("x-ratelimit")]


def test_a_key_without_limits_is_told_of_none(caller: Caller) -> None:
    assert not [name for name in caller.chat(max_tokens=1).headers if name.startswith("x-ratelimit")]


def test_a_refusal_says_when_to_come_back_and_then_it_works(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 120, "burst_requests": 1})  # one each half second
    assert caller.chat(max_tokens=1).status_code == 200
    refused = caller.chat(max_tokens=1)
    error = error_of(refused)
    assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert "120 requests per minute" in error["message"]
    assert refused.headers["retry-after"] == "1"
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 500
    assert remaining(refused, "requests") == 0
    # The official client waits as it is told and tries again.
    with caller.openai.with_options(max_retries=3) as patient:
        assert patient.chat.completions.create(model="llama2", messages=HELLO, max_tokens=1).choices


def test_the_official_client_raises_its_rate_limit_error(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 1, "burst_requests": 1})
    assert caller.chat(max_tokens=1).status_code == 200
    with pytest.raises(openai.RateLimitError) as caught:
        caller.openai.chat.completions.create(model="llama2", messages=HELLO)
    assert caught.value.code == "rate_limit_exceeded"
    assert 55 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_requests_that_are_refused_for_another_reason_take_nothing(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"requests_per_minute": 1, "burst_requests": 1})
    assert caller.chat(model="no-such-model").status_code == 404
    assert caller.chat(" word" * 200_000).status_code == 400
    assert caller.http.get("/models").status_code == 200
    assert caller.chat(max_tokens=1).status_code == 200


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_what_was_reserved_and_not_used_comes_back(make_caller: MakeCaller) -> None:
    """The rate is so low that nothing refills: what is there after the settlement is the limit less the real usage."""
    caller = make_caller(limits={"tokens_per_minute": 1, "burst_tokens": 5_000})
    first = caller.chat(max_tokens=3_000, headers={"x-sim-tokens": "10"})
    assert first.status_code == 200
    used = first.json()["usage"]["total_tokens"]
    assert remaining(first, "tokens") < 5_000 - 3_000
    caller.settled(1)
    second = caller.chat(max_tokens=4_000, headers={"x-sim-tokens": "10"})  # would not fit into what was reserved
    assert second.status_code == 200
    used += second.json()["usage"]["total_tokens"]
    caller.settled(2)
    probe = caller.chat(max_tokens=1)
    cost_of_probe = 5_000 - used - remaining(probe, "tokens")
    assert 1 < cost_of_probe < 100  # the estimate of a short prompt, and one token


async def test_a_token_limit_holds_under_concurrency(platform: Platform, make_caller: MakeCaller) -> None:
    """Each reserves 1,000 tokens and its prompt: of 5,000, four can be under way and no more."""
    caller = make_caller(limits={"tokens_per_minute": 1, "burst_tokens": 5_000})
    body = ask("Hi", max_tokens=1_000)
    held = [asyncio.create_task(post_held(platform, caller.key, body)) for _ in range(12)]
    refused = []
    while len(refused) < 8:
        done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        held = [task for task in held if task not in done]
        refused += [task.result() for task in done]
    assert {a.status_code for a in refused} == {429}
    assert len(held) == 4
    error = error_of(refused[0])
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def post_held(platform: Platform, key: str, body: Json) -> httpx.Response:
    """A request whose backend never answers."""
    headers = {"authorization": f"Bearer {key}", **SLOW}
    async with httpx.AsyncClient(base_url=platform.stack.base_url, headers=headers, timeout=30, verify=NO_TLS) as http:
        return await http.post("/chat/completions", json=body)


def test_a_request_that_could_never_fit_is_told_what_it_needs(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"tokens_per_minute": 100, "burst_tokens": 100})
    first = caller.chat(max_tokens=1)
    assert first.status_code == 200
    refused = caller.chat(max_tokens=2_000)
    error = error_of(refused)
    assert (refused.status_code, error["type"]) == (429, "tokens")
    assert "100 tokens per minute" in error["message"]
    assert re.search(r"needs up to 20\d\d", error["message"])


def test_a_huge_maximum_reserves_no_more_than_the_context(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"tokens_per_minute": 1, "burst_tokens": 50_000})
    answer = caller.chat(model="mistral", max_tokens=2_000_000_000)
    assert answer.status_code == 400  # the backend's word
    assert 50_000 - 8_192 - 64 <= remaining(answer, "tokens") <= 50_000 - 8_192
    caller.settled(1)
    assert remaining(caller.chat(max_tokens=1), "tokens") > 49_900


def test_without_a_maximum_the_models_typical_completion_is_reserved(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"tokens_per_minute": 1, "burst_tokens": 50_000})
    answer = caller.chat("Hi", headers={"x-sim-tokens": "3"})
    assert 256 < 50_000 - remaining(answer, "tokens") < 256 + 64


def test_all_choices_are_reserved(make_caller: MakeCaller) -> None:
    caller = make_caller(limits={"tokens_per_minute": 1, "burst_tokens": 50_000})
    answer = caller.chat("Hi", max_tokens=100, n=5)
    assert 500 < 50_000 - remaining(answer, "tokens") < 500 + 64


# --- requests in flight -----------------------------------------------------------------------------------------------


async def test_a_key_has_so_many_requests_in_flight_and_each_is_released_when_it_ends(
    platform: Platform, make_caller: MakeCaller
) -> None:
    caller = make_caller(limits={"max_in_flight": 3})
    held = [asyncio.create_task(post_held(platform, caller.key, ask())) for _ in range(3)]
    await asyncio.to_thread(eventually, lambda: caller.reserved() == 6)  # each stands in the hash and in the set
    refused = caller.chat(max_tokens=1)
    error = error_of(refused)
    assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert "3 requests in flight" in error["message"]
    assert refused.headers["retry-after"] == "1"
    other_key = make_caller(tenant=caller.tenant, limits={"max_in_flight": 3})
    assert other_key.chat(max_tokens=1).status_code == 200
    held.pop().cancel()
    await asyncio.to_thread(eventually, lambda: caller.chat(max_tokens=1).status_code == 200)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await asyncio.to_thread(eventually, lambda: caller.reserved() == 0)


# --- money, on a platform of its own ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The tenant `poor` has $0.01 a month; the tenant `small` 5 requests, of which 2 at once."""
    directory = tmp_path_factory.mktemp("money")

    def change(config: Json) -> None:
        config["tenants"] = [
            {"name": "poor", "limits": {"requests_per_minute": 0, "budget_usd_per_month": 0.01}},
            {"name": "small", "limits": {"requests_per_minute": 5, "burst_requests": 2}},
        ]

    path = write_config(directory / "llm-mesh.yaml", change)
    with running(Settings(directory, config=path, drain_seconds=0.1)) as platform:
        yield platform


def test_a_tenants_budget_is_for_all_its_users_and_ends_exactly(custom: Platform) -> None:
    """10,000 micro-dollars: a request of llama2 with 4,000 tokens to come reserves about 2,400 of them."""

    def spend(caller: Caller, **fields: Any) -> httpx.Response:
        return caller.chat("Hi", headers={"x-sim-tokens": "3900"}, max_tokens=3_900, **fields)

    with Caller(custom, tenant="poor", limited=True, user="a") as one, Caller(
        custom, tenant="poor", limited=True, user="b"
    ) as two:  # fmt: skip
        spent = 0
        for requests, caller in enumerate((one, two, one, two), start=1):
            answer = spend(caller)
            assert answer.status_code == 200
            usage = answer.json()["usage"]
            spent += price(usage["prompt_tokens"], usage["completion_tokens"])
            assert one.settled(requests)["cost_micros"] == spent
        assert 10_000 - spent < 2_340
        refused = spend(two)
        error = error_of(refused)
        assert (refused.status_code, error["type"], error["code"]) == (
            429,
            "insufficient_quota",
            "insufficient_quota",
        )
        assert "$0.01" in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert int(refused.headers["retry-after"]) > 0
        assert one.chat("Hi", max_tokens=10).status_code == 200  # what fits is still answered
    with Caller(custom, user="a") as stranger:
        assert spend(stranger).status_code == 200


def test_what_was_reserved_of_the_budget_comes_back(custom: Platform) -> None:
    with Caller(custom, tenant="returns", limits={"budget_micros": 5_000}) as caller:
        for requests in range(1, 6):
            assert caller.chat("Hi", max_tokens=4_000, headers={"x-sim-tokens": "2"}).status_code == 200
            caller.settled(requests)
        assert caller.account()["cost_micros"] < 50


def test_a_tenants_own_limits_replace_the_general_ones_and_a_keys_replace_both(custom: Platform) -> None:
    with Caller(custom, tenant="small", limited=True, user="a") as caller:
        answers = [caller.chat(max_tokens=1) for _ in range(3)]
        assert [a.status_code for a in answers] == [200, 200, 429]
        assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"5"}
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
    own = {"requests_per_minute": 1, "burst_requests": 7}
    with Caller(custom, tenant="small", limited=True, user="b", limits=own) as caller:
        assert [caller.chat(max_tokens=1).status_code for _ in range(8)] == [200] * 7 + [429]
