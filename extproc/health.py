"""Passive health of the models: what the receipts say about their upstreams.

A receipt with no healthy upstream takes its model off for a while; then one request at a time tries it again, and the
first one that is answered puts it back. Marks are shared through the store, so that a worker that sees no receipts
knows them too. No IO and no clock: `now_ms` comes in, changes to publish go out.
"""

from collections.abc import Mapping

import msgspec


class _Mark(msgspec.Struct):
    until_ms: int
    told_ms: int  # when it was published last, by whomever
    published: bool = False  # it was seen in the store


class Health:
    def __init__(self, down_ms: int) -> None:
        self.down_ms = down_ms
        self._down: dict[str, _Mark] = {}

    def is_up(self, model: str, now_ms: int) -> bool:
        """Whether to send a request there; for a marked model, whether it may be tried again."""
        mark = self._down.get(model)
        return mark is None or now_ms >= mark.until_ms

    def begin_trial(self, model: str, now_ms: int) -> None:
        """A request goes there: if the model is marked, others are kept off until its receipt is here."""
        mark = self._down.get(model)
        if mark is not None:
            mark.until_ms = now_ms + self.down_ms

    def observe(self, model: str, reached: bool, now_ms: int) -> int | None:
        """One receipt's word. Returns what to publish: the new until_ms, 0 for back up, None for no news."""
        mark = self._down.get(model)
        if reached:
            if mark is None:
                return None
            del self._down[model]
            return 0
        until_ms = now_ms + self.down_ms
        if mark is not None and now_ms < mark.told_ms + self.down_ms // 2:
            mark.until_ms = until_ms
            return None
        self._down[model] = _Mark(until_ms, now_ms)
        return until_ms

    def merge(self, shared: Mapping[str, int], now_ms: int) -> None:
        """Take what the other workers know. A mark of ours that was published and is gone was lifted elsewhere."""
        for model in [m for m, mark in self._down.items() if mark.published and m not in shared]:
            del self._down[model]
        for model, until_ms in shared.items():
            mark = self._down.get(model)
            if mark is not None:
                mark.published = True
                mark.until_ms = max(mark.until_ms, until_ms)  # another worker's trial failed: no need for one of ours
                mark.told_ms = max(mark.told_ms, until_ms - self.down_ms)
            elif until_ms > now_ms:
                self._down[model] = _Mark(until_ms, until_ms - self.down_ms, published=True)

    def down(self) -> list[str]:
        return sorted(self._down)
