"""When certificates expire, read from their PEM text.

The standard library tells it of a peer only. The way to the date is short (RFC 5280, 4.1), so no library is needed for
it: a certificate's first part holds a version (tagged 0), a serial number, an algorithm, an issuer, and then the two
dates.
"""

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION = 0xA0
_UTC_TIME = 0x17  # two digits of the year, 1950 to 2049; else four


def earliest(pem: str) -> float:
    """Epoch seconds. Raises ValueError where there is no certificate, or it is none."""
    return min(_not_after(ssl.PEM_cert_to_DER_cert(text)) for text in _PEM.findall(pem))


def _not_after(der: bytes) -> float:
    try:
        _, certificate = next(_elements(der))
        _, first = next(_elements(certificate))
        fields = [content for tag, content in _elements(first) if tag != _VERSION]
        _, (tag, date) = _elements(fields[3])
    except (IndexError, StopIteration) as error:
        raise ValueError("no certificate") from error
    text = date.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length > 0x7F:  # the number of bytes that hold the length
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        yield tag, der[at : at + length]
        at += length
