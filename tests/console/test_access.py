"""The admin token and the cookie that stands for it."""

import os
from pathlib import Path

from extproc.console.access import SESSION_SECONDS, Access

TOKEN = "0123456789abcdefghij"
NOW = 1_800_000_000.0


def test_without_a_token_nobody_gets_in_and_the_log_can_say_why() -> None:
    access = Access("")
    assert access.token(NOW) == ""
    assert not access.is_token("", NOW)
    assert "LLM_MESH_ADMIN_TOKEN" in access.why_off


def test_a_token_that_can_be_guessed_is_as_good_as_none() -> None:
    access = Access("hunter2")
    assert not access.is_token("hunter2", NOW)
    assert "shorter than 16" in access.why_off
    assert "hunter2" not in access.why_off


def test_the_token_and_nothing_else_is_taken() -> None:
    access = Access(TOKEN)
    assert access.is_token(TOKEN, NOW)
    assert [access.is_token(wrong, NOW) for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\udcff")] == [
        False
    ] * 5


def test_a_session_ends() -> None:
    access = Access(TOKEN)
    cookie = access.session(NOW)
    assert access.is_session(cookie, NOW)
    assert access.is_session(cookie, NOW + SESSION_SECONDS - 1)
    assert not access.is_session(cookie, NOW + SESSION_SECONDS)


def test_a_session_can_not_be_made_up_or_made_longer() -> None:
    access = Access(TOKEN)
    ends, _, signature = access.session(NOW).partition(".")
    forged = [f"{int(ends) + 1}.{signature}", f"{ends}.", ends, "", ".", f"x.{signature}", "\udcff.\udcff", TOKEN]
    assert [access.is_session(cookie, NOW) for cookie in forged] == [False] * len(forged)


def test_the_cookie_does_not_hold_the_token_and_is_no_token() -> None:
    access = Access(TOKEN)
    assert TOKEN not in access.session(NOW)
    assert not access.is_token(access.session(NOW), NOW)


def test_another_processor_with_the_same_token_takes_the_session_and_one_with_another_does_not() -> None:
    cookie = Access(TOKEN).session(NOW)
    assert Access(TOKEN).is_session(cookie, NOW)
    assert not Access(TOKEN[::-1]).is_session(cookie, NOW)
    assert not Access("").is_session(cookie, NOW)


def test_a_token_that_changes_in_its_file_ends_the_sessions(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    access = Access("", str(file))
    cookie = access.session(NOW)
    assert access.is_session(cookie, NOW)
    file.write_text(TOKEN[::-1])
    assert access.is_token(TOKEN[::-1], NOW + 2)
    assert not access.is_token(TOKEN, NOW + 2)
    assert not access.is_session(cookie, NOW + 2)


def test_a_token_file_that_comes_late_switches_the_console_on_and_one_that_goes_switches_it_off(tmp_path: Path) -> None:
    file = tmp_path / "token"
    access = Access("", str(file))
    assert access.token(NOW) == ""
    assert str(file) in access.why_off
    file.write_text(TOKEN)
    assert access.token(NOW + 2) == TOKEN
    file.unlink()
    assert access.token(NOW + 4) == ""


def test_a_clock_that_is_set_back_does_not_keep_an_old_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    access = Access("", str(file))
    assert access.token(NOW) == TOKEN
    file.write_text(TOKEN[::-1])
    assert access.token(NOW - 3600) == TOKEN[::-1]


def test_a_file_of_noise_is_no_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(os.urandom(8) + b"\xff" * 64)
    assert Access("", str(file)).token(NOW) == ""


def test_guessing_has_to_wait_and_only_where_it_is_done() -> None:
    access = Access(TOKEN)
    for n in range(10):
        assert access.wait_seconds("10.0.0.1", NOW + n) == 0
        access.failed("10.0.0.1", NOW + n)
    assert 0 < access.wait_seconds("10.0.0.1", NOW + 10) <= 51
    assert access.wait_seconds("10.0.0.2", NOW + 10) == 0
    assert access.wait_seconds("10.0.0.1", NOW + 61) == 0


def test_many_addresses_do_not_fill_the_memory() -> None:
    access = Access(TOKEN)
    for n in range(3000):
        access.failed(str(n), NOW)
    assert len(access._failures) <= 1000
