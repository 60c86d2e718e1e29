"""Files are what the tables say, and every metric in them is one that somebody exports."""

import re

import pytest
from prometheus_rig import panels, queries

from observability import names, rules
from observability.__main__ import HERE, generated, stale
from observability.dashboards import boards
from observability.rule import Recorded

BOARDS = boards()
RULES = [(group.name, rule) for group in rules.groups() for rule in group.rules]
RUNBOOK = (HERE.parent / "docs" / "runbook.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def test_rules_and_dashboards_are_current() -> None:
    assert [str(path) for path in stale()] == [], "run `python -m observability`"


def test_every_metric_in_a_rule_is_exported_by_somebody() -> None:
    known = names.known()
    missing = {(rule.name, name) for _, rule in RULES for name in names.used(rule.expr) - known}
    assert not missing


@pytest.mark.parametrize("name", BOARDS)
def test_every_metric_in_a_dashboard_is_exported_by_somebody(name: str) -> None:
    known = names.known()
    asked = {(p["title"], m) for p in panels(BOARDS[name]) for q in queries(p) for m in names.used(q)}
    assert asked
    assert not {(title, metric) for title, metric in asked if metric not in known}


def test_an_invented_metric_is_noticed_wherever_it_stands() -> None:
    expr = 'sum by (model) (rate(llm_invented_total{a="b{c}"}[5m])) / on (model) group_left (x) vllm:made_up > 1 and up'
    assert names.used(expr) == {"llm_invented_total", "vllm:made_up", "up"}
    assert names.used(expr) - names.known() == {"llm_invented_total", "vllm:made_up"}


def test_what_is_recorded_is_recorded_once() -> None:
    recorded = [(rule.name, str(rule.labels)) for _, rule in RULES if isinstance(rule, Recorded)]
    assert len(recorded) == len(set(recorded))


def test_lists_of_exporters_hold_only_what_is_used() -> None:
    asked = {m for _, rule in RULES for m in names.used(rule.expr)}
    asked |= {m for board in BOARDS.values() for p in panels(board) for q in queries(p) for m in names.used(q)}
    assert {name for listed in names.exporters().values() for name in listed - asked} == set()


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    for board in BOARDS.values():
        places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
        assert len(places) == len(set(places)), board["title"]
        assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
        assert all(p["title"] for p in board["panels"])


def test_dashboards_leave_the_choice_of_data_sources_to_whom_they_are_shown() -> None:
    sources = {t["datasource"]["uid"] for b in BOARDS.values() for p in panels(b) for t in p["targets"]}
    assert sources == {"${prometheus}", "${loki}"}


# --- the runbook ------------------------------------------------------------------------------------------------------


def test_every_alert_has_its_place_in_the_runbook_and_nothing_else_has_one() -> None:
    assert set(SECTIONS) == {alert.name for alert in rules.all_alerts()}


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_runbook_says_what_it_means_what_to_look_at_and_what_to_do(name: str) -> None:
    for part in ("**Means**", "**Look**", "**Do**"):
        assert len(SECTIONS[name].partition(part)[2].split("**")[0].split()) >= 5, part


def test_the_runbook_names_metrics_that_there_are() -> None:
    named = set(re.findall(r"`((?:llm|vllm|envoy|redis|kube|DCGM|istio)[a-zA-Z_:]+)[`{]", RUNBOOK))
    known = names.known()
    assert named - known - {name.removesuffix("_bucket") for name in known} == set()


def test_every_generated_file_says_where_it_comes_from() -> None:
    assert all("observability" in text.splitlines()[0] for path, text in generated().items() if path.suffix == ".yaml")
