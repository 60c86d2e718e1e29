"""Request bodies of the OpenAI API as typed values, and vLLM's words where one is not what it should be. Pure.

Unknown fields are accepted and numbers in strings are read, as vLLM (pydantic) does.
"""

import re
from typing import Any

import msgspec

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_PYDANTIC = {
    "int": ("int_type", "Input should be a valid integer"),
    "float": ("float_type", "Input should be a valid number"),
    "bool": ("bool_type", "Input should be a valid boolean"),
    "str": ("string_type", "Input should be a valid string"),
    "array": ("list_type", "Input should be a valid list"),
    "object": ("dict_type", "Input should be a valid dictionary"),
}


class Refusal(Exception):  # noqa: N818  an answer, not a failure of the simulator
    """An error in vLLM's shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


class Sampling(msgspec.Struct):
    model: str | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None


class ChatRequest(Sampling, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionRequest(Sampling, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
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
    seed: int | None = None
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
    tokens: list[int]
    model: str | None = None


def decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    """Return a decoder that is as lax about numbers in strings as pydantic is."""
    return msgspec.json.Decoder(kind, strict=False)


def decode(with_decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return with_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = f"'loc': 'body.0', 'msg': 'JSON decode error', 'input': {{}}, 'ctx': {{'error': {str(error)!r}}}"
        text = f"1 validation error:\n  {{'type': 'json_invalid', {found}}}"
        raise Refusal(400, text, "Bad Request", "body.0") from None


def invalid(message: str) -> Refusal:
    found = _PATH.match(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    missing = _MISSING.search(what)
    if missing:
        kind, words = "missing", "Field required"
        path = f"{path}.{missing[1]}" if path else missing[1]
    else:
        expected = what.removeprefix("Expected `").partition("`")[0].partition(" | ")[0]
        kind, words = _PYDANTIC.get(expected, ("value_error", what))
    path = re.sub(r"\[(\d+)\]", r".\1", path).replace("[...]", "").strip(".")
    loc = ".".join(["body", *(part for part in path.split(".") if part)])
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': {loc!r}, 'msg': {words!r}}}"
    return Refusal(400, text, "Bad Request", loc)


def value_error(message: str, param: str | None = None) -> Refusal:
    """Refuse as vLLM's own validators inside pydantic do."""
    text = f"1 validation error:\n  {{'type': 'value_error', 'loc': 'body', 'msg': {'Value error, ' + message!r}}}"
    return Refusal(400, text, "Bad Request", param)
