"""Fixtures for all suites: a whole platform, started once per session, and fresh callers on it."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from extproc.local.stack import Settings, Stack


class Platform:
    """A running stack, driven from synchronous tests: its event loop has a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.stack: Stack = self.do(_made(settings))

    def do(self, work: Any) -> Any:
        """Run a coroutine of the stack's and wait for it."""
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(timeout=90)

    def close(self) -> None:
        self.do(self.stack.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def key(self, **fields: Any) -> str:
        """A key of a tenant of its own, without limits unless `limits` says so; fields as in KeyRecord."""
        free = {"requests_per_minute": 0, "tokens_per_minute": 0}
        fields.setdefault("tenant", "t-" + uuid.uuid4().hex[:8])
        fields["limits"] = {**free, **fields.get("limits", {})}
        key: str = self.do(self.stack.create_key(**fields))
        return key

    def client(self, key: str = "", **options: Any) -> openai.OpenAI:
        """The official client; close it (or use `with`)."""
        return openai.OpenAI(base_url=self.stack.base_url, api_key=key or self.key(), max_retries=0, **options)


async def _made(settings: Settings) -> Stack:
    stack = Stack(settings)
    await stack.__aenter__()
    return stack


@contextmanager
def running(settings: Settings) -> Iterator[Platform]:
    platform = Platform(settings)
    try:
        yield platform
    finally:
        platform.close()


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform with two workers, shared by all tests that do not break it."""
    with running(Settings(tmp_path_factory.mktemp("platform"), drain_seconds=1.0)) as platform:
        yield platform


@pytest.fixture
def start_platform(tmp_path: Path) -> Callable[..., AbstractContextManager[Platform]]:
    """A platform of the test's own, to be broken: `with start_platform(workers=1) as platform:`."""
    return lambda **settings: running(Settings(tmp_path / "platform", **settings))


@pytest.fixture
def client(platform: Platform) -> Iterator[openai.OpenAI]:
    """A caller of a tenant of its own, without limits."""
    with platform.client() as client:
        yield client
