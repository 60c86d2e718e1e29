"""The workers' metrics, cut down to one sample; and what happened between two of them."""

import math
from collections.abc import Callable

import pytest
from prometheus_client import Metric

from extproc.console.sample import Change, Tally, quantile, take

Read = Callable[[str], list[Metric]]
REQUESTS = """
    llm_requests_total{model="llama2",endpoint="chat",status="200"} 7
    llm_requests_total{model="llama2",endpoint="responses",status="200"} 2
    llm_requests_total{model="llama2",endpoint="chat",status="503"} 3
    llm_requests_total{model="mistral",endpoint="chat",status="429"} 4
    llm_requests_total{model="mistral",endpoint="chat",status="0"} 1
    llm_requests_total{model="",endpoint="chat",status="401"} 5
"""


def test_requests_are_counted_by_model_and_by_how_they_ended(families: Read) -> None:
    sample = take(families(REQUESTS), at=1.0, time_ms=1000)
    assert sample.models["llama2"].counts == {"good": 9, "failed": 3}
    assert sample.models["mistral"].counts == {"refused": 4, "left": 1}
    assert sample.models[""].counts == {"rejected": 5}


def test_everything_together_is_the_sum_of_the_models(families: Read) -> None:
    total = take(families(REQUESTS), at=1.0, time_ms=1000).total
    assert total.counts == {"good": 9, "failed": 3, "refused": 4, "left": 1, "rejected": 5}


def test_arms_have_tallies_of_their_own_and_count_nowhere_else(families: Read) -> None:
    sample = take(
        families("""
            llm_arm_requests_total{model="llama2",arm="stable",status="200"} 9
            llm_arm_requests_total{model="llama2",arm="canary",status="500"} 1
            llm_arm_tokens_generated_total{model="llama2",arm="canary"} 40
            llm_arm_cost_micro_dollars_total{model="llama2",arm="canary"} 12
        """),
        at=1.0,
        time_ms=1000,
    )
    assert sample.arms["llama2", "stable"].counts == {"good": 9}
    assert sample.arms["llama2", "canary"].counts == {"failed": 1, "completion_tokens": 40, "cost_micros": 12}
    assert sample.models == {}
    assert sample.total.counts == {}


def test_tenants_are_summed_up_and_so_are_the_reasons_of_refusals(families: Read) -> None:
    sample = take(
        families("""
            llm_cost_micro_dollars_total{tenant="acme",model="llama2"} 30
            llm_cost_micro_dollars_total{tenant="globex",model="llama2"} 12
            llm_refused_total{tenant="acme",reason="rate_limit_exceeded"} 2
            llm_refused_total{tenant="globex",reason="rate_limit_exceeded"} 3
        """),
        at=1.0,
        time_ms=1000,
    )
    assert sample.models["llama2"].counts == {"cost_micros": 42}
    assert sample.refused == {"rate_limit_exceeded": 5}


def test_histograms_keep_their_buckets_over_all_endpoints(families: Read) -> None:
    sample = take(
        families("""
            llm_request_duration_seconds_bucket{model="llama2",endpoint="chat",le="0.5"} 3
            llm_request_duration_seconds_bucket{model="llama2",endpoint="chat",le="+Inf"} 4
            llm_request_duration_seconds_bucket{model="llama2",endpoint="responses",le="0.5"} 1
            llm_request_duration_seconds_bucket{model="llama2",endpoint="responses",le="+Inf"} 1
        """),
        at=1.0,
        time_ms=1000,
    )
    assert sample.models["llama2"].buckets == {"duration": {0.5: 4, math.inf: 5}}


def test_metrics_that_the_console_does_not_show_are_left_out(families: Read) -> None:
    sample = take(families('llm_settlements_total{result="applied"} 3'), at=1.0, time_ms=1000)
    assert (sample.models, sample.arms, sample.refused) == ({}, {}, {})


def test_a_rate_is_what_was_added_by_the_time_it_took() -> None:
    change = Change(Tally({"good": 10}), Tally({"good": 30, "failed": 5}), seconds=10)
    assert change.per_second("good") == 2
    assert change.per_second("good", "failed") == 2.5
    assert change.ratio("failed", "good", "failed") == 0.2


def test_a_ratio_of_nothing_is_not_measured() -> None:
    assert Change(Tally({"hit": 4}), Tally({"hit": 4}), seconds=10).ratio("hit", "hit", "miss") is None


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    change = Change(Tally({"good": 1000}), Tally({"good": 20}), seconds=10)
    assert change.count("good") == 20


def test_a_quantile_is_of_what_was_observed_in_between() -> None:
    before = Tally(buckets={"ttft": {0.1: 100, 1.0: 100, math.inf: 100}})
    after = Tally(buckets={"ttft": {0.1: 100, 1.0: 110, math.inf: 110}})
    change = Change(before, after, seconds=60)
    assert change.observed("ttft") == 10
    assert change.quantile("ttft", 0.5) == pytest.approx(0.55)
    assert Change(after, after, seconds=60).quantile("ttft", 0.5) is None


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.5, 0.1), (0.75, 0.15), (0.25, 0.05), (1.0, 0.2)],
)
def test_a_quantile_lies_within_its_bucket_in_proportion(q: float, expected: float) -> None:
    assert quantile({0.1: 5, 0.2: 10, math.inf: 10}, q) == pytest.approx(expected)


def test_beyond_the_last_bound_a_quantile_is_that_bound() -> None:
    assert quantile({0.1: 5, 30.0: 5, math.inf: 10}, 0.99) == 30.0


def test_nothing_observed_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0, math.inf: 0}, 0.5) is None


def test_a_model_has_requests_under_way_and_room_for_so_many(families: Read) -> None:
    gauges = families("""
        llm_model_in_flight{model="llama2"} 12
        llm_model_room{model="llama2"} 64
        llm_model_room{model="mistral"} 0
    """)
    sample = take(gauges, at=1.0, time_ms=1000)
    assert (sample.in_flight, sample.room) == ({"llama2": 12}, {"llama2": 64, "mistral": 0})
    assert sample.models == {}
