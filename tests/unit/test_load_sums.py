"""From what happened to each request to the figures of a load test."""

from array import array

import pytest
from quantiles import quantile, spread
from records import GOOD, REFUSED, Gaps, Records
from sums import Summary, summary


def records(due: list[float], ended: list[float], traffic: list[int] | None = None) -> Records:
    """Good answers, all streamed, whose first token came half-way; those of the second kind are not streamed."""
    made = Records(array("d", due), traffic or [0] * len(due), ["streamed", "plain"], [True, False])
    for number, (begin, end) in enumerate(zip(due, ended, strict=True)):
        made.sent[number] = begin
        made.first[number] = (begin + end) / 2
        made.ended[number] = end
        made.outcome[number] = GOOD
        made.completion_tokens[number] = 3
    return made


def test_quantiles_are_exact() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None


def test_a_server_that_stalls_shows_it_in_every_request_that_was_due_meanwhile() -> None:
    """100 a second for ten seconds, 10 ms each; for one second nothing is answered, and nothing can be sent."""
    due = [n / 100 for n in range(1000)]
    made = records(due, [max(at, 5.0 if 4 <= at < 5 else at) + 0.01 for at in due])
    for number, at in enumerate(due):
        made.sent[number] = 5.0 if 4 <= at < 5 else at
    found = summary(made)
    assert found.all.whole is not None
    assert found.all.whole.p50 == pytest.approx(10)
    assert found.all.whole.p95 == pytest.approx(510, abs=20)  # a closed loop would have seen one slow request: 10
    assert found.all.whole.p99 == pytest.approx(910, abs=20)
    assert found.all.whole.max == pytest.approx(1010)
    assert found.points[4].whole_p50 == pytest.approx(510, abs=20)
    assert found.late is not None
    assert found.late.max == pytest.approx(1000)


def test_sums_are_of_each_kind_and_of_all() -> None:
    made = records([0.0, 0.5, 1.0, 1.5], [0.2, 0.7, 1.2, 1.9], traffic=[0, 1, 0, 1])
    made.outcome[2] = REFUSED
    made.outcome[3] = made.kind("HTTP 500")
    made.hit[0] = 1
    found = summary(made)
    assert (found.all.requests, found.all.good, found.all.refused, found.all.failed) == (4, 2, 1, 1)
    assert (found.all.hits, found.all.completion_tokens, found.all.refused_without_wait) == (1, 6, 1)
    assert found.errors == {"HTTP 500": 1}
    assert found.by_traffic["streamed"].good == 1
    assert found.by_traffic["plain"].failed == 1
    assert found.by_traffic["plain"].ttft is None
    assert found.all.ttft is not None
    assert found.all.ttft.p50 == pytest.approx(100)


def test_points_hold_arrivals_when_due_and_answers_when_they_came() -> None:
    found = summary(records([0.1, 0.2, 0.3], [0.4, 1.5, 2.5]))
    assert [(p.due, p.answered) for p in found.points] == [(3, 1), (0, 1), (0, 1)]


def test_a_long_run_has_no_more_points_than_a_plot_can_show() -> None:
    found = summary(records([float(at) for at in range(3600)], [at + 0.5 for at in range(3600)]))
    assert len(found.points) <= 241
    assert found.bin_seconds == 15
    assert sum(p.due for p in found.points) == 3600


def test_a_curve_goes_no_further_than_its_values() -> None:
    def shares(found: Summary) -> list[float]:
        return [share for share, _ in found.whole_curve]

    few = summary(records([0.0] * 10, [0.1] * 10))
    many = summary(records([0.0] * 1000, [0.1] * 1000))
    assert max(shares(few)[:-1]) == 0.9
    assert max(shares(many)[:-1]) == 0.999


def test_gaps_are_right_within_two_percent() -> None:
    gaps = Gaps()
    for gap in [0.02] * 900 + [0.5] * 90 + [2.0] * 10:
        gaps.add(gap)
    found = gaps.spread()
    assert found is not None
    assert found.count == 1000
    assert found.p50 == pytest.approx(20, rel=0.02)
    assert found.p95 == pytest.approx(500, rel=0.02)
    assert found.p999 == pytest.approx(2000, rel=0.02)
    assert found.mean == pytest.approx(83, rel=0.001)


def test_gaps_take_what_no_stream_should_show() -> None:
    gaps = Gaps()
    gaps.add(0.0)
    gaps.add(86_400.0)
    found = gaps.spread()
    assert found is not None
    assert found.max == pytest.approx(86_400_000, rel=0.02)


@pytest.mark.parametrize("kind", ["HTTP 503", "connection lost within a stream"])
def test_errors_of_a_kind_are_counted_together(kind: str) -> None:
    made = records([0.0, 0.1, 0.2], [0.5, 0.5, 0.5])
    for number in (0, 2):
        made.outcome[number] = made.kind(kind)
    assert summary(made).errors == {kind: 2}
    assert summary(made).points[0].errors == {kind: 2}
