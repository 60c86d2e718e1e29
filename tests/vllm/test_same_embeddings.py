"""The simulator embeds as a real vLLM does, field by field."""

from typing import Any

import httpx
import pytest

from tools.vllm import compare

EMBEDDINGS = "/v1/embeddings"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "Hello"},
        {"input": ["one", "two"]},
        {"input": [5, 6, 7]},
        {"input": [[5, 6], [7]]},
        {"input": "Hello", "encoding_format": "float"},
        {"input": "Hello", "encoding_format": "base64"},
        {"input": "Hello", "model": ""},
        {"input": "Hello", "user": "someone"},
        {"input": [""]},
        {"input": ""},
        {},
        {"input": None},
        {"input": []},
        {"input": 3},
        {"input": ["a", 1]},
        {"input": [-1]},
        {"input": [99_999]},
        {"input": "z9 " * 9000},
        {"input": "x", "model": "nothing"},
        {"input": "x", "model": 5},
        {"input": "x", "encoding_format": "words"},
        {"input": "x", "dimensions": "many"},
    ],
    ids=lambda value: str(value)[:60],
)
def test_embeddings_have_the_same_fields_and_are_refused_with_the_same_words(
    simulated: httpx.Client, real: httpx.Client, model: str, fields: dict[str, Any]
) -> None:
    answers = [client.post(EMBEDDINGS, json={"model": model, **fields}) for client in (simulated, real)]
    assert answers[0].status_code == answers[1].status_code, answers[1].text[:300]
    assert compare.head(answers[0].headers.multi_items()) == compare.head(answers[1].headers.multi_items())
    assert compare.plain(answers[0].content) == compare.plain(answers[1].content)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_server_that_embeds_writes_nothing(
    simulated: httpx.Client, real: httpx.Client, model: str, path: str
) -> None:
    answers = [client.post(path, json={"model": model, "input": "x"}) for client in (simulated, real)]
    assert answers[0].status_code == answers[1].status_code
    assert compare.plain(answers[0].content) == compare.plain(answers[1].content)
