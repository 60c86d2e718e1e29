"""Where Redis is, as its URL says it.

Owns the URL's syntax; knows no socket. Anything it does not understand is refused, never ignored.
"""

import urllib.parse

import msgspec

from extproc.errors import ConfigError
from extproc.store.resp import pack


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

    @classmethod
    def parse(cls, url: str) -> "Address":
        """redis://[user:password@]host[:port][/database], rediss://…[?ssl_ca_certs=file], unix://[…@]/path[?db=n]."""
        try:
            return cls._parse(urllib.parse.urlsplit(url))
        except ValueError as error:
            raise ConfigError(f"not a Redis URL ({error}): {url.rpartition('@')[2]}") from None

    @classmethod
    def _parse(cls, parts: urllib.parse.SplitResult) -> "Address":
        options = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        unix = parts.scheme == "unix"
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("the scheme must be redis, rediss or unix")
        database = options.pop("db", "") or ("" if unix else parts.path.strip("/")) or "0"
        address = cls(
            host=parts.hostname or "127.0.0.1",
            port=(not unix and parts.port) or 6379,
            path=urllib.parse.unquote(parts.path) if unix else "",
            user=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
            database=int(database),
            tls=parts.scheme == "rediss",
            ca_file=options.pop("ssl_ca_certs", ""),
        )
        if options:
            raise ValueError("unknown option " + ", ".join(options))
        if unix and not address.path:
            raise ValueError("no path")
        return address

    def greeting(self) -> list[bytes]:
        """The commands to send first on a new connection."""
        credentials = [self.user, self.password] if self.user else [self.password]
        auth = [pack(("AUTH", *credentials))] if self.password else []
        return auth + ([pack(("SELECT", self.database))] if self.database else [])
