"""The last quarter of an hour: samples in, figures out.

Keeps the samples of the last minute, which rates and quantiles are made of, and every five seconds a point: the
figures of that moment, of everything and of each model. Pure: time comes with the samples.
"""

from collections import deque
from itertools import islice
from typing import TypeVar

import msgspec

from extproc.console.sample import ANSWERED, NOTHING, REQUESTS, Change, Sample, Tally
from extproc.console.shapes import NO_MODEL, Arm, Busy, Figures, History, Refusals, Totals

RATE_SECONDS = 10
RATIO_SECONDS = 60
STEP_SECONDS = 5
HISTORY_SECONDS = 900
_EARLY = 0.1  # of a step: timers are not exact
_K = TypeVar("_K")
_FIELDS = Figures.__struct_fields__


class _Point(msgspec.Struct, frozen=True):
    at: float
    time_ms: int
    scopes: dict[str, Figures]


class Ring:
    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._points: deque[_Point] = deque()

    @property
    def last(self) -> Sample:
        return self._samples[-1]

    def age(self, now: float) -> float:
        """Of the last sample, in seconds."""
        return now - self.last.at if self._samples else float("inf")

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        while len(self._samples) > 1 and self._samples[1].at <= sample.at - RATIO_SECONDS:
            self._samples.popleft()
        if not self._points or sample.at - self._points[-1].at >= STEP_SECONDS * (1 - _EARLY):
            scopes = {"": self.total(), **{name or NO_MODEL: self.model(name) for name in sample.models}}
            self._points.append(_Point(sample.at, sample.time_ms, scopes))
            while self._points[0].at < sample.at - HISTORY_SECONDS:
                self._points.popleft()

    # --- now ----------------------------------------------------------------------------------------------------------

    def total(self) -> Figures:
        recent, minute = self._ago(RATE_SECONDS), self._ago(RATIO_SECONDS)
        return self._figures(recent.total, minute.total, self.last.total)

    def model(self, name: str) -> Figures:
        recent, minute = self._ago(RATE_SECONDS), self._ago(RATIO_SECONDS)
        return self._figures(_of(recent.models, name), _of(minute.models, name), _of(self.last.models, name))

    def arms(self) -> list[Arm]:
        recent, minute = self._ago(RATE_SECONDS), self._ago(RATIO_SECONDS)
        sent = {
            key: Change(_of(minute.arms, key), tally, 1.0).count(*REQUESTS) for key, tally in self.last.arms.items()
        }
        of_model: dict[str, float] = {}
        for (model, _), count in sent.items():
            of_model[model] = of_model.get(model, 0.0) + count
        return [
            Arm(
                model=key[0],
                arm=key[1],
                share=sent[key] / of_model[key[0]] if of_model[key[0]] else None,
                now=self._figures(_of(recent.arms, key), _of(minute.arms, key), tally),
                totals=totals(tally),
            )
            for key, tally in sorted(self.last.arms.items())
        ]

    def refused(self) -> list[Refusals]:
        """Those of the last minute first."""
        minute = self._ago(RATIO_SECONDS)
        a_minute = 60 / self._since(minute)
        found = [
            Refusals(reason, _short((total - minute.refused.get(reason, 0.0)) * a_minute), round(total))
            for reason, total in self.last.refused.items()
        ]
        return sorted(found, key=lambda r: (-r.per_minute, -r.total, r.reason))

    def busy(self) -> list[Busy]:
        recent = self._ago(RATE_SECONDS)
        seconds = self._since(recent)
        return [
            Busy(worker, _short(max(0.0, used - recent.worker_cpu_seconds.get(worker, used)) / seconds))
            for worker, used in sorted(self.last.worker_cpu_seconds.items())
        ]

    # --- before -------------------------------------------------------------------------------------------------------

    def history(self, since_ms: int = -1) -> History:
        """The points after a moment. A model that had no request yet has nothing there."""
        points = [p for p in self._points if p.time_ms > since_ms]
        names = dict.fromkeys(name for p in points for name in p.scopes)
        scopes: dict[str, dict[str, list[float | None]]] = {}
        for name in names:
            figures = [p.scopes.get(name) for p in points]
            scopes[name] = {field: [getattr(f, field) if f else None for f in figures] for field in _FIELDS}
        return History([p.time_ms for p in points], scopes)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ago(self, seconds: int) -> Sample:
        """The latest sample that is so old; while there is none yet, the oldest."""
        limit = self.last.at - seconds * (1 - _EARLY / 2)
        old = next((s for s in islice(reversed(self._samples), 1, None) if s.at <= limit), None)
        return old or self._samples[0]

    def _since(self, sample: Sample) -> float:
        return max(self.last.at - sample.at, 0.001)

    def _figures(self, recent: Tally, minute: Tally, now: Tally) -> Figures:
        rate = Change(recent, now, self._since(self._ago(RATE_SECONDS)))
        last = Change(minute, now, self._since(self._ago(RATIO_SECONDS)))
        return Figures(
            requests_per_second=_short(rate.per_second(*REQUESTS)),
            failed_per_second=_short(rate.per_second("failed")),
            refused_per_second=_short(rate.per_second("refused")),
            rejected_per_second=_short(rate.per_second("rejected")),
            left_per_second=_short(rate.per_second("left")),
            prompt_tokens_per_second=_short(rate.per_second("prompt_tokens")),
            completion_tokens_per_second=_short(rate.per_second("completion_tokens")),
            usd_per_hour=_short(last.per_second("cost_micros") * 3600 / 1e6),
            failed_ratio=_shortened(last.ratio("failed", *ANSWERED)),
            hit_ratio=_shortened(last.ratio("hit", "hit", "miss")),
            ttft_p50_seconds=_shortened(last.quantile("ttft", 0.5)),
            ttft_p95_seconds=_shortened(last.quantile("ttft", 0.95)),
            ttft_p99_seconds=_shortened(last.quantile("ttft", 0.99)),
            ttft_streams=last.observed("ttft"),
            token_p50_seconds=_shortened(last.quantile("token", 0.5)),
            duration_p50_seconds=_shortened(last.quantile("duration", 0.5)),
            duration_p95_seconds=_shortened(last.quantile("duration", 0.95)),
            overhead_p50_seconds=_shortened(last.quantile("overhead", 0.5)),
            overhead_p95_seconds=_shortened(last.quantile("overhead", 0.95)),
        )


def totals(tally: Tally) -> Totals:
    return Totals(
        requests=tally.count(*REQUESTS),
        failed=tally.count("failed"),
        hits=tally.count("hit"),
        lookups=tally.count("hit", "miss"),
        prompt_tokens=tally.count("prompt_tokens"),
        completion_tokens=tally.count("completion_tokens"),
        usd=tally.count("cost_micros") / 1e6,
    )


def _of(tallies: dict[_K, Tally], key: _K) -> Tally:
    return tallies.get(key, NOTHING)


def _short(value: float) -> float:
    """Five digits: enough for eyes, short as JSON."""
    return float(f"{value:.5g}")


def _shortened(value: float | None) -> float | None:
    return None if value is None else _short(value)
