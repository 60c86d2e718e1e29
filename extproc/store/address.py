"""Where Redis is, as its URL says it.

Owns the URL's syntax; knows no socket. Anything it does not understand is refused, never ignored.
"""

import urllib.parse

import msgspec

from extproc.errors import ConfigError
from extproc.store.resp import pack

# redis-py's names of options, but for the last: it knows no URI SAN
_TLS = {
    "ssl_ca_certs": "ca_file",
    "ssl_certfile": "cert_file",
    "ssl_keyfile": "key_file",
    "ssl_uri_san": "uri_san",
}


def without_credentials(url: str) -> str:
    """To be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class Address(msgspec.Struct, frozen=True):
    """Where Redis is. `path` for a Unix socket, else host and port."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    user: str = ""
    password: str = ""
    database: int = 0
    tls: bool = False
    ca_file: str = ""  # "" = the system's
    cert_file: str = ""  # ours; "" = none is shown
    key_file: str = ""  # "" = in cert_file
    uri_san: str = ""  # of the server's certificate, in place of its host name

    @classmethod
    def parse(cls, url: str) -> "Address":
        """redis://[user:password@]host[:port][/database], unix://[…@]/path[?db=n], or rediss://… with any of
        ?ssl_ca_certs=file&ssl_certfile=file&ssl_keyfile=file&ssl_uri_san=spiffe://…"""
        try:
            return cls._parse(urllib.parse.urlsplit(url))
        except ValueError as error:
            raise ConfigError(f"not a Redis URL ({error}): {without_credentials(url)}") from None

    @classmethod
    def _parse(cls, parts: urllib.parse.SplitResult) -> "Address":
        options = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        unix = parts.scheme == "unix"
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("the scheme must be redis, rediss or unix")
        database = options.pop("db", "") or ("" if unix else parts.path.strip("/")) or "0"
        secure = {ours: options.pop(theirs, "") for theirs, ours in _TLS.items()} if parts.scheme == "rediss" else {}
        address = cls(
            host=parts.hostname or "127.0.0.1",
            port=(not unix and parts.port) or 6379,
            path=urllib.parse.unquote(parts.path) if unix else "",
            user=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
            database=int(database),
            tls=parts.scheme == "rediss",
            **secure,
        )
        if options:
            raise ValueError("unknown option " + ", ".join(options))
        if unix and not address.path:
            raise ValueError("no path")
        if address.key_file and not address.cert_file:
            raise ValueError("ssl_keyfile without ssl_certfile")
        if address.uri_san and not address.ca_file:
            raise ValueError("ssl_uri_san without ssl_ca_certs: any public authority could vouch for it")
        return address

    def greeting(self) -> list[bytes]:
        """The commands to send first on a new connection."""
        credentials = [self.user, self.password] if self.user else [self.password]
        auth = [pack(("AUTH", *credentials))] if self.password else []
        return auth + ([pack(("SELECT", self.database))] if self.database else [])
