"""Which model answers: named model, alias, task, default; then what fits, then what is up.

An explicit name wins over an alias, an alias over `task`, `task` over the default. From there the model's fallbacks
are tried in order when the prompt does not fit its context or when no upstream of it is healthy. Only models that the
key permits and that serve the endpoint are ever chosen. Pure: availability and estimates come in as arguments.
"""

from collections.abc import Callable, Collection, Iterator

import msgspec

from extproc.chat import Prompt
from extproc.config import Catalogue, Model
from extproc.errors import ApiError, invalid, model_not_found

# A prompt can not have fewer tokens than this share of its bytes (long runs of white space come nearest to it). Above
# the largest context even so: refused here. Below: the backend counts exactly and refuses by itself.
LEAST_TOKENS_PER_BYTE = 0.02


class Choice(msgspec.Struct, frozen=True):
    model: Model
    prompt_tokens: int  # estimate, all prompts together, each at most the context
    completion_tokens: int  # what may come at most, all choices to all prompts together


def choose(
    catalogue: Catalogue,
    prompt: Prompt,
    permitted: Collection[str],
    tokens_per_byte: Callable[[Model], float],
    is_up: Callable[[Model], bool],
) -> Choice:
    """Raises ApiError: model_not_found (404), or context_length_exceeded (400) where nothing can hold the prompt."""
    wanted = _wanted(catalogue, prompt, permitted)
    if prompt.endpoint not in wanted.endpoints:
        raise invalid(f"The model `{wanted.name}` does not serve {prompt.endpoint}.", "model", "unsupported_model")
    fitting = None
    largest = wanted
    for model in _candidates(catalogue, wanted, prompt, permitted):
        ratio = tokens_per_byte(model)
        longest_tokens = int(prompt.longest_bytes * ratio) + 1
        if longest_tokens + max(1, prompt.max_tokens) <= model.context_tokens:
            if is_up(model):
                return _choice(model, prompt, longest_tokens, ratio)
            fitting = fitting or _choice(model, prompt, longest_tokens, ratio)
        if model.context_tokens > largest.context_tokens:
            largest = model
    if fitting is not None:
        return fitting  # none is up: the first that fits is as good as any
    _refuse_hopeless(largest, prompt)
    ratio = tokens_per_byte(largest)
    return _choice(largest, prompt, int(prompt.longest_bytes * ratio) + 1, ratio)


def _candidates(catalogue: Catalogue, wanted: Model, prompt: Prompt, permitted: Collection[str]) -> Iterator[Model]:
    yield wanted
    for name in wanted.fallbacks:
        model = catalogue.models[name]
        if permits(permitted, name) and prompt.endpoint in model.endpoints:
            yield model


def permits(permitted: Collection[str], name: str) -> bool:
    return name in permitted or "*" in permitted


def _wanted(catalogue: Catalogue, prompt: Prompt, permitted: Collection[str]) -> Model:
    if prompt.model:
        model = named(catalogue, prompt.model)
        if model is None or not permits(permitted, model.name):
            raise model_not_found(prompt.model)
        return model
    if prompt.task:
        model = catalogue.tasks.get(prompt.task)
        if model is None:
            raise invalid(f"Unknown task `{prompt.task}`. Known: {', '.join(catalogue.tasks)}.", "task")
        if not permits(permitted, model.name):
            raise model_not_found(model.name)
        return model
    usable = [m for m in (catalogue.default, *catalogue.models.values()) if permits(permitted, m.name)]
    if not usable:
        raise model_not_found(catalogue.default.name)
    return next((m for m in usable if prompt.endpoint in m.endpoints), usable[0])


def named(catalogue: Catalogue, name: str) -> Model | None:
    """By public name, by the name the backend is served under (it stands in answers), or by alias."""
    exact = catalogue.names.get(name)
    if exact is not None:
        return exact
    return next((model for pattern, model in catalogue.aliases if pattern.match(name)), None)


def _choice(model: Model, prompt: Prompt, longest_tokens: int, tokens_per_byte: float) -> Choice:
    estimate = int(prompt.size_bytes * tokens_per_byte) + 1
    room = max(1, model.context_tokens - longest_tokens)
    each = min(prompt.max_tokens or model.typical_completion_tokens, room)
    completion = 0 if prompt.endpoint == "embeddings" else each * prompt.choices * prompt.prompts
    return Choice(model, min(estimate, model.context_tokens * prompt.prompts), completion)


def _refuse_hopeless(model: Model, prompt: Prompt) -> None:
    if prompt.body.get("truncate_prompt_tokens") is not None or prompt.body.get("truncation") == "auto":
        return  # the backend makes it fit
    if int(prompt.longest_bytes * LEAST_TOKENS_PER_BYTE) > model.context_tokens:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"This model's maximum context length is {model.context_tokens} tokens. Your prompt of "
            f"{prompt.longest_bytes} bytes is longer than that. Please shorten it.",
            param={"chat": "messages", "completions": "prompt"}.get(prompt.endpoint, "input"),
        )
