"""What a worker knows and shares, over a store in memory."""

import json
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from test_processor import worker
from unit_rig import CATALOGUE, CONFIG, LLAMA

from extproc import metrics
from extproc.admission import Shared
from extproc.errors import StoreUnavailable
from extproc.store import MemoryStore
from extproc.worker import Options, Worker


class Away(MemoryStore):
    why = ""

    async def shared(self, unsettled_age_ms: int) -> Shared:
        if self.why == "nothing":
            return await super().shared(unsettled_age_ms)
        raise StoreUnavailable(self.why)


def reading(path: Path, store: MemoryStore | None = None) -> Worker:
    status = str(path.with_name("worker-0.json"))
    return Worker(Options(str(path), "", "", status_file=status), CATALOGUE, store or MemoryStore(lambda: 0))


async def test_what_one_worker_learned_the_others_use() -> None:
    store = MemoryStore(lambda: 0)
    first, second = await worker(store), await worker(store)
    for _ in range(50):
        first.learn("llama2", 0.5)
    learned = first.tokens_per_byte(LLAMA)
    assert 0.4 < learned < 0.5
    await first.poll()
    await second.poll()
    assert second.tokens_per_byte(LLAMA) == learned


async def test_nothing_is_learned_of_models_that_are_gone() -> None:
    made = await worker()
    made.learn("gone", 0.5)
    await made.poll()
    assert made.ratios == {}


async def test_a_model_that_one_worker_finds_down_is_down_for_all() -> None:
    store = MemoryStore(lambda: 0)
    first, second = await worker(store), await worker(store)
    first.observe("llama2", False)
    for task in tuple(first._tasks):
        await task
    await second.poll()
    assert second.health.down() == ["llama2"]
    assert second.status().models_down == ["llama2"]


async def test_a_store_that_is_away_is_told() -> None:
    made = await worker(Away(lambda: 0))
    await made.poll()
    assert not made.status().store_up


async def test_why_the_store_is_away_is_told_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    store = Away(lambda: 0)
    made = await worker(store)
    for store.why in ("no file", "no file", "wrong peer", "wrong peer", "nothing", "nothing", "wrong peer"):
        await made.poll()
    away = "Redis is away: "
    assert caplog.messages == [away + "no file", away + "wrong peer", "Redis is back", away + "wrong peer"]


def test_a_changed_file_is_taken_and_an_unusable_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "llm-mesh.yaml"
    path.write_bytes(CONFIG)
    made = reading(path)
    made.reload()
    assert made.catalogue is CATALOGUE
    path.write_bytes(CONFIG + b"down_seconds: 9\nkey_grace_seconds: 7\n")
    made.reload()
    good = made.catalogue
    assert (made.health.down_ms, made.keys.grace_seconds) == (9000, 7)
    path.write_bytes(b"models: 3")
    made.reload()
    assert made.catalogue is good
    assert made.status().config_error.startswith(str(path) + ":1: ")
    assert REGISTRY.get_sample_value("llm_config_refused") == 1
    assert good.revision in caplog.text
    path.unlink()
    made.reload()
    assert made.catalogue is good
    path.write_bytes(CONFIG)
    made.reload()
    assert made.catalogue.revision == CATALOGUE.revision
    assert made.status().config_error == ""
    assert REGISTRY.get_sample_value("llm_config_refused") == 0


async def test_how_busy_a_worker_is_and_how_late_is_told() -> None:
    made = await worker()
    made.measure(0.25)
    first = REGISTRY.get_sample_value("llm_worker_cpu_seconds_total", {"worker": "0"})
    sum(range(1_000_000))
    made.measure(0.5)
    second = REGISTRY.get_sample_value("llm_worker_cpu_seconds_total", {"worker": "0"})
    assert first is not None
    assert second is not None
    assert second > first > 0
    assert REGISTRY.get_sample_value("llm_worker_lag_seconds") == 0.5


async def test_when_certificates_expire_is_told() -> None:
    class Secured(MemoryStore):
        def certificates(self) -> dict[str, float]:
            return {"client": 5.0, "store": 7.0}

    (await worker(Secured(lambda: 0))).watch_certificates()
    name = "llm_certificate_expiry_timestamp_seconds"
    found = {c: REGISTRY.get_sample_value(name, {"certificate": c}) for c in ("client", "store", "authority")}
    assert found == {"client": 5.0, "store": 7.0, "authority": None}


def test_exemplars_are_written_with_the_status(tmp_path: Path) -> None:
    made = reading(tmp_path / "none")
    made.exemplars.put(metrics.TTFT, ("llama2",), 0.2, "abc", 7.0)
    made.write_status()
    assert json.loads((tmp_path / "exemplars-0.json").read_text()) == [
        ["llm_time_to_first_token_seconds", {"model": "llama2", "le": "0.2"}, "abc", 0.2, 7.0]
    ]
    (tmp_path / "exemplars-0.json").unlink()
    made.write_status()
    assert [p.name for p in tmp_path.iterdir()] == ["worker-0.json"]


def test_the_status_is_written_whole(tmp_path: Path) -> None:
    made = reading(tmp_path / "none")
    made.write_status()
    assert [p.name for p in tmp_path.iterdir()] == ["worker-0.json"]
    assert json.loads((tmp_path / "worker-0.json").read_text())["models"] == ["llama2", "mistral", "bge"]
