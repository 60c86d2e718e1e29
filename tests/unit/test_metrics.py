"""How receipts count into the metrics."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from unit_rig import receipt, ticket

from extproc import metrics
from extproc.chat import Usage
from extproc.receipt import Charge, Receipt

EXACT = Charge(Usage(13, 4, 8), exact=True, estimated=False)
NOTHING = Charge(Usage(), exact=False, estimated=False)


@pytest.fixture
def model() -> str:
    """A name that no other test counted."""
    return "m-" + uuid.uuid4().hex[:8]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def count(one: Receipt, charge: Charge = EXACT, cost_micros: int = 7, *, filled: bool = False) -> None:
    tally = metrics.Tally()
    metrics.count(one, charge, cost_micros, filled, tally)
    tally.write()


def test_the_names_that_are_promised_exist() -> None:
    mine = [m for m in vars(metrics).values() if isinstance(m, Counter | Gauge | Histogram)]
    names = {sample.name for m in mine for family in m.collect() for sample in family.samples} | {
        family.name + ("_total" if family.type == "counter" else "") for m in mine for family in m.collect()
    }
    assert names >= {"llm_requests_total", "llm_request_duration_seconds", "llm_tokens_generated_total",
                     "llm_cache_hits_total"}  # fmt: skip
    assert all(name.startswith("llm_") for name in names)


def test_an_answer_counts_with_its_tokens_cost_and_times(model: str) -> None:
    count(receipt(ticket(model=model, stream=True), duration=2.0, first_byte=0.5), filled=True)
    assert value("llm_requests_total", model=model, endpoint="chat", status="200") == 1
    assert value("llm_request_duration_seconds_sum", model=model, endpoint="chat") == 2.0
    assert value("llm_prompt_tokens_total", model=model) == 13
    assert value("llm_prompt_tokens_cached_total", model=model) == 8
    assert value("llm_tokens_generated_total", model=model) == 4
    assert value("llm_cost_micro_dollars_total", tenant="acme", model=model) == 7
    assert value("llm_cache_lookups_total", model=model, result="miss") == 1
    assert value("llm_cache_fills_total", model=model) == 1
    assert value("llm_time_to_first_token_seconds_sum", model=model) == 0.5
    assert value("llm_time_per_output_token_seconds_sum", model=model) == 0.5


def test_a_hit_counts_as_one_and_generates_nothing(model: str) -> None:
    count(receipt(ticket(model=model, cache="hit")), NOTHING, 0)
    assert value("llm_cache_hits_total", model=model) == 1
    assert value("llm_cache_lookups_total", model=model, result="hit") == 1
    assert value("llm_tokens_generated_total", model=model) == 0


def test_a_refusal_counts_by_its_reason_and_is_no_cache_lookup(model: str) -> None:
    count(receipt(ticket(model=model, tenant=model, reason="rate_limit_exceeded"), status=429), NOTHING, 0)
    assert value("llm_refused_total", tenant=model, reason="rate_limit_exceeded") == 1
    assert value("llm_requests_total", model=model, endpoint="chat", status="429") == 1
    assert value("llm_cache_lookups_total", model=model, result="miss") == 0


def test_the_model_list_is_a_request_and_no_cache_lookup(model: str) -> None:
    count(receipt(ticket(model=model, endpoint="models", cache="bypass"), upstream=""), NOTHING, 0)
    assert value("llm_requests_total", model=model, endpoint="models", status="200") == 1
    assert value("llm_cache_lookups_total", model=model, result="bypass") == 0


def test_a_tally_writes_the_sum_of_a_batch(model: str) -> None:
    tally = metrics.Tally()
    for n in range(3):
        metrics.count(receipt(ticket(model=model, request_id=str(n))), EXACT, 7, False, tally)
    assert value("llm_tokens_generated_total", model=model) == 0
    tally.write()
    assert value("llm_tokens_generated_total", model=model) == 12


def test_an_estimate_is_told_apart(model: str) -> None:
    count(receipt(ticket(model=model)), Charge(Usage(100, 5), exact=False, estimated=True))
    assert value("llm_estimated_total", model=model) == 1
    assert value("llm_tokens_generated_total", model=model) == 5


def test_plain_answers_have_no_time_to_first_token(model: str) -> None:
    count(receipt(ticket(model=model)))
    assert value("llm_time_to_first_token_seconds_count", model=model) == 0


def test_the_phases_of_a_decision_are_observed(model: str) -> None:
    before = value("llm_phase_duration_seconds_sum", phase="decision")
    count(receipt(ticket(model=model, decided_us=500, store_us=100)))
    assert value("llm_phase_duration_seconds_sum", phase="decision") - before == pytest.approx(0.0005)


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=40))
def test_many_observations_at_once_are_the_same_as_one_by_one(values: list[float]) -> None:
    def made() -> Histogram:
        return Histogram("h", "h", ["model"], buckets=(0.1, 1.0, 10.0), registry=CollectorRegistry())

    one_by_one, at_once = made(), made()
    tally = metrics.Tally()
    for value in values:
        one_by_one.labels("m").observe(value)
        tally.observe(value, at_once, "m")
    tally.write()

    def samples(histogram: Histogram) -> dict[tuple[str, str], float]:
        found = [s for family in histogram.collect() for s in family.samples if not s.name.endswith("_created")]
        return {(s.name, s.labels.get("le", "")): s.value for s in found}

    expected = samples(one_by_one)
    assert samples(at_once) == pytest.approx(expected)
