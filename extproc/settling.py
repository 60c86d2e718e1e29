"""The settlement's edge: receipts come in over the gRPC access log and are settled in batches.

While the store is away settlements wait here, bounded; what does not fit is counted, and its reservation stays charged
until it is swept. A settlement may be sent twice, since a time-out does not tell whether it was applied: the store
applies each once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
import msgspec

from extproc import chat, metrics, receipt, wire
from extproc.admission import Settlement
from extproc.counting import Batch
from extproc.errors import StoreUnavailable, StoreUnsureError
from extproc.request_log import RequestLog, line
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


class _Read(msgspec.Struct):
    """What one message's receipts come to."""

    counted: Batch
    waiting: list[_Waiting] = []
    lines: list[bytes] = []


class Settler:
    def __init__(self, worker: Worker, request_log: RequestLog | None = None) -> None:
        self._worker = worker
        self._request_log = request_log
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
        """One message's receipts: all are read, then counted and logged together, then settled."""
        read = _Read(Batch(self._worker.exemplars))
        try:
            await self._read(message, read)
            while read.waiting:
                some, read.waiting = read.waiting[:_BATCH], read.waiting[_BATCH:]
                await self._settle(some)
        except asyncio.CancelledError:
            if read.waiting:
                self._keep(read.waiting, None)
            raise

    async def _read(self, message: Any, read: _Read) -> None:
        """In slices: folding streams for the cache must not hold decisions up."""
        try:
            for place, each in enumerate(wire.read_receipts(message), 1):
                self._account(each, read)
                if place % _SLICE == 0:
                    await asyncio.sleep(0)
        finally:
            read.counted.write()
            if self._request_log is not None:
                metrics.LOG_DROPPED.inc(self._request_log.write(read.lines))

    def _account(self, each: receipt.Receipt, read: _Read) -> None:
        try:
            settlement = self._spread(each, read)
        except Exception:
            log.exception("a receipt could not be accounted for")
            return
        if each.ticket.key_id and each.ticket.endpoint in chat.PATHS.values():
            read.waiting.append(_Waiting(settlement))

    def _spread(self, r: receipt.Receipt, read: _Read) -> Settlement:
        """One receipt into metrics, health, calibration, trace and log; what is left is the store's part."""
        charged = receipt.charge(r)
        settlement = receipt.settlement(r, charged, self._worker.catalogue.config.cache)
        read.counted.add(r, charged, settlement.cost_micros, settlement.fill is not None)
        ticket = r.ticket
        if self._request_log is not None:
            read.lines.append(line(r, charged, settlement.cost_micros))
        if ticket.model and (r.unreachable or (r.upstream and r.status)):  # else the client left before all was known
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
