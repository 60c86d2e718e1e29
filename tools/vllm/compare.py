"""Two servers' answers to one request, reduced to what must be the same: fields, their order, types, fixed values.

Pure. What a model says and how many tokens it takes differs from server to server, and so do ids and times: of these
the type and the form stay. Tokens that travel in one event or in several are the same stream. The result is text, one
field a line, so that two of them can be laid side by side.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

TEXT = {"content", "text", "token", "delta", "arguments", "decoded_token", "prompt", "created_text"}
COUNTS = {
    *("created", "created_at", "count", "total_tokens", "prompt_tokens", "input_tokens", "rank", "text_offset"),
    *("cached_tokens", "created_cache_tokens", "cache_write_tokens", "sequence_number"),
}
SPENT = {"completion_tokens", "output_tokens"}
VARYING = {  # lists as long as a text happens to be
    *("bytes", "token_ids", "prompt_token_ids", "tokens", "token_logprobs", "text_offset", "top_logprobs"),
    *("prompt_logprobs", "token_strs", "embedding"),
}
BY_TOKEN = {"top_logprobs", "prompt_logprobs"}  # objects whose keys are tokens
_HEX = re.compile(r"[0-9a-f]{8,}")
_FINGERPRINT = re.compile(r"^(vllm-[\d.]+-)\S+$")
_ITEMS = re.compile(r"<(dict|list) of \d+ items>")
_ERRORS = re.compile(r"^\d+ validation errors?:\n(.*?)(\n.*)?$", re.DOTALL)
_LOCAL = {"date", "content-length", "location"}


def head(headers: list[tuple[str, str]]) -> str:
    """Headers by name, without what differs from one answer to the next."""
    return "\n".join(sorted(f"{name}: {value}" for name, value in headers if name not in _LOCAL))


def plain(body: bytes, *, exact: bool = True) -> str:
    """A JSON answer; `exact` where both must have spent the same number of tokens."""
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode()
    return json.dumps(_Sketch(exact).of(value, ""), indent=1, ensure_ascii=False)


def stream(body: bytes, *, exact: bool = True) -> str:
    """An event stream: what comes once, and runs of events of one kind as one; each choice for itself."""
    runs: dict[object, list[str]] = {}
    for event in _events(body):
        run = runs.setdefault(_choice(event), [])
        at_end = _choice(event) == "all"  # before it, usage depends on how many tokens an event holds
        line = json.dumps(_Sketch(exact and at_end).of(event, ""), ensure_ascii=False)
        if not run or run[-1] != line:
            run.append(line)
    return "\n".join(f"{choice}: {line}" for choice in sorted(runs, key=str) for line in runs[choice])


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for block in body.decode().split("\n\n"):
        if block:
            event: dict[str, Any] = dict(line.split(": ", 1) for line in block.splitlines())
            if event["data"].startswith("{"):
                event["data"] = json.loads(event["data"])
            yield event


def _choice(event: dict[str, Any]) -> object:
    data = event["data"]
    choices = data.get("choices") if isinstance(data, dict) else None
    return choices[0]["index"] if choices else "all"


class _Sketch:
    def __init__(self, exact: bool) -> None:
        self._exact = exact

    def of(self, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            if name in BY_TOKEN and "token" not in value:
                return {"a token": unique} if (unique := self._kinds(value.values(), "logprob")) else {}
            return {key: self.of(each, key) for key, each in value.items()}
        if isinstance(value, list):
            if name in VARYING or (name == "content" and value and "token" in value[0]):
                return self._kinds(value, name)
            return [self.of(each, name) for each in value]
        return self._scalar(value, name)

    def _kinds(self, values: Any, name: str) -> list[Any]:
        """Which kinds of value are there, however many of each."""
        found = {json.dumps(sketch): sketch for sketch in (self.of(value, name) for value in values)}
        return [found[key] for key in sorted(found)]

    def _scalar(self, value: Any, name: str) -> Any:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, str):
            return self._words(value, name)
        if isinstance(value, float) and name in ("logprob", "token_logprobs", "top_logprobs"):
            return "log probability" if value <= 0 else value
        if name in COUNTS or name in VARYING or (name in SPENT and not self._exact):
            return f"{type(value).__name__} >= 0" if value >= 0 or name == "embedding" else value
        return value

    def _words(self, value: str, name: str) -> str:
        if name == "message":
            return error_message(value)
        if name in TEXT or name in VARYING:
            return "text"
        return _FINGERPRINT.sub(r"\1…", _HEX.sub("…", value))


def error_message(text: str) -> str:
    """Where a value could have been several things, pydantic complains of each of them: the first one counts."""
    found = _ERRORS.match(text)
    return _ITEMS.sub(r"<\1>", "validation error: " + found[1] if found else text)
