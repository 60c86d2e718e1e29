"""How receipts count into the metrics."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from unit_rig import receipt, ticket

from extproc import counting
from extproc.chat import Usage
from extproc.counting import Batch
from extproc.exemplars import Exemplars
from extproc.receipt import UNDECIDED, Charge, Receipt

EXACT = Charge(Usage(13, 4, 8), exact=True, estimated=False)
NOTHING = Charge(Usage(), exact=False, estimated=False)
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACED = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def model() -> str:
    """A name that no other test counted."""
    return "m-" + uuid.uuid4().hex[:8]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def count(one: Receipt, charge: Charge = EXACT, cost_micros: int = 7, *, filled: bool = False) -> Exemplars:
    exemplars = Exemplars()
    batch = Batch(exemplars)
    batch.add(one, charge, cost_micros, filled)
    batch.write()
    return exemplars


def test_an_answer_counts_with_its_tokens_cost_and_times(model: str) -> None:
    answered = receipt(ticket(model=model, stream=True), duration=2.0, first_byte=0.5, overhead=0.004)
    count(answered, filled=True)
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
    assert value("llm_overhead_seconds_sum", model=model) == 0.004


def test_an_answer_counts_for_its_arm(model: str) -> None:
    canary = f"outbound|8000|canary|{model}.llm.svc.cluster.local"
    count(receipt(ticket(model=model, stream=True), upstream=canary, duration=2.0, first_byte=0.5))
    count(receipt(ticket(model=model), status=500, upstream=canary, duration=1.0), NOTHING, 0)
    assert value("llm_arm_requests_total", model=model, arm="canary", status="200") == 1
    assert value("llm_arm_requests_total", model=model, arm="canary", status="500") == 1
    assert value("llm_arm_request_duration_seconds_sum", model=model, arm="canary") == 3.0
    assert value("llm_arm_time_to_first_token_seconds_count", model=model, arm="canary") == 1
    assert value("llm_arm_tokens_generated_total", model=model, arm="canary") == 4
    assert value("llm_arm_cost_micro_dollars_total", model=model, arm="canary") == 7


def test_a_hit_counts_as_one_generates_nothing_and_is_no_arms(model: str) -> None:
    count(receipt(ticket(model=model, cache="hit"), upstream=""), NOTHING, 0)
    assert value("llm_cache_hits_total", model=model) == 1
    assert value("llm_cache_lookups_total", model=model, result="hit") == 1
    assert value("llm_tokens_generated_total", model=model) == 0
    assert value("llm_arm_requests_total", model=model, arm="", status="200") == 0


def test_a_refusal_counts_by_its_reason_and_is_no_cache_lookup(model: str) -> None:
    count(receipt(ticket(model=model, tenant=model, reason="rate_limit_exceeded"), status=429), NOTHING, 0)
    assert value("llm_refused_total", tenant=model, reason="rate_limit_exceeded") == 1
    assert value("llm_requests_total", model=model, endpoint="chat", status="429") == 1
    assert value("llm_cache_lookups_total", model=model, result="miss") == 0


def test_the_model_list_is_a_request_and_no_cache_lookup(model: str) -> None:
    count(receipt(ticket(model=model, endpoint="models", cache="bypass"), upstream=""), NOTHING, 0)
    assert value("llm_requests_total", model=model, endpoint="models", status="200") == 1
    assert value("llm_cache_lookups_total", model=model, result="bypass") == 0


def test_what_envoy_ended_before_the_decision_is_a_request_of_no_model() -> None:
    undecided = {"model": "", "endpoint": "", "status": "503"}
    before = value("llm_requests_total", **undecided), value("llm_cache_lookups_total", model="", result="bypass")
    count(receipt(UNDECIDED, status=503, upstream=""), NOTHING, 0)
    assert value("llm_requests_total", **undecided) == before[0] + 1
    assert value("llm_cache_lookups_total", model="", result="bypass") == before[1]


def test_a_batch_is_written_at_once(model: str) -> None:
    batch = Batch(Exemplars())
    for n in range(3):
        batch.add(receipt(ticket(model=model, request_id=str(n))), EXACT, 7, False)
    assert value("llm_tokens_generated_total", model=model) == 0
    batch.write()
    assert value("llm_tokens_generated_total", model=model) == 12
    assert value("llm_requests_total", model=model, endpoint="chat", status="200") == 3


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


def test_a_traced_request_is_the_exemplar_of_its_buckets(model: str) -> None:
    made = receipt(
        ticket(model=model, stream=True, trace=TRACED), start=7.0, duration=2.0, first_byte=0.4, overhead=0.004
    )
    found = {e.metric: (e.labels, e.trace_id, e.value, e.time) for e in count(made).all()}
    assert found == {
        "llm_request_duration_seconds": ({"model": model, "endpoint": "chat", "le": "2.56"}, TRACE, 2.0, 9.0),
        "llm_time_to_first_token_seconds": ({"model": model, "le": "0.5"}, TRACE, 0.4, 9.0),
        "llm_overhead_seconds": ({"model": model, "le": "0.005"}, TRACE, 0.004, 9.0),
    }
    assert count(receipt(ticket(model=model))).all() == []


ENDPOINTS = st.sampled_from(["chat", "completions", "models", ""])
RECEIPTS = st.builds(
    receipt,
    st.builds(ticket, model=st.sampled_from(["a", "b"]), endpoint=ENDPOINTS, tenant=st.sampled_from(["t", "u"]),
              stream=st.booleans(), cache=st.sampled_from(["hit", "miss", "bypass"]), decided_us=st.integers(0, 9000),
              reason=st.sampled_from(["", "", "rate_limit_exceeded"])),
    status=st.sampled_from([0, 200, 503]),
    duration=st.floats(0, 100),
    first_byte=st.floats(0, 10),
    overhead=st.none() | st.floats(0, 1),
    upstream=st.sampled_from(["", "model-a", "outbound|8000|canary|a.llm.svc.cluster.local"]),
)  # fmt: skip
CHARGES = st.sampled_from([EXACT, NOTHING, Charge(Usage(100, 5), exact=False, estimated=True)])


def counters() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = [f for f in REGISTRY.collect() if f.name.startswith("llm_")]
    return {
        (s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples if "created" not in s.name
    }


@given(st.lists(st.tuples(RECEIPTS, CHARGES), min_size=1, max_size=12))
def test_many_receipts_at_once_count_the_same_as_one_by_one(many: list[tuple[Receipt, Charge]]) -> None:
    start = counters()
    for one, charge in many:
        count(one, charge)
    middle = counters()
    batch = Batch(Exemplars())
    for one, charge in many:
        batch.add(one, charge, 7, False)
    batch.write()
    end = counters()
    assert {k: end[k] - middle[k] for k in end} == pytest.approx(
        {k: middle[k] - start.get(k, 0) for k in end}, abs=1e-6
    )


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=40))
def test_many_observations_at_once_are_the_same_as_the_librarys_one_by_one(values: list[float]) -> None:
    def made() -> Histogram:
        return Histogram("h", "h", ["model"], buckets=(0.1, 1.0, 10.0), registry=CollectorRegistry())

    one_by_one, at_once = made(), made()
    for value in values:
        one_by_one.labels("m").observe(value)
    counting._observe(values, at_once, "m")

    def samples(histogram: Histogram) -> dict[tuple[str, str], float]:
        found = [s for family in histogram.collect() for s in family.samples if not s.name.endswith("_created")]
        return {(s.name, s.labels.get("le", "")): s.value for s in found}

    assert samples(at_once) == pytest.approx(samples(one_by_one))
