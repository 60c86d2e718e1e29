"""Do the ledger and the counters say what the clients saw? Pure: outcomes and what stands in the store in, words out.

Requests are told apart by their tokens: a lane never asks for the same number of prompt and completion tokens twice, so
an answer's usage is its signature. An answer that came whole must stand in the ledger once, at its price. One whose
receipt was lost stands there as a swept reservation: status 0, estimated. An answer that was cut stands there with what
passed. One that failed stands there with nothing, unless its reservation was swept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from traffic import Outcome

Cost = Callable[[str, int, int], int]  # model, prompt tokens, completion tokens -> micro-dollars
Signature = tuple[str, int, int, int]


class Line(msgspec.Struct, frozen=True):
    """One line of the ledger."""

    request_id: str
    user: str
    model: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cost_micros: int
    hit: bool
    estimated: bool

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Book(msgspec.Struct, frozen=True):
    """What stands in the store of one tenant, after everything is settled or swept."""

    tenant: str
    lines: list[Line]
    counters: dict[str, int]  # sums over the usage hashes, by METRICS
    spent_micros: int
    bucket_tokens: dict[str, float]  # user -> tokens that are missing in the bucket
    refilled_tokens: float  # at most, since the bucket was first used
    reserved: int
    in_flight: int


class Audit(msgspec.Struct):
    exact: int = 0
    estimated: int = 0  # reservations that stayed charged
    partial: int = 0  # cut streams, by what passed
    uncharged: int = 0  # whole answers that stand nowhere
    uncounted: int = 0  # hits that stand nowhere: they cost nothing
    wrong: list[str] = []


def audit(outcomes: Sequence[Outcome], books: Iterable[Book], cost: Cost, most_tokens: int) -> Audit:
    """Outcomes carry their user; a user has one tenant. `most_tokens`: no answer is longer."""
    found = Audit()
    seen: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        seen.setdefault(outcome.user, []).append(outcome)
    for book in books:
        written: dict[str, list[Line]] = {}
        for line in book.lines:
            written.setdefault(line.user, []).append(line)
        for user in sorted(written.keys() | book.bucket_tokens.keys()):
            _compare(user, seen.get(user, []), written.get(user, []), cost, most_tokens, found)
        found.wrong += _sums(book)
    return found


def _compare(
    user: str, outcomes: Sequence[Outcome], lines: Sequence[Line], cost: Cost, most_tokens: int, found: Audit
) -> None:
    expected = Counter(_expected(o, cost) for o in outcomes if o.status == 200)
    exact = Counter(_signature(line) for line in lines if _is_exact(line))
    swept = sum(line.estimated and line.status == 0 and not line.model for line in lines)
    cut = [o for o in outcomes if o.begun and o.status != 200]
    failed = [o for o in outcomes if not o.begun and o.status != 200]
    found.exact += (expected & exact).total()
    found.estimated += swept
    missing, left = expected - exact, exact - expected
    left = _finished_unseen(cut, left)
    for signature in left.elements():
        found.wrong.append(f"{user}: charged for what no client saw, or twice: {signature}")
    paid = sum(count for (*_, cost_micros), count in missing.items() if cost_micros)
    found.uncounted += missing.total() - paid
    found.uncharged += max(0, paid - swept)
    spare = swept - paid  # of requests that were cut or failed, or were decided on and never came further
    if spare > len(cut) + len(failed):
        found.wrong.append(f"{user}: {spare} swept reservations, {len(cut)} cut and {len(failed)} failed requests")
    parts = [line for line in lines if line.estimated and (line.status or line.model)]
    found.partial += len(parts)
    found.wrong += _parts(user, cut, failed, parts, most_tokens)
    found.wrong += [
        f"{user}: a failed request was charged: {line}"
        for line in lines
        if not line.estimated and line.status != 200 and line.cost_micros
    ]


def _expected(o: Outcome, cost: Cost) -> Signature:
    """A hit costs nothing, and says nothing of tokens."""
    if o.cache == "hit":
        return o.model, 0, 0, 0
    return o.model, o.prompt_tokens, o.completion_tokens, cost(o.model, o.prompt_tokens, o.completion_tokens)


def _is_exact(line: Line) -> bool:
    return line.status == 200 and not line.estimated and (line.hit or line.tokens > 0)


def _signature(line: Line) -> Signature:
    return line.model, line.prompt_tokens, line.completion_tokens, line.cost_micros


def _finished_unseen(cut: Sequence[Outcome], left: "Counter[Signature]") -> "Counter[Signature]":
    """A client that lost the connection near the end: the backend had finished, and the gateway had its usage."""
    left = left.copy()
    for outcome in cut:
        for signature in sorted(left, key=lambda s: s[2]):
            if signature[0] == outcome.model and signature[2] >= outcome.completion_tokens:
                left -= Counter([signature])
                break
    return left


def _parts(
    user: str, cut: Sequence[Outcome], failed: Sequence[Outcome], parts: Sequence[Line], most_tokens: int
) -> list[str]:
    """Estimates by what passed: no more of them than cut requests, and no less than their clients saw."""
    found = [f"{user}: more than was asked for: {line}" for line in parts if line.completion_tokens > most_tokens]
    if len(parts) > len(cut) + len(failed):
        found.append(f"{user}: {len(parts)} estimates, {len(cut)} cut and {len(failed)} failed requests")
    seen = sorted((o.completion_tokens for o in cut), reverse=True)
    charged = sorted((line.completion_tokens for line in parts), reverse=True)
    if len(parts) == len(cut) and any(c < s - 1 for c, s in zip(charged, seen, strict=True)):
        found.append(f"{user}: cut after {seen} tokens, charged {charged}")
    return found


def _sums(book: Book) -> list[str]:
    """The ledger against the counters, the month's money and the buckets; and nothing is held any more."""
    lines, found = book.lines, []
    sums = {
        "hits": sum(line.hit for line in lines),
        "estimated": sum(line.estimated for line in lines),
        "prompt_tokens": sum(line.prompt_tokens for line in lines),
        "completion_tokens": sum(line.completion_tokens for line in lines),
        "cost_micros": sum(line.cost_micros for line in lines),
    }
    counted = {name: book.counters[name] for name in sums}
    if counted != sums:
        found.append(f"{book.tenant}: counters {_differ(counted, sums)} the ledger")
    if book.counters["requests"] < len(lines):
        found.append(f"{book.tenant}: {book.counters['requests']} requests counted, {len(lines)} in the ledger")
    if book.spent_micros != sums["cost_micros"]:
        found.append(f"{book.tenant}: {book.spent_micros} micro-dollars spent, {sums['cost_micros']} in the ledger")
    if book.reserved or book.in_flight:
        found.append(f"{book.tenant}: {book.reserved} reservations and {book.in_flight} slots are held")
    for user, missing in book.bucket_tokens.items():
        used = sum(line.tokens for line in lines if line.user == user)
        if not used - book.refilled_tokens - 1 <= missing <= used + 1:
            found.append(f"{user}: {missing:.0f} tokens taken from the bucket, {used} in the ledger")
    return found


def _differ(counted: Mapping[str, int], sums: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {counted[name]} against {sums[name]} of" for name in sums if counted[name] != sums[name])
