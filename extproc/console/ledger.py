"""Usage, budgets and limits from the store, for the console: asked only while somebody looks, and kept for a moment.

One question at a time, whoever asks. Today's counters are read again after five seconds, older days hardly change:
longer spans are read again after a minute. Where Redis takes long to answer (many users), everything is read less
often: at most a twentieth of the time is spent in it. Raises StoreUnavailable.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from extproc import config
from extproc.admission import KeyRecord, UsageRow
from extproc.console import accounts, shapes
from extproc.errors import ConfigError
from extproc.limits import month
from extproc.store.report import ReportStore

log = logging.getLogger("llm-mesh")
_FRESH_SECONDS = {"today": 5.0}
_LONG_SECONDS = 60.0
_KEYS_SECONDS = 30.0
_LIMITS_SECONDS = 2.0
_SHARE = 20
_CALLERS = 500
_TIMEOUT_SECONDS = 2.0
T = TypeVar("T")


class _Kept:
    def __init__(self) -> None:
        self.value: Any = None
        self.at = float("-inf")
        self.took_seconds = 0.0


class Ledger:
    def __init__(self, redis_url: str, config_file: str) -> None:
        self._store = ReportStore(redis_url, timeout_seconds=_TIMEOUT_SECONDS)
        self._config_file = Path(config_file)
        self._config_bytes = b""
        self._catalogue: config.Catalogue | None = None
        self._kept: dict[str, _Kept] = {}
        self._asking = asyncio.Lock()
        self._started = False

    async def close(self) -> None:
        await self._store.aclose()

    async def usage(self, span: shapes.Span, by: shapes.By) -> shapes.Usage:
        async with self._asking:
            rows, since, until, time_ms = await self._rows(span)
        return accounts.usage(rows, by, since, until, time_ms)

    async def limits(self) -> shapes.Limits:
        async with self._asking:
            return await self._fresh("limits", _LIMITS_SECONDS, self._read_limits)

    async def _rows(self, span: shapes.Span) -> tuple[list[UsageRow], str, str, int]:
        async def read() -> tuple[list[UsageRow], str, str, int]:
            now_ms = await self._store.now_ms()
            since, until = accounts.days(span, now_ms)
            return await self._store.usage(since, until), since, until, now_ms

        return await self._fresh(span, _FRESH_SECONDS.get(span, _LONG_SECONDS), read)

    async def _read_limits(self) -> shapes.Limits:
        catalogue = await asyncio.to_thread(self._configuration)
        rows, *_ = await self._rows("today")
        who = accounts.most_active(rows, _CALLERS)
        records: list[KeyRecord] = await self._fresh("keys", _KEYS_SECONDS, self._store.list_keys)
        now_ms = await self._store.now_ms()
        spent = await self._store.spent(month(now_ms))
        standings = dict(zip(who, await self._store.standings(who, now_ms), strict=True))
        return accounts.table(spent, standings, records, catalogue, now_ms)

    async def _fresh(self, what: str, seconds: float, read: Callable[[], Awaitable[T]]) -> T:
        if not self._started:
            self._started = True
            await self._store.start()
        kept = self._kept.setdefault(what, _Kept())
        began = time.monotonic()
        if began - kept.at >= max(seconds, _SHARE * kept.took_seconds):
            kept.value = await read()
            kept.at = time.monotonic()
            kept.took_seconds = kept.at - began
        value: T = kept.value
        return value

    def _configuration(self) -> config.Catalogue:
        """As the workers have it: a changed file is taken, a broken one is not. It was good when this process began."""
        text = self._config_file.read_bytes() if self._config_file.exists() else self._config_bytes
        if self._catalogue is None or text != self._config_bytes:
            self._config_bytes = text
            try:
                self._catalogue = config.load(text, str(self._config_file))
            except ConfigError:
                if self._catalogue is None:
                    raise
        return self._catalogue
