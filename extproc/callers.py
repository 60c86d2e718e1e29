"""Who asks: the owner of an API key, or the user of a token that the gateway has verified.

A key is looked up in the worker's ring. A token (JWT) never comes here: the gateway checks it (RequestAuthentication)
and hands on whom it was issued to as the headers `x-llm-tenant` and `x-llm-user`, which are taken off whatever a client
sends (mesh/envoyfilter/connection-manager.yaml). Such callers are taken only where the configuration has the section
`jwt`; one who shows a key of ours is judged by the key.
"""

from extproc import decision, keys
from extproc.admission import KeyRecord
from extproc.config import Catalogue, JwtConfig
from extproc.errors import ApiError, invalid_api_key
from extproc.store.bounded import Bounded
from extproc.wire import TENANT, USER, Head
from extproc.worker import now_ms

KEY_ID = "jwt"  # of all token callers, for the usage report; what is counted for a key is counted for each user here


class Callers:
    """Callers are made from a catalogue and a key's record or a token's names, and good as long as those are."""

    def __init__(self, ring: keys.KeyRing, max_callers: int = 10_000) -> None:
        self._ring = ring
        self._of_keys: Bounded[str, tuple[KeyRecord, Catalogue, decision.Caller]] = Bounded(max_callers)
        self._of_tokens: Bounded[tuple[str, str], tuple[Catalogue, decision.Caller]] = Bounded(max_callers)

    async def identify(self, head: Head, catalogue: Catalogue) -> decision.Caller:
        """Raises ApiError (401, 503)."""
        authorization = head.get("authorization")
        if (TENANT in head.headers or USER in head.headers) and not keys.is_ours(authorization):
            return self._of_token(head.get(TENANT), head.get(USER), catalogue)
        digest = keys.digest(keys.bearer(authorization))
        record = self._ring.recall(digest) or await self._ring.find(digest)
        keys.check(record, now_ms())
        known = self._of_keys.items.get(digest)
        if known is not None and known[0] is record and known[1] is catalogue:
            return known[2]
        limits = catalogue.limits_of(record.tenant, record.limits)
        caller = decision.Caller(record, limits, catalogue.priority_of(record.tenant, record.priority))
        self._of_keys.put(digest, (record, catalogue, caller))
        return caller

    def _of_token(self, tenant: str, user: str, catalogue: Catalogue) -> decision.Caller:
        known = self._of_tokens.items.get((tenant, user))
        if known is not None and known[0] is catalogue:
            return known[1]
        caller = _token_caller(tenant, user, catalogue)
        self._of_tokens.put((tenant, user), (catalogue, caller))
        return caller


def _token_caller(tenant: str, user: str, catalogue: Catalogue) -> decision.Caller:
    jwt = catalogue.config.jwt
    if not isinstance(jwt, JwtConfig):
        words = "Tokens are not accepted here. Send an API key: `Authorization: Bearer YOUR_KEY`."
        raise invalid_api_key(words, "token")
    for what, name in (("tenant", tenant), ("user", user)):
        if not keys.NAME.fullmatch(name):
            raise _nameless(what, name)
    overrides = {} if jwt.max_in_flight is None else {"max_in_flight": jwt.max_in_flight}
    record = KeyRecord(KEY_ID, tenant, user, list(jwt.models), created_ms=0, limits=overrides)
    return decision.Caller(record, catalogue.limits_of(tenant, overrides), catalogue.priority_of(tenant, ""))


def _nameless(what: str, name: str) -> ApiError:
    if not name:
        return invalid_api_key(f"The token names no {what}.", "token")
    return invalid_api_key(f"The {what} that the token names can not be used: {keys.NAME_RULE}.", "token")
