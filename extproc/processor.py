"""The decision's edge: one gRPC stream a request, two messages in, one decision out.

`process` sees the request's headers, then its whole body, answers and closes the stream, so that no byte of the answer
ever passes through Python. A request that can not be decided is refused or its stream ends with an error: a stream that
ended cleanly without a decision would let it pass.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import msgspec

from extproc import chat, config, decision, keys, metrics, models_api, tracing, wire
from extproc.admission import Admission, Claim, Limits
from extproc.errors import ApiError, StoreUnavailable, invalid, not_found, too_large, unsupported_media
from extproc.worker import Worker, now_ms

log = logging.getLogger("llm-mesh")


class Processor:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._ids = (f"{secrets.token_hex(8)}-{n:x}" for n in itertools.count())

    async def process(self, _requests: AsyncIterator[Any], context: Any) -> None:
        message = await context.read()
        if message is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.CANCELLED, "no headers came")
        began = time.perf_counter()
        head = wire.read_head(message)
        catalogue = self._worker.catalogue
        endpoint = "models" if models_api.is_ours(head.path) else chat.PATHS.get(head.path, "")
        ticket = decision.Ticket(next(self._ids), endpoint)
        try:
            caller = await self._authenticate(head, catalogue)
            key = caller.key
            ticket = msgspec.structs.replace(ticket, tenant=key.tenant, user=key.user, key_id=key.key_id)
            if head.method == "GET":
                await context.write(wire.answer(models_api.answer(catalogue, head.path, key.models), ticket))
                return
            check_head(head, catalogue.config.max_body_bytes)
            await context.write(wire.CONTINUE)
            spent = time.perf_counter() - began
            message = await context.read()
            if message is grpc.aio.EOF:  # the client left; nothing may be taken for a decision
                await context.abort(grpc.StatusCode.CANCELLED, "no body came")
            began = time.perf_counter() - spent
            reply = await self._decide(head, wire.read_body(message), caller, catalogue, ticket, began)
        except ApiError as error:
            reply = wire.reject(decision.Reject(error, {}, ticket))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            log.exception("request failed")
            failure = ApiError(500, "internal_error", "The request could not be decided.", kind="server_error")
            reply = wire.reject(decision.Reject(failure, {}, ticket))
        await context.write(reply)

    async def _authenticate(self, head: wire.Head, catalogue: config.Catalogue) -> decision.Caller:
        digest = keys.digest(keys.bearer(head.get("authorization")))
        record = self._worker.keys.recall(digest) or await self._worker.keys.find(digest)
        keys.check(record, now_ms())
        if head.path not in chat.PATHS and not models_api.is_ours(head.path):
            raise not_found(head.method, head.path)
        if (head.method == "POST") != (head.path in chat.PATHS) or head.method not in {"GET", "POST"}:
            raise not_found(head.method, head.path)
        return decision.Caller(record, catalogue.limits_of(record.tenant, record.limits))

    async def _decide(
        self,
        head: wire.Head,
        body: bytes,
        caller: decision.Caller,
        catalogue: config.Catalogue,
        ticket: decision.Ticket,
        began: float,
    ) -> bytes:
        if len(body) > catalogue.config.max_body_bytes:
            raise too_large(catalogue.config.max_body_bytes)
        prompt = chat.read_prompt(chat.PATHS[head.path], body)
        now = now_ms()
        plan = decision.plan(
            catalogue,
            caller,
            prompt,
            ticket.request_id,
            head.get("cache-control").lower(),
            self._worker.tokens_per_byte,
            lambda model: self._worker.health.is_up(model.name, now),
        )
        asked = time.perf_counter()
        admission = await self._admit(plan.claim)
        answered = time.perf_counter()
        traced = tracing.begin(head.get("traceparent")) if self._worker.tracer else None
        ticket = msgspec.structs.replace(
            plan.ticket,
            store_us=int((answered - asked) * 1e6),
            decided_us=int((answered - began) * 1e6),
            trace=traced.header() if traced else "",
            parent=traced.parent if traced else "",
        )
        verdict = decision.decide(msgspec.structs.replace(plan, ticket=ticket), admission)
        if isinstance(verdict, decision.Forward):
            limit = catalogue.config.cache.max_entry_bytes
            return wire.forward(verdict, head, limit, traced.header() if traced else "")
        if isinstance(verdict, decision.Replay):
            return wire.replay(verdict)
        return wire.reject(verdict)

    async def _admit(self, claim: Claim) -> Admission:
        """The store's answer, or while it is away that of our share of the limits, kept in this process."""
        try:
            return await self._worker.store.admit(claim)
        except StoreUnavailable:
            metrics.LOCAL_ADMISSIONS.inc()
            metrics.STORE_ERRORS.labels("admit").inc()
            share = divide(claim.limits, self._worker.options.shares)
            return await self._worker.local.admit(msgspec.structs.replace(claim, limits=share, fingerprint=""))


def check_head(head: wire.Head, max_body_bytes: int) -> None:
    """Raises ApiError for a body that need not be waited for."""
    length = head.get("content-length")
    if length.isdigit() and int(length) > max_body_bytes:
        raise too_large(max_body_bytes)
    media = head.get("content-type").partition(";")[0].strip().lower()
    if media != "application/json":
        raise unsupported_media(f"Send the body as `Content-Type: application/json`, not `{media or 'nothing'}`.")
    encoding = head.get("content-encoding").strip().lower()
    if encoding not in {"", "identity"}:
        raise unsupported_media("Compressed request bodies are not supported: send it without Content-Encoding.")
    if head.end_of_stream:
        raise invalid("The request body is empty: a JSON object is needed.")


def divide(limits: Limits, shares: int) -> Limits:
    """One worker's share of limits that it can not ask the store about. A limit stays a limit: at least 1."""

    def share(value: int) -> int:
        return max(1, value // shares) if value else 0

    return Limits(
        requests_per_minute=share(limits.requests_per_minute),
        burst_requests=share(limits.burst_requests),
        tokens_per_minute=share(limits.tokens_per_minute),
        burst_tokens=share(limits.burst_tokens),
        budget_micros=0,  # money spent before is known to the store alone
        max_in_flight=share(limits.max_in_flight),
    )
