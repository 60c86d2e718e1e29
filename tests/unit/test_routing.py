"""Which model answers."""

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import CATALOGUE, changed, prompt

from extproc.chat import Prompt
from extproc.config import Catalogue, Endpoint
from extproc.errors import ApiError
from extproc.routing import Choice, choose, named

ALL = ["*"]
BYTES = 0.5  # tokens, in these tests


def route(
    asked: Prompt, permitted: Collection[str] = ALL, down: Collection[str] = (), catalogue: Catalogue = CATALOGUE
) -> Choice:
    return choose(catalogue, asked, permitted, lambda _model: BYTES, lambda model: model.name not in down)


def chosen(asked: Prompt, permitted: Collection[str] = ALL, down: Collection[str] = ()) -> str:
    return route(asked, permitted, down).model.name


def refusal(asked: Prompt, permitted: Collection[str] = ALL) -> ApiError:
    with pytest.raises(ApiError) as error:
        route(asked, permitted)
    return error.value


def long(size_bytes: int, **body: Any) -> Prompt:
    return prompt(messages=[{"role": "user", "content": "x" * size_bytes}], **body)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({}, "mistral"),
        ({"model": None}, "mistral"),
        ({"model": "llama2"}, "llama2"),
        ({"model": "meta/llama"}, "llama2"),
        ({"model": "gpt-4o"}, "llama2"),
        ({"model": "gpt-4-code"}, "mistral"),  # both aliases match: the first counts
        ({"task": "chat"}, "llama2"),
        ({"model": "mistral", "task": "chat"}, "mistral"),
        ({"model": "gpt-4", "task": "code"}, "llama2"),
    ],
)
def test_a_name_wins_over_an_alias_over_a_task_over_the_default(body: dict[str, Any], model: str) -> None:
    assert chosen(prompt(**body)) == model


def test_an_alias_never_hides_a_model_of_that_name() -> None:
    catalogue = changed(aliases=[{"pattern": "*", "model": "llama2"}])
    assert route(prompt(model="mistral"), catalogue=catalogue).model.name == "mistral"
    assert route(prompt(model="anything"), catalogue=catalogue).model.name == "llama2"


@pytest.mark.parametrize("name", ["GPT-4", "xgpt-4", "gpt-", "nothing", "mistral ", "mistral\n"])
def test_other_names_are_no_models(name: str) -> None:
    assert named(CATALOGUE, name) is None
    error = refusal(prompt(model=name))
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_a_model_that_the_key_does_not_permit_does_not_exist_for_it() -> None:
    assert refusal(prompt(model="llama2"), ["mistral"]).code == "model_not_found"
    assert refusal(prompt(model="gpt-4"), ["mistral"]).code == "model_not_found"
    assert refusal(prompt(task="chat"), ["mistral"]).code == "model_not_found"
    assert refusal(prompt(), []).code == "model_not_found"


def test_without_a_name_the_first_permitted_model_that_serves_the_endpoint_is_taken() -> None:
    assert chosen(prompt(), ["llama2"]) == "llama2"
    assert chosen(prompt("embeddings")) == "bge"
    assert chosen(prompt("embeddings"), ["llama2", "bge"]) == "bge"


def test_a_model_that_does_not_serve_the_endpoint_is_refused() -> None:
    assert refusal(prompt(model="bge")).code == "unsupported_model"
    assert refusal(prompt("embeddings", model="mistral")).code == "unsupported_model"
    assert refusal(prompt("embeddings"), ["mistral"]).code == "unsupported_model"


def test_an_unknown_task_is_told_with_the_known_ones() -> None:
    error = refusal(prompt(task="poetry"))
    assert (error.status, error.param) == (400, "task")
    assert "chat, code" in error.message


def test_a_model_that_is_down_is_replaced_by_its_fallback() -> None:
    assert chosen(prompt(model="llama2"), down=["llama2"]) == "mistral"


def test_with_all_down_the_one_that_was_asked_for_is_tried() -> None:
    assert chosen(prompt(model="llama2"), down=["llama2", "mistral"]) == "llama2"


def test_a_fallback_that_the_key_does_not_permit_is_never_taken() -> None:
    assert chosen(prompt(model="llama2"), ["llama2"], down=["llama2"]) == "llama2"
    assert chosen(long(10_000, model="llama2"), ["llama2"]) == "llama2"


def test_a_fallback_that_does_not_serve_the_endpoint_is_never_taken() -> None:
    catalogue = changed(
        models=[
            {"name": "a", "context_tokens": 512, "price": {"input": 1}, "fallbacks": ["b", "c"]},
            {"name": "b", "context_tokens": 512, "price": {"input": 1}, "endpoints": ["completions"]},
            {"name": "c", "context_tokens": 512, "price": {"input": 1}},
        ],
        default_model="a",
        aliases=[],
        tasks={},
    )
    assert route(prompt(), down=["a"], catalogue=catalogue).model.name == "c"
    assert route(prompt("completions"), down=["a"], catalogue=catalogue).model.name == "b"


def test_a_prompt_that_does_not_fit_goes_to_the_next_that_holds_it() -> None:
    assert chosen(long(10_000, model="llama2")) == "mistral"


def test_room_for_the_answer_counts() -> None:
    assert chosen(long(6000, model="llama2")) == "llama2"
    assert chosen(long(6000, model="llama2", max_tokens=2000)) == "mistral"


def test_a_model_that_is_up_but_too_small_does_not_stand_in() -> None:
    assert chosen(long(10_000, model="mistral"), down=["mistral"]) == "mistral"


def test_what_may_fit_after_all_is_left_to_the_largest_model() -> None:
    assert chosen(long(100_000, model="llama2")) == "mistral"


def test_what_can_never_fit_is_refused_at_once() -> None:
    error = refusal(long(500_000, model="llama2"))
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "8192" in error.message


@pytest.mark.parametrize("how", [{"truncate_prompt_tokens": 512}, {"truncation": "auto"}])
def test_what_the_backend_will_cut_to_size_is_not_refused(how: dict[str, Any]) -> None:
    assert chosen(long(500_000, **how)) == "mistral"


def test_many_short_texts_are_no_long_prompt() -> None:
    """A batch of embeddings: each text has the model's context to itself."""
    choice = route(prompt("embeddings", input=["word " * 20] * 1000))
    assert choice.model.name == "bge"
    assert 50_000 <= choice.prompt_tokens <= 60_000
    assert refusal(prompt("embeddings", input=["a", "x" * 30_000])).code == "context_length_exceeded"


def test_each_prompt_of_a_batch_and_each_of_its_choices_is_reserved_for() -> None:
    choice = route(prompt("completions", prompt=["a", "b", "c"], n=2, max_tokens=10))
    assert choice.completion_tokens == 60


def test_without_a_maximum_the_typical_answer_is_reserved() -> None:
    assert route(prompt()).completion_tokens == 256
    assert route(prompt(n=3)).completion_tokens == 768
    assert route(prompt("embeddings")).completion_tokens == 0


def test_pictures_are_not_counted_by_their_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:" + "x" * 500_000}}
    choice = route(prompt(messages=[{"role": "user", "content": [picture]}]))
    assert choice.model.name == "mistral"
    assert choice.prompt_tokens < 50
    text = {"type": "text", "text": "x" * 4000}
    assert route(prompt(messages=[{"role": "user", "content": [picture, text]}])).prompt_tokens > 2000


@given(
    st.sampled_from(["chat", "completions", "responses"]),
    st.one_of(st.none(), st.integers(1, 100_000)),
    st.integers(1, 5),
    st.integers(0, 100_000),
    st.sets(st.sampled_from(["llama2", "mistral"])),
    st.sampled_from([["*"], ["llama2"], ["mistral"], ["llama2", "mistral", "bge"]]),
)
def test_only_a_permitted_model_of_the_endpoint_and_never_more_than_its_context(
    endpoint: Endpoint, most: int | None, choices: int, size: int, down: set[str], permitted: list[str]
) -> None:
    field = {"chat": "messages", "completions": "prompt"}.get(endpoint, "input")
    text: Any = [{"role": "user", "content": "x" * size}] if endpoint == "chat" else "x" * size
    limit = "max_output_tokens" if endpoint == "responses" else "max_tokens"
    choice = route(prompt(endpoint, **{field: text, limit: most, "n": choices}), permitted, down)
    assert choice.model.name in permitted or permitted == ALL
    assert endpoint in choice.model.endpoints
    assert 0 < choice.prompt_tokens <= choice.model.context_tokens
    assert 0 < choice.completion_tokens <= choice.model.context_tokens * choices
    assert choice.completion_tokens <= (most or 256) * choices
