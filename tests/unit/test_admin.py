"""The health report of all workers together."""

from typing import Any

import pytest

from extproc.admin import summarize
from extproc.status import Status


def status(**fields: Any) -> Status:
    usual = {"index": 0, "pid": 7, "time": 1.0, "revision": "a", "config_error": ""}
    rest = {"serving": True, "store_up": True, "models_down": [], "models": ["llama2", "mistral"], "backlog": 0}
    return Status(**{**usual, **rest, **fields})


def test_all_well_is_ok() -> None:
    assert summarize([status(), status(index=1, pid=8)], 2) == {
        "status": "ok",
        "redis": "up",
        "models": {"llama2": "up", "mistral": "up"},
        "workers": {"wanted": 2, "alive": 2, "pids": [7, 8]},
        "config": {"revisions": ["a"], "errors": []},
        "settlement_backlog": 0,
    }


@pytest.mark.parametrize("fields", [{"store_up": False}, {"models_down": ["llama2"]}, {"config_error": "f.yaml:1: no"}])
def test_one_workers_trouble_degrades_the_whole(fields: dict[str, Any]) -> None:
    assert summarize([status(), status(**fields)], 2)["status"] == "degraded"


def test_a_missing_worker_degrades_and_none_is_down() -> None:
    assert summarize([status()], 2)["status"] == "degraded"
    nothing = summarize([], 2)
    assert (nothing["status"], nothing["redis"]) == ("down", "down")


def test_a_model_that_one_worker_passes_over_is_told() -> None:
    report = summarize([status(), status(models_down=["llama2"])], 2)
    assert report["models"] == {"llama2": "no healthy upstream", "mistral": "up"}


def test_backlogs_and_revisions_of_all_workers_are_shown() -> None:
    report = summarize([status(backlog=2, revision="b"), status(backlog=3)], 2)
    assert report["settlement_backlog"] == 5
    assert report["config"] == {"revisions": ["a", "b"], "errors": []}
