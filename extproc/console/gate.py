"""The console's door: login, logout, and who is let through to what. What a token or a cookie is worth: access.py."""

import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from extproc.console.access import SESSION_SECONDS, Access

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LONGEST_FORM_BYTES = 4096
_OURS = "same-origin", "none"  # what browsers say of requests that no other site made
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Gate:
    def __init__(self, token: str, token_file: str) -> None:
        self._access = Access(token, token_file)

    def is_on(self) -> bool:
        return bool(self._access.token(time.time()))

    @property
    def why_off(self) -> str:
        return self._access.why_off

    def guarded(self, handler: Handler) -> Handler:
        """404 while there is no token; our headers on every answer; no form that another site sends."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self.is_on():
                raise web.HTTPNotFound
            if request.method == "POST" and not _is_ours(request):
                return refusal(403, "This form must come from the console's own page.")
            return await handler(request)

        async def dressed(request: web.Request) -> web.StreamResponse:
            try:
                response = await guarded(request)
            except web.HTTPException as refused:
                _dress(refused)
                raise
            _dress(response)
            return response

        return dressed

    def secret(self, handler: Handler) -> Handler:
        """For the API: 401 without a session or token, 429 after too many wrong ones."""

        async def secret(request: web.Request) -> web.StreamResponse:
            if self.has_session(request):
                return await handler(request)
            now, address = time.monotonic(), request.remote or ""
            wait = self._access.wait_seconds(address, now)
            if wait:
                return refusal(429, "Too many wrong tokens from this address.", {"retry-after": str(wait)})
            scheme, _, shown = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and self._access.is_token(shown, time.time()):
                return await handler(request)
            if shown:
                self._access.failed(address, now)
            return refusal(401, "The admin token is needed.", {"www-authenticate": "Bearer"})

        return secret

    def has_session(self, request: web.Request) -> bool:
        return self._access.is_session(request.cookies.get(_cookie(request), ""), time.time())

    async def login(self, request: web.Request) -> web.Response | int:
        """The way in, or the status that says why not."""
        address = request.remote or ""
        if self._access.wait_seconds(address, time.monotonic()):
            return 429
        if not self._access.is_token(await _shown_token(request), time.time()):
            self._access.failed(address, time.monotonic())
            return 401
        response = go("./")
        _set(request, response, self._access.session(time.time()), SESSION_SECONDS)
        return response

    async def logout(self, request: web.Request) -> web.Response:
        response = go("login")
        _set(request, response, "", 0)
        return response


def go(where: str) -> web.Response:
    """Relative, so that it is right behind a proxy's prefix too."""
    return web.Response(status=303, headers={"location": where})


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode({"error": {"message": message}})
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


async def _shown_token(request: web.Request) -> str:
    """Of the login form. Nothing is read of a body that can not be one."""
    if request.content_type != "application/x-www-form-urlencoded":
        return ""
    if (request.content_length or _LONGEST_FORM_BYTES + 1) > _LONGEST_FORM_BYTES:
        return ""
    try:
        shown = (await request.post()).get("token", "")
    except (LookupError, ValueError):  # no such character set, or not what it says
        return ""
    return shown if isinstance(shown, str) else ""


def _cookie(request: web.Request) -> str:
    """Cookies do not know ports: two consoles that are forwarded to one machine must not take each other's."""
    return f"llm-mesh-console-{_port(request.host)}"


def _port(host: str) -> int:
    try:
        return urlsplit(f"//{host}").port or 0
    except ValueError:
        return 0


def _is_ours(request: web.Request) -> bool:
    """Where a browser does not say which site sent a form (plain HTTP, old ones), its Origin does."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site in _OURS
    return origin is None or origin.partition("://")[2].lower() == request.host.lower()


def _dress(response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _set(request: web.Request, response: web.Response, value: str, max_age: int) -> None:
    """Without a path: the browser's own default is /console, whatever a proxy put before it."""
    secure = request.secure or request.headers.get("x-forwarded-proto", "") == "https"
    cookie = _cookie(request)
    response.set_cookie(cookie, value, max_age=max_age, path="", httponly=True, samesite="Strict", secure=secure)
