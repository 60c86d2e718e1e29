"""The decision's edge: one message in, one decision out.

Envoy opens a bidirectional stream for each request; on it, one message comes (headers and whole body together) and one
goes, so the service is written as a unary call, which gRPC answers in a single write. The stream is closed with the
decision: no byte of the answer ever passes through Python. A request that can not be decided is refused, or its stream
ends with an error, which Envoy refuses.
"""

import itertools
import logging
import secrets
import time
from typing import Any

import msgspec

from extproc import chat, config, decision, metrics, models_api, tracing, wire
from extproc.admission import TURNED_AWAY, Admission, Claim, Limits
from extproc.callers import Callers
from extproc.errors import ApiError, StoreUnavailable, invalid, too_large, unsupported_media
from extproc.worker import Worker

log = logging.getLogger("llm-mesh")


class Processor:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        boot = secrets.token_hex(8)
        self._ids = (f"{boot}-{n:x}" for n in itertools.count())
        self._callers = Callers(worker.keys)

    async def process(self, message: Any, _context: Any) -> bytes:
        """Raises WireError for a message that is no request; the stream then ends with an error, and Envoy refuses."""
        began = time.perf_counter()
        if message is None:
            refusal = invalid("A header of the request is not valid UTF-8.")
            return wire.reject(decision.Reject(refusal, {}, decision.Ticket(next(self._ids))))
        head, body = wire.read_request(message)
        catalogue = self._worker.catalogue
        request_id = next(self._ids)
        caller = None
        try:
            caller = await self._callers.identify(head, catalogue)
            endpoint = chat.PATHS.get(head.path) if head.method == "POST" else None
            if endpoint is None:
                listing = models_api.answer(catalogue, head.method, head.path, caller.key.models)
                return wire.answer(listing, _bare_ticket(request_id, head, caller))
            check_head(head, body, catalogue.config.max_body_bytes)
            return await self._decide(head, body, caller, catalogue, endpoint, request_id, began)
        except ApiError as error:
            if error.why:
                metrics.KEYS_REFUSED.labels(error.why).inc()
            return wire.reject(decision.Reject(error, {}, _bare_ticket(request_id, head, caller)))
        except Exception:
            log.exception("request failed")
            failure = ApiError(500, "internal_error", "The request could not be decided.", kind="server_error")
            return wire.reject(decision.Reject(failure, {}, _bare_ticket(request_id, head, caller)))

    async def _decide(
        self,
        head: wire.Head,
        body: bytes,
        caller: decision.Caller,
        catalogue: config.Catalogue,
        endpoint: config.Endpoint,
        request_id: str,
        began: float,
    ) -> bytes:
        prompt = chat.read_prompt(endpoint, body)
        plan = decision.plan(
            catalogue,
            caller,
            prompt,
            request_id,
            head.get("cache-control").lower(),
            self._worker.tokens_per_byte,
            self._worker.is_up,
            self._worker.is_full,
        )
        asked = time.perf_counter()
        admission = await self._admit(plan.claim)
        answered = time.perf_counter()
        traced = tracing.begin(head.get("traceparent")) if self._worker.tracer else None
        timing = decision.Timing(
            decided_us=int((answered - began) * 1e6),
            store_us=int((answered - asked) * 1e6),
            trace=traced.header() if traced else "",
            parent=traced.parent if traced else "",
        )
        verdict = decision.decide(plan, admission, timing)
        if isinstance(verdict, decision.Forward):
            self._worker.sent(verdict.model)
            return wire.forward(verdict)
        if isinstance(verdict, decision.Replay):
            return wire.replay(verdict)
        return wire.reject(verdict)

    async def _admit(self, claim: Claim) -> Admission:
        """The store's answer, or while it is away that of our share of the limits, kept in this process."""
        if claim.cached_only and not claim.fingerprint:
            return TURNED_AWAY
        try:
            return await self._worker.store.admit(claim)
        except StoreUnavailable:
            metrics.LOCAL_ADMISSIONS.inc()
            metrics.STORE_ERRORS.labels("admit").inc()
            share = divide(claim.limits, self._worker.options.shares)
            share = msgspec.structs.replace(share, max_in_flight=0)  # nobody tells us when a flight ends
            claim = msgspec.structs.replace(claim, limits=share, fingerprint="")
            return msgspec.structs.replace(await self._worker.local.admit(claim), local=True)


def _bare_ticket(request_id: str, head: wire.Head, caller: decision.Caller | None) -> decision.Ticket:
    """For what was answered or refused before there was a plan."""
    endpoint = "models" if models_api.is_ours(head.path) else chat.PATHS.get(head.path, "")
    if caller is None:
        return decision.Ticket(request_id, endpoint)
    key = caller.key
    return decision.Ticket(request_id, endpoint, key.tenant, key.user, key.key_id)


def check_head(head: wire.Head, body: bytes, max_body_bytes: int) -> None:
    """Raises ApiError for a body that need not be read."""
    if len(body) > max_body_bytes:
        raise too_large(max_body_bytes)
    media = head.get("content-type").partition(";")[0].strip().lower()
    if media != "application/json":
        raise unsupported_media(f"Send the body as `Content-Type: application/json`, not `{media or 'nothing'}`.")
    encoding = head.get("content-encoding").strip().lower()
    if encoding not in {"", "identity"}:
        raise unsupported_media("Compressed request bodies are not supported: send it without Content-Encoding.")
    if not body:
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
