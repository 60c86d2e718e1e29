"""What a scenario promises, held against what was found. Pure.

A broken promise of function (an error, a counter that disagrees, a limit that leaks) fails the run. A promise of speed
is told and fails it only where that is asked for: on a busy machine it says more of the neighbours.
"""

from collections.abc import Callable, Mapping
from operator import ge

import msgspec
from places import Account, Found
from rig import ALONE, DIRECT, MESSAGES
from sums import Sum

TTFT_MS = 300.0  # 95 of 100 callers, with a backend that is not short of anything
ADDED_TTFT_MS = 50.0


class Verdict(msgspec.Struct, frozen=True):
    name: str
    wanted: str
    found: str
    met: bool
    speed: bool = False  # decides only where that is asked for


Runs = Mapping[str, Found]  # by the name of the run; the last is the one that the scenario is about
Promise = Callable[[Runs], list[Verdict]]


def no_errors(runs: Runs) -> list[Verdict]:
    found = []
    for name, run in runs.items():
        words = ", ".join(f"{count} × {kind}" for kind, count in run.result.summary.errors.items())
        found.append(Verdict(f"errors, {name}", "none", words or "none", not words))
    return found


def counters(runs: Runs) -> list[Verdict]:
    """Backend, receipts and ledger say what the clients saw: nothing was lost, and nothing cost twice."""
    return [_counters(name, run) for name, run in runs.items() if run.counts]


def _counters(name: str, run: Found) -> Verdict:
    seen, failed = run.counts, run.result.summary.all.failed
    wanted = expected(name, run)
    wrong = [
        f"{what}: {seen[what]:,} and not {count:,}"
        for what, count in wanted.items()
        if not 0 <= seen[what] - count <= (failed if count else 0)  # of what failed, some may have come so far
    ]
    if name != DIRECT:
        told = run.result.summary.by_traffic.items()
        wrong += [words for tenant, at_clients in told if (words := _ledger(run, tenant, at_clients))]
    words = "; ".join(wrong) or f"all of {len(wanted)}" + ("" if name == DIRECT else ", and the ledger")
    return Verdict(f"counters agree, {name}", "all", words, not wrong)


def expected(name: str, run: Found) -> dict[str, int]:
    """Of the counters of `rig.counts`, for what ended well."""
    told = run.result.summary.all
    if name == DIRECT:
        return {"backend": told.good, "settled": 0, MESSAGES: 0}
    return {
        "backend": told.good - told.hits,
        "settled": told.good + told.refused,
        "hit": told.hits,
        "refused": told.refused,
        MESSAGES: told.good + told.refused,
        "receipts dropped": 0,
        "receipts not sent": 0,
        ALONE: 0,
    }


def _ledger(run: Found, tenant: str, told: Sum) -> str:
    """How it differs from what the tenant's clients saw; a replayed answer costs no tokens."""
    clients = (told.good + told.refused, told.hits, told.completion_tokens - told.replayed_tokens)
    account = run.accounts.get(tenant, _NO_ACCOUNT)
    ledger = (account.requests, account.hits, account.completion_tokens)
    agree = ledger == clients or (told.failed and all(map(ge, ledger, clients)))  # failures may have been charged
    return "" if agree else f"{tenant}: requests, hits, tokens {ledger} in the ledger, {clients} at the clients"


_NO_ACCOUNT = Account(0, 0, 0, 0)


def soon(runs: Runs) -> list[Verdict]:
    """The first token of the last run, from its due time."""
    ttft = _last(runs).ttft
    if ttft is None:
        return []
    return [Verdict("TTFT p95", f"< {TTFT_MS:.0f} ms", f"{ttft.p95:.1f} ms", ttft.p95 < TTFT_MS, speed=True)]


def no_later(runs: Runs) -> list[Verdict]:
    """The same against the first run."""
    base, ttft = next(iter(runs.values())).result.summary.all.ttft, _last(runs).ttft
    if ttft is None or base is None or len(runs) < 2:
        return []
    more = ttft.p95 - base.p95
    wanted = f"< {ADDED_TTFT_MS:.0f} ms"
    return [Verdict("TTFT p95, added", wanted, f"{more:+.1f} ms", more < ADDED_TTFT_MS, speed=True)]


def _last(runs: Runs) -> Sum:
    return list(runs.values())[-1].result.summary.all


def at_once(count: int) -> Promise:
    def promise(runs: Runs) -> list[Verdict]:
        most = [*runs.values()][-1].result.most_streaming
        return [Verdict("streams open at a time", f"{count:,}", f"{most:,}", most >= count)]

    return promise


def hits(possible: float) -> Promise:
    def promise(runs: Runs) -> list[Verdict]:
        told = _last(runs)
        share = told.hits / max(1, told.good)
        return [Verdict("cache hits", "> 40 %", f"{share:.1%} (at best {possible:.1%})", share > 0.4)]

    return promise


def fair(greedy: str, allowance: float, burst: float) -> Promise:
    """The greedy tenant gets its allowance and is told when to come back; the others notice nothing."""

    def promise(runs: Runs) -> list[Verdict]:
        alone, beside = (run.result.summary.by_traffic for run in runs.values())
        mine = beside[greedy]
        spent = mine.prompt_tokens + mine.completion_tokens
        refused = sum(told.refused for name, told in beside.items() if name != greedy)
        return [
            Verdict("others refused", "0", f"{refused:,}", refused == 0),
            Verdict("greedy refused", "some", f"{mine.refused:,} of {mine.requests:,}", mine.refused > 0),
            Verdict("… without retry-after", "0", f"{mine.refused_without_wait:,}", mine.refused_without_wait == 0),
            Verdict(
                "tokens of the greedy one",
                f"{allowance:,.0f} ± {burst:,.0f}",
                f"{spent:,}",
                abs(spent - allowance) <= burst,
            ),
            *(_unmoved(name, alone[name], beside[name]) for name in alone),
        ]

    return promise


def sheds(refused: str, capacity: float) -> Promise:
    """Twice the capacity (requests a second): nine tenths are answered, the others are told when to come back."""

    def promise(runs: Runs) -> list[Verdict]:
        told = [*runs.values()][-1].result.summary
        share, away = told.all.good / (capacity * told.seconds), told.by_traffic[refused]
        return [
            Verdict("answered, of what fits", "> 90 %", f"{share:.0%}", share > 0.9, speed=True),
            Verdict("refused", "some", f"{away.refused:,} of {away.requests:,}", away.refused > 0),
            Verdict("… without retry-after", "0", f"{away.refused_without_wait:,}", away.refused_without_wait == 0),
        ]

    return promise


def unharmed(name: str) -> Promise:
    """Callers of this kind wait as long in the last run as in the first."""

    def promise(runs: Runs) -> list[Verdict]:
        first, *_, last = (run.result.summary.by_traffic[name] for run in runs.values())
        return [_unmoved(name, first, last)]

    return promise


def _unmoved(name: str, alone: Sum, beside: Sum) -> Verdict:
    assert alone.ttft is not None
    assert beside.ttft is not None
    more = beside.ttft.p95 - alone.ttft.p95
    words = f"{alone.ttft.p95:.1f} → {beside.ttft.p95:.1f} ms"
    return Verdict(f"TTFT p95 of {name}, added", f"< {ADDED_TTFT_MS:.0f} ms more", words, more < ADDED_TTFT_MS, True)
