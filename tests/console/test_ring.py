"""The last quarter of an hour: which windows figures are of, what is kept, what is forgotten."""

import math

import pytest

from extproc.console.ring import HISTORY_SECONDS, STEP_SECONDS, Ring
from extproc.console.sample import Sample, Tally
from extproc.console.shapes import NO_MODEL, Figures


def sample(at: float, requests: float = 0, **more: dict[str, float]) -> Sample:
    counts = {"good": requests, **{k: v for k, v in more.items() if isinstance(v, int | float)}}
    tally = Tally(counts, more.get("buckets", {}))
    return Sample(at, round(at * 1000), tally, {"llama2": tally})


def filled(*samples: Sample) -> Ring:
    ring = Ring()
    for one in samples:
        ring.add(one)
    return ring


def test_a_single_sample_knows_no_rate() -> None:
    ring = filled(sample(100, requests=500))
    assert ring.total() == Figures()


def test_rates_are_of_the_last_ten_seconds() -> None:
    ring = filled(*(sample(t, requests=1000 if t > 50 else 0) for t in range(0, 61, 5)))
    assert ring.total().requests_per_second == 100
    ring = filled(*(sample(t, requests=1000 if t > 40 else 0) for t in range(0, 61, 5)))
    assert ring.total().requests_per_second == 0


def test_a_window_that_is_not_full_yet_is_as_long_as_there_are_samples() -> None:
    assert filled(sample(0), sample(1, 7), sample(2, 14)).total().requests_per_second == 7


def test_a_rate_is_by_the_time_that_passed_and_not_by_the_time_that_was_wanted() -> None:
    assert filled(sample(0), sample(13, requests=26)).total().requests_per_second == 2


def test_quantiles_ratios_and_money_are_of_the_last_minute() -> None:
    early = {"ttft": {0.1: 0.0, 1.0: 90.0, math.inf: 90.0}}
    late = {"ttft": {0.1: 10.0, 1.0: 100.0, math.inf: 100.0}}
    before = {"requests": 90, "hit": 50, "miss": 50, "cost_micros": 1_000_000, "buckets": early}
    after = {"requests": 100, "failed": 10, "hit": 60, "miss": 50, "cost_micros": 2_000_000, "buckets": late}
    ring = filled(sample(0), *(sample(t, **(before if t < 30 else after)) for t in range(10, 71, 5)))
    now = ring.total()
    assert now.ttft_streams == 10
    assert now.ttft_p95_seconds == pytest.approx(0.095)
    assert now.hit_ratio == 1
    assert now.failed_ratio == 0.5
    assert now.usd_per_hour == 60
    assert now.requests_per_second == 0


def test_points_are_five_seconds_apart_however_often_samples_come() -> None:
    ring = filled(*(sample(t) for t in range(30)))
    assert ring.history().time_ms == [t * 1000 for t in range(0, 30, STEP_SECONDS)]


def test_a_quarter_of_an_hour_is_kept_and_not_more() -> None:
    ring = filled(*(sample(t) for t in range(0, 3 * HISTORY_SECONDS, STEP_SECONDS)))
    times = ring.history().time_ms
    assert times[-1] - times[0] == HISTORY_SECONDS * 1000
    assert len(ring._samples) < 20


def test_only_what_is_newer_is_told_again() -> None:
    ring = filled(*(sample(t, requests=t) for t in range(0, 60, 5)))
    newer = ring.history(since_ms=45_000)
    assert newer.time_ms == [50_000, 55_000]
    assert newer.scopes[""]["requests_per_second"] == [1, 1]
    assert ring.history(since_ms=55_000).time_ms == []


def test_a_model_that_came_later_has_nothing_before() -> None:
    ring = filled(Sample(0, 0, Tally()), sample(5, requests=10))
    assert ring.history().scopes["llama2"]["requests_per_second"] == [None, 2]
    assert ring.history().scopes[""]["requests_per_second"] == [0, 2]


def test_an_arms_share_is_of_its_models_requests_in_the_last_minute() -> None:
    def arms(at: float, stable: int, canary: int) -> Sample:
        tallies = {("llama2", "stable"): Tally({"good": stable}), ("llama2", "canary"): Tally({"good": canary})}
        return Sample(at, round(at * 1000), Tally(), arms=tallies)

    ring = filled(arms(0, 0, 0), arms(5, 1000, 0), *(arms(t, 1000, 0) for t in range(10, 66, 5)), arms(70, 1090, 10))
    assert {arm.arm: (arm.share, arm.totals.requests) for arm in ring.arms()} == {
        "canary": (0.1, 10),
        "stable": (0.9, 1090),
    }
    assert filled(arms(0, 5, 5)).arms()[0].share is None


def test_refusals_are_ordered_by_what_happens_now() -> None:
    def refused(at: float, **reasons: float) -> Sample:
        return Sample(at, round(at * 1000), Tally(), refused=reasons)

    ring = filled(refused(0, old=900), refused(60, old=900, new=6))
    assert [(r.reason, r.per_minute, r.total) for r in ring.refused()] == [("new", 6, 6), ("old", 0, 900)]


def test_a_worker_is_as_busy_as_its_cpu_time_grows_and_a_restarted_one_is_not_less_than_idle() -> None:
    def cpu(at: float, first: float, second: float) -> Sample:
        return Sample(at, round(at * 1000), Tally(), worker_cpu_seconds={"0": first, "1": second})

    ring = filled(cpu(0, 10, 50), cpu(10, 15, 1))
    assert [(b.worker, b.cpu_ratio) for b in ring.busy()] == [("0", 0.5), ("1", 0)]


def test_requests_without_a_model_have_a_history_of_their_own() -> None:
    counts = Tally({"rejected": 0.0}), Tally({"rejected": 70.0})
    ring = filled(*(Sample(at, round(at * 1000), tally, {"": tally}) for at, tally in zip((0, 7), counts, strict=True)))
    scopes = ring.history().scopes
    assert scopes[NO_MODEL]["rejected_per_second"] == [0, 10]
    assert scopes[""]["rejected_per_second"] == [0, 10]
