"""The console: a page at the admin port for people without Grafana, and the small API that it and `llm-mesh top` read.

/console/              the page; without a session, the way to /console/login
/console/api/live      what the workers' metrics say now, and the last quarter of an hour (?since=MS: what is newer)
/console/api/usage     requests, tokens and cost (?by=tenant|user|model|arm|key &span=today|week|month|30d)
/console/api/limits    budgets and rate limits: how much is used

Everything but the login page and the files it is made of wants the admin token: as a Bearer token, or as the cookie
that the login sets. Without a token in the configuration all of it is 404. It lives in the supervisor's process, reads
what the workers write anyway, and is on no request's path. Who may: gate.py, access.py. Live figures: sampler.py,
ring.py, sample.py. Usage and limits: ledger.py, accounts.py. The API's shapes: shapes.py. The page itself: page/.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import get_args

import msgspec
from aiohttp import web
from prometheus_client import Metric

from extproc.console import assets, shapes
from extproc.console.gate import Gate, go, refusal
from extproc.console.ledger import Ledger
from extproc.console.sampler import Sampler
from extproc.errors import ConfigError, StoreUnavailable

log = logging.getLogger("llm-mesh")
_LONGEST_SINCE = 15  # digits
_MESSAGE = b"<!--message-->"
_MESSAGES = {
    401: b'<p class="wrong" role="alert">That is not the admin token.</p>',
    429: b'<p class="wrong" role="alert">Too many wrong tokens from this address. Please wait a minute.</p>',
}


class Options(msgspec.Struct, frozen=True):
    redis_url: str
    config_file: str
    token: str = ""
    token_file: str = ""


class Console:
    """`families` reads the workers' metrics, and may take its time; `health` is what /health says."""

    def __init__(
        self,
        options: Options,
        families: Callable[[], Iterable[Metric]],
        health: Callable[[], dict[str, object]],
    ) -> None:
        self._gate = Gate(options.token, options.token_file)
        self._sampler = Sampler(families, health)
        self._ledger = Ledger(options.redis_url, options.config_file)
        self._assets = assets.load()
        self._sampling: asyncio.Task[None] | None = None

    def mount(self, router: web.UrlDispatcher) -> None:
        gate = self._gate
        for method, path, handler in (
            ("GET", "/console", self._door),
            ("GET", "/console/", self._page),
            ("GET", "/console/login", self._login_page),
            ("POST", "/console/login", self._login),
            ("POST", "/console/logout", gate.logout),
            ("GET", "/console/files/{name}", self._file),
            ("GET", "/console/api/live", gate.secret(self._live)),
            ("GET", "/console/api/usage", gate.secret(self._usage)),
            ("GET", "/console/api/limits", gate.secret(self._limits)),
            ("GET", "/console/{rest:.*}", self._nothing),
        ):
            router.add_route(method, path, gate.guarded(handler))

    def start(self, where: str) -> None:
        if self._gate.is_on():
            log.info("console: http://%s/console/", where)
        else:
            log.info("the console is off: %s", self._gate.why_off)
        self._sampling = asyncio.create_task(self._sampler.keep(self._gate.is_on), name="console samples")

    async def stop(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling
        await self._ledger.close()

    # --- the page -----------------------------------------------------------------------------------------------------

    async def _door(self, _request: web.Request) -> web.Response:
        return go("console/")

    async def _page(self, request: web.Request) -> web.Response:
        return self._html("console.html") if self._gate.has_session(request) else go("login")

    async def _login_page(self, request: web.Request) -> web.Response:
        return go("./") if self._gate.has_session(request) else self._html("login.html")

    async def _login(self, request: web.Request) -> web.Response:
        outcome = await self._gate.login(request)
        if isinstance(outcome, web.Response):
            return outcome
        if outcome == 401:  # who has to wait has been named often enough
            log.warning("console: a login from %s was refused", request.remote)
        return self._html("login.html", outcome)

    def _html(self, name: str, status: int = 200) -> web.Response:
        body = self._assets[name].body.replace(_MESSAGE, _MESSAGES.get(status, b""))
        return web.Response(body=body, status=status, content_type="text/html", charset="utf-8")

    async def _nothing(self, _request: web.Request) -> web.Response:
        raise web.HTTPNotFound

    async def _file(self, request: web.Request) -> web.Response:
        asset = self._assets.get(request.match_info["name"])
        if asset is None or asset.media_type == "text/html":
            raise web.HTTPNotFound
        headers = {"cache-control": "no-cache", "etag": f'"{asset.tag}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=asset.body, content_type=asset.media_type, charset="utf-8", headers=headers)

    # --- the API ------------------------------------------------------------------------------------------------------

    async def _live(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        if not (since.isdecimal() and since.isascii() and len(since) <= _LONGEST_SINCE):
            return refusal(400, "since: milliseconds of the epoch are needed.")
        return _json(await self._sampler.live(int(since)))

    async def _usage(self, request: web.Request) -> web.Response:
        asked = {"by": request.query.get("by", "tenant"), "span": request.query.get("span", "today")}
        try:
            question = msgspec.convert(asked, _Question)
        except msgspec.ValidationError:
            words = f"by: one of {', '.join(get_args(shapes.By))}; span: one of {', '.join(get_args(shapes.Span))}."
            return refusal(400, words)
        return await _answered(self._ledger.usage(question.span, question.by))

    async def _limits(self, _request: web.Request) -> web.Response:
        return await _answered(self._ledger.limits())


class _Question(msgspec.Struct, frozen=True):
    by: shapes.By
    span: shapes.Span


async def _answered(asked: Awaitable[object]) -> web.Response:
    try:
        return _json(await asked)
    except StoreUnavailable as error:
        return refusal(503, f"Redis is away: {error}")
    except ConfigError as error:
        return refusal(503, f"The configuration can not be read: {error}")


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
