"""The judgement itself: which bad ends a fault explains, and which break its promise."""

import pytest
from accounts import Audit
from traffic import Outcome
from verdicts import May, Promise, Strike, Verdict, judge

BEGAN = 100.0


def outcome(began: float, took: float = 0.1, status: int = 200, **fields: object) -> Outcome:
    return Outcome(BEGAN + began, took, status, begun=status == 200, **fields)


def verdict(promise: Promise, *outcomes: Outcome, audit: Audit | None = None) -> Verdict:
    return judge("fault", [Strike("fault", promise, BEGAN, BEGAN + 0.5)], outcomes, audit or Audit())


def test_all_went_well() -> None:
    found = verdict(Promise(), outcome(-0.05), outcome(1))
    assert (found.requests, found.failed, found.recovered_seconds, found.kept) == (2, 0, 0.0, True)


@pytest.mark.parametrize(
    ("may", "began", "kept"),
    [
        (May.NONE, 0.1, False),
        (May.UNDER_WAY, -0.05, True),
        (May.UNDER_WAY, 0.4, True),
        (May.UNDER_WAY, 0.6, False),  # it began when the cause was over
        (May.UNDER_WAY, -0.2, False),  # it ended before the fault
        (May.UNTIL_BACK, 0.8, True),
        (May.UNTIL_BACK, 0.95, False),  # it ended too late
    ],
)
def test_a_failure_is_explained_by_when_it_was(may: May, began: float, kept: bool) -> None:
    found = verdict(Promise(fail=may), outcome(began, status=503, why="service_unavailable"))
    assert (found.failed, found.kept) == (1, kept)


def test_a_cut_stream_is_no_failed_request_and_has_a_promise_of_its_own() -> None:
    cut = outcome(0, status=0)
    cut.begun = True
    assert not verdict(Promise(fail=May.UNTIL_BACK), cut).kept
    found = verdict(Promise(be_cut=May.UNDER_WAY), cut)
    assert (found.failed, found.cut, found.kept) == (0, 1, True)
    cut.staged = True
    assert verdict(Promise(), cut).kept


def test_a_refusal_is_one_only_if_it_says_when_to_come_again() -> None:
    refused = outcome(0.6, status=503, why="model_overloaded", may_retry=True)
    assert verdict(Promise(be_refused=True), refused).refused == 1
    assert verdict(Promise(be_refused=True), refused).kept
    assert verdict(Promise(), refused).broken == ("requests were refused",)
    refused.may_retry = False
    assert verdict(Promise(be_refused=True), refused).failed == 1


def test_nobody_hangs() -> None:
    assert verdict(Promise(longest_seconds=3), outcome(0, 3.1)).broken == ("one request took 3.1 s, more than 3.0",)


def test_of_two_faults_either_may_explain_a_failure_and_recovery_counts_from_its_own() -> None:
    strikes = [
        Strike("first", Promise(fail=May.UNTIL_BACK), BEGAN, BEGAN + 0.5),
        Strike("second", Promise(fail=May.UNTIL_BACK), BEGAN + 10, BEGAN + 10.5),
    ]
    failures = [outcome(0.2, status=503), outcome(10.5, status=503)]
    found = judge("random", strikes, failures, Audit())
    assert found.kept
    assert found.recovered_seconds == pytest.approx(0.6)
    assert not judge("random", strikes, [outcome(5, status=503)], Audit()).kept


@pytest.mark.parametrize(
    ("audit", "promise", "kept"),
    [
        (Audit(estimated=1), Promise(), False),
        (Audit(estimated=1), Promise(lose_receipts=True), True),
        (Audit(estimated=2), Promise(lose_receipts=True), False),  # one request was near
        (Audit(uncounted=1), Promise(lose_receipts=True), True),
        (Audit(uncharged=1), Promise(lose_receipts=True), False),
        (Audit(uncharged=1), Promise(lose_writes=True), True),
        (Audit(wrong=["x"]), Promise(lose_receipts=True, lose_writes=True), False),
    ],
)
def test_what_is_missing_in_the_books_is_bounded_by_who_was_near(audit: Audit, promise: Promise, kept: bool) -> None:
    assert verdict(promise, outcome(0), outcome(-50), outcome(50), audit=audit).kept is kept
