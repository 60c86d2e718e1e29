"""What `make smoke` asks: one function a promise of the API, with the official client, as clients ask.

A question returns what it found in words, or raises UnexpectedError with what came instead. Each asks what nobody asked
before: an answer out of the cache would prove nothing of a model.
"""

import contextlib
import time
import uuid
from typing import Any

import msgspec
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, OpenAIError

from extproc.errors import LlmMeshError

_CACHE_SECONDS, _CACHE_PAUSE_SECONDS = 15.0, 0.5  # an answer is kept once its receipt has come
_WRONG_KEY = "sk-llm-" + "0" * 43


class UnexpectedError(LlmMeshError):
    """An answer that is not the one that was promised."""


class Answer(msgspec.Struct, frozen=True):
    words: str
    first_ms: float | None = None  # to the first token, of streamed answers


def embeds(client: OpenAI, model: str) -> bool:
    """Whether the model is refused for chat because it serves embeddings: the list of models does not tell."""
    with contextlib.suppress(OpenAIError):
        try:
            client.chat.completions.create(model=model, messages=_messages(), max_tokens=1)
        except BadRequestError as error:
            return error.code == "unsupported_model"
    return False


def embedding(model: str, client: OpenAI) -> Answer:
    vectors = client.embeddings.create(model=model, input=["first", "second"]).data
    _expect(len(vectors) == 2 and len(vectors[0].embedding) > 0, f"two vectors, but {len(vectors)} came")
    return Answer(f"{len(vectors[0].embedding)} dimensions")


def chat(model: str, client: OpenAI) -> Answer:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=_messages(), max_tokens=16)
    answer, by = raw.parse(), raw.headers.get("x-llm-model", "nobody")
    _expect(bool(answer.choices and answer.choices[0].finish_reason), "an answer with its finish_reason")
    _expect(by == model, f"an answer by {model}, but {by} answered: is {model} down?")
    tokens = answer.usage.completion_tokens if answer.usage else 0
    _expect(tokens > 0, "an answer with its usage")
    return Answer(f"{tokens} tokens")


def streamed(model: str, client: OpenAI) -> Answer:
    began = time.perf_counter()
    first_ms, pieces, finished = None, 0, ""
    with client.chat.completions.create(model=model, messages=_messages(), max_tokens=16, stream=True) as chunks:
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            if choice.delta.content:
                first_ms = first_ms or (time.perf_counter() - began) * 1000
                pieces += 1
            finished = choice.finish_reason or finished
    _expect(pieces > 0 and bool(finished), f"words and an end, but {pieces} pieces came, finish_reason `{finished}`")
    return Answer(f"{pieces} pieces", first_ms)


def limits(model: str, client: OpenAI) -> Answer:
    headers = client.chat.completions.with_raw_response.create(model=model, messages=_messages(), max_tokens=1).headers
    _expect("x-request-id" in headers, "the header x-request-id")
    units = [unit for unit in ("requests", "tokens") if f"x-ratelimit-limit-{unit}" in headers]
    left = [f"{headers[f'x-ratelimit-remaining-{u}']} of {headers[f'x-ratelimit-limit-{u}']} {u} left" for u in units]
    return Answer(", ".join(left) or "this key has no limits")


def cached(model: str, client: OpenAI) -> Answer:
    messages = _messages()
    deadline = time.monotonic() + _CACHE_SECONDS
    while True:
        create = client.chat.completions.with_raw_response.create
        headers = create(model=model, messages=messages, max_tokens=16, temperature=0).headers
        state = headers.get("x-llm-cache", "no header x-llm-cache")
        if state == "hit":
            return Answer("hit")
        _expect(state == "miss" and time.monotonic() < deadline, f"a hit within {_CACHE_SECONDS:.0f} s, but: {state}")
        time.sleep(_CACHE_PAUSE_SECONDS)


def unknown_model(client: OpenAI) -> Answer:
    try:
        client.chat.completions.create(model="no-such-model", messages=_messages(), max_tokens=1)
    except NotFoundError as error:
        _expect(error.code == "model_not_found", f"the code model_not_found, but: {error.code}")
        _expect(bool(error.type and error.request_id), "an error with type and request id")
        return Answer("404 model_not_found")
    raise UnexpectedError("expected 404, but it was answered")


def wrong_key(client: OpenAI) -> Answer:
    try:
        client.with_options(api_key=_WRONG_KEY).models.list()
    except AuthenticationError as error:
        _expect(error.code == "invalid_api_key", f"the code invalid_api_key, but: {error.code}")
        return Answer("401 invalid_api_key")
    raise UnexpectedError("expected 401, but it was let in")


def _expect(holds: bool, words: str) -> None:
    if not holds:
        raise UnexpectedError(f"expected {words}")


def _messages() -> Any:
    return [{"role": "user", "content": f"Say hello to number {uuid.uuid4().hex[:12]}."}]
