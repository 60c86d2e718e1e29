"""Who is let in, over real HTTP: an admin port without workers and without a store."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack_rig import NO_TLS

TOKEN = "a-token-for-tests-0123456789"
Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
API = "/console/api/live", "/console/api/usage", "/console/api/limits"


async def login(client: httpx.AsyncClient, token: str = TOKEN, **headers: str) -> httpx.Response:
    return await client.post("/console/login", data={"token": token}, headers=headers)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_without_a_token_there_is_no_console_and_the_rest_of_the_port_is_as_ever(
    admin: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        async with admin(token="") as client:
            for path in ("/console", "/console/", "/console/login", "/console/files/console.css", *API):
                assert (await client.get(path)).status_code == 404
            assert (await login(client, token="")).status_code == 404
            for path, status in (
                ("/live", 200),
                ("/metrics", 200),
                ("/health", 503),
                ("/ready", 503),
                ("/started", 503),
            ):
                assert (await client.get(path)).status_code == status
    assert "the console is off: no admin token" in caplog.text


async def test_a_short_token_is_refused_and_not_told(admin: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        async with admin(token="hunter2") as client:
            assert (await client.get("/console/api/live", headers=bearer("hunter2"))).status_code == 404
    assert "shorter than 16" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_stranger_is_sent_to_the_login_and_gets_no_figure(admin: Start) -> None:
    async with admin() as client:
        assert (await client.get("/console")).headers["location"] == "console/"
        page = await client.get("/console/")
        assert (page.status_code, page.headers["location"], page.content) == (303, "login", b"")
        for path in API:
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json() == {"error": {"message": "The admin token is needed."}}


async def test_the_token_opens_the_api_as_a_bearer_token(admin: Start) -> None:
    async with admin() as client:
        assert (await client.get("/console/api/live", headers=bearer(TOKEN))).status_code == 200
        for wrong in ("x", TOKEN[:-1], TOKEN + "x"):
            assert (await client.get("/console/api/live", headers=bearer(wrong))).status_code == 401
        assert (await client.get("/console/api/live", headers={"authorization": f"Basic {TOKEN}"})).status_code == 401


async def test_the_token_is_not_taken_from_a_url(admin: Start) -> None:
    async with admin() as client:
        assert (await client.get("/console/api/live", params={"token": TOKEN})).status_code == 401
        assert (await client.post("/console/login", params={"token": TOKEN})).status_code == 401


async def test_the_login_gives_a_cookie_that_scripts_and_other_sites_can_not_use(admin: Start) -> None:
    async with admin() as client:
        answer = await login(client)
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Max-Age=43200"} <= set(cookie.split("; "))
        assert "Path" not in cookie  # the browser's default: /console
        assert "Secure" not in cookie  # plain HTTP: it would not come back
        assert TOKEN not in cookie
        assert (await client.get("/console/")).status_code == 200
        assert (await client.get("/console/api/live")).status_code == 200
        assert (await client.get("/console/login")).headers["location"] == "./"


async def test_behind_https_the_cookie_is_for_https_only(admin: Start) -> None:
    async with admin() as client:
        assert "Secure" in (await login(client, **{"x-forwarded-proto": "https"})).headers["set-cookie"]


async def test_signing_out_takes_the_cookie_back(admin: Start) -> None:
    async with admin() as client:
        await login(client)
        answer = await client.post("/console/logout")
        assert (answer.status_code, answer.headers["location"]) == (303, "login")
        assert (await client.get("/console/api/live")).status_code == 401


@pytest.mark.parametrize("forged", ["1.2", "9999999999.00", "x", ""])
async def test_a_cookie_of_ones_own_opens_nothing(admin: Start, forged: str) -> None:
    async with admin() as client:
        name = f"llm-mesh-console-{client.base_url.port}"
        cookie = {"cookie": f"{name}={forged}"}
        assert (await client.get("/console/", headers=cookie)).status_code == 303
        assert (await client.get("/console/api/live", headers=cookie)).status_code == 401


async def test_bytes_that_are_no_text_are_refused_and_not_an_error(admin: Start) -> None:
    async with admin() as client:
        name = f"llm-mesh-console-{client.base_url.port}".encode()
        for header in ((b"cookie", name + b"=\xff\xfe.\xff"), (b"authorization", b"Bearer \xff\xfe")):
            assert (await client.get("/console/api/live", headers=[header])).status_code == 401
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert (await client.post("/console/login", content=b"token=%ff%fe", headers=form)).status_code == 401


async def test_a_wrong_token_is_said_so_and_is_not_in_the_page_or_the_log(
    admin: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with admin() as client:
        answer = await login(client, "a-wrong-token-of-some-length")
        assert answer.status_code == 401
        assert 'role="alert">That is not the admin token.' in answer.text
        assert "set-cookie" not in answer.headers
        assert "a-wrong-token" not in answer.text + caplog.text


async def test_who_guesses_has_to_wait_and_sessions_go_on(admin: Start) -> None:
    async with admin() as client:
        await login(client)
        async with httpx.AsyncClient(base_url=client.base_url, verify=NO_TLS) as guesser:
            codes = [(await login(guesser, f"guess-{n}")).status_code for n in range(12)]
            assert codes == [401] * 10 + [429] * 2
            right = await guesser.get("/console/api/live", headers=bearer(TOKEN))
            assert right.status_code == 429
            assert 0 < int(right.headers["retry-after"]) <= 60
        assert (await client.get("/console/api/live")).status_code == 200


@pytest.mark.parametrize("content", ["token=" + "x" * 5000, "{}", ""])
async def test_a_body_that_is_no_login_form_is_not_read_as_one(admin: Start, content: str) -> None:
    async with admin() as client:
        kind = "application/json" if content == "{}" else "application/x-www-form-urlencoded"
        answer = await client.post("/console/login", content=content, headers={"content-type": kind})
        assert answer.status_code == 401


async def test_a_form_that_another_site_sends_is_refused(admin: Start) -> None:
    async with admin() as client:
        for site in ("cross-site", "same-site"):
            assert (await login(client, **{"sec-fetch-site": site})).status_code == 403
        assert (await login(client, **{"sec-fetch-site": "same-origin"})).status_code == 303


async def test_without_the_browsers_word_the_forms_origin_decides(admin: Start) -> None:
    async with admin() as client:
        for origin in ("http://evil.example", "http://127.0.0.1:1", "null"):
            assert (await login(client, origin=origin)).status_code == 403
        assert (await login(client, origin=str(client.base_url).rstrip("/"))).status_code == 303


@pytest.mark.parametrize("host", ["x:99999999", "x:abc", "[::1", "x"])
async def test_a_host_that_is_none_is_no_error(admin: Start, host: str) -> None:
    async with admin() as client:
        assert (await client.get("/console/api/live", headers={"host": host})).status_code == 401
        assert (await login(client, host=host)).status_code == 303


@pytest.mark.parametrize(("charset", "form"), [("nope", b"token=x"), ("utf-8", b"token=\xff\xfe"), ("utf-16", b"x")])
async def test_a_form_in_no_known_script_is_a_wrong_token(admin: Start, charset: str, form: bytes) -> None:
    kind = {"content-type": f"application/x-www-form-urlencoded; charset={charset}"}
    async with admin() as client:
        assert (await client.post("/console/login", content=form, headers=kind)).status_code == 401


async def test_who_has_to_wait_has_to_whatever_the_clock_is_set_to_and_is_not_logged_each_time(
    admin: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with admin() as client:
        for n in range(10):
            await login(client, f"guess-{n}")
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        assert [(await login(client)).status_code for _ in range(3)] == [429] * 3
    assert caplog.text.count("was refused") == 10


async def test_every_answer_has_the_headers_that_keep_it_to_itself(admin: Start) -> None:
    async with admin() as client:
        answers = "/console", "/console/login", "/console/files/console.js", "/console/api/live", "/console/"
        for path in (*answers, "/console/files/nothing.js", "/console/nothing"):
            headers = (await client.get(path)).headers
            policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert (policy["script-src"], policy["style-src"], policy["connect-src"]) == ("'self'",) * 3
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == ("no-cache" if path.endswith("console.js") else "no-store")


async def test_the_pages_name_only_files_that_are_there_and_nothing_of_other_hosts(admin: Start) -> None:
    async with admin() as client:
        await login(client)
        pages = [(await client.get("/console/")).text]
        client.cookies.clear()
        pages.append((await client.get("/console/login")).text)
        for page in pages:
            assert not re.search(r"https?://|//[a-z]|<script>|<style|style=|onclick", page)
            files = re.findall(r'(?:href|src)="(files/[^"]+)"', page)
            assert files
            for file in files:
                assert (await client.get(f"/console/{file}")).status_code == 200


async def test_the_pages_modules_import_only_files_that_are_there(admin: Start) -> None:
    async with admin() as client:
        pending, seen = ["console.js"], set[str]()
        while pending:
            name = pending.pop()
            answer = await client.get(f"/console/files/{name}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8"), name
            seen.add(name)
            pending += [m for m in re.findall(r'from "\./([^"]+)"', answer.text) if m not in seen]
        assert len(seen) > 4


@pytest.mark.parametrize(
    "name", ["nothing.js", "console.html", "login.html", "..%2f__init__.py", "%2e%2e/__init__.py", "a/b.js"]
)
async def test_no_other_file_can_be_had(admin: Start, name: str) -> None:
    async with admin() as client:
        assert (await client.get(f"/console/files/{name}")).status_code == 404


async def test_a_file_that_the_browser_has_is_not_sent_again(admin: Start) -> None:
    async with admin() as client:
        first = await client.get("/console/files/console.css")
        again = await client.get("/console/files/console.css", headers={"if-none-match": first.headers["etag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


async def test_questions_that_make_no_sense_are_answered_with_what_does(admin: Start) -> None:
    async with admin() as client:
        await login(client)
        for path in (
            "usage?by=prompt",
            "usage?span=ever",
            "live?since=yesterday",
            "live?since=-1",
            f"live?since={'9' * 5000}",
            "live?since=%D9%A3",
        ):
            answer = await client.get(f"/console/api/{path}")
            assert answer.status_code == 400
            assert "needed" in answer.text or "one of" in answer.text


async def test_without_the_store_the_accounts_say_so_and_live_figures_go_on(admin: Start) -> None:
    async with admin() as client:
        await login(client)
        for path in ("usage", "limits"):
            answer = await client.get(f"/console/api/{path}")
            assert answer.status_code == 503
            assert answer.json()["error"]["message"].startswith("Redis is away: ")
        live: dict[str, Any] = (await client.get("/console/api/live")).json()
        assert live["health"]["status"] == "down"
        assert live["totals"]["requests"] == 0


async def test_a_token_file_that_comes_late_opens_the_console(admin: Start, tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with admin(token="", token_file=str(file)) as client:
        assert (await client.get("/console/login")).status_code == 404
        file.write_text(TOKEN)
        for _ in range(100):
            answer = await client.get("/console/api/live", headers=bearer(TOKEN))
            if answer.status_code == 200:
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"still {answer.status_code}")
