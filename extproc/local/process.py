"""Child processes of the local stack: started with a log file, waited for, and never left behind."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import aiohttp

from extproc.errors import LlmMeshError
from extproc.orphans import die_with_parent

_STOP_SECONDS = 10.0
_PORTS = 20_000, 32_000
_POLL_SECONDS = 0.02


Report = Callable[[str, float], None]  # what is up, after how many seconds


class StackError(LlmMeshError):
    """A part of the local stack does not start; the message says which and where its log is."""


class Service:
    """Parts that start and stop together. With `async with`, what fails while starting is stopped again."""

    def __init__(self, report: Report) -> None:
        self._report = report

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def timed(self, what: str, work: Awaitable[None]) -> None:
        """Do one part of the start and report it."""
        began = time.monotonic()
        await work
        self._report(what, time.monotonic() - began)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class Child:
    """One process of the stack. `stop` is graceful; if this process dies, the kernel ends the child."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = {**os.environ, **(environment or {})}
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        if self.process is None:
            raise StackError(f"{self.name} is not running")
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    async def ready(self, probe: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
        """Wait until the probe says yes. Raises StackError if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not await probe():
            if self.ended:
                raise StackError(f"{self.name} ended while starting: {self.last_words()} (log: {self.log})")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} is not ready after {seconds:.0f} s (log: {self.log})")
            await asyncio.sleep(_POLL_SECONDS)

    async def up(self, probe: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
        """Start and wait until it is ready. Raises StackError."""
        await self.start()
        await self.ready(probe, seconds)

    def ending(self) -> str:
        """How it ended, for people."""
        status = None if self.process is None else self.process.returncode
        if status is not None and status < 0:
            return f"was ended by signal {-status} ({signal.Signals(-status).name})"
        return f"ended with status {status}: {self.last_words()}"

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it said nothing"

    async def stop(self) -> None:
        if self.ended or self.process is None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """kill -9, its whole session with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


async def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET is answered with 200."""
    try:
        timeout = aiohttp.ClientTimeout(total=1.0)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def free_port() -> int:
    """A port below those that the kernel hands out: one of them could be gone again before it is bound."""
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311  no secret
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def require_free(port: int, variable: str) -> None:
    """Raises StackError with what to do if somebody listens on the port."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackError(
                f"port {port} on 127.0.0.1 is taken: stop what listens there, or choose another, {variable}={port + 10}"
            ) from error
