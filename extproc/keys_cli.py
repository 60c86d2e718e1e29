"""`llm-mesh keys create|list|revoke`: the keys in the store, for the people who hand them out."""

import argparse
import asyncio
import csv
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from extproc import keys
from extproc.admission import KeyRecord
from extproc.config import PRIORITIES
from extproc.errors import LlmMeshError
from extproc.store import RedisStore

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LIMITS = {
    "requests_per_minute": "per user; 0 = none",
    "tokens_per_minute": "per user; 0 = none",
    "max_in_flight": "requests under way on this key; 0 = none",
}


class UsageError(LlmMeshError):
    """The command line asks for something that can not be."""


def add_arguments(parser: argparse.ArgumentParser, redis_url: str) -> None:
    actions = parser.add_subparsers(required=True, metavar="create|list|revoke")
    create = actions.add_parser("create", help="make a key; it is shown once and stored only as its SHA-256")
    create.add_argument("--tenant", required=True, type=_name)
    create.add_argument("--user", required=True, type=_name)
    create.add_argument("--models", default="*", help="public names, comma-separated; * = all (default)")
    create.add_argument("--expires", default="", metavar="30d", help="after so many m, h or d; default never")
    create.add_argument("--name", default="", help="a note for people")
    create.add_argument(
        "--priority", choices=PRIORITIES, default="", help="when a model is full; default: the tenant's"
    )
    for limit, words in _LIMITS.items():
        create.add_argument("--" + limit.replace("_", "-"), type=_count, help=words + "; default: the configuration's")
    create.add_argument("--redis", default=redis_url, metavar="URL", help="(or REDIS_URL)")
    create.set_defaults(run=_run, work=_create)
    listing = actions.add_parser("list", help="all keys, without the keys themselves")
    listing.add_argument("--csv", action="store_true")
    listing.add_argument("--redis", default=redis_url, metavar="URL", help="(or REDIS_URL)")
    listing.set_defaults(run=_run, work=_list)
    revoke = actions.add_parser("revoke", help="refuse a key from now on, on all workers within 2 s")
    revoke.add_argument("key_id", help="as `list` shows it, or the key itself")
    revoke.add_argument("--redis", default=redis_url, metavar="URL", help="(or REDIS_URL)")
    revoke.set_defaults(run=_run, work=_revoke)


def _name(text: str) -> str:
    if not keys.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"`{text}`: {keys.NAME_RULE}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of 0 or more")
    return int(text)


def _run(a: argparse.Namespace) -> int:
    work: Callable[[RedisStore, argparse.Namespace], Awaitable[int]] = a.work

    async def connected() -> int:
        store = RedisStore(a.redis, timeout_seconds=5.0)
        await store.start()
        try:
            return await work(store, a)
        finally:
            await store.aclose()

    return asyncio.run(connected())


async def _create(store: RedisStore, a: argparse.Namespace) -> int:
    models = [m.strip() for m in a.models.split(",") if m.strip()]
    if not models:
        raise UsageError("--models: a key without any model is of no use; * stands for all")
    key = keys.new_key()
    digest = keys.digest(key)
    now_ms = int(time.time() * 1000)
    record = KeyRecord(
        key_id=keys.key_id(digest),
        tenant=a.tenant,
        user=a.user,
        models=models,
        created_ms=now_ms,
        limits={limit: getattr(a, limit) for limit in _LIMITS if getattr(a, limit) is not None},
        expires_ms=now_ms + _milliseconds(a.expires) if a.expires else 0,
        name=a.name,
        priority=a.priority,
    )
    await store.put_key(digest, record)
    print(key)
    print(f"{record.key_id}: keep the key above, it is not shown again.", file=sys.stderr)
    return 0


def _milliseconds(text: str) -> int:
    amount, unit = text[:-1], text[-1:]
    if not amount.isdecimal() or not 0 < int(amount) < 1_000_000 or unit not in _UNITS:
        raise UsageError(f"--expires {text}: a number and m, h or d is needed, such as 30d")
    return int(amount) * _UNITS[unit] * 1000


async def _list(store: RedisStore, a: argparse.Namespace) -> int:
    records = sorted(await store.list_keys(), key=lambda r: r.created_ms)
    heads = ["key", "tenant", "user", "models", "limits", "priority", "created", "expires", "state", "name"]
    rows = [_row(r, int(time.time() * 1000)) for r in records]
    if a.csv:
        csv.writer(sys.stdout).writerows([heads, *rows])
        return 0
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(table)
    return 0


def _row(r: KeyRecord, now_ms: int) -> list[str]:
    state = "revoked" if r.revoked_ms else "expired" if 0 < r.expires_ms <= now_ms else "valid"
    limits = " ".join(f"{name}={value}" for name, value in r.limits.items())
    expires = _date(r.expires_ms) if r.expires_ms else ""
    models = ",".join(r.models)
    return [r.key_id, r.tenant, r.user, models, limits, r.priority, _date(r.created_ms), expires, state, r.name]


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


async def _revoke(store: RedisStore, a: argparse.Namespace) -> int:
    key_id = keys.key_id(keys.digest(a.key_id)) if a.key_id.startswith(keys.PREFIX) else a.key_id
    if not await store.revoke_key(key_id, int(time.time() * 1000)):
        raise UsageError(f"there is no key {key_id}; `llm-mesh keys list` shows them")
    print(f"{key_id} is revoked")
    return 0
