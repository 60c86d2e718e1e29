"""Every key in Redis: its name, type, content and lifetime.

Owns names and the assembly of the scripts; knows no connection. All keys of a tenant begin with `llm:{TENANT}:`, and
what stands in braces decides the slot of a Redis Cluster, so one script call stays on one node. TENANT is
percent-encoded: it holds no brace and no colon, and two tenants cannot meet. The part after a key's last fixed word
is a user's, a key's or a request's own name and may contain anything.

| key | type | content | lifetime |
|---|---|---|---|
| llm:{T}:user:USER | string | missing requests, at, missing tokens, at: both buckets (limits.py) | until full + 1 min |
| llm:{T}:spent:YYYY-MM | string | micro-dollars of the month (UTC), reservations included | 100 days |
| llm:{T}:flight:KEY_ID:USER | sorted set | request ids by when their slot frees itself (1 h) | until settled or swept |
| llm:{T}:reserved | hash | request id → msgpack [user, key, tokens, micros, month, rate] | until settled or swept |
| llm:{T}:reserved:at | sorted set | request ids by the time of the reservation | the same |
| llm:{T}:settled:ID | string | empty: this request was settled | 10 min; swept: 1 day |
| llm:{T}:cache:FINGERPRINT | string | stored-at, expires-at (13 digits each), entry | the fill's TTL |
| llm:{T}:cache.index | sorted set | "fingerprint:bytes" by expiry | with its entries |
| llm:{T}:cache.bytes | string | sum of the index's bytes | stays |
| llm:{T}:usage:YYYY-MM-DD | hash | JSON [user, key, model] or […, model, arm] → JSON sums, as `METRICS` | 400 days |
| llm:{T}:ledger | stream | one field `line`, JSON, per settled or swept request | capped by length |
| llm:tenants | set | every tenant that was ever admitted | stays |
| llm:{keys} | hash | SHA-256 (hex) of an API key → KeyRecord, JSON | stays |
| llm:{keys}:revision | string | grows with every change of a key | stays |
| llm:health | hash | model → epoch ms until which it is passed over | stays |
| llm:ratios | hash | model → prompt tokens per request byte | stays |
| llm:load | hash | gateway → msgpack [at, {model → requests under way}] | until it is silent for 3 s |

Redis must not evict these (`maxmemory-policy noeviction`, or `volatile-ttl` with room to spare).
"""

import hashlib
import pathlib
import urllib.parse

import msgspec

TENANTS = b"llm:tenants"
KEYS = b"llm:{keys}"
KEYS_REVISION = b"llm:{keys}:revision"
HEALTH = b"llm:health"
RATIOS = b"llm:ratios"
LOAD = b"llm:load"

# What one value of a usage hash sums up, in the order of record.lua.
METRICS = (
    "requests",
    "hits",
    "errors",
    "estimated",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cost_micros",
)

LUA = pathlib.Path(__file__).with_name("lua")


def tenant_prefix(tenant: str) -> bytes:
    """ "%" alone is the tenant without a name: an empty tag would be no tag."""
    return f"llm:{{{urllib.parse.quote(tenant, safe='') or '%'}}}:".encode()


def usage_key(prefix: bytes, day: str) -> bytes:
    return prefix + b"usage:" + day.encode()


class Script(msgspec.Struct, frozen=True):
    text: bytes
    sha: bytes


def script(*parts: str, clock: str | None = None) -> Script:
    """Join Lua files after the clock. Tests give another `clock`: the text of a Lua function of that name."""
    prelude = clock or (LUA / "clock.lua").read_text()
    text = "\n".join([prelude, *((LUA / f"{part}.lua").read_text() for part in parts)]).encode()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


class Scripts:
    """The atomic verbs."""

    def __init__(self, clock: str | None = None) -> None:
        self.admit = script("bucket", "admit", clock=clock)
        self.settle = script("bucket", "record", "fill", "settle", clock=clock)
        self.sweep = script("bucket", "record", "sweep", clock=clock)
        self.unsettled = script("unsettled", clock=clock)
        self.put_key = script("put_key", clock=clock)
        self.share_load = script("share_load", clock=clock)
