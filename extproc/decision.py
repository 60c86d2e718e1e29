"""One request's decision: prompt + caller -> plan -> (the store's answer) -> Forward | Replay | Reject.

Pure: the one IO in the middle is the server's. A verdict says all that must be done, including the ticket: what the
settlement will need to know. It travels through Envoy as dynamic metadata and comes back in the access-log entry, so
that no state is kept here between the two and any worker can settle any request.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from extproc import caching, chat, pricing, routing
from extproc.admission import Admission, Claim, KeyRecord, Level, Limits, Outcome
from extproc.config import Catalogue, Model, Priority
from extproc.errors import ApiError

CacheStatus = Literal["hit", "miss", "bypass"]
NO_LIMITS = Limits(requests_per_minute=0, burst_requests=0)


class Caller(msgspec.Struct, frozen=True):
    """Who asks, as the key or the token says."""

    key: KeyRecord
    limits: Limits
    priority: Priority = "normal"


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What a settlement must know of its request. JSON array in the metadata `llm.ticket`; append fields only."""

    request_id: str
    endpoint: str = ""
    tenant: str = ""
    user: str = ""
    key_id: str = ""
    limits: Limits = NO_LIMITS
    model: str = ""
    input_price: int = 0
    output_price: int = 0
    cached_input_price: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0  # estimate
    max_completion_tokens: int = 0  # reserved
    stream: bool = False
    cache: CacheStatus = "bypass"
    fingerprint: str = ""  # where the answer is to be stored; "" = not at all
    ttl_ms: int = 0
    reason: str = ""  # the error's code word, for refusals
    trace: str = ""  # traceparent of our own span; "" = not traced
    parent: str = ""  # the caller's span id
    decided_us: int = 0  # time the decision took
    store_us: int = 0  # of it, waiting for the store


class Timing(msgspec.Struct, frozen=True):
    """What the edge measured of the decision, and the ids of its span."""

    decided_us: int = 0
    store_us: int = 0
    trace: str = ""
    parent: str = ""


_UNTIMED = Timing()


class Plan(msgspec.Struct, frozen=True):
    prompt: chat.Prompt
    model: Model
    claim: Claim
    ticket: Ticket
    max_fill_bytes: int


class Forward(msgspec.Struct, frozen=True):
    model: str
    body: bytes | None  # None: the client's bytes pass as they are
    strip_usage: bool
    max_fill_bytes: int  # 0 = the answer is not to be kept
    headers: dict[str, str]  # for the answer
    ticket: Ticket


class Replay(msgspec.Struct, frozen=True):
    content_type: str
    body: bytes
    headers: dict[str, str]
    ticket: Ticket


class Reject(msgspec.Struct, frozen=True):
    error: ApiError
    headers: dict[str, str]
    ticket: Ticket


Verdict = Forward | Replay | Reject


def plan(
    catalogue: Catalogue,
    caller: Caller,
    prompt: chat.Prompt,
    request_id: str,
    cache_control: str,
    tokens_per_byte: Callable[[Model], float],
    is_up: Callable[[Model], bool],
    is_full: Callable[[Model, Priority], bool],
) -> Plan:
    """Raises ApiError where no model can be chosen."""
    key = caller.key
    choice = routing.choose(catalogue, prompt, key.models, tokens_per_byte, is_up)
    model = choice.model
    cacheable = "no-store" not in cache_control and caching.may_cache(prompt, model)
    lookup = cacheable and "no-cache" not in cache_control
    fingerprint = caching.fingerprint(prompt, model) if cacheable else ""
    worst = chat.Usage(choice.prompt_tokens, choice.completion_tokens)
    claim = Claim(
        request_id=request_id,
        tenant=key.tenant,
        user=key.user,
        key_id=key.key_id,
        tokens=choice.prompt_tokens + choice.completion_tokens,
        cost_micros=pricing.cost_micros(worst, model),
        limits=caller.limits,
        fingerprint=fingerprint if lookup else "",
        cached_only=is_full(model, caller.priority),
    )
    ticket = Ticket(
        request_id=request_id,
        endpoint=prompt.endpoint,
        tenant=key.tenant,
        user=key.user,
        key_id=key.key_id,
        limits=caller.limits,
        model=model.name,
        input_price=model.input_price,
        output_price=model.output_price,
        cached_input_price=model.cached_input_price,
        prompt_bytes=0 if prompt.media else prompt.size_bytes,
        prompt_tokens=choice.prompt_tokens,
        max_completion_tokens=choice.completion_tokens,
        stream=prompt.stream,
        cache="miss" if lookup else "bypass",
        fingerprint=fingerprint,
        ttl_ms=model.cache_ttl_ms,
    )
    return Plan(prompt, model, claim, ticket, catalogue.config.cache.max_entry_bytes)


def decide(plan: Plan, admission: Admission, timing: Timing = _UNTIMED) -> Verdict:
    headers = limit_headers(admission)
    headers["x-llm-model"] = plan.model.name
    if admission.outcome is Outcome.ADMITTED:
        ticket = _stamped(plan.ticket, timing)
        if admission.local:
            ticket = msgspec.structs.replace(ticket, cache="bypass", fingerprint="")
        headers["x-llm-cache"] = ticket.cache
        prompt = plan.prompt
        body = chat.rewrite(prompt, plan.model.served_name)
        strip = prompt.stream and not prompt.include_usage and prompt.endpoint != "responses"
        fill = plan.max_fill_bytes if ticket.fingerprint else 0
        return Forward(plan.model.name, body, strip, fill, headers, ticket)
    if admission.outcome is Outcome.HIT:
        headers["x-llm-cache"] = "hit"
        headers["age"] = str(admission.age_ms // 1000)
        content_type, body = caching.replay(plan.prompt, admission.entry)
        ticket = _stamped(plan.ticket, timing, cache="hit", fingerprint="")
        return Replay(content_type, body, headers, ticket)
    error = refusal(admission, plan)
    return Reject(error, headers, _stamped(plan.ticket, timing, fingerprint="", reason=error.code or ""))


def _stamped(ticket: Ticket, timing: Timing, **changes: Any) -> Ticket:
    return msgspec.structs.replace(
        ticket,
        decided_us=timing.decided_us,
        store_us=timing.store_us,
        trace=timing.trace,
        parent=timing.parent,
        **changes,
    )


def refusal(admission: Admission, plan: Plan) -> ApiError:
    """OpenAI's words for a limit that is used up."""
    limits, wait = plan.claim.limits, duration(admission.retry_after_ms)
    who = f"user `{plan.claim.user}` of `{plan.claim.tenant}`"
    if admission.outcome is Outcome.BUDGET:
        text = (
            f"`{plan.claim.tenant}` has used up its budget of ${limits.budget_micros / 1_000_000:.2f} for this month."
        )
        return ApiError(
            429, "insufficient_quota", text, kind="insufficient_quota", retry_after_ms=admission.retry_after_ms
        )
    if admission.outcome is Outcome.FULL:
        text = f"The model `{plan.model.name}` has as many requests as it can take. Please try again in {wait}."
        return ApiError(503, "model_overloaded", text, kind="server_error", retry_after_ms=admission.retry_after_ms)
    if admission.outcome is Outcome.REQUESTS:
        kind, text = "requests", f"{limits.requests_per_minute} requests per minute"
    elif admission.outcome is Outcome.TOKENS:
        kind = "tokens"
        text = f"{limits.tokens_per_minute} tokens per minute; this request needs up to {plan.claim.tokens}"
    else:
        kind, text = "requests", f"{limits.max_in_flight} requests in flight at a time"
    message = f"Rate limit reached for {who}: {text}. Please try again in {wait}."
    return ApiError(429, "rate_limit_exceeded", message, kind=kind, retry_after_ms=admission.retry_after_ms)


def limit_headers(admission: Admission) -> dict[str, str]:
    headers: dict[str, str] = {}
    _put(headers, "requests", admission.requests)
    _put(headers, "tokens", admission.tokens)
    return headers


def _put(headers: dict[str, str], unit: str, level: Level) -> None:
    if level.limit:
        headers["x-ratelimit-limit-" + unit] = str(level.limit)
        headers["x-ratelimit-remaining-" + unit] = str(level.remaining)
        headers["x-ratelimit-reset-" + unit] = duration(level.reset_ms)


def duration(ms: int) -> str:
    """As OpenAI writes it: 450ms, 1.2s, 6m0s, 2h0m0s."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, seconds = divmod(-(-ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"


def error_headers(error: ApiError) -> dict[str, str]:
    """Retry-After in whole seconds, never too early; x-should-retry for the SDKs where waiting does not help."""
    headers: dict[str, str] = {}
    if error.retry_after_ms:
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
        if error.status == 429:
            headers["retry-after-ms"] = str(error.retry_after_ms)
    if error.code == "insufficient_quota":
        headers["x-should-retry"] = "false"
    return headers
