"""The runbook, exercised: a fault is caused in the local stack, the alert fires in a real Prometheus, what the runbook
says is done, the alert ends. Windows and waits are a sixtieth of production's, all by one factor."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_rig import Prometheus
from stack_rig import CONFIG, Caller, Platform, eventually, health, running
from traffic import Traffic

from extproc.local.observe import rule_groups
from extproc.local.stack import Settings
from observability.__main__ import HERE
from observability.rule import scaled

pytestmark = pytest.mark.local
FACTOR = 60
RUNBOOK = (HERE.parent / "docs" / "runbook.md").read_text()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("victim")
    config = directory / "llm-mesh.yaml"
    config.write_text(CONFIG.read_text())
    with running(Settings(directory, config=config, drain_seconds=1.0)) as platform:
        yield platform


@pytest.fixture(scope="module")
def prometheus(platform: Platform) -> Iterator[Prometheus]:
    with Prometheus(platform, [scaled(group, FACTOR) for group in rule_groups()]) as prometheus:
        prometheus.await_targets(2 + len(platform.stack.models))
        yield prometheus


def section(alert: str) -> str:
    """What the runbook says, in one line."""
    return " ".join(re.split(rf"^### {alert}$", RUNBOOK, flags=re.MULTILINE)[1].split("\n##")[0].split())


def test_redis_goes_away_and_comes_back(platform: Platform, prometheus: Prometheus) -> None:
    with Caller(platform) as caller, Traffic(caller, threads=2) as traffic:
        assert not prometheus.firing() & {"LlmStoreDown", "LlmLimitsFailOpen"}
        platform.stack.children["valkey"].kill()
        prometheus.await_alert("LlmStoreDown", firing=True)
        assert "does not reach Redis" in prometheus.summary("LlmStoreDown")
        # Look: /health and the processor's log say it; requests with known keys go on, by local limits.
        assert "Redis is away: …" in section("LlmStoreDown")
        assert health(platform)["redis"] == "down"
        assert "Redis is away: " in platform.stack.children["processor"].log.read_text()
        traffic.more(20)
        prometheus.await_alert("LlmLimitsFailOpen", firing=True)
    # Do: bring it back; nothing else is needed.
    assert "Bring Valkey back" in section("LlmStoreDown")
    platform.do(platform.stack.restart("valkey"))
    prometheus.await_alert("LlmStoreDown", firing=False)
    prometheus.await_alert("LlmLimitsFailOpen", firing=False)
    eventually(lambda: health(platform)["settlement_backlog"] == 0)


def test_a_model_goes_away_and_comes_back(platform: Platform, prometheus: Prometheus) -> None:
    with Caller(platform) as caller, Traffic(caller, threads=2, model="mistral") as traffic:
        platform.stack.children["backend-mistral"].kill()
        prometheus.await_alert("LlmModelDown", firing=True)
        assert prometheus.summary("LlmModelDown").startswith("mistral has no healthy upstream")
        # Look: fallbacks answer; the target is down too.
        assert health(platform)["models"]["mistral"] == "no healthy upstream"
        traffic.more(10)
        assert "llama2" in {outcome.model for outcome in traffic.outcomes[-5:]}
        prometheus.await_alert("LlmTargetDown", firing=True)
        # Do: bring a replica back; it is used again with the first success, by itself.
        assert "Bring a replica back" in section("LlmModelDown")
        platform.do(platform.stack.restart("backend-mistral"))
        prometheus.await_alert("LlmModelDown", firing=False)
        eventually(lambda: traffic.outcomes[-1].model == "mistral")
        prometheus.await_alert("LlmTargetDown", firing=False)


def test_a_broken_configuration_is_refused_and_mended(platform: Platform, prometheus: Prometheus) -> None:
    path: Path = platform.stack.settings.config
    good = path.read_text()
    path.write_text(good.replace("default_model: mistral", "default_model: nobody"))
    prometheus.await_alert("LlmConfigRefused", firing=True)
    # Look: /health names file, line and reason; requests go on with the last good one.
    assert "`config.errors`" in section("LlmConfigRefused")
    (error,) = health(platform)["config"]["errors"]
    assert str(path) in error
    assert "nobody" in error
    with Caller(platform) as caller:
        assert caller.chat(model="mistral", max_tokens=1).status_code == 200
    # Do: put the last good one back; it is taken within a second.
    path.write_text(good)
    prometheus.await_alert("LlmConfigRefused", firing=False)
    assert health(platform)["config"]["errors"] == []


def test_a_burst_of_errors_burns_the_budget_and_ends_with_its_cause(platform: Platform, prometheus: Prometheus) -> None:
    """Half of all requests fail for as long as it takes: the fastest windows first, an hour's is a minute here."""
    critical = 'ALERTS{alertname="LlmAvailabilityBudgetBurn", alertstate="firing", long="1h"}'
    with Caller(platform) as caller:

        def burning() -> bool:
            for _ in range(10):
                caller.chat(max_tokens=1)
                caller.chat(max_tokens=1, headers={"x-sim-status": "500"})
            return bool(prometheus.ask(critical))

        eventually(burning, 60)
        with Traffic(caller, threads=2):  # the cause is gone: the short window says so first
            eventually(lambda: not prometheus.ask(critical), 90)
