"""URLs of Redis."""

import pytest

from extproc.errors import ConfigError
from extproc.store.address import Address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", Address("localhost")),
        ("redis://u:p%2F@h:1234/5", Address("h", 1234, user="u", password="p/", database=5)),
        ("rediss://:p@h/0?ssl_ca_certs=/ca.pem", Address("h", password="p", tls=True, ca_file="/ca.pem")),
        (
            "rediss://h:1?ssl_ca_certs=/root.pem&ssl_certfile=/chain.pem&ssl_keyfile=/key.pem&ssl_uri_san=spiffe://m/sa/v",
            Address("h", 1, "", "", "", 0, True, "/root.pem", "/chain.pem", "/key.pem", "spiffe://m/sa/v"),
        ),
        ("rediss://h?ssl_certfile=/both.pem", Address("h", tls=True, cert_file="/both.pem")),
        ("unix:///run/valkey.sock?db=2", Address(path="/run/valkey.sock", database=2)),
        ("redis://[::1]:7000", Address("::1", 7000)),
    ],
)
def test_urls_say_where_redis_is(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://h/x",
        "redis://h:99999",
        "redis://h?timeout=3",
        "unix://",
        "redis://u:secret@h/x",
        "h:1",
        "rediss://h?ssl_uri_sans=spiffe://a/b&ssl_ca_certs=/ca.pem",
        "rediss://h?ssl_uri_san=spiffe://a/b",
        "rediss://h?ssl_keyfile=/key.pem",
        "redis://h?ssl_ca_certs=/ca.pem",
        "redis://u:secret@h?ssl_uri_san=spiffe://a/b&ssl_ca_certs=/ca.pem",
        "unix:///run/valkey.sock?ssl_certfile=/cert.pem",
    ],
)
def test_urls_that_say_something_else_are_refused_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)
