"""TLS to Redis: from which files, and who must be at the other end.

In a mesh both ends show workload certificates. They live for hours and are replaced on disk by the proxy, so the files
are read again for each connection; they carry no host name, so the peer is known by its URI SAN (SPIFFE) instead. What
is wrong with a file or a peer comes out as StoreUnavailable, which is tried again: the proxy may write the files later
than we start, and one after the other.
"""

import asyncio
import contextlib
import functools
import ssl
from pathlib import Path

from extproc.errors import StoreUnavailable
from extproc.store import expiry
from extproc.store.address import Address


def context(address: Address) -> ssl.SSLContext | None:
    """For one connection; None where it is not to be secured."""
    if not address.tls:
        return None
    if not address.ca_file and not address.cert_file:
        return _of_the_system()
    made = _made(address.ca_file)
    made.check_hostname = not address.uri_san
    if address.cert_file:
        try:
            # An encrypted key fails at once: without a password given it would be asked for at the terminal.
            made.load_cert_chain(address.cert_file, address.key_file or None, password="")
        except OSError as error:  # of which ssl.SSLError is one
            raise _unusable(f"{address.cert_file} with {address.key_file or 'its key'}", error) from error
    return made


def check_peer(address: Address, transport: asyncio.BaseTransport) -> None:
    """Its certificate is verified by now: is it the one that was meant?"""
    if not address.uri_san:
        return
    names = transport.get_extra_info("peercert").get("subjectAltName", ())
    if ("URI", address.uri_san) not in names:
        found = ", ".join(name for _, name in names) or "nobody"
        raise StoreUnavailable(f"TLS: the server is {found}, not {address.uri_san}")


def expiries(address: Address) -> dict[str, float]:
    """Of the certificates in the files, in epoch seconds; of several in one file the first to expire."""
    files = {"client": address.cert_file, "authority": address.ca_file}
    found = {}
    for name, path in files.items():
        with contextlib.suppress(OSError, ValueError):  # what is wrong with them is said where they are used
            if address.tls and path:
                found[name] = expiry.earliest(Path(path).read_text())
    return found


def peer_expires(transport: asyncio.BaseTransport) -> float:
    """Epoch seconds; 0 without TLS."""
    certificate = transport.get_extra_info("peercert")
    return ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else 0.0


@functools.cache
def _of_the_system() -> ssl.SSLContext:
    """Read once: it takes 20 ms of the loop."""
    return _made("")


def _made(ca_file: str) -> ssl.SSLContext:
    try:
        made = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise _unusable(ca_file, error) from error
    # From 3.13 Python asks for more than other TLS clients do: authorities that Envoy and redis-cli take were refused.
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return made


def _unusable(what: str, error: OSError) -> StoreUnavailable:
    why = str(error) if isinstance(error, ssl.SSLError) else error.strerror
    return StoreUnavailable(f"TLS: {what} can not be used: {why}")
