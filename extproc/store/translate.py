"""Values to what the scripts take, and Redis's answers to values.

Owns the shapes on both sides of the socket, and knows no socket. Claims and settlements cross as msgpack of the
structs themselves: their field names are the contract with the Lua.
"""

from collections.abc import Iterator, Sequence

import msgspec

from extproc import limits
from extproc.admission import Admission, KeyRecord, Limits, Outcome, Settlement, UsageRow
from extproc.errors import StoreUnavailable
from extproc.store import keyspace
from extproc.store.resp import Reply

SETTLE_BATCH = 16  # per script call: more would hold up decisions
SETTLE_BATCH_BYTES = 1_000_000  # of cache entries per script call
STAMP = 26  # digits before a cache entry: stored at, expires at

encode = msgspec.msgpack.Encoder().encode
decode_key = msgspec.json.Decoder(KeyRecord).decode
decode_group = msgspec.json.Decoder(list[str]).decode
decode_sums = msgspec.json.Decoder(list[int]).decode
OUTCOMES = tuple(Outcome)


class FillHeader(msgspec.Struct, frozen=True):
    """A Fill without its entry: Redis's msgpack knows no byte strings."""

    fingerprint: str
    ttl_ms: int
    max_tenant_bytes: int


def admission(claimed: Limits, reply: Reply) -> Admission:
    outcome = OUTCOMES[reply[0]]
    requests = limits.level(reply[2], claimed.requests_per_minute, claimed.burst_requests)
    tokens = limits.level(reply[3], claimed.tokens_per_minute, claimed.burst_tokens)
    if outcome is Outcome.HIT:
        return Admission(outcome, requests, tokens, 0, reply[4][STAMP:], reply[5])
    return Admission(outcome, requests, tokens, reply[1])


def chunks(settlements: Sequence[Settlement], places: list[int]) -> Iterator[list[int]]:
    """Cut one tenant's places into script calls that do not hold Redis up."""
    chosen: list[int] = []
    entry_bytes = 0
    for place in places:
        if len(chosen) == SETTLE_BATCH or entry_bytes > SETTLE_BATCH_BYTES:
            yield chosen
            chosen, entry_bytes = [], 0
        chosen.append(place)
        fill = settlements[place].fill
        entry_bytes += len(fill.entry) if fill is not None else 0
    yield chosen


def without_entry(settlement: Settlement) -> Settlement:
    fill = settlement.fill
    if fill is None:
        return settlement
    header = FillHeader(fill.fingerprint, fill.ttl_ms, fill.max_tenant_bytes)
    return msgspec.structs.replace(settlement, fill=header)


def key_record(raw: bytes) -> KeyRecord:
    try:
        return decode_key(raw)
    except msgspec.DecodeError as error:
        raise StoreUnavailable(f"an API key's record in Redis cannot be read: {error}") from None


def pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """What HGETALL answers."""
    return zip(flat[::2], flat[1::2], strict=True)


def usage_rows(tenant: str, day: str, flat: list[bytes]) -> list[UsageRow]:
    rows = []
    for field, value in pairs(flat):
        user, key_id, model, *arm = decode_group(field)
        sums = zip(keyspace.METRICS, decode_sums(value), strict=True)
        rows.append(UsageRow(day, tenant, user, key_id, model, "".join(arm), **dict(sums)))
    return sorted(rows, key=lambda row: (row.user, row.key_id, row.model, row.arm))
