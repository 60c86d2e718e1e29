"""API keys: made here, shown once, stored only as their SHA-256; and each worker's memory of the keys it has seen.

A key has 256 random bits, so a plain hash is enough to store it: there is nothing to guess. The ring asks the store
for a key it does not know, and after that only once the keys' revision has moved (read every second), so a revocation
holds on every worker within two seconds. While the store is away, known keys are honoured for a bounded time and
unknown ones refused.
"""

import hashlib
import secrets
import time
from collections import OrderedDict

import msgspec

from extproc.admission import KeyRecord, Store
from extproc.errors import ApiError, StoreUnavailable, invalid_api_key, unavailable

PREFIX = "sk-llm-"
_MAX_REMEMBERED = 100_000
_REFUSAL_SECONDS = 1.0  # how long an unknown key is refused without asking the store again


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_id(digest: str) -> str:
    """A name for the key that may be shown: logs, reports, `keys revoke`."""
    return "key_" + digest[:12]


class _Known(msgspec.Struct):
    record: KeyRecord | None  # None = there is no such key
    revision: int
    asked: float  # monotonic seconds


class KeyRing:
    def __init__(self, store: Store, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._store = store
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._revision = -1
        self._confirmed = time.monotonic()  # when the store last told the revision

    def confirm(self, revision: int) -> None:
        """The store's word of this second."""
        self._revision = revision
        self._confirmed = time.monotonic()

    def recall(self, digest: str) -> KeyRecord | None:
        """The record if it is known and certain, else None: then `find` must be asked."""
        known = self._known.get(digest)
        if known is None or known.record is None or known.revision != self._revision:
            return None
        return known.record if time.monotonic() - self._confirmed <= self.grace_seconds else None

    async def find(self, digest: str) -> KeyRecord:
        """Raises ApiError: 401 for an unknown key, 503 if nothing is known and the store can not be asked."""
        known = self._known.get(digest)
        now = time.monotonic()
        if known is not None and known.record is None and now - known.asked < _REFUSAL_SECONDS:
            raise _incorrect()
        revision = self._revision
        try:
            record = await self._store.find_key(digest)
        except StoreUnavailable as error:
            if known is not None and known.record is not None and now - self._confirmed <= self.grace_seconds:
                return known.record
            raise unavailable("The API key can not be checked right now. Please try again.") from error
        self._known[digest] = _Known(record, revision, now)
        self._known.move_to_end(digest)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        if record is None:
            raise _incorrect()
        return record


def bearer(authorization: str) -> str:
    """The key in an Authorization header. Raises ApiError (401)."""
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise invalid_api_key(
            "You didn't provide an API key. Send it in the Authorization header: `Authorization: Bearer YOUR_KEY`."
        )
    if not key.startswith(PREFIX) or len(key) > 200:
        raise _incorrect()
    return key


def check(record: KeyRecord, now_ms: int) -> None:
    """Raises ApiError (401) if the key may not be used any more."""
    if record.revoked_ms and record.revoked_ms <= now_ms:
        raise invalid_api_key("This API key has been revoked.")
    if record.expires_ms and record.expires_ms <= now_ms:
        raise invalid_api_key("This API key has expired.")


def _incorrect() -> ApiError:
    return invalid_api_key("Incorrect API key provided.")
