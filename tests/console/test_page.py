"""The page in a real browser, on a running platform under traffic.

Needs Debian's chromium and the package playwright, which drives it. Where one is missing these tests are left out,
unless CI is set: there they must run. Whatever a page writes to the browser's log (errors, violations of the content
security policy) or asks of another host fails the test that showed it.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stack_rig import Caller, Json, Metrics, Platform, StartPlatform, ask, eventually

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("traffic")]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
CARDS = ["Requests", "Time to first token, p95", "Cache hit rate", "Tokens", "Cost by price list", "Failed answers"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = [
        *([] if program else ["chromium (Debian's package)"]),
        *([] if importlib.util.find_spec("playwright") else ["playwright (PyPI)"]),
    ]
    if missing:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(f"the page is tested in a real browser; missing: {', '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, observed: Platform, token: str) -> Iterator[Open]:
    """`visit()`: the console in a fresh browser, signed in; `login=False`: as a stranger. Extras as of a context."""
    contexts, complaints = [], []

    def visit(platform: Platform = observed, login: bool = True, **extras: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **extras})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        url = f"{platform.stack.admin_url}/console/"
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(url) else complaints.append(r.url))
        page.complaints = complaints
        page.goto(url)
        if login:
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.wait_for_selector("#models tbody tr")
        return page

    yield visit
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="wait")  # an answer that is being changed needs its page
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def traffic(browser: Any, observed: Platform) -> str:  # noqa: ARG001  where that is missing, nothing is started
    """Some of everything, settled; the tenant that it was of."""
    with Caller(observed, user="ann") as caller:
        body = ask(model="llama2", temperature=0, max_tokens=8)
        caller.http.post("/chat/completions", json=body)
        caller.settled(1)
        caller.http.post("/chat/completions", json=body)
        caller.chat(model="mistral", stream=True, max_tokens=12)
        caller.chat(model="mistral", headers={"x-sim-status": "500"})
        caller.http.post("/embeddings", json={"model": "bge-small", "input": "words"})
        caller.chat(model="no-such-model")
        caller.settled(6)
        return caller.tenant


def cells(page: Any, table: str, key: str) -> Json:
    """A row's texts by the names of their columns."""
    row = page.locator(f'#{table} tbody tr[data-key="{key}"]')
    found: Json = row.evaluate("r => Object.fromEntries([...r.children].map(c => [c.dataset.name ?? '', c.innerText]))")
    return found


# --- signing in -------------------------------------------------------------------------------------------------------


def test_a_stranger_is_asked_for_the_token_and_sees_nothing_else(visit: Open) -> None:
    page = visit(login=False)
    assert page.url.endswith("/console/login")
    assert page.locator("#token").evaluate("e => e === document.activeElement")
    assert page.locator("main").inner_text().startswith("llm-mesh console")


def test_a_wrong_token_is_said_and_the_right_one_opens_the_page_without_a_mouse(visit: Open, token: str) -> None:
    page = visit(login=False)
    page.keyboard.type("not-the-token-at-all")
    page.keyboard.press("Enter")
    page.wait_for_selector('[role="alert"]')
    assert page.locator('[role="alert"]').inner_text() == "That is not the admin token."
    assert page.complaints == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
    page.complaints.clear()
    page.keyboard.type(token)
    page.keyboard.press("Enter")
    page.wait_for_selector("#models tbody tr")
    assert token not in page.url
    assert page.evaluate("document.cookie") == ""  # scripts do not see the session


def test_signing_out_leads_to_the_login_and_back_does_not_show_the_page(visit: Open) -> None:
    page = visit()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/console/login")
    page.goto(page.url.removesuffix("login"))
    assert page.url.endswith("/console/login")


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_metrics(visit: Open, observed: Platform) -> None:
    page = visit()

    def agreed() -> bool:
        metrics = Metrics(observed)
        whole = metrics.value("llm_requests_total")
        models = {m: metrics.value("llm_requests_total", model=m) for m in ("llama2", "mistral", "bge-small")}
        card = page.locator(".card", has_text="Requests").first.locator(".figure").inner_text()
        return f"{whole:.0f} since" in card and all(
            cells(page, "models", model)["Since start"] == f"{count:.0f}" for model, count in models.items()
        )

    eventually(agreed)
    row = cells(page, "models", "llama2")
    assert row["State"] == "up"
    assert row["Hit rate"].endswith("%")


def test_the_cards_show_figures_with_units_and_plots_with_lines(visit: Open) -> None:
    page = visit()
    assert page.locator(".card h3").all_inner_texts() == CARDS
    page.wait_for_function("document.querySelectorAll('.card path.line').length >= 8")
    values = page.locator(".card .value").all_inner_texts()
    for value, unit in zip(values, (r"/s$", r"(ms|s)$", r"%$", r"/s$", r"^\$.*/h$", r"%$"), strict=True):
        assert re.search(unit, value), values


def test_usage_is_what_the_tenant_used(visit: Open, observed: Platform, traffic: str) -> None:
    page = visit()
    page.wait_for_selector(f'#usage tr[data-key="{traffic}"]')
    row = cells(page, "usage", traffic)
    with Caller(observed, tenant=traffic) as caller:
        account = caller.account()
    assert row["Requests"] == str(account["requests"])
    assert row["Tokens written"] == str(account["completion_tokens"])
    assert row["Errors"] == str(account["errors"])
    assert row["Cost"].startswith(("$", "<$"))


def test_the_split_by_arm_is_shown(visit: Open) -> None:
    page = visit()
    row = cells(page, "arms", "mistral stable")
    assert row["Arm"] == "stable"
    assert int(row["Since start"]) >= 2


def test_a_canary_is_shown_with_its_share(visit: Open) -> None:
    """The local stack has one arm: the answer of the API is given a second one on its way."""
    page = visit()

    def split(route: Any) -> None:
        live = route.fetch().json()
        (stable,) = [arm for arm in live["arms"] if arm["model"] == "mistral"]
        live["arms"] = [{**stable, "arm": "canary", "share": 0.1}, {**stable, "share": 0.9}]
        route.fulfill(json=live)

    page.route("**/api/live?*", split)
    page.wait_for_selector('#arms tr[data-key="mistral canary"]')
    assert cells(page, "arms", "mistral canary")["Share"].replace("\u202f", " ") == "10 %"
    bars = page.locator("#arms .full").evaluate_all("bars => bars.map(b => b.style.width)")
    assert bars == ["10%", "90%"]


def change(page: Any, path: str, edit: Callable[[Json], None]) -> None:
    """From now on the API's answers are given another content on their way."""

    def changed(route: Any) -> None:
        answer = route.fetch().json()
        edit(answer)
        route.fulfill(json=answer)

    page.route(path, changed)


def test_a_model_shows_how_full_it_is_and_how_many_were_turned_away(visit: Open) -> None:
    page = visit()

    def fill(live: Json) -> None:
        for model in live["models"]:
            if model["name"] in ("mistral", "codellama"):
                model.update(in_flight=12, room=64 if model["name"] == "mistral" else 0)
        live["refused"] = [{"reason": "model_overloaded", "per_minute": 3, "total": 70}]

    change(page, "**/api/live?*", fill)
    page.wait_for_selector('#models tr[data-key="mistral"] td:has-text("12 of 64")')
    assert cells(page, "models", "codellama")["Under way"] == "12"
    bar = '#models tr[data-key="{}"] [data-name="Under way"] .meter'
    assert page.locator(bar.format("mistral")).get_attribute("aria-valuenow") == "19"
    assert page.locator(bar.format("codellama")).is_hidden()
    assert "70 turned away" in page.locator(".card").last.locator(".figure").inner_text()


def test_a_bucket_that_holds_more_than_a_minutes_worth_is_not_fuller_than_full(visit: Open) -> None:
    page = visit()

    def burst(limits: Json) -> None:
        level = {"per_minute": 10, "size": 30, "left": 30, "used_ratio": 0}
        caller = {"tenant": "t", "user": "u", "key_id": "k", "in_flight": 0, "max_in_flight": 0, "used_ratio": 0}
        limits["callers"] = [{**caller, "requests": level, "tokens": None}]

    change(page, "**/api/limits", burst)
    page.wait_for_selector('#limits [data-name="Requests a minute"]:has-text("30 of 30 left (10/min)")')


def test_a_model_without_requests_hides_no_other_ones_line(visit: Open) -> None:
    page = visit()
    page.wait_for_function("document.querySelectorAll('.card:first-child path.line').length >= 4")
    colors = "[...document.querySelectorAll('.card:first-child path.line')].map(p => p.classList[1])"
    names = "[...document.querySelectorAll('.card:first-child .legend li')].map(li => li.classList[0])"
    assert page.evaluate(colors) == page.evaluate(names)[::-1]
    assert page.locator(".card .legend").first.inner_text().endswith("(no model chosen)")


def test_points_that_are_far_apart_are_a_line_all_the_same(visit: Open) -> None:
    page = visit()
    ends: Json = {}

    def spread(live: Json) -> None:
        end = ends.setdefault("ms", live["time_ms"])
        times = [end - 30_000 * n for n in range(10, 0, -1)]
        live.update(time_ms=end, started_ms=1, history={"time_ms": times, "scopes": {"": {"hit_ratio": [0.5] * 10}}})

    change(page, "**/api/live?*", spread)
    line = page.locator(".card", has_text="Cache hit rate").locator("path.line")
    eventually(lambda: page.wait_for_timeout(20) or (line.get_attribute("d") or "").count("L") >= 9)


def test_after_days_the_sums_say_since_which_day(visit: Open) -> None:
    page = visit()
    change(page, "**/api/live?*", lambda live: live.update(started_ms=live["time_ms"] - 3 * 86_400_000))
    note = page.locator(".card .figure .muted").first
    eventually(lambda: page.wait_for_timeout(20) or re.search(r"since \d+ \w+,? \d\d:\d\d$", note.inner_text()))


def test_an_answer_that_the_page_does_not_understand_is_said_so(visit: Open) -> None:
    page = visit()
    change(page, "**/api/live?*", lambda live: live.pop("health"))
    page.wait_for_selector("#banner:has-text('please load it again')")
    assert page.locator("#state").inner_text() == "Out of date"
    page.unroute_all()
    eventually(lambda: page.locator("#state").inner_text() == "All is well")
    assert any("undefined" in complaint for complaint in page.complaints)
    page.complaints.clear()


def test_another_version_of_the_processor_gets_its_own_page(visit: Open) -> None:
    page = visit()
    with page.expect_event("load"):
        change(page, "**/api/live?*", lambda live: live.update(version="next"))


def test_the_plots_end_with_the_figures_above_them(visit: Open, observed: Platform) -> None:
    page = visit()
    with Caller(observed) as caller:
        caller.chat(model="mistral", stream=True, max_tokens=30)
        caller.settled(1)
    card = page.locator(".card", has_text="Tokens").first
    eventually(lambda: not card.locator(".value").inner_text().startswith("0/s"))
    page.get_by_role("button", name="Pause").click()
    card.locator(".plot").focus()
    page.keyboard.press("End")
    read = dict(re.findall(r"(read|written) \(\w+\) (\S+/s)", card.locator(".reading").inner_text()))
    assert card.locator(".figure").inner_text().split() == [read["written"], "written;", read["read"], "read"]


def test_budgets_limits_and_refusals_are_shown(visit: Open, observed: Platform) -> None:
    with Caller(observed, tenant="thrifty", user="tim") as caller:
        caller.chat(max_tokens=20)
        caller.settled(1)
    page = visit()
    page.wait_for_selector('#budgets tr[data-key="thrifty"]')
    assert cells(page, "budgets", "thrifty")["Budget"] == "$0.001"
    meter = page.locator('#budgets tr[data-key="thrifty"] [role="meter"]')
    assert 0 < int(meter.get_attribute("aria-valuenow")) <= 100
    assert "no limit" in page.locator("#limits tr", has_text="tim").inner_text()
    assert page.locator('#refused tr[data-key="model_not_found"]').count() == 1


def test_a_name_is_text_whatever_it_holds(visit: Open, observed: Platform) -> None:
    name = "<img src=x onerror=alert(1)>&amp;"
    with Caller(observed, tenant=name, user="<b>bold</b>") as caller:
        caller.chat(max_tokens=1)
        eventually(lambda: not caller.reserved())
    page = visit()
    page.get_by_role("radio", name="User").check(force=True)
    page.wait_for_selector("#usage td:text-is('<b>bold</b>')")
    assert page.locator("#usage th", has_text=name).count() == 1
    assert page.locator("#usage img, #usage b").count() == 0


def test_new_traffic_appears_without_a_reload(visit: Open, observed: Platform) -> None:
    page = visit()
    before = int(cells(page, "models", "codellama")["Since start"])
    with Caller(observed) as caller:
        caller.chat(model="codellama", max_tokens=1)
        caller.settled(1)
    eventually(lambda: int(cells(page, "models", "codellama")["Since start"]) == before + 1)


# --- handling ---------------------------------------------------------------------------------------------------------


def test_a_plot_is_read_with_the_arrow_keys(visit: Open) -> None:
    page = visit()
    page.wait_for_function("document.querySelectorAll('.card path.line').length >= 8")
    plot = page.locator(".plot").first
    plot.focus()
    reading = plot.locator(".reading")
    assert reading.is_hidden()
    page.keyboard.press("ArrowLeft")
    assert re.match(r"\d\d:\d\d:\d\d", reading.inner_text())
    assert "llama2" in reading.inner_text()
    newest = reading.locator(".at").inner_text()
    page.keyboard.press("Home")
    assert reading.locator(".at").inner_text() < newest
    assert reading.get_attribute("aria-live") == "polite"
    eventually(lambda: page.wait_for_timeout(20) or reading.get_attribute("aria-live") == "off")  # new figures only
    page.keyboard.press("Escape")
    assert reading.is_hidden()
    assert plot.get_attribute("aria-label").startswith("Requests. Now: llama2 ")


def test_a_plot_is_read_with_a_pointer(visit: Open) -> None:
    page = visit()
    page.wait_for_function("document.querySelectorAll('.card path.line').length >= 8")
    plot = page.locator(".plot").first
    plot.hover()
    assert "llama2" in plot.locator(".reading").inner_text()
    page.mouse.move(0, 0)
    assert plot.locator(".reading").is_hidden()


def test_a_plot_is_read_with_a_finger_and_stays_until_another_place_is_touched(visit: Open) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    page.wait_for_function("document.querySelectorAll('.card path.line').length >= 8")
    plot = page.locator(".plot").first
    plot.tap()
    assert "llama2" in plot.locator(".reading").inner_text()
    page.locator("h1").tap()
    assert plot.locator(".reading").is_hidden()


def test_everything_can_be_reached_and_worked_with_the_keyboard(visit: Open) -> None:
    page = visit()
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
    assert {"pause", "theme", "scope", "plot", "by", "span"} <= seen
    page.get_by_role("radio", name="Tenant").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('#usage [data-key] [data-name="User"]')
    button = page.locator("#models thead button", has_text="Since start")
    button.focus()
    page.keyboard.press("Enter")
    counts = [
        int(text.replace(",", "")) for text in page.locator('#models [data-name="Since start"]').all_inner_texts()
    ]
    assert counts == sorted(counts, reverse=True)
    page.keyboard.press("Enter")
    assert page.locator("#models th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert button.evaluate("e => e === document.activeElement")


def test_rows_stay_the_same_elements_while_their_figures_change(visit: Open, observed: Platform) -> None:
    """What a reader has selected or a screen reader stands on does not go away each second."""
    page = visit()
    row = page.locator('#models tr[data-key="codellama"]')
    row.evaluate("e => { e.marked = true }")
    before = row.inner_text()
    with Caller(observed) as caller:
        caller.chat(model="codellama", max_tokens=1)
        caller.settled(1)
    eventually(lambda: row.inner_text() != before)
    assert row.evaluate("e => e.marked")


def test_the_plots_can_be_of_one_model(visit: Open) -> None:
    page = visit()
    page.get_by_label("Show").select_option("mistral")
    card = page.locator(".card").first
    assert card.locator(".legend").is_hidden()
    expected = cells(page, "models", "mistral")["Since start"]
    assert card.locator(".figure .muted").inner_text().startswith(f"{expected} since")


def test_pause_stops_the_figures_and_goes_on(visit: Open) -> None:
    page = visit()
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#updated").inner_text().startswith("stopped at")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1500)  # more than a round
    assert asked == []
    page.get_by_role("button", name="Go on").click()
    eventually(lambda: page.wait_for_timeout(20) or len(asked) >= 2)


# --- looks ------------------------------------------------------------------------------------------------------------

GROUND = "getComputedStyle(document.documentElement).backgroundColor"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_another_is_chosen_and_the_choice_stays(visit: Open, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    own = page.evaluate(GROUND)
    other = "dark" if scheme == "light" else "light"
    page.get_by_role("radio", name=other.title()).check(force=True)
    chosen = page.evaluate(GROUND)
    assert chosen != own
    page.reload()
    page.wait_for_selector("#models tbody tr")
    assert page.evaluate(GROUND) == chosen
    assert page.get_by_role("radio", name=other.title()).is_checked()
    page.get_by_role("radio", name="Auto").check(force=True)
    assert page.evaluate(GROUND) == own


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
@pytest.mark.parametrize("path", ["", "login"])
def test_no_width_needs_scrolling_sideways(visit: Open, width: int, path: str) -> None:
    page = visit(login=not path, viewport={"width": width, "height": 844})
    if not path:
        page.wait_for_selector("#usage tbody tr")
        page.wait_for_selector("#limits tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_rows_are_cards_with_the_columns_names_and_fingers_can_hit(visit: Open) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    page.wait_for_selector("#usage tbody tr")
    assert page.locator("#models tbody tr").first.evaluate("e => getComputedStyle(e).display") == "grid"
    named = page.locator('#models [data-name="Requests"]').first
    assert named.evaluate("e => getComputedStyle(e, '::before').content") == '"Requests"'
    for control in page.locator("header button, .choice label, select").all():
        box = control.bounding_box()
        assert box["height"] >= 30, control.inner_text()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]


CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (color.startsWith('rgb') && (rgb(color)[3] ?? 1) === 1) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest('.hidden, noscript, svg')) continue;
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(c => light(rgb(c)));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(visit: Open, scheme: str) -> None:
    for page in (visit(color_scheme=scheme), visit(color_scheme=scheme, login=False)):
        assert page.evaluate(CONTRAST) == []


def test_every_control_has_a_name_and_every_table_a_caption(visit: Open) -> None:
    page = visit()
    page.wait_for_selector("#limits tbody tr")
    controls = page.locator("button:visible, select:visible, input:visible")
    nameless = "e => !(e.innerText || e.labels?.[0]?.innerText || e.getAttribute('aria-label'))"
    assert [c.evaluate("e => e.outerHTML") for c in controls.all() if c.evaluate(nameless)] == []
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("[role=meter]:not([aria-label])").count() == 0
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


def test_nothing_moves_for_those_who_do_not_want_it(visit: Open) -> None:
    page = visit(reduced_motion="reduce")
    page.wait_for_selector("#limits .meter .full", state="attached")
    moving = (
        "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration)).length"
    )
    assert page.evaluate(moving) == 0


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("time(0.0042)", "4.2 ms"),
        ("time(0.25)", "250 ms"),
        ("time(2.5)", "2.5 s"),
        ("time(null)", "–"),
        ("rate(0)", "0/s"),
        ("rate(0.004)", "<0.01/s"),
        ("rate(12345)", "12.3k/s"),
        ("number(1234567)", "1.2M"),
        ("count(1234567)", "1,234,567"),
        ("percent(0.4216)", "42 %"),
        ("percent(0.004)", "0.4 %"),
        ("percent(0.0004)", "<0.1 %"),
        ("percent(1)", "100 %"),
        ("money(0)", "$0"),
        ("money(0.00123)", "$0.0012"),
        ("money(12.5)", "$12.50"),
        ("money(123456)", "$123k"),
        ("money(0.00001)", "<$0.0001"),
    ],
)
def test_numbers_are_written_with_their_units(formats: Any, call: str, expected: str) -> None:
    assert formats.evaluate(f"import('./files/format.js').then(f => f.{call})").replace("\u202f", " ") == expected


@pytest.fixture(scope="module")
def formats(browser: Any, observed: Platform) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{observed.stack.admin_url}/console/login")
    yield page
    context.close()


# --- when something is away -------------------------------------------------------------------------------------------


def test_a_platform_that_was_not_asked_yet_says_so_and_what_goes_away_is_said_where_it_is_missed(
    visit: Open, start_platform: StartPlatform, token: str
) -> None:
    with start_platform(workers=1, admin_token=token) as platform:
        page = visit(platform)
        assert page.locator(".card", has_text="Time to first token").locator(".empty").is_visible()
        page.wait_for_selector("#usage .empty:visible")
        assert page.locator("#state").inner_text() == "All is well"

        platform.stack.children["valkey"].kill()
        page.wait_for_selector("#usage .trouble:visible")
        assert page.locator("#usage .trouble").inner_text().startswith("Redis is away")
        page.wait_for_selector("#banner:has-text('Redis is away')")
        assert page.title() == "Degraded · llm-mesh console"
        assert page.locator("#state").inner_text() == "Degraded"
        platform.do(platform.stack.restart("valkey"))
        page.wait_for_selector("#usage .trouble", state="hidden")
        page.wait_for_selector("#state:has-text('All is well')")

        platform.do(platform.stack.children["processor"].stop())
        page.wait_for_selector("#banner:has-text('The processor does not answer.')")
        assert page.locator("#state").inner_text() == "No answer"
        assert page.locator("#models tbody tr").count() >= 4  # what it had stays
        platform.do(platform.stack.restart("processor"))
        page.wait_for_selector("#state:has-text('All is well')", timeout=30_000)
    refused = re.compile(r"503 \(Service Unavailable\)|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
    assert [text for text in page.complaints if not refused.search(text)] == []
    page.complaints.clear()
