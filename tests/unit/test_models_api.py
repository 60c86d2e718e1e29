"""GET /v1/models."""

import json
from typing import Any

import pytest
from unit_rig import CATALOGUE

from extproc import models_api
from extproc.errors import ApiError


def listed(path: str, *permitted: str) -> Any:
    return json.loads(models_api.answer(CATALOGUE, "GET", path, permitted or ["*"]))


def test_the_list_shows_what_the_key_permits_in_the_files_order() -> None:
    assert [m["id"] for m in listed("/v1/models")["data"]] == ["llama2", "mistral", "bge"]
    assert [m["id"] for m in listed("/v1/models", "bge", "llama2")["data"]] == ["llama2", "bge"]
    assert listed("/v1/models", "none") == {"object": "list", "data": []}


def test_a_card_says_what_the_backend_calls_it_and_how_long_its_context_is() -> None:
    card = listed("/v1/models/llama2")
    assert card["object"] == "model"
    assert (card["id"], card["root"], card["max_model_len"]) == ("llama2", "meta/llama", 4096)
    assert isinstance(card["created"], int)


@pytest.mark.parametrize("name", ["llama2", "meta/llama", "meta%2Fllama", "gpt-4o"])
def test_a_model_is_found_by_each_of_its_names(name: str) -> None:
    assert listed(f"/v1/models/{name}")["id"] == "llama2"


@pytest.mark.parametrize(("path", "permitted"), [("/v1/models/nothing", "*"), ("/v1/models/llama2", "mistral"),
                                                 ("/v1/models/%ff", "*")])  # fmt: skip
def test_a_model_that_is_not_there_for_the_key_is_not_found(path: str, permitted: str) -> None:
    with pytest.raises(ApiError) as error:
        listed(path, permitted)
    assert (error.value.status, error.value.code) == (404, "model_not_found")
    error.value.body()


@pytest.mark.parametrize(
    ("path", "ours"),
    [("/v1/models", True), ("/v1/models/a/b", True), ("/v1/models/", False), ("/v1/modelsx", False), ("/", False)],
)
def test_only_these_paths_are_answered_here(path: str, ours: bool) -> None:
    assert models_api.is_ours(path) is ours
