"""Usage, budgets and limits from the store, for the console: asked only while somebody looks, and kept for a moment.

One question at a time, whoever asks. Today's counters are read again after five seconds, older days hardly change:
longer spans are read again after a minute; where Redis takes long to answer (many users), less often (kept.py). Of the
counters only the tables are kept, which a thread makes once. Raises StoreUnavailable.
"""

import asyncio
import logging
from pathlib import Path

from extproc import config
from extproc.admission import KeyRecord
from extproc.console import accounts, shapes
from extproc.console.kept import Kept
from extproc.errors import ConfigError
from extproc.limits import month
from extproc.store.report import ReportStore

log = logging.getLogger("llm-mesh")
_FRESH_SECONDS: dict[shapes.Span, float] = {"today": 5.0}
_LONG_SECONDS = 60.0
_KEYS_SECONDS = 30.0
_LIMITS_SECONDS = 2.0
_CALLERS = 500
_TIMEOUT_SECONDS = 10.0  # the counters of a month may be many; the page waits longer than for two such reads


class Ledger:
    def __init__(self, redis_url: str, config_file: str) -> None:
        self._store = ReportStore(redis_url, timeout_seconds=_TIMEOUT_SECONDS)
        self._config_file = Path(config_file)
        self._config_bytes = b""
        self._catalogue: config.Catalogue | None = None
        self._spans: dict[shapes.Span, Kept[accounts.Accounts]] = {}
        self._keys: Kept[list[KeyRecord]] = Kept(_KEYS_SECONDS)
        self._limits: Kept[shapes.Limits] = Kept(_LIMITS_SECONDS)
        self._asking = asyncio.Lock()
        self._started = False

    async def close(self) -> None:
        await self._store.aclose()

    async def usage(self, span: shapes.Span, by: shapes.By) -> shapes.Usage:
        async with self._asking:
            return (await self._accounts(span)).tables[by]

    async def limits(self) -> shapes.Limits:
        async with self._asking:
            return await self._limits.get(self._read_limits)

    async def _accounts(self, span: shapes.Span) -> accounts.Accounts:
        async def read() -> accounts.Accounts:
            await self._start()
            now_ms = await self._store.now_ms()
            since, until = accounts.days(span, now_ms)
            rows = await self._store.usage(since, until)
            most = _CALLERS if span == "today" else 0
            return await asyncio.to_thread(accounts.sum_up, rows, since, until, now_ms, most)

        return await self._spans.setdefault(span, Kept(_FRESH_SECONDS.get(span, _LONG_SECONDS))).get(read)

    async def _read_limits(self) -> shapes.Limits:
        catalogue = await asyncio.to_thread(self._configuration)
        who = (await self._accounts("today")).most_active
        records = await self._keys.get(self._store.list_keys)
        now_ms = await self._store.now_ms()
        spent = await self._store.spent(month(now_ms))
        standings = dict(zip(who, await self._store.standings(who, now_ms), strict=True))
        return accounts.table(spent, standings, records, catalogue, now_ms)

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            await self._store.start()

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
