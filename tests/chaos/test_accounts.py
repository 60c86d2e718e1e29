"""The audit itself: it sees each way in which the books can differ from what clients saw."""

from collections.abc import Sequence

import msgspec
import pytest
from accounts import Audit, Book, Line, audit
from traffic import Outcome

PAID = Line("r1", "ann", "llama2", 200, 10, 5, 15, hit=False, estimated=False)
HIT = Line("r2", "ann", "llama2", 200, 0, 0, 0, hit=True, estimated=False)
SWEPT = Line("r3", "ann", "", 0, 30, 0, 30, hit=False, estimated=True)
PART = Line("r4", "ann", "llama2", 200, 12, 4, 16, hit=False, estimated=True)
FAILED = Line("r5", "ann", "llama2", 503, 0, 0, 0, hit=False, estimated=False)


def seen(status: int = 200, tokens: int = 5, **fields: object) -> Outcome:
    given = {"begun": status == 200, "model": "llama2", "user": "ann", **fields}
    return Outcome(0.0, 0.1, status, prompt_tokens=10, completion_tokens=tokens, **given)


def book(*lines: Line, **changes: object) -> Book:
    """Sums that agree with the lines, unless they are told otherwise."""
    counters = {
        "requests": len(lines),
        "hits": sum(line.hit for line in lines),
        "estimated": sum(line.estimated for line in lines),
        "prompt_tokens": sum(line.prompt_tokens for line in lines),
        "completion_tokens": sum(line.completion_tokens for line in lines),
        "cost_micros": sum(line.cost_micros for line in lines),
    }
    whole = Book("t", list(lines), counters, counters["cost_micros"], {"ann": sum(x.tokens for x in lines)}, 0.1, 0, 0)
    return msgspec.structs.replace(whole, **changes)


def checked(outcomes: Sequence[Outcome], of: Book) -> Audit:
    return audit(outcomes, [of], lambda _, prompt, completion: prompt + completion, 28)


def test_books_that_agree() -> None:
    found = checked([seen(), seen(cache="hit"), seen(503)], book(PAID, HIT, FAILED))
    assert (found.exact, found.wrong) == (2, [])


@pytest.mark.parametrize(
    ("outcomes", "of"),
    [
        ([seen()], book(PAID, PAID)),  # twice
        ([], book(PAID)),  # for nobody
        ([seen(503)], book(PAID)),  # for a failure
        ([seen()], book(msgspec.structs.replace(PAID, cost_micros=16))),  # at another price
        ([seen(tokens=6)], book(PAID)),  # other tokens
        ([seen(503)], book(msgspec.structs.replace(FAILED, cost_micros=1))),
        ([seen()], book(PAID, SWEPT)),  # settled, and a reservation besides
        ([seen()], book(PAID, spent_micros=14)),
        ([seen()], book(PAID, bucket_tokens={"ann": 17.0})),
        ([seen()], book(PAID, bucket_tokens={"ann": 13.0})),
        ([seen()], book(PAID, reserved=1)),
        ([seen()], book(PAID, in_flight=1)),
        ([seen()], book(PAID, counters={**book(PAID).counters, "completion_tokens": 4})),
        ([seen()], book(PAID, counters={**book(PAID).counters, "requests": 0})),
    ],
)
def test_what_does_not_agree_is_told(outcomes: list[Outcome], of: Book) -> None:
    assert checked(outcomes, of).wrong


def test_an_answer_whose_receipt_was_lost_is_an_estimate_and_nothing_is_wrong() -> None:
    found = checked([seen()], book(SWEPT))
    assert (found.exact, found.estimated, found.uncharged, found.wrong) == (0, 1, 0, [])


def test_an_answer_that_stands_nowhere_is_uncharged_and_a_hit_uncounted() -> None:
    found = checked([seen(), seen(cache="hit")], book())
    assert (found.uncharged, found.uncounted, found.wrong) == (1, 1, [])


@pytest.mark.parametrize(("tokens", "wrong"), [(3, 0), (5, 0), (6, 1)])
def test_a_cut_stream_is_charged_no_less_than_its_client_saw(tokens: int, wrong: int) -> None:
    """One token may be on its way when the connection breaks; an event may hold the beginning of one more."""
    found = checked([seen(0, tokens, begun=True)], book(PART))
    assert (found.partial, len(found.wrong)) == (1, wrong)


def test_an_estimate_without_a_cut_request_is_wrong() -> None:
    assert checked([seen()], book(PAID, PART)).wrong


def test_a_client_that_missed_the_end_pays_for_the_whole_answer() -> None:
    assert checked([seen(0, 4, begun=True)], book(PAID)).wrong == []
    assert checked([seen(0, 6, begun=True)], book(PAID)).wrong
