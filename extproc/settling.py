"""The settlement's edge: receipts come in over the gRPC access log and are settled in batches.

While the store is away settlements wait here, bounded; what does not fit is counted, and its reservation stays charged
until it is swept. A settlement may be sent twice, since a time-out does not tell whether it was applied: the store
applies each once.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from extproc import chat, metrics, receipt, wire
from extproc.admission import Settlement
from extproc.errors import StoreUnavailable
from extproc.worker import Worker

log = logging.getLogger("llm-mesh")
_TELLING_BYTES = 1000  # a shorter body is mostly JSON: its tokens per byte would mislead about long prompts
_MAX_BACKLOG = 100_000  # settlements kept while the store is away
_BATCH = 256


class Settler:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.backlog: deque[Settlement] = deque(maxlen=_MAX_BACKLOG)

    async def stream_access_logs(self, _requests: AsyncIterator[Any], context: Any) -> bytes:
        while True:
            message = await context.read()
            if message is grpc.aio.EOF:
                return b""
            batch = self._read(message)
            if batch:
                await self._settle(batch)

    def _read(self, message: Any) -> list[Settlement]:
        tally = metrics.Tally()
        batch = []
        for each in wire.read_receipts(message):
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

    async def _settle(self, batch: Sequence[Settlement]) -> None:
        try:
            first = await self._worker.store.settle(batch)
        except StoreUnavailable:
            metrics.STORE_ERRORS.labels("settle").inc()
            dropped = max(0, len(self.backlog) + len(batch) - _MAX_BACKLOG)
            metrics.SETTLEMENTS.labels("dropped").inc(dropped)
            self.backlog.extend(batch)
            return
        applied = sum(first)
        metrics.SETTLEMENTS.labels("applied").inc(applied)
        if applied < len(first):
            metrics.SETTLEMENTS.labels("duplicate").inc(len(first) - applied)

    async def retry_backlog(self) -> None:
        """Settle what waited for the store, oldest first. A settlement that had arrived after all is a duplicate."""
        while self.backlog:
            batch = [self.backlog.popleft() for _ in range(min(_BATCH, len(self.backlog)))]
            before = len(self.backlog)
            await self._settle(batch)
            if len(self.backlog) > before:
                return
