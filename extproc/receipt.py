"""Access-log entry -> what happened -> what is charged.

A `Receipt` is one request as Envoy saw it end, with the ticket of its decision. `charge` turns it into the settlement:
exact where the backend's usage came through, estimated from what passed where a stream was cut, nothing where the
upstream failed. Pure; wire.py reads the protobuf, the store applies the settlement.
"""

import base64
import binascii
from functools import lru_cache

import msgspec

from extproc import caching, pricing
from extproc.admission import Fill, Settlement
from extproc.chat import Usage, read_usage
from extproc.config import CacheConfig
from extproc.decision import Ticket

BYTES_PER_TOKEN = 4  # of answer text, where nothing better is known
_STABLE = "stable"
_LOCAL = "model-"  # begins the names of the local stack's clusters
UNDECIDED = Ticket("")  # of requests that ended before there was a decision


class Receipt(msgspec.Struct, frozen=True):
    """One request as the access log tells it. Times are seconds, `start` since the epoch."""

    ticket: Ticket
    status: int  # 0 = no answer was sent
    start: float
    duration: float
    first_byte: float  # until the first byte of the answer's body passed; 0 = none
    body_bytes: int  # of the answer, that passed
    upstream: str  # cluster name; "" = none was asked
    unreachable: bool  # no healthy upstream, or none took the connection
    client_left: bool
    request_id: str = ""  # x-request-id, for people
    peer: str = ""  # host:port that was asked
    overhead: float | None = None  # of the duration, what neither client nor upstream took; None = no upstream answered
    attempts: int = 0  # at the upstream
    flags: str = ""  # why it went wrong, in Envoy's short words: "UF,URX"
    details: str = ""  # who answered, in Envoy's words: "via_upstream"
    usage: bytes = b""  # raw JSON that usage.lua found
    done: bool = False  # the answer's end was seen
    events: int = 0  # at usage.lua's last mark
    marked_bytes: int = 0  # ditto
    body: str = ""  # base64, kept for the cache

    @property
    def arm(self) -> str:
        return arm_of(self.upstream)


@lru_cache(1000)
def arm_of(cluster: str) -> str:
    """The subset of the model's route that a cluster stands for: Istio's `outbound|8000|canary|mistral.llm.svc…` is
    `canary`; on the local stack there is one. "" where there is none."""
    parts = cluster.split("|")
    if len(parts) == 4:  # direction, port, subset, host
        return parts[2]
    return _STABLE if cluster.startswith(_LOCAL) else ""


class Charge(msgspec.Struct, frozen=True):
    """Tokens to account for. `exact` tells whether the backend counted them."""

    usage: Usage
    exact: bool
    estimated: bool


NOTHING = Charge(Usage(), exact=False, estimated=False)


def charge(receipt: Receipt) -> Charge:
    ticket = receipt.ticket
    if not receipt.upstream or ticket.cache == "hit":
        return NOTHING
    usage = read_usage(receipt.usage) if receipt.usage else None
    if usage is not None:
        return Charge(usage, exact=True, estimated=False)
    answered = 200 <= receipt.status < 300
    if not answered and (receipt.status or not receipt.client_left):  # failed, even if the client did not wait for it
        return NOTHING
    if receipt.body_bytes == 0 and not receipt.client_left:
        return NOTHING
    if receipt.unreachable:
        return NOTHING
    completion = min(_completion_estimate(receipt), ticket.max_completion_tokens) if answered else 0
    return Charge(Usage(ticket.prompt_tokens, completion), exact=False, estimated=True)


def _completion_estimate(receipt: Receipt) -> int:
    """One token an event, as vLLM streams them, scaled from the last mark to all bytes that passed."""
    if receipt.ticket.stream:
        if receipt.events and receipt.marked_bytes:
            return max(1, round(receipt.events * receipt.body_bytes / receipt.marked_bytes)) - 1
        return 0
    return receipt.body_bytes // BYTES_PER_TOKEN


def settlement(receipt: Receipt, charged: Charge, cache: CacheConfig) -> Settlement:
    ticket = receipt.ticket
    return Settlement(
        request_id=ticket.request_id,
        tenant=ticket.tenant,
        user=ticket.user,
        key_id=ticket.key_id,
        model=ticket.model,
        endpoint=ticket.endpoint,
        status=receipt.status,
        prompt_tokens=charged.usage.prompt_tokens,
        completion_tokens=charged.usage.completion_tokens,
        cached_tokens=charged.usage.cached_tokens,
        cost_micros=pricing.cost_micros(charged.usage, ticket),
        limits=ticket.limits,
        hit=ticket.cache == "hit",
        estimated=charged.estimated,
        refused=bool(ticket.reason),
        fill=_fill(receipt, cache) if charged.exact else None,
        arm=receipt.arm,
    )


def _fill(receipt: Receipt, cache: CacheConfig) -> Fill | None:
    ticket = receipt.ticket
    if not (ticket.fingerprint and receipt.body and receipt.done and receipt.status == 200):
        return None
    try:
        body = base64.b64decode(receipt.body, validate=True)
    except (binascii.Error, ValueError):
        return None
    entry = caching.entry_of(ticket.endpoint, ticket.stream, body)
    if entry is None or len(entry) > cache.max_entry_bytes:
        return None
    return Fill(ticket.fingerprint, entry, ticket.ttl_ms, cache.max_tenant_bytes)


def time_per_output_token(receipt: Receipt, usage: Usage) -> float | None:
    """Seconds between two tokens of a stream after its first; None where there is none."""
    if not (receipt.ticket.stream and receipt.first_byte and usage.completion_tokens > 1):
        return None
    return max(0.0, receipt.duration - receipt.first_byte) / (usage.completion_tokens - 1)
