"""Every PromQL query of every dashboard, asked of a real Prometheus that scraped a real platform under load. LogQL is
asked in test_collected.py."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_rig import Prometheus, panels, queries
from stack_rig import CONFIG, Backend, Caller, Platform, ask, eventually, running, unique
from traffic import Traffic

from extproc.local.stack import Settings
from observability import names, rules
from observability.dashboards import boards
from observability.rule import Recorded

pytestmark = pytest.mark.local
ABSENT = {"dcgm", "kube-state-metrics", "valkey", "istio-agent"}  # exporters that need GPUs, Kubernetes, a mesh
BOARDS = boards()
_SIMULATOR = ("--enable-prompt-tokens-details",)


class Collector(Backend):
    """Takes spans; with it there are trace ids, and with them exemplars."""

    def answer(self, method: str, path: str, body: bytes) -> bytes:  # noqa: ARG002
        return b"{}"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("observed")
    config = directory / "llm-mesh.yaml"
    config.write_text(CONFIG.read_text())
    with Collector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        settings = Settings(directory, config=config, drain_seconds=1.0, simulator=_SIMULATOR, environment=environment)
        with running(settings) as platform:
            yield platform


@pytest.fixture(scope="module")
def prometheus(platform: Platform) -> Iterator[Prometheus]:
    with Prometheus(platform) as prometheus:
        yield prometheus


def everything_happens(platform: Platform) -> None:
    """What fills every counter: answers of all kinds, hits, refusals, cut streams, Redis away, a changed file."""
    config: Path = platform.stack.settings.config
    config.write_text(config.read_text() + "# changed\n")
    with Caller(platform) as caller, Caller(platform, limits={"requests_per_minute": 1}) as poor:
        for model in ("llama2", "mistral", "codellama"):
            for stream in (False, True):
                caller.chat(model=model, stream=stream, max_tokens=20)
            for _ in range(2):
                caller.chat("the same", model=model, temperature=0, max_tokens=4)
                eventually(lambda: caller.reserved() == 0)
            caller.chat("word " * 300 + unique(), model=model, max_tokens=1)  # a prefix that the backend knows
        caller.http.post("/embeddings", json={"model": "bge-small", "input": "x"})
        for _ in range(3):
            poor.chat(max_tokens=1)
        caller.http.post("/chat/completions", json=ask(), headers={"authorization": "Bearer sk-llm-nobody"})
        with pytest.raises(httpx.RemoteProtocolError):
            caller.chat(stream=True, headers={"x-sim-cut-after": "3"})
        valkey = platform.stack.children["valkey"].pid
        os.kill(valkey, signal.SIGSTOP)
        try:
            caller.chat(max_tokens=1)
        finally:
            os.kill(valkey, signal.SIGCONT)
        eventually(lambda: caller.reserved() == 0)


def sources(expr: str) -> set[str]:
    """The metrics below an expression, through what is recorded."""
    recorded = {r.name: r.expr for g in rules.groups() for r in g.rules if isinstance(r, Recorded)}
    found: set[str] = set()
    for name in names.used(expr):
        found |= sources(recorded[name]) if name in recorded else {name}
    return found


def elsewhere(expr: str) -> bool:
    """Whether it asks an exporter that can not be here."""
    absent = set().union(*(listed for name, listed in names.exporters().items() if name in ABSENT))
    return bool(sources(expr) & absent)


def asked() -> list[tuple[str, str]]:
    """(board / panel, query) of all that can be answered here."""
    found = [
        (f"{name} / {panel['title']}", expr)
        for name, board in BOARDS.items()
        for panel in panels(board)
        for expr in queries(panel)
    ]
    return [(where, expr) for where, expr in found if not elsewhere(expr)]


def test_every_query_returns_data_under_load(platform: Platform, prometheus: Prometheus) -> None:
    prometheus.await_targets(2 + len(platform.stack.models))
    left = dict.fromkeys(asked())
    assert len(left) > 80
    with Caller(platform) as caller, Traffic(caller, threads=2, model="llama2", stream=False):
        everything_happens(platform)

        def none_left() -> bool:
            for where, expr in list(left):
                if prometheus.ask(expr):
                    del left[where, expr]
            if left:
                everything_happens(platform)
            return not left

        try:
            eventually(none_left, 60)
        except AssertionError:
            pytest.fail("no data:\n" + "\n".join(f"{where}: {expr}" for where, expr in left))


@pytest.mark.parametrize("metric", ["llm_time_to_first_token_seconds", "llm_request_duration_seconds"])
def test_a_latency_leads_to_the_trace_of_a_request(platform: Platform, prometheus: Prometheus, metric: str) -> None:
    def seen() -> list[str]:
        with Caller(platform) as caller:
            caller.chat(stream=True, max_tokens=2)
            caller.settled(1)
        now = time.time()
        window = {"query": f"{metric}_bucket", "start": now - 600, "end": now + 60}
        found = prometheus.http.get("/query_exemplars", params=window).json()["data"]
        return [e["labels"].get("trace_id", "") for series in found for e in series["exemplars"]]

    assert all(re.fullmatch(r"[0-9a-f]{32}", trace) for trace in eventually(seen))


def test_only_what_needs_a_cluster_is_not_asked_here() -> None:
    """Written down, so that no panel leaves the test by accident."""
    titles = {
        f"{name} / {panel['title']}"
        for name, board in BOARDS.items()
        for panel in panels(board)
        if any(elsewhere(expr) for expr in queries(panel))
    }
    assert titles == set(Path(__file__).with_name("not_here.txt").read_text().splitlines())


def test_every_rule_is_loaded_and_evaluates_without_error(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        groups = prometheus.http.get("/rules").json()["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        assert len(found) == sum(len(group.rules) for group in rules.groups())
        bad = {rule["name"]: rule["lastError"] for rule in found if rule["health"] == "err"}
        assert not bad
        return all(rule["health"] == "ok" for rule in found)

    eventually(evaluated)


def test_the_rules_files_are_what_the_local_prometheus_takes() -> None:
    from extproc.local.observe import rule_groups

    assert yaml.safe_dump(rule_groups()) == yaml.safe_dump(
        [group.to_json() for group in sorted(rules.groups(), key=lambda g: _file(g.name))]
    )


def _file(group: str) -> str:
    return next(n for n, o in rules.objects().items() if group in {g["name"] for g in o["spec"]["groups"]})
