"""OpenAI's request and usage bytes as values.

Knows the four endpoints' field names, nothing of routing, limits or Envoy. Only the fields that a decision needs are
checked; all others pass on untouched, for the backend to judge. A key given twice counts once, the last time, as in
the backend; bodies that we must change are encoded anew, so that no other reading of them is left.
"""

from typing import Any, TypeVar

import msgspec

from extproc.config import Endpoint
from extproc.errors import ApiError, invalid

PATHS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
_PROMPT_FIELD = {"chat": "messages", "completions": "prompt", "embeddings": "input", "responses": "input"}
_MAX_TOKENS_FIELDS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
}
_MEDIA = ("image_url", "input_audio", "input_image", "video_url", "audio_url", "input_file", "file")
MAX_INTEGER = 2**31 - 1
MAX_CHOICES = 128  # OpenAI's; each one is reserved for

Json = dict[str, Any]
T = TypeVar("T")


class Prompt(msgspec.Struct, frozen=True):
    """One request body, read."""

    endpoint: Endpoint
    body: Json
    size_bytes: int  # without media: their bytes say nothing about their tokens
    model: str  # "" = not named
    task: str
    stream: bool
    include_usage: bool  # the client asked for the stream's usage event itself
    max_tokens: int  # per choice; 0 = not named
    choices: int  # to each prompt
    prompts: int  # each with a context of its own: completions and embeddings take several at once
    longest_bytes: int  # of one of them: all of the body, or at least so many where there are several
    sampled: bool  # neither temperature 0 nor a seed: the next answer may differ
    stateful: bool  # refers to or leaves something on a backend: never cached
    media: bool  # carries more than text


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer, as the backend counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


def read_prompt(endpoint: Endpoint, raw: bytes) -> Prompt:
    """Raises ApiError (400) naming the parameter that is wrong."""
    body = _read_object(raw)
    if endpoint == "responses" and body.get("background"):
        raise invalid("`background` is not supported: the answer comes on the same connection.", "background")
    continued = endpoint == "responses" and body.get("previous_response_id") is not None
    if body.get(_PROMPT_FIELD[endpoint]) is None and not continued:
        raise invalid(
            f"Missing required parameter: `{_PROMPT_FIELD[endpoint]}`.",
            _PROMPT_FIELD[endpoint],
            "missing_required_parameter",
        )
    if endpoint == "chat" and not (isinstance(body["messages"], list) and body["messages"]):
        raise invalid("`messages` must be a non-empty array.", "messages")
    stream = endpoint != "embeddings" and _field(body, "stream", bool, False)
    options = _field(body, "stream_options", dict, {})
    media_bytes = _media_bytes(body.get(_PROMPT_FIELD[endpoint]))
    size_bytes = max(0, len(raw) - media_bytes)
    prompts, longest_bytes = _batch(endpoint, body, size_bytes)
    return Prompt(
        endpoint=endpoint,
        body=body,
        size_bytes=size_bytes,
        model=_field(body, "model", str, ""),
        task=_field(body, "task", str, ""),
        stream=stream,
        include_usage=_wants_usage(options),
        max_tokens=_max_tokens(endpoint, body),
        choices=max(_count(body, "n", 1, most=MAX_CHOICES), _count(body, "best_of", 1, most=MAX_CHOICES)),
        prompts=prompts,
        longest_bytes=longest_bytes,
        sampled=endpoint != "embeddings" and body.get("temperature") != 0 and body.get("seed") is None,
        stateful=bool(body.get("previous_response_id") or body.get("conversation")) or _odd_stream(options),
        media=media_bytes > 0,
    )


def _odd_stream(options: Json) -> bool:
    """Stream options that change what the events look like, so that a replay would differ."""
    return any(value and name != "include_usage" for name, value in options.items())


def _wants_usage(options: Json) -> bool:
    """vLLM's own option asks for it too, unless the client says no."""
    asked = options.get("include_usage")
    return bool(options.get("continuous_usage_stats") if asked is None else asked)


def _batch(endpoint: Endpoint, body: Json, size_bytes: int) -> tuple[int, int]:
    """How many prompts there are, and the size of the longest: in bytes, characters or tokens, the least of them."""
    given = body.get(_PROMPT_FIELD[endpoint])
    if endpoint not in {"completions", "embeddings"} or not isinstance(given, list) or not given:
        return 1, size_bytes
    if isinstance(given[0], int):  # one prompt's tokens
        return 1, size_bytes
    return len(given), max(len(each) if isinstance(each, str | list) else 1 for each in given)


def _media_bytes(items: Any) -> int:
    """Of the parts of messages (and of tools' output) that are no text."""
    if not isinstance(items, list):
        return 0
    total = 0
    for item in items:
        if isinstance(item, dict):
            for parts in (item.get("content"), item.get("output")):
                if isinstance(parts, list):
                    media = (part for part in parts if isinstance(part, dict) and _is_media(part))
                    total += sum(len(msgspec.json.encode(part)) for part in media)
    return total


def _is_media(part: Json) -> bool:
    kind = part.get("type")
    return kind in _MEDIA if kind is not None else any(name in part for name in _MEDIA)


def _read_object(raw: bytes) -> Json:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(body, dict):
        raise invalid("The JSON body of your request must be an object.")
    return body


def encode(value: object) -> bytes:
    """JSON of what a request said. What could just be read may be too deep to write with something of ours round it."""
    try:
        return msgspec.json.encode(value)
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> ApiError:
    return invalid("The JSON body of your request is nested too deeply.")


def _field(body: Json, name: str, kind: type[T], default: T) -> T:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise invalid(f"`{name}` must be of type {_WORDS[kind]}.", name)
    return value


_WORDS: dict[type, str] = {bool: "boolean", str: "string", dict: "object", int: "integer"}


def _count(body: Json, name: str, default: int, least: int = 1, most: int = MAX_INTEGER) -> int:
    value = _field(body, name, int, default)
    if isinstance(value, bool):
        raise invalid(f"`{name}` must be of type integer.", name)
    if value < least:
        raise invalid(f"`{name}` must be at least {least}.", name, "integer_below_min_value")
    if value > most:
        raise invalid(f"`{name}` must be at most {most}.", name, "integer_above_max_value")
    return value


def _max_tokens(endpoint: Endpoint, body: Json) -> int:
    for name in _MAX_TOKENS_FIELDS[endpoint]:
        if body.get(name) is not None:
            # 0 is of use in /v1/completions alone: with `echo` it asks for the prompt's own log probabilities
            return max(1, _count(body, name, 1, 0 if endpoint == "completions" else 1))
    return 0


def rewrite(prompt: Prompt, served_name: str) -> bytes | None:
    """The body for the backend, or None where the client's bytes can pass as they are.

    Changes: the model's name as the backend knows it, our own field `task` taken out, and for streams the usage event
    asked for (usage.lua takes it out of the answer again).
    """
    body = prompt.body
    named = prompt.model == served_name
    options = body.get("stream_options") or {}
    metered = not prompt.stream or options.get("include_usage") is True or prompt.endpoint == "responses"
    if named and metered and "task" not in body:
        return None
    changed = {**body, "model": served_name}
    changed.pop("task", None)
    if not metered:
        changed["stream_options"] = {**options, "include_usage": True}
        if not prompt.include_usage:  # vLLM would now put into every event what the client did not ask for
            changed["stream_options"].pop("continuous_usage_stats", None)
    return encode(changed)


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _WireUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


_usage_decoder = msgspec.json.Decoder(_WireUsage)


def read_usage(raw: bytes) -> Usage | None:
    """The usage object of any endpoint; None if it is none."""
    try:
        wire = _usage_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    details = wire.prompt_tokens_details or wire.input_tokens_details
    usage = Usage(
        prompt_tokens=wire.prompt_tokens or wire.input_tokens,
        completion_tokens=(wire.completion_tokens or 0) or wire.output_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
    )
    return usage if min(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) >= 0 else None
