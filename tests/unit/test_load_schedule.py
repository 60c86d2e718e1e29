"""When the load generator's requests are due, and what they ask."""

import itertools

import pytest
from schedule import Arrivals, Questions, Stage, constant, due_times, numbers, repeated


def test_a_constant_rate_is_evenly_spaced() -> None:
    due = due_times(constant(10, 2))
    assert list(due) == pytest.approx([0.05 + 0.1 * n for n in range(20)])


def test_a_ramp_offers_the_area_under_its_rate() -> None:
    due = due_times(Arrivals((Stage(10, 0, 100),)))
    assert len(due) == 500
    assert sum(at < 5 for at in due) == 125  # a quarter of the triangle
    assert list(due) == sorted(due)
    assert due[-1] <= 10


def test_stages_follow_each_other_and_a_pause_is_silent() -> None:
    due = due_times(Arrivals((Stage(1, 10, 10), Stage(5, 0, 0), Stage(1, 20, 20))))
    assert len(due) == 30
    assert not [at for at in due if 1 < at < 6]
    assert sum(at >= 6 for at in due) == 20


def test_a_rate_that_falls_to_nothing_ends_with_its_stage() -> None:
    due = due_times(Arrivals((Stage(4, 50, 0),)))
    assert len(due) == 100
    assert max(due) <= 4


def test_poisson_arrivals_are_the_same_each_time_and_vary_as_poisson_does() -> None:
    arrivals = constant(100, 100, seed=7)
    due = due_times(arrivals)
    assert due == due_times(arrivals)
    assert due != due_times(constant(100, 100, seed=8))
    gaps = [after - before for before, after in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.01, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)  # of an exponential distribution


def test_questions_without_a_pool_are_all_new() -> None:
    assert numbers(Questions(first=7), 3) == [7, 8, 9]
    assert repeated(numbers(Questions(first=7), 100)) == 0


def test_questions_of_a_pool_repeat_as_zipf_says() -> None:
    asked = numbers(Questions(first=1000, pool=100), 50_000)
    counts = [asked.count(1000 + rank) for rank in range(100)]
    assert set(asked) <= set(range(1000, 1100))
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)
    assert repeated(asked) == pytest.approx(1 - 100 / 50_000)
