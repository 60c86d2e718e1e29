"""/metrics: sums over workers that live and workers that ended, with exemplars for those who ask."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from extproc import exemplars
from extproc.exposition import Exposition

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
WORKER = """
import os, sys
from pathlib import Path
from extproc import metrics
from extproc.exemplars import Exemplars
amount, folder = int(sys.argv[1]), Path(sys.argv[2])
metrics.GENERATED.labels("llama2").inc(amount)
metrics.TTFT.labels("llama2").observe(0.2 * amount)
metrics.STORE_UP.set(1)
exemplars = Exemplars()
exemplars.put(metrics.TTFT, ("llama2",), 0.2 * amount, f"{amount:032x}", 1000.0 + amount)
exemplars.write(folder, amount)
print(os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path


def shown(folder: Path) -> Exposition:
    return Exposition(folder, folder / "metrics")


def worker(folder: Path, amount: int) -> int:
    """A process that counts `amount` tokens and ends; its number."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    command = [sys.executable, "-c", WORKER, str(amount), str(folder)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def values(exposition: Exposition) -> dict[tuple[str, str], float]:
    text, _ = exposition.render("")
    return {(s.name, s.labels.get("le", "")): s.value for f in plain_text(text.decode()) for s in f.samples}


def test_workers_that_ended_stay_in_the_sums_and_their_gauges_do_not(folder: Path) -> None:
    exposition = shown(folder)
    pids = [worker(folder, amount) for amount in (1, 2, 3)]
    before = values(exposition)
    assert before["llm_tokens_generated_total", ""] == 6
    assert before["llm_store_up", ""] == 1
    for pid in pids:
        exposition.forget(pid)
    after = values(exposition)
    assert ("llm_store_up", "") not in after
    assert after == pytest.approx({key: value for key, value in before.items() if key in after})  # summed in any order
    assert after["llm_time_to_first_token_seconds_count", ""] == 3
    assert after["llm_time_to_first_token_seconds_bucket", "0.5"] == 2


def test_however_many_workers_ended_there_is_one_file_of_each_kind(folder: Path) -> None:
    exposition = shown(folder)
    for amount in range(1, 5):
        exposition.forget(worker(folder, amount))
        assert sorted(p.name for p in (folder / "metrics").iterdir()) == ["counter_ended.db", "histogram_ended.db"]
        assert values(exposition)["llm_tokens_generated_total", ""] == sum(range(1, amount + 1))


def test_a_worker_that_ended_before_it_counted_anything_leaves_nothing(folder: Path) -> None:
    (folder / "metrics" / "counter_7.db").touch()
    shown(folder).forget(7)
    shown(folder).forget(8)
    assert list((folder / "metrics").iterdir()) == []
    assert values(shown(folder)) == {}


def test_a_scraper_that_knows_openmetrics_gets_the_newest_trace_of_each_bucket(folder: Path) -> None:
    for amount in (1, 2):
        worker(folder, amount)
    text, content_type = shown(folder).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    (family,) = [f for f in openmetrics(text.decode()) if f.name == "llm_time_to_first_token_seconds"]
    found = {s.labels["le"]: s.exemplar for s in family.samples if s.exemplar}
    assert {le: (e.labels, e.value, float(e.timestamp)) for le, e in found.items()} == {
        "0.2": ({"trace_id": f"{1:032x}"}, 0.2, 1001.0),
        "0.5": ({"trace_id": f"{2:032x}"}, 0.4, 1002.0),
    }


def test_of_two_workers_traces_in_one_bucket_the_newer_is_shown(folder: Path) -> None:
    (folder / "exemplars-0.json").write_text('[["h", {"le": "1.0"}, "newer", 0.5, 2.0]]')
    (folder / "exemplars-1.json").write_text('[["h", {"le": "1.0"}, "older", 0.7, 1.0]]')
    family = HistogramMetricFamily("h", "h", buckets=[("1.0", 2), ("+Inf", 3)], sum_value=4)
    exemplars.attach([family], exemplars.read(folder))
    assert [s.exemplar and s.exemplar.labels["trace_id"] for s in family.samples] == ["newer", None, None, None]


def test_names_and_values_are_the_same_in_both_formats(folder: Path) -> None:
    worker(folder, 3)
    own = Counter("llm_own_total", "Of this process", ["worker"], registry=CollectorRegistry())
    own.labels("0").inc()
    exposition = Exposition(folder, folder / "metrics", (own,))
    first = samples(plain_text(exposition.render("")[0].decode()))
    assert first == samples(openmetrics(exposition.render(OPENMETRICS)[0].decode()))
    assert ("llm_own_total", frozenset({("worker", "0")}), 1.0) in first


def samples(families: Iterable[Metric]) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
    found = [s for family in families for s in family.samples if not s.name.endswith("_created")]
    return {(s.name, frozenset(s.labels.items()), s.value) for s in found}


def test_where_nothing_is_traced_no_file_is_written(folder: Path) -> None:
    exemplars.Exemplars().write(folder, 0)
    assert [p.name for p in folder.iterdir()] == ["metrics"]
