"""API keys: made here, shown once, stored only as their SHA-256; and each worker's memory of the keys it has seen.

A key has 256 random bits, so a plain hash is enough to store it: there is nothing to guess. The ring asks the store
for a key it does not know, and after that only once the keys' revision has moved (read every second), so a revocation
holds on every worker within two seconds. While the store is away, known keys are honoured for a bounded time and
unknown ones refused.
"""

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from typing import TypeVar

import msgspec

from extproc.admission import KeyRecord, Store
from extproc.errors import ApiError, StoreUnavailable, invalid_api_key, unavailable

PREFIX = "sk-llm-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")  # of a tenant or user: the whole of it
NAME_RULE = "letters, digits and . _ @ - only, 63 at most"
_MAX_REMEMBERED = 100_000
T = TypeVar("T")
_REFUSAL_SECONDS = 1.0  # how long an unknown key is refused without asking the store again


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_id(digest: str) -> str:
    """A name for the key that may be shown: logs, reports, `keys revoke`."""
    return "key_" + digest[:12]


class _Known(msgspec.Struct):
    record: KeyRecord
    revision: int


class KeyRing:
    def __init__(self, store: Store, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._store = store
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._refused: OrderedDict[str, float] = (
            OrderedDict()
        )  # digest -> when; of its own, so that none pushes keys out
        self._revision = -1
        self._confirmed = time.monotonic()  # when the store last told the revision

    def confirm(self, revision: int) -> None:
        """The store's word of this second."""
        self._revision = revision
        self._confirmed = time.monotonic()

    def recall(self, digest: str) -> KeyRecord | None:
        """The record if it is known and certain, else None: then `find` must be asked."""
        known = self._known.get(digest)
        if known is None or known.revision != self._revision:
            return None
        return known.record if time.monotonic() - self._confirmed <= self.grace_seconds else None

    async def find(self, digest: str) -> KeyRecord:
        """Raises ApiError: 401 for an unknown key, 503 if nothing is known and the store can not be asked."""
        now = time.monotonic()
        if now - self._refused.get(digest, -_REFUSAL_SECONDS) < _REFUSAL_SECONDS:
            raise _incorrect("unknown")
        revision = self._revision
        try:
            record = await self._store.find_key(digest)
        except StoreUnavailable as error:
            known = self._known.get(digest)
            if known is not None and now - self._confirmed <= self.grace_seconds:
                return known.record
            raise unavailable("The API key can not be checked right now. Please try again.") from error
        if record is None:
            self._known.pop(digest, None)
            _remember(self._refused, digest, now)
            raise _incorrect("unknown")
        _remember(self._known, digest, _Known(record, revision))
        return record


def _remember(table: "OrderedDict[str, T]", digest: str, value: T) -> None:
    """Bounded; the one that was asked for longest ago goes first."""
    table[digest] = value
    table.move_to_end(digest)
    if len(table) > _MAX_REMEMBERED:
        table.popitem(last=False)


def is_ours(authorization: str) -> bool:
    """Whether it shows something like a key of ours, which `bearer` is to judge."""
    scheme, _, key = authorization.partition(" ")
    return key.startswith(PREFIX) and scheme.lower() == "bearer"


def bearer(authorization: str) -> str:
    """The key in an Authorization header. Raises ApiError (401)."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise invalid_api_key(
            "You didn't provide an API key. Send it in the Authorization header: `Authorization: Bearer YOUR_KEY`.",
            "missing",
        )
    if not key.startswith(PREFIX) or len(key) > 200:
        raise _incorrect("malformed")
    return key


def check(record: KeyRecord, now_ms: int) -> None:
    """Raises ApiError (401) if the key may not be used any more."""
    if record.revoked_ms and record.revoked_ms <= now_ms:
        raise invalid_api_key("This API key has been revoked.", "revoked")
    if record.expires_ms and record.expires_ms <= now_ms:
        raise invalid_api_key("This API key has expired.", "expired")


def _incorrect(why: str) -> ApiError:
    return invalid_api_key("Incorrect API key provided.", why)
