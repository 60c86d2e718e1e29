"""The store over mutual TLS: who is let in, who is not and what is said of it, and certificates that change."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest
from certificates import GATEWAY, STORE, Authority, Files, Pair, server_side
from cryptography import x509
from store_rig import PATIENT_SECONDS, Proxy, Valkey, claim, eventually, settlement

from extproc.admission import Outcome
from extproc.errors import StoreUnavailable
from extproc.store import RedisStore

MESH = Authority()
OURS = MESH.issue(GATEWAY)


class Site:
    """A Valkey behind a server of TLS, and a gateway's files."""

    def __init__(self, valkey: Valkey, folder: Path) -> None:
        self._folder = folder
        self.proxy = Proxy(valkey.socket)
        self.files = Files(folder / "certificates")
        self.files.write(OURS, MESH)
        self.stores: list[RedisStore] = []

    def serving(self, pair: Pair, authority: Authority = MESH, port: int = 0) -> AbstractAsyncContextManager[Proxy]:
        return self.proxy.running(server_side(pair, authority, self._folder), port)

    async def store(self, url: str = "") -> RedisStore:
        """Closed with the test."""
        store = RedisStore(url or self.files.url(self.proxy.port), timeout_seconds=PATIENT_SECONDS)
        self.stores.append(store)
        await store.start()
        return store


@pytest.fixture
async def site(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(valkey, tmp_path)
    yield site
    for store in site.stores:
        await store.aclose()


async def works(store: RedisStore) -> bool:
    await store.settle([settlement(claim())])
    return (await store.admit(claim())).outcome is Outcome.ADMITTED


async def refused(store: RedisStore, words: str) -> None:
    for attempt in (store.ping, lambda: store.shared(0)):  # on either connection
        with pytest.raises(StoreUnavailable, match=words):
            await attempt()


async def test_the_right_identity_with_our_certificate_shown_is_a_store(site: Site) -> None:
    async with site.serving(MESH.issue(STORE)):
        assert await works(await site.store())


async def test_when_the_certificates_of_the_connection_expire_is_known(site: Site) -> None:
    theirs = MESH.issue(STORE, lives=timedelta(minutes=7))
    expected = {
        name: x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
        for name, pem in {"client": OURS.certificate, "authority": MESH.pem, "store": theirs.certificate}.items()
    }
    async with site.serving(theirs):
        store = await site.store()
        assert store.certificates() == expected
        site.files.put("cert-chain.pem", b"")
        assert store.certificates() == {name: expected[name] for name in ("authority", "store")}


async def test_without_tls_there_is_no_certificate_to_watch(valkey: Valkey, site: Site) -> None:
    assert (await site.store(valkey.url)).certificates() == {}


@pytest.mark.parametrize("other", [GATEWAY, STORE + "2", STORE[:-1], STORE.upper(), "spiffe://cluster.local"])
async def test_another_identity_is_refused_and_named_before_anything_is_sent(site: Site, other: str) -> None:
    async with site.serving(MESH.issue(other)):
        await refused(await site.store(), f"TLS: the server is {other}, not {STORE}")
    assert site.proxy.received_bytes == 0


async def test_a_server_of_another_authority_is_refused(site: Site) -> None:
    async with site.serving(Authority().issue(STORE)):
        await refused(await site.store(), "CERTIFICATE_VERIFY_FAILED")


async def test_a_server_whose_certificate_has_ended_is_refused(site: Site) -> None:
    async with site.serving(MESH.issue(STORE, lives=-timedelta(minutes=1))):
        await refused(await site.store(), "certificate has expired")


async def test_we_are_refused_without_a_certificate(site: Site) -> None:
    async with site.serving(MESH.issue(STORE)):
        await refused(await site.store(site.files.url(site.proxy.port, shown=False)), "does it accept our certificate")


async def test_we_are_refused_with_a_certificate_of_another_authority(site: Site) -> None:
    stranger = Authority().issue(GATEWAY)
    site.files.put("key.pem", stranger.key)
    site.files.put("cert-chain.pem", stranger.certificate)
    async with site.serving(MESH.issue(STORE)):
        await refused(await site.store(), "does it accept our certificate")


async def test_without_an_identity_asked_for_the_host_name_counts(site: Site) -> None:
    async with site.serving(MESH.issue(STORE)):
        url = site.files.url(site.proxy.port).partition("&ssl_uri_san")[0]
        await refused(await site.store(url), "IP address mismatch")


@pytest.mark.parametrize("missing", ["root-cert.pem", "cert-chain.pem", "key.pem"])
async def test_files_that_are_not_there_yet_are_waited_for_and_named(site: Site, missing: str) -> None:
    path = site.files.folder / missing
    content = path.read_bytes()
    path.unlink()
    async with site.serving(MESH.issue(STORE)):
        store = await site.store()
        await refused(store, f"TLS: .*{missing}.* can not be used: No such file or directory")
        path.write_bytes(content)
        assert await eventually(lambda: works(store))


async def test_a_folder_that_is_not_there_yet_is_waited_for(site: Site) -> None:
    late = Files(site.files.folder.with_name("late"))
    late.folder.rmdir()
    async with site.serving(MESH.issue(STORE)):
        store = await site.store(late.url(site.proxy.port))
        await refused(store, "No such file or directory")
        late.folder.mkdir()
        late.write(OURS, MESH)
        assert await eventually(lambda: works(store))


async def test_files_caught_in_the_middle_of_a_change_are_waited_for(site: Site) -> None:
    site.files.put("key.pem", MESH.issue(GATEWAY).key)  # and the certificate comes later
    async with site.serving(MESH.issue(STORE)):
        store = await site.store()
        await refused(store, "can not be used: .*(?i:key values mismatch)")
        site.files.write(OURS, MESH)
        assert await eventually(lambda: works(store))


@pytest.mark.parametrize("nonsense", [b"", b"no PEM"])
async def test_files_that_hold_something_else_are_named(site: Site, nonsense: bytes) -> None:
    site.files.put("root-cert.pem", nonsense)
    async with site.serving(MESH.issue(STORE)):
        await refused(await site.store(), "root-cert.pem can not be used")


async def test_new_certificates_of_a_new_authority_are_taken_when_connections_are_made_anew(site: Site) -> None:
    async with site.serving(MESH.issue(STORE)):
        port = site.proxy.port
        store = await site.store()
        assert await works(store)
        successor = Authority()
        site.files.write(successor.issue(GATEWAY), successor)
        assert await works(store)  # a connection lives on
    async with site.serving(successor.issue(STORE), successor, port):  # which knows the old ones no more
        assert await eventually(lambda: works(store))
    async with site.serving(MESH.issue(STORE), MESH, port):
        await eventually(lambda: told(store, "CERTIFICATE_VERIFY_FAILED"))  # and the new ones count alone


async def told(store: RedisStore, words: str) -> bool:
    """Whether this is why it is away."""
    try:
        await store.ping()
    except StoreUnavailable as error:
        return words in str(error)
    return False


async def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(site: Site) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(OURS.key, None)
    hidden = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    site.files.put("key.pem", hidden)
    async with site.serving(MESH.issue(STORE)):
        await refused(await site.store(), "key.pem can not be used")


async def test_a_server_that_speaks_no_tls_is_refused(site: Site) -> None:
    async with site.proxy.running():
        store = await site.store()
        with pytest.raises(StoreUnavailable, match=r"no connection within|SSL|TLS"):
            await store.ping()
