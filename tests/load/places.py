"""Where the load goes: the stack that is started here, beside its bare backend, or a gateway that somebody deployed."""

import asyncio
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from asking import PATH, chat
from costs import Cost, Sample, cost
from load import Load
from measure import settled
from orders import Line, Order, Progress, Result, Traffic
from rig import PLATFORM, Rig

from extproc.local.process import StackError
from extproc.orphans import die_with_parent
from extproc.store import RedisStore

Watch = Callable[[Progress], None]
_ACCOUNT = ("requests", "hits", "prompt_tokens", "completion_tokens")


class Account(msgspec.Struct, frozen=True):
    """What the ledger's sums say of a tenant in one run."""

    requests: int
    hits: int
    prompt_tokens: int
    completion_tokens: int


class Found(msgspec.Struct, frozen=True):
    """One run: what the clients saw, and, where the platform is ours, what it says itself and what it cost."""

    result: Result
    cost: Cost | None = None
    counts: dict[str, int] = {}
    accounts: dict[str, Account] = {}  # by tenant


class Local:
    """A rig of the benchmarks: Envoy, processor, Valkey, one simulated backend."""

    comparable = True

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def key(self, tenant: str, priority: str = "", **limits: int) -> str:
        return await self._rig.stack.create_key(tenant=tenant, limits=limits, priority=priority)

    def ask(self, key: str, words: int = 60, **fields: object) -> dict[str, bytes]:
        return chat(key, words, **fields)

    async def capacity(self, ask: dict[str, bytes]) -> float:
        """Requests a second, 32 at a time, each as soon as one is answered."""
        load = Load(self._rig.ports[PLATFORM], **ask, seconds=4.0, first=secrets.randbelow(10**6) * 10**9)
        await self._rig.drive(load)
        return (await self._rig.drive(load)).per_second

    async def drive(self, where: str, traffics: tuple[Traffic, ...], patience: float, watch: Watch) -> Found:
        rig = self._rig
        counts, accounts = rig.counts(), await self._accounts()
        samples: list[Sample] = []

        def look(progress: Progress) -> None:
            samples.append(self._sample(where, progress))
            watch(progress)

        before = self._sample(where, _NOTHING)
        result = await generate(Order("127.0.0.1", rig.ports[where], traffics, patience_seconds=patience), look)
        asked = result.summary.all.requests
        await settled(rig, counts["settled"] + (asked if where == PLATFORM else 0))
        after = rig.cpu_seconds(where) | {"client": result.cpu_seconds}
        seen = {name: now - counts[name] for name, now in rig.counts().items()}
        new = {tenant: _less(now, accounts.get(tenant)) for tenant, now in (await self._accounts()).items()}
        new = {tenant: account for tenant, account in new.items() if account.requests}
        return Found(result, cost(before, samples, after, asked), seen, new)

    def _sample(self, where: str, progress: Progress) -> Sample:
        rig = self._rig
        sizes = {"Envoy": rig.envoy_megabytes(), "processor": sum(rig.worker_megabytes())}
        return Sample(progress, rig.cpu_seconds(where) | {"client": progress.cpu_seconds}, sizes)

    async def _accounts(self) -> dict[str, Account]:
        store = RedisStore(self._rig.stack.redis_url)
        await store.start()
        try:
            today = datetime.now(UTC).date()
            rows = await store.usage(str(today - timedelta(days=1)), str(today))
        finally:
            await store.aclose()
        sums: dict[str, list[int]] = defaultdict(lambda: [0] * len(_ACCOUNT))
        for row in rows:
            sums[row.tenant] = [a + getattr(row, n) for a, n in zip(sums[row.tenant], _ACCOUNT, strict=True)]
        return {tenant: Account(*values) for tenant, values in sums.items()}


_NOTHING = Progress(0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, None)


def _less(now: Account, before: Account | None) -> Account:
    return now if before is None else Account(*(getattr(now, n) - getattr(before, n) for n in _ACCOUNT))


class Deployed:
    """A gateway at an address, and one key for it. What it costs and what its parts counted is not known here."""

    comparable = False

    async def capacity(self, _ask: dict[str, bytes]) -> float:
        raise StackError("this scenario takes a gateway to its end: it runs on the local stack only")

    def __init__(self, base_url: str, key: str, ca_file: str, model: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise StackError(f"BASE_URL {base_url}: a URL such as https://llm.example.com/v1 is needed")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/").removesuffix("/v1") + PATH
        self._key, self._ca_file, self._model = key, ca_file, model

    async def key(self, _tenant: str, priority: str = "", **limits: int) -> str:
        if limits or priority:
            raise StackError("this scenario needs keys of its own: it runs on the local stack only")
        return self._key

    def ask(self, key: str, words: int = 60, **fields: object) -> dict[str, bytes]:
        return chat(key, words, self._authority, self._path, model=self._model, **fields)

    async def drive(self, _where: str, traffics: tuple[Traffic, ...], patience: float, watch: Watch) -> Found:
        order = Order(self._host, self._port, traffics, self._tls, self._ca_file, patience)
        return Found(await generate(order, watch))


Place = Local | Deployed


async def generate(order: Order, watch: Watch) -> Result:
    """Run the load generator. If this ends, so does it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("generator.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,  # of a line: the result is one
        preexec_fn=die_with_parent,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(order))
    process.stdin.close()
    result: Any = None
    try:
        async for line in process.stdout:
            told = msgspec.json.decode(line, type=Line)
            if isinstance(told, Progress):
                watch(told)
            else:
                result = told
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not isinstance(result, Result):
        raise StackError(f"the load generator ended with status {process.returncode}")
    return result
