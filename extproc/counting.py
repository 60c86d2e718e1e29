"""How receipts count into the metrics, a batch at a time.

Receipts with the same labels are put together first and written once: each write into the directory that the workers
share costs a microsecond or more, an observation two of them, and finding a series by its labels half of one. Names no
metric; knows how the library keeps a histogram.
"""

from bisect import bisect_left
from collections import defaultdict
from functools import cache
from typing import TypeVar

import msgspec
from prometheus_client import Counter, Histogram

from extproc import metrics, tracing
from extproc.exemplars import Exemplars
from extproc.receipt import Charge, Receipt, time_per_output_token

_M = TypeVar("_M", Counter, Histogram)
_UNASKED = {"", "models"}  # endpoints that no model answers


class _Alike(msgspec.Struct):
    """Requests with the same labels. Times are seconds."""

    durations: list[float] = []
    first_bytes: list[float] = []  # of streams
    per_token: list[float] = []  # ditto
    overheads: list[float] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_micros: int = 0
    fills: int = 0
    estimated: int = 0


class Batch:
    def __init__(self, exemplars: Exemplars) -> None:
        self._exemplars = exemplars
        self._alike: dict[tuple[str, str, int, str, str], _Alike] = {}
        self._costs: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._decisions: list[float] = []
        self._stores: list[float] = []

    def add(self, receipt: Receipt, charge: Charge, cost_micros: int, filled: bool) -> None:
        ticket = receipt.ticket
        asked = not ticket.reason and ticket.endpoint not in _UNASKED
        key = (ticket.model, ticket.endpoint, receipt.status, ticket.cache if asked else "", receipt.arm)
        alike = self._alike.get(key)
        if alike is None:
            alike = self._alike[key] = _Alike()
        alike.durations.append(receipt.duration)
        if ticket.reason:
            self._refused[ticket.tenant, ticket.reason] += 1
        if ticket.trace:
            self._trace(receipt, asked)
        if not asked:
            return
        if ticket.decided_us:
            self._decisions.append(ticket.decided_us / 1e6)
            self._stores.append(ticket.store_us / 1e6)
        self._add_use(alike, receipt, charge, cost_micros)
        alike.fills += filled
        if receipt.overhead is not None:
            alike.overheads.append(receipt.overhead)

    def _add_use(self, alike: _Alike, receipt: Receipt, charge: Charge, cost_micros: int) -> None:
        usage, ticket = charge.usage, receipt.ticket
        alike.estimated += charge.estimated
        if usage.prompt_tokens:
            alike.prompt_tokens += usage.prompt_tokens
            alike.cached_tokens += usage.cached_tokens
            alike.completion_tokens += usage.completion_tokens
            alike.cost_micros += cost_micros
            self._costs[ticket.tenant, ticket.model] += cost_micros
        if ticket.stream and receipt.first_byte:
            alike.first_bytes.append(receipt.first_byte)
            each = time_per_output_token(receipt, usage)
            if each is not None:
                alike.per_token.append(each)

    def _trace(self, receipt: Receipt, asked: bool) -> None:
        ticket = receipt.ticket
        where = tracing.trace_id(ticket.trace), receipt.start + receipt.duration
        self._exemplars.put(metrics.DURATION, (ticket.model, ticket.endpoint), receipt.duration, *where)
        if asked and ticket.stream and receipt.first_byte:
            self._exemplars.put(metrics.TTFT, (ticket.model,), receipt.first_byte, *where)
        if asked and receipt.overhead is not None:
            self._exemplars.put(metrics.OVERHEAD, (ticket.model,), receipt.overhead, *where)

    def write(self) -> None:
        for (model, endpoint, status, looked_up, arm), alike in self._alike.items():
            _add(len(alike.durations), metrics.REQUESTS, model, endpoint, str(status))
            _observe(alike.durations, metrics.DURATION, model, endpoint)
            if looked_up:
                _write_use(alike, model, looked_up)
            if looked_up and arm:
                _write_arm(alike, model, arm, str(status))
        for labels, cost_micros in self._costs.items():
            _add(cost_micros, metrics.COST, *labels)
        for labels, requests in self._refused.items():
            _add(requests, metrics.REFUSED, *labels)
        _observe(self._decisions, metrics.PHASE, "decision")
        _observe(self._stores, metrics.PHASE, "store")


def _write_use(alike: _Alike, model: str, looked_up: str) -> None:
    requests = len(alike.durations)
    _add(requests, metrics.CACHE_LOOKUPS, model, looked_up)
    _add(requests if looked_up == "hit" else 0, metrics.CACHE_HITS, model)
    _add(alike.fills, metrics.CACHE_FILLS, model)
    _add(alike.prompt_tokens, metrics.PROMPT, model)
    _add(alike.cached_tokens, metrics.PROMPT_CACHED, model)
    _add(alike.completion_tokens, metrics.GENERATED, model)
    _add(alike.estimated, metrics.ESTIMATED, model)
    _observe(alike.first_bytes, metrics.TTFT, model)
    _observe(alike.per_token, metrics.TPOT, model)
    _observe(alike.overheads, metrics.OVERHEAD, model)


def _write_arm(alike: _Alike, model: str, arm: str, status: str) -> None:
    _add(len(alike.durations), metrics.ARM_REQUESTS, model, arm, status)
    _add(alike.completion_tokens, metrics.ARM_GENERATED, model, arm)
    _add(alike.cost_micros, metrics.ARM_COST, model, arm)
    _observe(alike.durations, metrics.ARM_DURATION, model, arm)
    _observe(alike.first_bytes, metrics.ARM_TTFT, model, arm)


def _add(amount: int, counter: Counter, *labels: str) -> None:
    if amount:
        _child(counter, *labels).inc(amount)


def _observe(values: list[float], histogram: Histogram, *labels: str) -> None:
    """What the library's `observe` does, for many at once: it has no such call."""
    if not values:
        return
    child = _child(histogram, *labels)
    buckets: defaultdict[int, int] = defaultdict(int)
    for value in values:
        buckets[bisect_left(child._upper_bounds, value)] += 1  # noqa: SLF001
    for bucket, amount in buckets.items():
        child._buckets[bucket].inc(amount)  # noqa: SLF001
    child._sum.inc(sum(values))  # noqa: SLF001


@cache
def _child(metric: _M, *labels: str) -> _M:
    return metric.labels(*labels)
