"""Request bodies of the OpenAI API as typed values, and vLLM's words where one is not what it should be. Pure.

Unknown fields are accepted and numbers in strings are read, as vLLM (pydantic) does.
"""

import json
import re
from typing import Annotated, Any

import msgspec

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_PYDANTIC = {
    "int": ("int_type", "Input should be a valid integer"),
    "float": ("float_type", "Input should be a valid number"),
    "bool": ("bool_type", "Input should be a valid boolean"),
    "str": ("string_type", "Input should be a valid string"),
    "array": ("list_type", "Input should be a valid list"),
    "object": ("model_attributes_type", "Input should be a valid dictionary or object to extract fields from"),
}
_UNREADABLE = {  # where a text could not be read as what is wanted
    "int_type": ("int_parsing", ", unable to parse string as an integer"),
    "float_type": ("float_parsing", ", unable to parse string as a number"),
    "bool_type": ("bool_parsing", ", unable to interpret input"),
}
_ARRAY_FIRST = re.compile(r"^Expected `str \| array[^`]*`(?=.*`\$\.(?:prompt|input)`$)")  # the order of the union
_MESSAGE = "ChatCompletionDeveloperMessageParam"  # the first kind of message that vLLM tries
_IN_MESSAGE = re.compile(r"^messages\.\d+")


class Refusal(Exception):  # noqa: N818  an answer, not a failure of the simulator
    """An error in vLLM's shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


class Unreadable(Exception):  # noqa: N818  an answer too
    """A body in no text encoding: FastAPI answers by itself."""


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    def __bool__(self) -> bool:
        """Say whether anything is in it: vLLM takes an empty one for none."""
        return self.include_usage is not None or self.continuous_usage_stats is not None


class Sampling(msgspec.Struct):
    model: str | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None


class ChatRequest(Sampling, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionRequest(Sampling, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = False
    logprobs: int | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    background: bool | None = False
    previous_response_id: str | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    user: str | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = "float"
    dimensions: int | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[Annotated[int, msgspec.Meta(ge=0)]]
    model: str | None = None


def decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    """Return a decoder that is as lax about numbers in strings as pydantic is."""
    return msgspec.json.Decoder(kind, strict=False)


def decode(with_decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return with_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_as_python_does(with_decoder, body)


def _decode_as_python_does(with_decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Read what only Python's own JSON reads, such as NaN; refuse the rest with its words, which are vLLM's too."""
    if not body:
        raise _one_error("missing", "body", "Field required", None)
    try:
        value = json.loads(body)
        return msgspec.convert(value, with_decoder.type, strict=False)
    except json.JSONDecodeError as error:
        found = f"'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': {error.msg!r}}}"
        text = f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{error.pos}', {found}}}"
        raise Refusal(400, text, "Bad Request", f"body.{error.pos}") from None
    except UnicodeDecodeError:
        raise Unreadable from None
    except msgspec.ValidationError as error:
        said = str(error)
        if with_decoder.type in (CompletionRequest, EmbeddingRequest):
            said = _ARRAY_FIRST.sub("Expected `array`", said)
        raise invalid(said, value) from None


def invalid(message: str, body: Any = None) -> Refusal:
    """Say what msgspec found as pydantic says it; where a value may be several things, as its first error."""
    found = _PATH.match(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    path = re.sub(r"\[(\d+)\]", r".\1", path).replace("[...]", "").strip(".")
    given = _at(body, path)
    missing = _MISSING.search(what)
    if missing:
        return _one_error("missing", _loc(f"{path}.{missing[1]}"), "Field required", given)
    if path == "" and body is None:
        return _one_error("missing", "body", "Field required", None)
    if what.startswith("Input should be '"):
        expected = what.removeprefix("Input should be ")
        return _one_error("literal_error", _loc(path), what, given, f", 'ctx': {{'expected': {expected!r}}}")
    if path == "messages" or (path == "tools" and "input" in body):
        return _not_a_list(path, type(given).__name__)
    return _wrong_type(what, path, given)


def _wrong_type(what: str, path: str, given: Any) -> Refusal:
    if what.startswith("Expected `int` >= "):
        words = "Input should be greater than or equal to 0"
        return _one_error("greater_than_equal", _loc(path), words, given, ", 'ctx': {'ge': 0}")
    expected = what.removeprefix("Expected `").partition("`")[0].partition(" | ")[0]
    kind, words = _PYDANTIC.get(expected, ("value_error", what))
    if isinstance(given, str) and kind in _UNREADABLE:
        kind, words = _UNREADABLE[kind][0], words + _UNREADABLE[kind][1]
    elif isinstance(given, float) and kind == "int_type":
        kind, words = "int_from_float", words + ", got a number with a fractional part"
    elif _IN_MESSAGE.match(path) and kind == "model_attributes_type":
        kind, words = "dict_type", "Input should be a valid dictionary"
    return _one_error(kind, _loc(path), words, given)


def _not_a_list(path: str, kind: str) -> Refusal:
    """Where vLLM looks at a value before pydantic does, Python complains."""
    return Refusal(
        400, f"'{kind}' object is not iterable" if path == "messages" else f"object of type '{kind}' has no len()"
    )


def _at(value: Any, path: str) -> Any:
    for part in path.split(".") if path else []:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (LookupError, TypeError, ValueError):
            return None
    return value


def _loc(path: str) -> str:
    path = _IN_MESSAGE.sub(lambda found: f"{found[0]}.{_MESSAGE}", path.strip("."))
    return f"body.{path}" if path else "body"


def _one_error(kind: str, loc: str, words: str, given: Any, context: str = "") -> Refusal:
    shown = f"<{type(given).__name__} of {len(given)} items>" if isinstance(given, (dict, list)) else str(given)
    found = f"{{'type': {kind!r}, 'loc': {loc!r}, 'msg': {words!r}, 'input': {shown!r}{context}}}"
    return Refusal(400, f"1 validation error:\n  {found}", "Bad Request", loc)


def refuse(message: str, param: str | None = None, value: Any = None) -> Refusal:
    """Refuse as vLLM itself does, which appends what it is about."""
    about = [f"parameter={param}"] if param else []
    about += [f"value={value}"] if value is not None else []
    return Refusal(400, f"{message} ({', '.join(about)})" if about else message, param=param)
