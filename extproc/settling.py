"""The settlement's edge: receipts come in over the gRPC access log and are settled in batches.

While the store is away settlements wait here, bounded; what does not fit is counted, and its reservation stays charged
until it is swept. A settlement may be sent twice, since a time-out does not tell whether it was applied: the store
applies each once.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc.aio
import msgspec

from extproc import chat, metrics, receipt, wire
from extproc.admission import Settlement
from extproc.errors import StoreUnavailable, StoreUnsureError
from extproc.worker import Worker

log = logging.getLogger("llm-mesh")
_TELLING_BYTES = 1000  # a shorter body is mostly JSON: its tokens per byte would mislead about long prompts
_MAX_BACKLOG = 100_000  # settlements kept while the store is away
_BATCH = 256
_BATCHES_A_TIME = 40
_SLICE = 16
_FLUSH_SECONDS = 0.5  # more than buffer_flush_interval in mesh/envoyfilter/connection-manager.yaml
_RECOGNISED_SECONDS = 540.0  # settle.lua recognises a repeated settlement for 600 s


class _Waiting(msgspec.Struct):
    """A settlement that the store did not take. `unsure_since`: it may have been applied all the same."""

    settlement: Settlement
    unsure_since: float | None = None  # monotonic seconds


class Settler:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stopping = asyncio.Event()
        self.backlog: deque[_Waiting] = deque(maxlen=_MAX_BACKLOG)

    def stop(self) -> None:
        """End the access-log streams: Envoy opens new ones to another worker."""
        self._stopping.set()

    async def stream_access_logs(self, _requests: AsyncIterator[Any], context: Any) -> bytes:
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():  # right after one flush the next is far: what is sent while we close is lost
                    await asyncio.wait({reading}, timeout=_FLUSH_SECONDS)
                if not reading.done():
                    reading.cancel()
                    return b""
                message = reading.result()
                if message is grpc.aio.EOF:
                    return b""
                await self._take(message)
                if stopping.done():
                    return b""
        finally:
            stopping.cancel()

    async def _take(self, message: Any) -> None:
        """Settle one message's receipts in slices: folding streams for the cache must not hold decisions up."""
        receipts = wire.read_receipts(message)
        while some := list(itertools.islice(receipts, _SLICE)):
            batch = self._read(some)
            if batch:
                await self._settle([_Waiting(s) for s in batch])
            await asyncio.sleep(0)

    def _read(self, receipts: Iterable[receipt.Receipt]) -> list[Settlement]:
        tally = metrics.Tally()
        batch = []
        for each in receipts:
            try:
                settlement = self._account(each, tally)
            except Exception:
                log.exception("a receipt could not be accounted for")
                continue
            if each.ticket.key_id and each.ticket.endpoint in chat.PATHS.values():
                batch.append(settlement)
        tally.write()
        return batch

    def _account(self, r: receipt.Receipt, tally: metrics.Tally) -> Settlement:
        """One receipt into metrics, health, calibration and trace; what is left is the store's part."""
        charged = receipt.charge(r)
        settlement = receipt.settlement(r, charged, self._worker.catalogue.config.cache)
        metrics.count(r, charged, settlement.cost_micros, settlement.fill is not None, tally)
        ticket = r.ticket
        if r.unreachable or (r.upstream and r.status):  # else the client left before anything was known
            self._worker.observe(ticket.model, not r.unreachable)
        if charged.exact and ticket.prompt_bytes >= _TELLING_BYTES and charged.usage.prompt_tokens:
            self._worker.learn(ticket.model, charged.usage.prompt_tokens / ticket.prompt_bytes)
        if self._worker.tracer is not None:
            self._worker.tracer.record(r, charged.usage, settlement.cost_micros)
        return settlement

    async def _settle(self, batch: Sequence[_Waiting]) -> None:
        try:
            first = await self._worker.store.settle([w.settlement for w in batch])
        except StoreUnsureError:
            self._keep(batch, time.monotonic())
        except StoreUnavailable:
            self._keep(batch, None)
        except asyncio.CancelledError:
            self._keep(batch, time.monotonic())
            raise
        else:
            applied = sum(first)
            metrics.SETTLEMENTS.labels("applied").inc(applied)
            if applied < len(first):
                metrics.SETTLEMENTS.labels("duplicate").inc(len(first) - applied)

    def _keep(self, batch: Sequence[_Waiting], unsure_since: float | None) -> None:
        """For later, without what it would have put into the cache: the backlog is bounded by count."""
        metrics.STORE_ERRORS.labels("settle").inc()
        metrics.SETTLEMENTS.labels("dropped").inc(max(0, len(self.backlog) + len(batch) - _MAX_BACKLOG))
        self.backlog.extend(
            _Waiting(msgspec.structs.replace(w.settlement, fill=None), w.unsure_since or unsure_since) for w in batch
        )

    async def retry_backlog(self) -> None:
        """Settle what waited for the store, oldest first and some of it a time. What may have been applied is left out
        when the store would not recognise it any more: its reservation stays charged, if it has one."""
        for _ in range(_BATCHES_A_TIME):
            batch = [self.backlog.popleft() for _ in range(min(_BATCH, len(self.backlog)))]
            known_since = time.monotonic() - _RECOGNISED_SECONDS
            sure = [w for w in batch if w.unsure_since is None or w.unsure_since > known_since]
            metrics.SETTLEMENTS.labels("dropped").inc(len(batch) - len(sure))
            if not sure:
                return
            before = len(self.backlog)
            await self._settle(sure)
            if len(self.backlog) > before:
                return
