"""`make smoke`: does the API at an address do what clients rely on? A table of what was asked and what came.

The figures are this machine's view: the way to the API is part of them.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from openai import APIConnectionError, AuthenticationError, OpenAI, OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from extproc.errors import LlmMeshError
from tools.overlays import questions
from tools.overlays.live import shown
from tools.overlays.questions import Answer, UnexpectedError

_TIMEOUT_SECONDS = 120.0  # the first answer of a model that was just loaded
Question = Callable[[OpenAI], Answer]


class SmokeError(LlmMeshError):
    """The API can not be asked at all."""


class Outcome(msgspec.Struct, frozen=True):
    question: str
    ok: bool
    total_ms: float
    answer: Answer


def run(base_url: str, api_key: str, console: Console) -> int:
    """Ask everything and show it; 0 if all is as it should be. Raises SmokeError."""
    if not base_url or not api_key:
        raise SmokeError("name the API and a key of it: make smoke BASE_URL=https://HOST/v1 API_KEY=sk-llm-…")
    outcomes: list[Outcome] = []
    url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
    with (
        OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=_TIMEOUT_SECONDS) as client,
        shown(console) as show,
    ):
        for name, question in _plan(client):
            show(_table(outcomes, f"asking: {name} …"))
            outcomes.append(_asked(name, question, client))
        failed = [o for o in outcomes if not o.ok]
        last = f"{len(failed)} of {len(outcomes)} failed" if failed else f"all {len(outcomes)} as they should be"
        show(_table(outcomes, last))
    return 1 if failed else 0


def _plan(client: OpenAI) -> Iterator[tuple[str, Question]]:
    """Which models there are decides what is asked. Raises SmokeError where nobody answers or knows the key."""
    models = _models(client)
    yield "models", lambda _: Answer(", ".join(models))
    embedding = [model for model in models if questions.embeds(client, model)]
    talking = [model for model in models if model not in embedding]
    for model in talking:
        yield f"{model}: chat", partial(questions.chat, model)
        yield f"{model}: streamed", partial(questions.streamed, model)
    for model in embedding:
        yield f"{model}: embeddings", partial(questions.embedding, model)
    if talking:
        yield "limits", partial(questions.limits, talking[0])
        yield "cached repeat", partial(questions.cached, talking[0])
    yield "unknown model", questions.unknown_model
    yield "wrong key", questions.wrong_key


def _models(client: OpenAI) -> list[str]:
    try:
        names = [model.id for model in client.models.list()]
    except APIConnectionError as error:
        cause = error.__cause__ or error
        raise SmokeError(f"{client.base_url}: {cause}. A certificate of your own is named by SSL_CERT_FILE") from error
    except AuthenticationError as error:
        raise SmokeError(f"this key is not known there: {error}. `llm-mesh keys create` makes one") from error
    except OpenAIError as error:
        raise SmokeError(f"{client.base_url} is no API of this platform: {error}") from error
    if not names:
        raise SmokeError("no model is permitted to this key: `llm-mesh keys create --models` says which")
    return names


def _asked(name: str, question: Question, client: OpenAI) -> Outcome:
    began = time.perf_counter()
    try:
        ok, answer = True, question(client)
    except (OpenAIError, UnexpectedError) as error:
        ok, answer = False, Answer(str(error))
    return Outcome(name, ok, (time.perf_counter() - began) * 1000, answer)


def _table(outcomes: list[Outcome], caption: str) -> Table:
    table = Table("", "asked", "answer", box=None, caption=caption, caption_justify="left")
    table.add_column("first token", justify="right")
    table.add_column("all", justify="right")
    for o in outcomes:
        first = "" if o.answer.first_ms is None else f"{o.answer.first_ms:.0f} ms"
        mark = "[green]✓[/green]" if o.ok else "[red]✗[/red]"
        table.add_row(mark, escape(o.question), escape(o.answer.words), first, f"{o.total_ms:.0f} ms")
    return table
