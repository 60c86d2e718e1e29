"""Every alert fires when it shall and is silent when it shall be, in promtool."""

from pathlib import Path

import pytest
from alert_cases import CASES, Case
from promtool import Json, check, unit_test, write_rules

from observability import rules, slo
from observability.rule import Alert, Group, Recorded, scaled, seconds
from observability.slo import SLOS, WINDOWS, Slo, Window

ALL = rules.groups()
_EVERY = {"1h": "1m", "6h": "5m", "1d": "10m", "3d": "30m"}  # the step of the test: minutes of 30 days are too many


def group_of(alert: str) -> Group:
    return next(g for g in ALL if any(isinstance(r, Alert) and r.name == alert for r in g.rules))


def question(alert: str, at: str, fires: bool, **labels: str) -> Json:
    matchers = ", ".join(f'{name}="{value}"' for name, value in {"alertname": alert, **labels}.items())
    expected = [{"labels": "{}", "value": 1}] if fires else []
    expr = f'count(count by (alertname) (ALERTS{{{matchers}, alertstate="firing"}}))'
    return {"expr": expr, "eval_time": at, "exp_samples": expected}


def asked(series: dict[str, str], interval: str, *questions: Json) -> Json:
    listed = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": interval, "input_series": listed, "promql_expr_test": list(questions)}


@pytest.mark.parametrize("case", CASES, ids=[f"{case.alert}-{n}" for n, case in enumerate(CASES)])
def test_an_alert_fires_and_is_silent(case: Case, tmp_path: Path) -> None:
    recorded = {g.name for g in ALL if all(isinstance(r, Recorded) for r in g.rules)}
    tests = [
        asked(case.fires, "1m", question(case.alert, case.at, fires=True, **case.labels)),
        asked(case.silent, "1m", question(case.alert, case.at, fires=False)),
    ]
    assert unit_test(tmp_path, recorded | {group_of(case.alert).name}, tests, "1m") == ""


def test_every_alert_has_its_cases() -> None:
    assert {case.alert for case in CASES} | {s.alert for s in SLOS} == {alert.name for alert in rules.all_alerts()}


# --- promises ---------------------------------------------------------------------------------------------------------


def events(promise: Slo, bad: str, total: str) -> dict[str, str]:
    """Series of good and bad events for a promise, in promtool's notation."""
    if promise.name == "availability":
        name = 'envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="gateway", envoy_response_code_class="%s"}'
        return {name % "5": bad, name % "2": total}
    metric = {"ttft": "llm_time_to_first_token_seconds", "overhead": "llm_overhead_seconds"}[promise.name]
    bound = {"ttft": "0.3", "overhead": "0.01"}[promise.name]
    return {f'{metric}_bucket{{le="{bound}"}}': total, f"{metric}_count": total, f"{metric}_count{{slow='1'}}": bad}


def steady(per_step: float, steps: int, then: int = 0) -> str:
    return f"0+{per_step}x{steps}" + (f" {per_step * steps}x{then}" if then else "")


@pytest.mark.parametrize("window", WINDOWS, ids=[w.long for w in WINDOWS])
@pytest.mark.parametrize("promise", SLOS, ids=[s.name for s in SLOS])
def test_a_promise_is_watched_over_each_pair_of_windows(promise: Slo, window: Window, tmp_path: Path) -> None:
    """Fires at 1.3 times the rate of its factor; silent at 0.7 times it, when the trouble is over, at few events."""
    every = _EVERY[window.long]
    steps = int(1.6 * seconds(window.long) / seconds(every))
    over = int(1.5 * seconds(window.short) / seconds(every)) + 1
    end = f"{int(steps * seconds(every))}s"
    share = window.factor * (1 - promise.objective)

    def series(times: float, total: float = 10000.0, then: int = 0) -> dict[str, str]:
        bad = total * share * times / (1 - share * times)
        return events(promise, steady(round(bad, 3), steps - then, then), steady(total, steps))

    mine = {"long": window.long, "severity": window.severity}
    tests = [
        asked(series(1.3), every, question(promise.alert, end, fires=True, **mine)),
        asked(series(0.7), every, question(promise.alert, end, fires=False, **mine)),
        asked(series(1.3, then=over), every, question(promise.alert, end, fires=False, **mine)),
        asked(
            series(1.3, total=0.9 * promise.least_events * seconds(every) / seconds(window.long) * (1 - 1.3 * share)),
            every,
            question(promise.alert, end, fires=False, **mine),
        ),
    ]
    assert unit_test(tmp_path, {f"llm-slo-{promise.name}"}, tests, every) == ""


def test_no_promise_is_watched_at_a_rate_that_can_not_be_reached() -> None:
    for promise in slo.SLOS:
        for window in slo.WINDOWS:
            assert window.factor * (1 - promise.objective) < 0.9, promise.name


# --- what all rules have in common ------------------------------------------------------------------------------------


def test_promtool_accepts_the_rules_and_their_shortened_form(tmp_path: Path) -> None:
    assert check("check", "rules", write_rules(tmp_path)).returncode == 0
    import yaml

    short = [scaled(group.to_json(), 60) for group in ALL]
    (tmp_path / "short.yml").write_text(yaml.safe_dump({"groups": short}))
    assert check("check", "rules", tmp_path / "short.yml").returncode == 0


def test_shortening_divides_windows_offsets_and_waits_and_leaves_names_and_numbers_alone() -> None:
    alert = Alert("A", 'rate(a:rate5m{x="[5m]"}[1h] offset 1d) > 300', "10m", "info", "")
    short = scaled(Group("g", [alert]).to_json(), 60)
    assert short["rules"][0]["for"] == "10000ms"
    assert "[60000ms] offset 1440000ms) > 300" in short["rules"][0]["expr"]
    assert "a:rate5m{" in short["rules"][0]["expr"]


def test_summaries_name_the_value_or_the_place() -> None:
    for alert in rules.all_alerts():
        assert alert.summary.endswith("."), alert.name
        assert alert.name.startswith("Llm"), alert.name
