"""What both stores do, one sentence a test; every case runs in memory and in Redis."""

import msgspec
import pytest
from store_rig import START_MS, Rig, claim, fill, settlement

from extproc import limits
from extproc.admission import KeyRecord, Limits, Outcome, Shared, UsageRow

HOUR_MS = 3_600_000
TOKENS = Limits(tokens_per_minute=6000, burst_tokens=1000)
BUDGET = Limits(budget_micros=1000)
ONE_AT_A_TIME = Limits(max_in_flight=1)
TODAY = limits.day(START_MS)


async def test_a_caller_never_seen_has_full_buckets(rig: Rig) -> None:
    admitted = await rig.store.admit(claim(limits=TOKENS, tokens=400))
    assert admitted.outcome is Outcome.ADMITTED
    assert admitted.requests == limits.Level(100, 99, 600)
    assert admitted.tokens == limits.Level(6000, 600, 4000)


async def test_no_limit_is_shown_as_zero_and_refuses_nobody(rig: Rig) -> None:
    admitted = await rig.store.admit(claim(limits=Limits(requests_per_minute=0), tokens=10**9))
    assert admitted.outcome is Outcome.ADMITTED
    assert admitted.requests == admitted.tokens == limits.Level(0, 0, 0)


async def test_the_101st_request_is_refused_until_600_ms_have_passed(rig: Rig) -> None:
    for _ in range(100):
        assert (await rig.store.admit(claim())).outcome is Outcome.ADMITTED
    refused = await rig.store.admit(claim())
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.REQUESTS, 600)
    await rig.later(599)
    assert (await rig.store.admit(claim())).outcome is Outcome.REQUESTS
    await rig.later(1)
    assert (await rig.store.admit(claim())).outcome is Outcome.ADMITTED


async def test_a_refusal_charges_nothing(rig: Rig) -> None:
    limit = Limits(tokens_per_minute=6000, burst_tokens=1000, budget_micros=1000, max_in_flight=2)
    first = await rig.store.admit(claim(limits=limit, tokens=600, cost_micros=600))
    for _ in range(5):
        refused = await rig.store.admit(claim(limits=limit, tokens=600, cost_micros=10))
        assert (refused.outcome, refused.retry_after_ms) == (Outcome.TOKENS, 2000)
        refused = await rig.store.admit(claim(limits=limit, tokens=10, cost_micros=600))
        assert refused.outcome is Outcome.BUDGET
        assert (refused.requests, refused.tokens) == (first.requests, first.tokens)
    assert (await rig.store.admit(claim(limits=limit, tokens=400, cost_micros=400))).outcome is Outcome.ADMITTED
    assert (await rig.store.shared(0)).unsettled == 2


async def test_the_limit_that_lasts_longest_is_the_one_that_is_named(rig: Rig) -> None:
    limit = Limits(requests_per_minute=1, burst_requests=1, tokens_per_minute=60, burst_tokens=100)
    await rig.store.admit(claim(limits=limit, tokens=100))
    refused = await rig.store.admit(claim(limits=limit, tokens=100))
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.TOKENS, 100_000)
    refused = await rig.store.admit(claim(limits=limit, tokens=10))
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.REQUESTS, 60_000)


async def test_a_claim_larger_than_the_bucket_passes_when_it_is_full_and_leaves_debt(rig: Rig) -> None:
    admitted = await rig.store.admit(claim(limits=TOKENS, tokens=5000))
    assert admitted.outcome is Outcome.ADMITTED
    assert admitted.tokens == limits.Level(6000, 0, 50_000)
    refused = await rig.store.admit(claim(limits=TOKENS, tokens=5000))
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.TOKENS, 50_000)


async def test_a_settlement_gives_back_what_was_not_used(rig: Rig) -> None:
    reserved = claim(limits=TOKENS, tokens=1000)
    await rig.store.admit(reserved)
    assert await rig.store.settle([settlement(reserved, tokens=300)]) == [True]
    after = await rig.store.admit(claim(limits=TOKENS, tokens=0))
    assert after.tokens.remaining == 700


async def test_a_settlement_larger_than_its_reservation_leaves_debt(rig: Rig) -> None:
    reserved = claim(limits=TOKENS, tokens=1000)
    await rig.store.admit(reserved)
    await rig.store.settle([settlement(reserved, tokens=1600)])
    refused = await rig.store.admit(claim(limits=TOKENS, tokens=1))
    assert refused.tokens == limits.Level(6000, 0, 16_000)
    assert refused.retry_after_ms == 6010


async def test_a_settlement_counts_once_however_often_it_is_sent(rig: Rig) -> None:
    reserved = claim(limits=TOKENS, tokens=1000)
    await rig.store.admit(reserved)
    sent = settlement(reserved, tokens=300)
    assert await rig.store.settle([sent, sent]) == [True, False]
    assert await rig.store.settle([sent]) == [False]
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 700
    assert [row.requests for row in await rig.store.usage(TODAY, TODAY)] == [1]


async def test_a_settlement_without_a_reservation_is_charged_in_full(rig: Rig) -> None:
    lost = claim(limits=msgspec.structs.replace(TOKENS, budget_micros=1000), tokens=1000)
    await rig.store.settle([settlement(lost, tokens=300, cost_micros=900)])
    refused = await rig.store.admit(claim(limits=lost.limits, tokens=0, cost_micros=101))
    assert refused.outcome is Outcome.BUDGET
    assert refused.tokens.remaining == 700


async def test_a_settled_hit_is_counted_and_not_charged(rig: Rig) -> None:
    hit = claim(limits=TOKENS)
    await rig.store.settle([settlement(hit, tokens=300, cost_micros=50, hit=True)])
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 1000
    assert [(row.hits, row.completion_tokens) for row in await rig.store.usage(TODAY, TODAY)] == [(1, 300)]


async def test_a_settled_refusal_is_counted_and_not_charged(rig: Rig) -> None:
    refusal = settlement(claim(limits=TOKENS), tokens=0, cost_micros=0, model="", status=429)
    assert await rig.store.settle([refusal]) == [True]
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 1000
    assert [(row.model, row.errors) for row in await rig.store.usage(TODAY, TODAY)] == [("", 1)]


async def test_tokens_reserved_before_there_was_a_limit_are_not_given_back(rig: Rig) -> None:
    reserved = claim(tokens=1000)
    await rig.store.admit(reserved)
    await rig.store.admit(claim(limits=TOKENS, tokens=800))
    await rig.store.settle([msgspec.structs.replace(settlement(reserved, tokens=0), limits=TOKENS)])
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 200


async def test_a_key_without_a_limit_leaves_the_users_bucket_alone(rig: Rig) -> None:
    await rig.store.admit(claim(limits=TOKENS, tokens=1000))
    for _ in range(4):
        await rig.later(1000)
        await rig.store.admit(claim(tokens=1000))
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 400


async def test_a_clock_that_steps_back_neither_gives_nor_takes(rig: Rig) -> None:
    await rig.store.admit(claim(limits=TOKENS, tokens=500))
    await rig.later(-10_000)
    assert (await rig.store.admit(claim(limits=TOKENS, tokens=0))).tokens.remaining == 500


async def test_the_budget_is_the_tenants_and_ends_with_the_month(rig: Rig) -> None:
    await rig.store.admit(claim(limits=BUDGET, cost_micros=1000))
    refused = await rig.store.admit(claim(limits=BUDGET, cost_micros=1, user="bob", key_id="key-2"))
    assert refused.outcome is Outcome.BUDGET
    assert refused.retry_after_ms == limits.month_ends_ms(START_MS) - START_MS
    await rig.later(refused.retry_after_ms - 1)
    assert (await rig.store.admit(claim(limits=BUDGET, cost_micros=1))).outcome is Outcome.BUDGET
    await rig.later(1)
    assert (await rig.store.admit(claim(limits=BUDGET, cost_micros=1000))).outcome is Outcome.ADMITTED


async def test_money_goes_back_to_the_month_in_which_it_was_reserved(rig: Rig) -> None:
    end = limits.month_ends_ms(START_MS)
    await rig.at(end - 1)
    reserved = claim(limits=BUDGET, cost_micros=1000)
    await rig.store.admit(reserved)
    await rig.at(end)
    await rig.store.admit(claim(limits=BUDGET, cost_micros=400))
    await rig.store.settle([settlement(reserved, cost_micros=0)])
    assert (await rig.store.admit(claim(limits=BUDGET, cost_micros=601))).outcome is Outcome.BUDGET
    await rig.at(end - 1)
    assert (await rig.store.admit(claim(limits=BUDGET, cost_micros=1000))).outcome is Outcome.ADMITTED


async def test_a_slot_is_free_again_after_the_settlement(rig: Rig) -> None:
    first = claim(limits=ONE_AT_A_TIME)
    await rig.store.admit(first)
    refused = await rig.store.admit(claim(limits=ONE_AT_A_TIME))
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.IN_FLIGHT, 1000)
    other_key = claim(limits=ONE_AT_A_TIME, key_id="key-2")
    assert (await rig.store.admit(other_key)).outcome is Outcome.ADMITTED
    await rig.store.settle([settlement(first)])
    assert (await rig.store.admit(claim(limits=ONE_AT_A_TIME))).outcome is Outcome.ADMITTED


async def test_a_slot_that_was_never_given_back_frees_itself_after_an_hour(rig: Rig) -> None:
    await rig.store.admit(claim(limits=ONE_AT_A_TIME))
    await rig.later(HOUR_MS - 1)
    assert (await rig.store.admit(claim(limits=ONE_AT_A_TIME))).outcome is Outcome.IN_FLIGHT
    await rig.later(1)
    assert (await rig.store.admit(claim(limits=ONE_AT_A_TIME))).outcome is Outcome.ADMITTED


async def test_users_who_share_a_key_id_have_a_slot_each(rig: Rig) -> None:
    ada, bob = (claim(key_id="jwt", user=user, limits=ONE_AT_A_TIME) for user in ("ada", "bob"))
    assert (await rig.store.admit(ada)).outcome is Outcome.ADMITTED
    assert (await rig.store.admit(bob)).outcome is Outcome.ADMITTED
    again = claim(key_id="jwt", user="ada", limits=ONE_AT_A_TIME)
    assert (await rig.store.admit(again)).outcome is Outcome.IN_FLIGHT
    await rig.store.settle([settlement(ada)])
    assert (await rig.store.admit(again)).outcome is Outcome.ADMITTED
    more = claim(key_id="jwt", user="bob", limits=ONE_AT_A_TIME)
    assert (await rig.store.admit(more)).outcome is Outcome.IN_FLIGHT


# The cache.


async def test_a_stored_answer_is_a_hit_that_costs_one_request_and_nothing_else(rig: Rig) -> None:
    limit = Limits(tokens_per_minute=6000, burst_tokens=1000, budget_micros=10, max_in_flight=1)
    first = claim(limits=limit, fingerprint="f1", tokens=1000, cost_micros=10)
    assert (await rig.store.admit(first)).outcome is Outcome.ADMITTED
    await rig.store.settle([settlement(first, tokens=1000, fill=fill("f1", b"\x00\xffanswer"))])
    await rig.later(250)
    waiting = claim(limits=limit, fingerprint="f2", tokens=0, cost_micros=0)
    assert (await rig.store.admit(waiting)).outcome is Outcome.ADMITTED  # takes the slot
    hit = await rig.store.admit(claim(limits=limit, fingerprint="f1", tokens=1000, cost_micros=10))
    assert (hit.outcome, hit.entry, hit.age_ms) == (Outcome.HIT, b"\x00\xffanswer", 250)
    assert hit.requests.remaining == 97
    assert hit.tokens.remaining == 25
    assert (await rig.store.shared(0)).unsettled == 1


async def test_a_hit_is_refused_when_no_request_is_left(rig: Rig) -> None:
    limit = Limits(requests_per_minute=60, burst_requests=1)
    first = claim(limits=limit, fingerprint="f1")
    await rig.store.admit(first)
    await rig.store.settle([settlement(first, fill=fill("f1", b"answer"))])
    refused = await rig.store.admit(claim(limits=limit, fingerprint="f1"))
    assert (refused.outcome, refused.retry_after_ms, refused.entry) == (Outcome.REQUESTS, 1000, b"")
    await rig.later(1000)
    assert (await rig.store.admit(claim(limits=limit, fingerprint="f1"))).outcome is Outcome.HIT


async def test_an_entry_is_gone_after_its_time(rig: Rig) -> None:
    await rig.store.settle([settlement(claim(), fill=fill("f1", b"answer", ttl_ms=60_000))])
    await rig.later(59_999)
    assert (await rig.store.admit(claim(fingerprint="f1"))).outcome is Outcome.HIT
    await rig.later(1)
    assert (await rig.store.admit(claim(fingerprint="f1"))).outcome is Outcome.ADMITTED


async def test_a_claim_without_a_fingerprint_never_hits(rig: Rig) -> None:
    await rig.store.settle([settlement(claim(), fill=fill("", b"answer"))])
    assert (await rig.store.admit(claim(fingerprint=""))).outcome is Outcome.ADMITTED


async def stored(rig: Rig, *fingerprints: str) -> list[bool]:
    found = [await rig.store.admit(claim(fingerprint=one)) for one in fingerprints]
    return [one.outcome is Outcome.HIT for one in found]


async def test_the_oldest_entries_make_room(rig: Rig) -> None:
    for name in ("f1", "f2", "f3"):
        await rig.store.settle([settlement(claim(), fill=fill(name, b"x" * 400))])
        await rig.later(1)
    assert await stored(rig, "f1", "f2", "f3") == [False, True, True]


async def test_a_replaced_entry_is_counted_once(rig: Rig) -> None:
    for size in (500, 400, 600):
        await rig.store.settle([settlement(claim(), fill=fill("f1", b"x" * size))])
        await rig.later(1)
    await rig.store.settle([settlement(claim(), fill=fill("f2", b"x" * 400))])
    assert await stored(rig, "f1", "f2") == [True, True]


async def test_entries_whose_time_is_over_leave_their_room(rig: Rig) -> None:
    await rig.store.settle([settlement(claim(), fill=fill("f1", b"x" * 900, ttl_ms=5000))])
    await rig.later(5000)
    for name in ("f2", "f3"):
        await rig.store.settle([settlement(claim(), fill=fill(name, b"x" * 500))])
    assert await stored(rig, "f2", "f3") == [True, True]


async def test_an_entry_larger_than_all_the_room_is_not_stored(rig: Rig) -> None:
    await rig.store.settle([settlement(claim(), fill=fill("f1", b"x" * 1000))])
    await rig.store.settle([settlement(claim(), fill=fill("f2", b"x" * 1001))])
    assert await stored(rig, "f1", "f2") == [True, False]


async def test_a_repeated_settlement_does_not_store_again(rig: Rig) -> None:
    sent = settlement(claim(), fill=fill("f1", b"answer"))
    await rig.store.settle([sent])
    await rig.later(1000)
    plain = settlement(claim(), fill=fill("f2", b"other"))
    assert await rig.store.settle([sent, plain]) == [False, True]
    assert (await rig.store.admit(claim(fingerprint="f1"))).age_ms == 1000
    assert (await rig.store.admit(claim(fingerprint="f2"))).entry == b"other"


# Reservations whose settlement never comes.


async def test_a_sweep_closes_old_reservations_and_leaves_them_charged(rig: Rig) -> None:
    limit = Limits(tokens_per_minute=1, burst_tokens=1000, budget_micros=100, max_in_flight=2)
    old = claim(limits=limit, tokens=600, cost_micros=60)
    await rig.store.admit(old)
    await rig.later(1000)
    young = claim(limits=limit, tokens=300, cost_micros=30)
    await rig.store.admit(young)
    assert (await rig.store.shared(1000)).unsettled == 1
    assert await rig.store.sweep(1000) == 1
    assert await rig.store.sweep(1000) == 0
    assert (await rig.store.shared(0)).unsettled == 1
    assert await rig.store.settle([settlement(old, tokens=0)]) == [False]
    refused = await rig.store.admit(claim(limits=limit, tokens=0, cost_micros=11))
    assert (refused.outcome, refused.tokens.remaining) == (Outcome.BUDGET, 100)
    assert (await rig.store.admit(claim(limits=limit, tokens=0, cost_micros=10))).outcome is Outcome.ADMITTED
    row = UsageRow(
        TODAY, "acme", "ada", "key-1", "", requests=1, errors=1, estimated=1, prompt_tokens=600, cost_micros=60
    )
    assert await rig.store.usage(TODAY, TODAY) == [row]


async def test_reservations_never_stay_for_ever(rig: Rig) -> None:
    for number in range(250):
        await rig.store.admit(claim(limits=Limits(requests_per_minute=0), tenant=f"tenant-{number % 3}"))
    await rig.later(60_000)
    assert (await rig.store.shared(60_000)).unsettled == 250
    assert await rig.store.sweep(60_000) == 250
    assert (await rig.store.shared(0)).unsettled == 0


# Usage, keys, shared state.


async def test_usage_sums_by_day_tenant_user_key_and_model(rig: Rig) -> None:
    ada, bob = claim(user="ada"), claim(user="bob", key_id='k"2 \\/é')
    sent = [
        settlement(ada, tokens=5, cost_micros=7, prompt_tokens=11, cached_tokens=3),
        settlement(claim(user="ada"), tokens=1, cost_micros=1, status=500),
        settlement(claim(user="ada"), tokens=0, cost_micros=0, model="llama2", hit=True),
        settlement(bob, tokens=2, cost_micros=10**13, estimated=True),
    ]
    assert await rig.store.settle(sent) == [True] * 4
    await rig.later(86_400_000)
    tomorrow = limits.day(rig.now_ms)
    late = claim(user="ada", tenant="beta")
    await rig.store.admit(late)
    await rig.store.settle([settlement(late, tokens=9, cost_micros=9)])
    await rig.store.admit(ada)
    acme = ("acme", "ada", "key-1")
    today = [
        UsageRow(TODAY, *acme, "llama2", requests=1, hits=1),
        UsageRow(TODAY, *acme, "mistral", "", 2, 0, 1, 0, 11, 6, 3, 8),
        UsageRow(TODAY, "acme", "bob", 'k"2 \\/é', "mistral", "", 1, 0, 0, 1, 0, 2, 0, 10**13),
    ]
    after = [UsageRow(tomorrow, "beta", "ada", "key-1", "mistral", "", 1, 0, 0, 0, 0, 9, 0, 9)]
    assert await rig.store.usage(TODAY, tomorrow) == today + after
    assert await rig.store.usage(TODAY, TODAY) == today
    assert await rig.store.usage(tomorrow, tomorrow) == after
    assert await rig.store.usage(tomorrow, TODAY) == []


async def test_usage_tells_the_arms_of_a_model_apart(rig: Rig) -> None:
    for arm, tokens in (("stable", 5), ("canary", 7), ("", 1), ("stable", 20)):
        await rig.store.settle([settlement(claim(), tokens=tokens, arm=arm)])
    found = [(row.model, row.arm, row.requests, row.completion_tokens) for row in await rig.store.usage(TODAY, TODAY)]
    assert found == [("mistral", "", 1, 1), ("mistral", "canary", 1, 7), ("mistral", "stable", 2, 25)]


async def test_keys_are_found_by_digest_and_listed(rig: Rig) -> None:
    record = KeyRecord("key-1", "acme", "ada", [], 5, {"max_in_flight": 2}, name="é")
    other = KeyRecord("key-2", "acme", "bob", ["*"], 6)
    await rig.store.put_key("aa", record)
    await rig.store.put_key("bb", other)
    assert await rig.store.find_key("aa") == record
    assert await rig.store.find_key("cc") is None
    assert sorted(await rig.store.list_keys(), key=lambda one: one.key_id) == [record, other]


async def test_a_revoked_key_is_marked_and_the_revision_grows(rig: Rig) -> None:
    before = (await rig.store.shared(0)).keys_revision
    await rig.store.put_key("aa", KeyRecord("key-1", "acme", "ada", [], 5))
    added = (await rig.store.shared(0)).keys_revision
    assert await rig.store.revoke_key("key-1", 99)
    revoked = (await rig.store.shared(0)).keys_revision
    assert before < added < revoked
    assert await rig.store.find_key("aa") == KeyRecord("key-1", "acme", "ada", [], 5, revoked_ms=99)
    assert not await rig.store.revoke_key("key-7", 99)
    assert (await rig.store.shared(0)).keys_revision == revoked


async def test_all_workers_share_models_that_are_down_and_ratios(rig: Rig) -> None:
    await rig.store.mark_down("mistral", 123)
    await rig.store.mark_down("llama2", 456)
    await rig.store.mark_down("mistral", 0)
    await rig.store.share_ratio("mistral", 0.1 + 0.2)
    assert await rig.store.shared(0) == Shared(0, {"llama2": 456}, {"mistral": 0.1 + 0.2}, 0)


async def test_each_gateway_hears_what_the_others_have_under_way(rig: Rig) -> None:
    assert await rig.store.share_load("a", {"mistral": 3}) == {}
    assert await rig.store.share_load("b", {"mistral": 4, "llama2": 1}) == {"mistral": 3}
    assert await rig.store.share_load("c", {}) == {"mistral": 7, "llama2": 1}
    assert await rig.store.share_load("a", {"mistral": 5}) == {"mistral": 4, "llama2": 1}
    assert await rig.store.share_load("c", {}) == {"mistral": 9, "llama2": 1}


async def test_a_gateway_that_is_silent_for_three_seconds_has_nothing_under_way(rig: Rig) -> None:
    await rig.store.share_load("a", {"mistral": 3})
    await rig.later(3000)
    assert await rig.store.share_load("b", {"mistral": 4}) == {"mistral": 3}
    await rig.later(1)
    assert await rig.store.share_load("b", {"mistral": 4}) == {}


async def test_a_full_model_is_answered_for_from_the_cache_alone(rig: Rig) -> None:
    limits = Limits(requests_per_minute=60, burst_requests=60, tokens_per_minute=600, burst_tokens=600)
    full = claim(limits=limits, fingerprint="f1", cached_only=True)
    refused = await rig.store.admit(full)
    assert (refused.outcome, refused.retry_after_ms) == (Outcome.FULL, 2000)
    assert (refused.requests.remaining, refused.tokens.remaining) == (60, 600)  # nothing is charged
    await rig.store.settle([settlement(claim(limits=limits, fingerprint="f1"), fill=fill("f1", b"stored"))])
    hit = await rig.store.admit(full)
    assert (hit.outcome, hit.entry) == (Outcome.HIT, b"stored")


async def test_nothing_to_settle_is_nothing_to_do(rig: Rig) -> None:
    assert await rig.store.settle([]) == []
    await rig.store.ping()


async def test_a_large_batch_of_several_tenants_keeps_its_order(rig: Rig) -> None:
    sent = [settlement(claim(tenant=f"tenant-{number % 3}")) for number in range(200)]
    again = [one for pair in zip(sent, sent, strict=True) for one in pair]
    assert await rig.store.settle(again) == [True, False] * 200


# Tenants.

STRANGE = ["acme", "a}:{b", "{acme}", "a b", "ä", "", "%", "acme}:user:{x", "acme:user", "a\x00b", "{}", "A%7D"]


@pytest.mark.parametrize("tenant", STRANGE)
async def test_no_tenant_reads_or_pays_what_is_anothers(rig: Rig, tenant: str) -> None:
    limit = Limits(requests_per_minute=1, burst_requests=1, budget_micros=10, max_in_flight=1)
    for other in STRANGE:
        if other != tenant:
            mine = claim(tenant=other, request_id="same", limits=limit, fingerprint="f1")
            await rig.store.admit(mine)
            await rig.store.settle([settlement(mine, fill=fill("f1", other.encode(), ttl_ms=HOUR_MS))])
            await rig.store.admit(claim(tenant=other, request_id="same-2", limits=limit))
    mine = claim(tenant=tenant, request_id="same", limits=limit, fingerprint="f1")
    assert (await rig.store.admit(mine)).outcome is Outcome.ADMITTED
    assert await rig.store.settle([settlement(mine)]) == [True]
    assert {row.tenant for row in await rig.store.usage(TODAY, TODAY)} == set(STRANGE)
    await rig.later(60_000)
    other = next(one for one in STRANGE if one != tenant)
    assert (await rig.store.admit(claim(tenant=other, limits=limit, fingerprint="f1"))).entry == other.encode()
