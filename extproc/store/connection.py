"""A connection to Redis that comes back.

Owns connecting, the probe and the pauses between attempts. While it is down every call fails at once with
StoreUnavailable; a background task tries again after 50 ms, doubling to 1 s, and a connection counts as up when it
has answered a PING within the commands' own time-out.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import NoReturn

from extproc.errors import StoreUnavailable
from extproc.store import tls
from extproc.store.address import Address
from extproc.store.resp import CLOSED, Reply, Wire, pack

CONNECT_SECONDS = 1.0  # name look-up, TCP, TLS
FIRST_BACKOFF_SECONDS = 0.05
LAST_BACKOFF_SECONDS = 1.0
_REFUSED = "does it accept our certificate, and may our identity come in?"


class Connection:
    """A wire that comes back. Start it once; `send` and `send_all` raise StoreUnavailable while it is down."""

    def __init__(
        self,
        address: Address,
        *,
        timeout_seconds: float,
        max_in_flight: int = 8192,
    ) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._max_in_flight = max_in_flight
        self._task: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self.send: Callable[[bytes], asyncio.Future[Reply]] = self._down
        self.send_all: Callable[[list[bytes]], asyncio.Future[list[Reply]]] = self._down
        self.up = False
        self._why = "Redis is not connected yet"
        self._peer_expires = 0.0

    async def start(self) -> None:
        """Return after the first attempt, whatever came of it."""
        if self._task is None:
            self._settled = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._keep_up(), name="redis connection")
        if self._settled is not None:
            await asyncio.shield(self._settled)

    async def aclose(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._why = "the store is closed"

    def certificates(self) -> dict[str, float]:
        """When they expire, in epoch seconds: those in the files, and the one that the server showed last."""
        found = tls.expiries(self._address)
        return {**found, "store": self._peer_expires} if self._peer_expires else found

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                wire = await self._connect()
            except Exception as error:  # noqa: BLE001 - whatever went wrong, it must be tried again
                self._why = str(error) or type(error).__name__
                self._first_attempt_ended()
            else:
                came_up = loop.time()
                await self._serve(wire)
                if loop.time() - came_up > LAST_BACKOFF_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    async def _serve(self, wire: Wire) -> None:
        """Calls go straight to the wire for as long as it lives."""
        self.send, self.send_all = wire.send, wire.send_all
        self.up = True
        self._first_attempt_ended()
        try:
            self._why = await asyncio.shield(wire.closed)
        finally:
            self.send = self.send_all = self._down
            self.up = False
            wire.end("the store is closed")

    async def _connect(self) -> Wire:
        """A wire that has proved to answer in time."""
        address = self._address
        transport, made = await self._open()
        try:
            tls.check_peer(address, transport)
            self._peer_expires = tls.peer_expires(transport)
            await made.send_all([*address.greeting(), pack(("PING",))])
        except BaseException as error:
            made.end("Redis does not answer as it should")
            if address.tls and str(error).startswith(CLOSED):  # TLS 1.3 refuses a client only now, and often resets
                raise StoreUnavailable(f"{error}, right after the TLS handshake: {_REFUSED}") from error
            raise
        return made

    async def _open(self) -> tuple[asyncio.BaseTransport, Wire]:
        address, loop = self._address, asyncio.get_running_loop()

        def wire() -> Wire:
            return Wire(self._timeout_seconds, self._max_in_flight)

        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if address.path:
                    return await loop.create_unix_connection(wire, address.path)
                secure = tls.context(address)
                return await loop.create_connection(wire, address.host, address.port, ssl=secure)
        except TimeoutError:
            raise StoreUnavailable(f"no connection within {CONNECT_SECONDS:g} s") from None

    def _first_attempt_ended(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _down(self, _: object) -> NoReturn:
        raise StoreUnavailable(self._why)
