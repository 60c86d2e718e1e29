"""`llm-mesh usage`: sums, days, tables."""

import argparse
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import usage_cli
from extproc.admission import UsageRow
from extproc.keys_cli import UsageError

TODAY = date(2026, 11, 23)
ROWS = [
    UsageRow("2026-11-22", "acme", "ann", "key_1", "llama2", "stable", 2, 1, 0, 0, 20, 10, 5, 300),
    UsageRow("2026-11-23", "acme", "ann", "key_2", "mistral", "canary", 3, 0, 1, 1, 30, 5, 0, 100),
    UsageRow("2026-11-23", "acme", "[/bob]", "key_3", "llama2", "", 1, 0, 0, 0, 1, 1, 0, 100),
]


@pytest.mark.parametrize(
    ("text", "day"),
    [("2026-11-01", date(2026, 11, 1)), ("0d", TODAY), ("7d", date(2026, 11, 16)), ("30d", date(2026, 10, 24))],
)
def test_a_day_or_so_many_days_back(text: str, day: date) -> None:
    assert usage_cli._day(text, TODAY) == day


@pytest.mark.parametrize("text", ["", "d", "yesterday", "2026-13-01", "7", "-1d", "²d", "99999999999d", "800000d"])
def test_other_days_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        usage_cli._day(text, TODAY)


def test_the_dearest_come_first_then_the_busiest() -> None:
    assert usage_cli.summarize(ROWS, ["user", "model"]) == [
        ["ann", "llama2", 2, 1, 0, 0, 20, 10, 5, 300],
        ["ann", "mistral", 3, 0, 1, 1, 30, 5, 0, 100],
        ["[/bob]", "llama2", 1, 0, 0, 0, 1, 1, 0, 100],
    ]


def test_the_arms_of_a_model_are_told_apart() -> None:
    assert usage_cli.summarize(ROWS, ["model", "arm"]) == [
        ["llama2", "stable", 2, 1, 0, 0, 20, 10, 5, 300],
        ["mistral", "canary", 3, 0, 1, 1, 30, 5, 0, 100],
        ["llama2", "", 1, 0, 0, 0, 1, 1, 0, 100],
    ]


@given(st.lists(st.sampled_from(ROWS), max_size=20), st.sets(st.sampled_from(usage_cli.DIMENSIONS), min_size=1))
def test_however_it_is_cut_the_sums_are_the_same(rows: list[UsageRow], by: set[str]) -> None:
    table = usage_cli.summarize(rows, sorted(by))
    assert usage_cli._total(table, len(by)) == usage_cli._total(usage_cli.summarize(rows, ["tenant"]), 1)
    assert sum(int(line[len(by)]) for line in table) == sum(row.requests for row in rows)


def test_the_table_shows_cost_and_price_per_million_and_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    usage_cli._show(["user"], usage_cli.summarize(ROWS, ["user"]), TODAY, TODAY)
    out = capsys.readouterr().out
    assert "[/bob]" in out
    total = next(line for line in out.splitlines() if line.strip().startswith("total"))
    assert total.split() == ["total", "6", "1", "1", "1", "51", "16", "5", "0.000500", "7.463"]


def test_no_usage_is_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    usage_cli._show(["user"], usage_cli.summarize([], ["user"]), TODAY, TODAY)
    assert "0.000000" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--by", "colour"], ["--by", ""], ["--since", "1d", "--until", "2d"]])
def test_wrong_words_are_refused_before_the_store_is_asked(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    usage_cli.add_arguments(parser, "redis://127.0.0.1:1")
    arguments = parser.parse_args(words)
    with pytest.raises(UsageError):
        arguments.run(arguments)
