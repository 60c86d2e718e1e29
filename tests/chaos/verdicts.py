"""What each fault may cost, and whether it kept to that. Pure: outcomes and an audit in, words out.

Moments are monotonic seconds, as in Outcome.
"""

from collections.abc import Sequence
from enum import Enum

import msgspec
from accounts import Audit
from traffic import Outcome

_REFUSALS = {(503, "model_overloaded"), (429, "rate_limit_exceeded")}
SLACK_SECONDS = 0.5  # before a fault: receipts travel 0.2 s, a settlement a little longer


class May(Enum):
    """Which requests may end badly."""

    NONE = "none"
    UNDER_WAY = "those under way at that moment"
    UNTIL_BACK = "all until it is back"


class Promise(msgspec.Struct, frozen=True):
    fail: May = May.NONE  # no answer, or an error
    be_cut: May = May.NONE  # the answer had begun
    be_refused: bool = False  # for want of room: in OpenAI's shape, with retry-after
    lose_receipts: bool = False  # the reservation stays charged, marked estimated; a hit is not counted
    lose_writes: bool = False  # answers may stand in no ledger
    recovered_seconds: float = 1.0  # from the fault's beginning to the last bad end
    longest_seconds: float = 5.0  # of one request: nobody hangs


class Strike(msgspec.Struct, frozen=True):
    """One fault as it was done."""

    name: str
    promise: Promise
    began: float
    ended: float  # its cause was over


class Verdict(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    seconds: float = 0.0  # from the first fault's beginning to the last one's end
    requests: int = 0
    failed: int = 0
    cut: int = 0
    refused: int = 0
    estimated: int = 0
    uncharged: int = 0
    wrong: int = 0
    recovered_seconds: float = 0.0
    longest_seconds: float = 0.0
    broken: tuple[str, ...] = ()  # promises, in words
    strikes: tuple[tuple[str, float, float], ...] = ()  # name, from, to: seconds after the first one's beginning

    @property
    def kept(self) -> bool:
        return not self.broken


def is_cut(outcome: Outcome) -> bool:
    return outcome.begun and outcome.status != 200 and not outcome.staged


def is_refused(outcome: Outcome) -> bool:
    """By us, on purpose. A failure has another code word."""
    return outcome.may_retry and (outcome.status, outcome.why) in _REFUSALS


def is_failed(outcome: Outcome) -> bool:
    return outcome.status != 200 and not outcome.begun and not is_refused(outcome)


def permits(strike: Strike, outcome: Outcome) -> bool:
    """Whether this fault explains this bad end."""
    may = strike.promise.be_cut if is_cut(outcome) else strike.promise.fail
    if may is May.NONE or outcome.ended < strike.began:
        return False
    if may is May.UNDER_WAY:
        return outcome.began <= strike.ended and outcome.ended <= strike.began + strike.promise.recovered_seconds
    return outcome.ended <= strike.began + strike.promise.recovered_seconds


def judge(name: str, strikes: Sequence[Strike], outcomes: Sequence[Outcome], audit: Audit) -> Verdict:
    bad = [o for o in outcomes if is_cut(o) or is_failed(o)]
    longest = max((o.took for o in outcomes), default=0.0)
    return Verdict(
        name,
        seconds=strikes[-1].ended - strikes[0].began,
        requests=len(outcomes),
        failed=sum(map(is_failed, bad)),
        cut=sum(map(is_cut, bad)),
        refused=sum(map(is_refused, outcomes)),
        estimated=audit.estimated,
        uncharged=audit.uncharged,
        wrong=len(audit.wrong),
        recovered_seconds=max(_recovery(s, bad) for s in strikes),
        longest_seconds=longest,
        strikes=tuple((s.name, s.began - strikes[0].began, s.ended - strikes[0].began) for s in strikes),
        broken=(*_bad_ends(strikes, bad), *_others(strikes, outcomes, longest), *_books(strikes, outcomes, audit)),
    )


def _recovery(strike: Strike, bad: Sequence[Outcome]) -> float:
    return max((o.ended - strike.began for o in bad if permits(strike, o)), default=0.0)


def _bad_ends(strikes: Sequence[Strike], bad: Sequence[Outcome]) -> list[str]:
    unexplained = [o for o in bad if not any(permits(s, o) for s in strikes)]
    return [f"{_kind(o)} {_when(strikes, o)}: {o.model or 'no model'} {o.status} {o.why}" for o in unexplained]


def _kind(outcome: Outcome) -> str:
    return "cut" if is_cut(outcome) else "failed"


def _when(strikes: Sequence[Strike], o: Outcome) -> str:
    """In seconds after the last fault that had begun when it ended."""
    last = max((s for s in strikes if s.began <= o.ended), key=lambda s: s.began, default=strikes[0])
    return f"from {o.began - last.began:+.3f} to {o.ended - last.began:+.3f} s of {last.name}"


def _others(strikes: Sequence[Strike], outcomes: Sequence[Outcome], longest: float) -> list[str]:
    found = []
    patience = max(s.promise.longest_seconds for s in strikes)
    if longest > patience:
        found.append(f"one request took {longest:.1f} s, more than {patience:.1f}")
    if any(map(is_refused, outcomes)) and not any(s.promise.be_refused for s in strikes):
        found.append("requests were refused")
    return found


def _books(strikes: Sequence[Strike], outcomes: Sequence[Outcome], audit: Audit) -> list[str]:
    """What is missing belongs to requests that were under way, or had just ended, when a fault struck."""
    near = sum(any(_near(s, o) for s in strikes if s.promise.lose_receipts) for o in outcomes)
    written = sum(any(_near(s, o) for s in strikes if s.promise.lose_writes) for o in outcomes)
    limits = (
        (audit.estimated, near + written, "requests are charged as estimates"),
        (audit.uncounted, near + written, "hits are not counted"),
        (audit.uncharged, written, "answers are not charged"),
    )
    return [*audit.wrong, *(f"{count} {what}, {most} may be" for count, most, what in limits if count > most)]


def _near(strike: Strike, outcome: Outcome) -> bool:
    until = strike.ended + strike.promise.recovered_seconds
    return outcome.ended >= strike.began - SLACK_SECONDS and outcome.began <= until
