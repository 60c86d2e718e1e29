"""The request log and the spans of a running platform, through the collector's shipped configuration into a real Loki
and a real Jaeger; and every LogQL query of the dashboards, asked there."""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
import yaml
from collection_rig import POD, Collection
from prometheus_rig import Json, Prometheus, panels
from spread import spread
from stack_rig import Caller, Platform, eventually, log_lines, running, unique
from stores_rig import Line

from extproc.local.stack import Settings
from observability.__main__ import HERE
from observability.dashboards import boards

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]  # the first time, the programs are built
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OURS = '{service_name="llm-mesh"}'
SOURCES = {s["type"]: s for s in yaml.safe_load((HERE / "datasources.yaml").read_text())["datasources"]}
LOGQL = [
    (panel, target["expr"])
    for board in boards().values()
    for panel in panels(board)
    for target in panel["targets"]
    if target["datasource"]["type"] == "loki"
]
each_query = pytest.mark.parametrize(("panel", "query"), LOGQL, ids=[panel["title"] for panel, _ in LOGQL])


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection(tmp_path_factory.mktemp("collected") / "collection")


@pytest.fixture(scope="module")
def platform(collection: Collection) -> Iterator[Platform]:
    directory = collection.directory.parent / "platform"
    settings = Settings(directory, drain_seconds=0.1, request_log=True, environment=collection.environment)
    with running(settings) as platform, collection.beside(platform):
        yield platform


@pytest.fixture
def caller(platform: Platform) -> Iterator[Caller]:
    with Caller(platform) as caller:
        yield caller


@pytest.fixture(scope="module")
def busy(platform: Platform, collection: Collection) -> Iterator[Caller]:
    """A user who was answered, streamed to, refused, and failed."""
    with Caller(platform, user="busy") as caller:
        caller.chat(max_tokens=7)
        caller.chat(max_tokens=3, stream=True)
        caller.chat(temperature=-1)
        caller.chat(headers={"x-sim-status": "500"})
        collected(collection, caller, 4)
        yield caller


def collected(collection: Collection, caller: Caller, requests: int) -> list[Line]:
    """The caller's lines in Loki, once there are so many; one more would be one too many."""
    eventually(lambda: len(log_lines(caller.platform, tenant=caller.tenant)) >= requests)
    collection.runtime.catch_up()
    query = f'{OURS} | json | tenant="{caller.tenant}"'
    lines = eventually(lambda: found if len(found := collection.loki.lines(query)) >= requests else [])
    assert len(lines) == requests
    return lines


# --- the request log --------------------------------------------------------------------------------------------------


def test_a_line_arrives_whole_with_its_own_time_and_its_trace(collection: Collection, caller: Caller) -> None:
    caller.chat(max_tokens=2, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (line,) = collected(collection, caller, 1)
    (written,) = log_lines(caller.platform, tenant=caller.tenant)
    assert json.loads(line.text) == written
    assert line.at_ns // 1000 == round(datetime.fromisoformat(written["time"]).timestamp() * 1e6)
    assert (line.labels["trace_id"], line.labels["k8s_pod_name"]) == (TRACE, POD)


def test_what_was_said_before_the_collector_ran_is_collected(collection: Collection, busy: Caller) -> None:
    first = busy.platform.stack.children["processor"].log.read_text().splitlines()[0]
    assert not first.startswith("{")
    assert [line.text for line in collection.loki.lines(f"{OURS} |= `{first}`")] == [first]


def test_labels_are_few(collection: Collection, busy: Caller) -> None:
    assert busy.tenant
    of_the_pod = {f"k8s_{what}_name" for what in ("namespace", "pod", "container")}
    assert collection.loki.labels() == {"service_name"} | of_the_pod


@each_query
def test_every_query_of_the_request_log_says_what_happened(
    collection: Collection, busy: Caller, panel: Json, query: str
) -> None:
    if panel["type"] == "logs":
        found = collection.loki.lines(f'{query} | tenant="{busy.tenant}"')
        assert sorted(line.labels["status"] for line in found) == ["400", "500"]
        return
    (by,), (field,) = re.findall(r"sum by \(([^)]*)\)", query), re.findall(r"unwrap (\w+)", query)
    samples = [(s["metric"], float(s["value"][1])) for s in collection.loki.values(query)]
    assert {frozenset(labels) for labels, _ in samples} == {frozenset(by.split(", "))}
    me = {"tenant": busy.tenant, "user": "busy"}
    mine = [value for labels, value in samples if all(labels[k] == v for k, v in me.items() if k in labels)]
    assert sum(mine) == busy.account()[field] > 0


def test_what_else_the_processor_says_is_a_plain_line_and_spoils_no_query(collection: Collection, busy: Caller) -> None:
    """Words, a line that the runtime cut in two, JSON of another kind, and JSON that is none."""
    mark = unique("said")
    said = [f"{mark} Redis", f"{mark} in halves", f'{{"kind":"other","said":"{mark}"}}', f'{{"kind":"request"{mark}']
    collection.runtime.write(("F", said[0]), ("P", said[1][:9]), ("F", said[1][9:]), ("F", said[2]), ("F", said[3]))
    found = eventually(lambda: lines if len(lines := collection.loki.lines(f'{OURS} |= "{mark}"')) >= 4 else [])
    assert sorted(line.text for line in found) == sorted(said)
    for panel, query in LOGQL:
        test_every_query_of_the_request_log_says_what_happened(collection, busy, panel, query)


def test_a_file_that_is_rotated_is_read_to_its_end_and_the_next_from_its_start(collection: Collection) -> None:
    mark = unique("rotated")
    said = [f"{mark} {number}" for number in range(3000)]
    for part in (said[:1000], said[1000:2000]):
        collection.runtime.write(*(("F", line) for line in part))
    collection.runtime.rotate()
    collection.runtime.write(*(("F", line) for line in said[2000:]))
    found = eventually(lambda: lines if len(lines := collection.loki.lines(f'{OURS} |= "{mark}"')) >= 3000 else [])
    assert sorted(line.text for line in found) == sorted(said)


def test_no_word_of_a_prompt_or_an_answer_is_collected(collection: Collection, caller: Caller) -> None:
    secret = unique("marker").replace(" ", "-")
    spread(caller, secret)
    requests = len(log_lines(caller.platform, tenant=caller.tenant))
    assert requests > 20
    collected(collection, caller, requests)
    eventually(lambda: caller.tenant in str(collection.jaeger.traces()))
    assert secret not in str([collection.loki.lines('{service_name=~".+"}'), collection.jaeger.traces()])
    kept = [path for path in collection.directory.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_while_loki_is_away_nothing_is_lost_and_nothing_comes_twice(collection: Collection, caller: Caller) -> None:
    stack, do = caller.platform.stack, caller.platform.do
    caller.chat(max_tokens=1)
    collected(collection, caller, 1)
    do(stack.children["loki"].stop())
    caller.chat(max_tokens=1)
    eventually(lambda: len(log_lines(caller.platform, tenant=caller.tenant)) == 2)
    collection.runtime.catch_up()
    eventually(lambda: "Exporting failed" in collection.said("collector"))
    stack.children["collector"].kill()
    caller.chat(max_tokens=1)  # while nobody reads
    eventually(lambda: len(log_lines(caller.platform, tenant=caller.tenant)) == 3)
    collection.runtime.catch_up()
    for name in ("loki", "collector"):
        do(stack.restart(name))
    assert len({line.labels["request_id"] for line in collected(collection, caller, 3)}) == 3
    caller.chat(max_tokens=1)
    collected(collection, caller, 4)  # what came twice would be here by now


# --- traces -----------------------------------------------------------------------------------------------------------


def test_a_request_is_one_span_under_its_callers(collection: Collection, caller: Caller) -> None:
    trace = TRACE[::-1]
    caller.chat(max_tokens=2, headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    (span,) = eventually(lambda: collection.jaeger.spans(trace))
    assert {tag["key"]: tag["value"] for tag in span["tags"]}["llm.tenant"] == caller.tenant
    assert [reference["spanID"] for reference in span["references"]] == [PARENT]


def test_an_exemplar_leads_to_its_trace_and_the_trace_to_its_line(collection: Collection, platform: Platform) -> None:
    def exemplars() -> list[str]:
        window = {"query": "llm_request_duration_seconds_bucket", "start": time.time() - 600, "end": time.time() + 60}
        found = prometheus.http.get("/query_exemplars", params=window).json()["data"]
        return [e["labels"]["trace_id"] for series in found for e in series["exemplars"]]

    with Prometheus(platform) as prometheus, Caller(platform) as caller:
        caller.chat(max_tokens=1)
        (line,) = collected(collection, caller, 1)
        trace = line.labels["trace_id"]
        assert trace in eventually(lambda: found if trace in (found := exemplars()) else [])
        eventually(lambda: all(collection.jaeger.spans(each) for each in exemplars()))
    to_lines = SOURCES["tempo"]["jsonData"]["tracesToLogsV2"]["query"].replace("$${__trace.traceId}", trace)
    assert [found.text for found in collection.loki.lines(to_lines)] == [line.text]
    (field,) = SOURCES["loki"]["jsonData"]["derivedFields"]
    assert re.findall(field["matcherRegex"], line.text) == [trace]


# --- what is deployed -------------------------------------------------------------------------------------------------


def test_the_collector_finds_nothing_outdated_in_its_configuration(collection: Collection, busy: Caller) -> None:
    assert busy.tenant
    assert "Everything is ready" in collection.said("collector")
    assert "deprecated" not in collection.said("collector")
