"""When certificates expire, held against a library that reads them whole."""

from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from extproc.store import expiry

AUTHORITY = trustme.CA()


def pem(not_after: datetime) -> str:
    made = AUTHORITY.issue_cert("localhost", not_before=datetime(1951, 1, 1, tzinfo=UTC), not_after=not_after)
    return made.cert_chain_pems[0].bytes().decode()


@given(st.datetimes(datetime(1951, 1, 2), datetime(2120, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_the_date_is_the_certificates_in_either_way_of_writing_it(not_after: datetime) -> None:
    text = pem(not_after)
    assert expiry.earliest(text) == x509.load_pem_x509_certificate(text.encode()).not_valid_after_utc.timestamp()
    assert expiry.earliest(text) == not_after.replace(microsecond=0).timestamp()


def test_of_several_the_first_to_expire_counts() -> None:
    early, late = datetime(2027, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
    assert expiry.earliest(pem(late) + "a comment\n" + pem(early)) == early.timestamp()


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        expiry.earliest(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_certificate_or_refused(der: bytes) -> None:
    with pytest.raises(ValueError):
        expiry._not_after(der)
