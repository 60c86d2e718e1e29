"""API keys, and what a worker remembers of them."""

import pytest
from unit_rig import key

from extproc import keys
from extproc.admission import KeyRecord
from extproc.errors import ApiError, StoreUnavailable
from extproc.keys import KeyRing
from extproc.store import MemoryStore

DIGEST = keys.digest("sk-llm-x")


class Store(MemoryStore):
    """A store that can be away, and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.away = False
        self.asked = 0

    async def find_key(self, digest: str) -> KeyRecord | None:
        self.asked += 1
        if self.away:
            raise StoreUnavailable
        return await super().find_key(digest)


async def test_a_known_key_is_recalled_without_asking() -> None:
    store = Store()
    await store.put_key(DIGEST, key())
    ring = KeyRing(store, 300)
    assert ring.recall(DIGEST) is None
    assert await ring.find(DIGEST) == key()
    assert ring.recall(DIGEST) == key()
    assert store.asked == 1


async def test_after_any_change_of_keys_each_is_asked_for_once_more() -> None:
    store = Store()
    await store.put_key(DIGEST, key())
    ring = KeyRing(store, 300)
    ring.confirm(1)
    await ring.find(DIGEST)
    ring.confirm(1)
    assert ring.recall(DIGEST)
    await store.revoke_key("key_1", 5)
    ring.confirm(2)
    assert ring.recall(DIGEST) is None
    assert (await ring.find(DIGEST)).revoked_ms == 5


async def test_an_unknown_key_is_refused_and_not_asked_for_again_at_once() -> None:
    store = Store()
    ring = KeyRing(store, 300)
    for _ in range(3):
        with pytest.raises(ApiError) as error:
            await ring.find(DIGEST)
        assert (error.value.status, error.value.code) == (401, "invalid_api_key")
    assert ring.recall(DIGEST) is None
    assert store.asked == 1


async def test_a_known_key_is_honoured_for_a_while_when_the_store_is_away() -> None:
    store = Store()
    await store.put_key(DIGEST, key())
    ring = KeyRing(store, 300)
    await ring.find(DIGEST)
    store.away = True
    assert ring.recall(DIGEST) == key()
    ring.confirm(7)  # the keys changed, and then the store went away
    assert ring.recall(DIGEST) is None
    assert await ring.find(DIGEST) == key()


async def test_and_no_longer_than_that_while() -> None:
    store = Store()
    await store.put_key(DIGEST, key())
    ring = KeyRing(store, -1)
    await ring.find(DIGEST)
    store.away = True
    assert ring.recall(DIGEST) is None
    with pytest.raises(ApiError) as error:
        await ring.find(DIGEST)
    assert (error.value.status, error.value.retry_after_ms) == (503, 1000)


async def test_an_unknown_key_is_not_honoured_when_the_store_is_away() -> None:
    store = Store()
    store.away = True
    with pytest.raises(ApiError) as error:
        await KeyRing(store, 300).find(DIGEST)
    assert error.value.status == 503


def test_new_keys_differ_and_pass_as_bearer() -> None:
    made = {keys.new_key() for _ in range(100)}
    assert len(made) == 100
    for one in made:
        assert keys.bearer(f"Bearer {one}") == one


def test_a_key_is_known_by_its_hash_and_shown_by_a_part_of_it() -> None:
    assert DIGEST == keys.digest("sk-llm-x") != keys.digest("sk-llm-y")
    assert keys.key_id(DIGEST) == "key_" + DIGEST[:12]


@pytest.mark.parametrize("header", ["bearer sk-llm-x", "BEARER sk-llm-x", "Bearer sk-llm-x"])
def test_the_scheme_may_be_written_in_any_case(header: str) -> None:
    assert keys.bearer(header) == "sk-llm-x"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic sk-llm-x", "sk-llm-x", "Bearer sk-proj-x", "Bearer sk-llm-" + "x" * 200]
)
def test_other_authorizations_are_refused(header: str) -> None:
    with pytest.raises(ApiError) as error:
        keys.bearer(header)
    assert (error.value.status, error.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("record", "now_ms", "valid"),
    [
        (key(), 10**15, True),
        (key(expires_ms=1000), 999, True),
        (key(expires_ms=1000), 1000, False),
        (key(revoked_ms=1000), 1000, False),
        (key(revoked_ms=1000, expires_ms=5000), 2000, False),
    ],
)
def test_keys_end(record: KeyRecord, now_ms: int, valid: bool) -> None:
    if valid:
        keys.check(record, now_ms)
    else:
        with pytest.raises(ApiError):
            keys.check(record, now_ms)
