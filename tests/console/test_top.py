"""`llm-mesh top`: the picture from values, and the command against a running platform."""

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from stack_rig import Caller, Platform, eventually

from extproc import top_cli
from extproc.console.shapes import (
    Arm,
    Busy,
    Figures,
    Health,
    History,
    Line,
    Live,
    Model,
    Refusals,
    Settings,
    Totals,
    Usage,
    Workers,
)
from extproc.console.terminal import Frame, bars, dollars, draw, number, percent, seconds

WELL = Health("ok", "up", {"llama2": "up", "mistral": "up"}, Workers(2, 2), Settings(["abc"]), 0)
NOW = Figures(requests_per_second=12.5, ttft_p95_seconds=0.123, ttft_streams=40, hit_ratio=0.42, usd_per_hour=3.5)


def live(**fields: Any) -> Live:
    usual: dict[str, Any] = {
        "time_ms": 1_800_000_000_000,
        "started_ms": 0,
        "instance": "gateway-7",
        "version": "0.1.0",
        "rate_seconds": 10,
        "ratio_seconds": 60,
        "history_seconds": 900,
        "health": WELL,
        "total": NOW,
        "totals": Totals(requests=12_345, usd=1.25),
        "models": [Model("llama2", "up", NOW, Totals(requests=12_000)), Model("", "", Figures(), Totals(requests=3))],
        "arms": [Arm("llama2", "stable", 1.0, NOW, Totals(requests=9))],
        "refused": [],
        "workers": [Busy("0", 0.5)],
        "unsettled": 0,
        "history": History([1, 2], {"": {"requests_per_second": [1.0, 2.0]}}),
    }
    return Live(**{**usual, **fields})


def usage(*lines: Line) -> Usage:
    return Usage(0, "2026-11-23", "2026-11-23", ["tenant"], list(lines), None, len(lines), Line([]))


def shown(frame: Frame, width: int = 120, trouble: str = "") -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(draw(frame, width, trouble))
    return out.getvalue()


def test_it_shows_what_is_now_what_was_and_who_pays() -> None:
    text = shown(Frame(live(), usage(Line(["acme"], requests=1234, hits=617, usd=0.5))))
    for part in ("gateway-7", "ok", "2/2 workers", "12.5/s", "12,345 since start", "123ms", "42%", "$3.50/h", "▄█"):
        assert part in text
    (tenant,) = [line.split() for line in text.splitlines() if line.startswith("acme")]
    assert tenant[:4] == ["acme", "1,234", "50%", "0"]


def test_it_fits_on_eighty_columns() -> None:
    frame = Frame(live(), usage(Line(["acme"], requests=1234, prompt_tokens=1_234_567, usd=12.5)))
    text = shown(frame, width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_trouble_is_named() -> None:
    down = {"llama2": "no healthy upstream", "mistral": "up"}
    health = Health("degraded", "down", down, Workers(2, 1), Settings(["abc"], ["f.yaml:3: no"]), 17)
    text = shown(Frame(live(health=health, unsettled=4), None, "Redis is away: nobody there"), trouble="no answer")
    for part in ("degraded", "1/2 workers", "Redis down", "llama2: no healthy upstream", "f.yaml:3: no"):
        assert part in text
    for part in ("17 settlements wait", "4 reservations", "usage: Redis is away", "stopped: no answer"):
        assert part in text


def test_arms_are_shown_where_there_is_more_than_the_stable_one() -> None:
    assert "share" not in shown(Frame(live(), None))
    arms = [
        Arm("llama2", "canary", 0.1, NOW, Totals(requests=1)),
        Arm("llama2", "stable", 0.9, NOW, Totals(requests=9)),
    ]
    assert "canary  10%" in shown(Frame(live(arms=arms), None)).replace("   ", " ").replace("  10%", "  10%")


def test_refusals_of_the_last_minute_are_listed() -> None:
    refused = [Refusals("rate_limit_exceeded", 12.0, 90), Refusals("model_not_found", 0.0, 3)]
    assert "refused: rate_limit_exceeded 12/min\n" in shown(Frame(live(refused=refused), None)).replace(" \n", "\n")


def test_a_platform_that_was_never_asked_is_shown_too() -> None:
    quiet = live(total=Figures(), totals=Totals(), models=[], arms=[], workers=[], history=History([], {}))
    text = shown(Frame(quiet, usage()))
    assert "usage: nothing today" in text
    assert "–" in text


def test_a_trend_fills_its_line_up_to_its_highest_value() -> None:
    assert bars([0.0, None, 1.0, 4.0, 8.0]) == "  ▁▄█"
    assert bars([]) == ""
    assert bars([0.0, None]) == "  "


def test_names_are_text_and_a_models_room_is_shown() -> None:
    full = Model("[red]llama\x1b[2J", "up", NOW, Totals(), in_flight=12, room=64)
    text = shown(Frame(live(models=[full]), usage(Line(["[/bold]acme\r"]))))
    assert "[red]llama\N{REPLACEMENT CHARACTER}[2J" in text
    assert "12/64" in text
    assert "[/bold]acme\N{REPLACEMENT CHARACTER}" in text


async def test_a_token_that_does_not_hold_any_more_ends_it(
    admin: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]],
    token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text(token)

    def drawn(*what: Any) -> Any:
        file.write_text("another-token-of-some-length")
        return draw(*what)

    monkeypatch.setattr(top_cli, "draw", drawn)
    async with admin(token="", token_file=str(file)) as client:
        with pytest.raises(top_cli.WrongTokenError):
            await asyncio.wait_for(top_cli._watch(str(client.base_url).rstrip("/"), token), 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "–"),
        (number(0), "0"),
        (number(0.123), "0.12"),
        (number(7.25), "7.2"),
        (number(1234), "1234"),
        (number(12_345), "12.3k"),
        (number(12_345_678), "12.3M"),
        (percent(0.0123), "1.2%"),
        (percent(0.5), "50%"),
        (percent(None), "–"),
        (seconds(0.0042), "4.2ms"),
        (seconds(0.25), "250ms"),
        (seconds(2.5), "2.50s"),
        (dollars(0), "$0"),
        (dollars(0.0012), "$0.0012"),
        (dollars(1234.5), "$1,234.50"),
    ],
)
def test_figures_have_their_units(text: str, expected: str) -> None:
    assert text == expected


def top(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLM_MESH_")} | environment
    command = [str(Path(sys.executable).parent / "llm-mesh"), "top", "--once", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.mark.local
def test_the_command_prints_one_frame_of_a_running_platform(observed: Platform, token: str, tmp_path: Path) -> None:
    with Caller(observed, tenant="from-the-top") as caller:
        assert caller.chat(max_tokens=2).status_code == 200
        caller.settled(1)
    url = observed.stack.admin_url
    done = eventually(
        lambda: (out := top("--admin", url, LLM_MESH_ADMIN_TOKEN=token)) and "from-the-top" in out.stdout and out
    )
    assert done.returncode == 0
    assert "2/2 workers" in done.stdout
    file = tmp_path / "token"
    file.write_text(token + "\n")
    again = top("--token-file", str(file), LLM_MESH_ADMIN=url)
    assert again.returncode == 0, again.stderr


@pytest.mark.local
def test_what_is_wrong_is_said_in_a_line(observed: Platform, token: str) -> None:
    url = observed.stack.admin_url
    for done, words in (
        (top("--admin", url), "the admin token is needed"),
        (top("--admin", url, LLM_MESH_ADMIN_TOKEN="wrong" * 5), "this is not the admin token"),
        (top("--admin", "http://127.0.0.1:1", LLM_MESH_ADMIN_TOKEN=token), "does not answer"),
        (top("--admin", "nonsense", LLM_MESH_ADMIN_TOKEN=token), "nonsense"),
        (top("--admin", url + "/health", LLM_MESH_ADMIN_TOKEN=token), "there is no console"),
    ):
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
