"""Tokens and words: a tokenizer of about four characters a token, and the text of answers.

It owns what a token is and what an answer says, and knows nothing of HTTP, JSON shapes or time. Answers are cut
from one fixed corpus, so that a token's JSON form is computed once and a chunk is three byte strings joined.
The corpus holds non-ASCII characters and ones that JSON escapes, on purpose: clients downstream meet both.
"""

import functools
import hashlib
import random
import re
import zlib
from typing import Any

import msgspec

_TOKEN = re.compile(r" ?[A-Za-z]{1,7}|\d{1,3}| ?[^\sA-Za-z\d]|\s{1,8}")
_MASK = (1 << 64) - 1
_CORPUS_TOKENS = 1 << 15
_SEGMENT_TOKENS = 32
END = ""  # the text of the token that ends an answer
_END_ID = 2
VOCABULARY = 32_000

_SENTENCES = (
    " The capital of France is Paris, and about two million people live there.",
    " A service mesh moves retries, timeouts and encryption out of the application.",
    " First, measure where the time goes; then change one thing and measure again.",
    ' She said: "The first token matters more than the last one."',
    " In short, the queue grows whenever requests arrive faster than they leave.",
    " The path C:\\models\\llama is not portable, /models/llama is.",
    " Café, naïve and Zürich are spelled with accents; 東京 and 北京 are cities.",
    "\n\n1. Read the question twice.\n2. Write down what is known.\n3. Answer it.\n",
    " Prices rose by 3.5 % in 2024, to 1,250 € a month on average.",
    " Water boils at 100 °C at sea level, and at less on a mountain.",
    "\n\tif tokens > limit:\n\t\traise ValueError(f'{tokens} is too many')\n",
    " Well done 🙂, that is exactly right!",
    " It depends: small batches answer sooner, large batches answer more.",
    " The data never leaves the region, which is what the regulation asks for.",
    ' For example, {"name": "Ada", "tags": ["a", "b"]} is a JSON object.',
    " Both replicas hold the same weights, so either of them may answer.",
    " Привет means hello, and merci beaucoup means thank you very much.",
    " Nobody knew why the light was on — the door had been locked all night.",
)


class Answer(msgspec.Struct):
    """One choice: its tokens, the same tokens as the inside of a JSON string, and why it ended."""

    texts: list[str]
    pieces: list[bytes]
    finish_reason: str  # "stop" | "length"
    stop_reason: str | None = None
    tool: str | None = None  # the tokens are this tool's arguments

    @property
    def text(self) -> str:
        return "".join(self.texts)


def tokenize(text: str) -> list[str]:
    """Split text into tokens. Joining them gives the text back."""
    return list(_short(text)) if len(text) < 2048 else _TOKEN.findall(text)


@functools.lru_cache(4096)
def _short(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text))


def escape(token: str) -> bytes:
    """Return the inside of the JSON string for it."""
    return msgspec.json.encode(token)[1:-1]


def _corpus() -> list[str]:
    chooser = random.Random(32)  # noqa: S311  the same text in every process
    tokens: list[str] = []
    while len(tokens) < _CORPUS_TOKENS + _SEGMENT_TOKENS:
        tokens += _TOKEN.findall(chooser.choice(_SENTENCES))
    return tokens


_TEXTS = _corpus()
_PIECES = [escape(token) for token in _TEXTS]


def mix(key: int) -> int:
    """One step of a 64-bit generator: well spread for neighbouring keys."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


def key_of(*parts: str) -> int:
    """Return a 64-bit key that is the same in every process."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def written(count: int, key: int, finish_reason: str) -> Answer:
    """Write an answer of so many tokens; the same key gives the same text.

    One that ends by itself ends with a token that says so, and says nothing else.
    """
    texts: list[str] = []
    pieces: list[bytes] = []
    ends = finish_reason == "stop"
    count -= ends
    while len(texts) < count:
        key = mix(key)
        start = key % _CORPUS_TOKENS
        end = start + min(_SEGMENT_TOKENS, count - len(texts))
        texts += _TEXTS[start:end]
        pieces += _PIECES[start:end]
    if ends:
        texts.append(END)
        pieces.append(b"")
    return Answer(texts, pieces, finish_reason)


def quoted(text: str, max_tokens: int, tool: str | None = None) -> Answer:
    """Return an answer that says this text, as far as max_tokens goes.

    Before a tool's arguments stands a token that says nothing: the one that names the tool.
    """
    texts = [*tokenize(text), END]
    if tool is not None:
        texts.insert(0, "")
    reason = "stop" if len(texts) <= max_tokens else "length"
    del texts[max_tokens:]
    return Answer(texts, [escape(token) for token in texts], reason, tool=tool)


def stopped(answer: Answer, stops: list[str]) -> Answer:
    """Cut the answer before the first stop string in it, in the middle of a token if need be.

    The tokens that make up the stop string are spent and not said.
    """
    text = answer.text
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return answer
    at, stop = min(found)
    texts: list[str] = []
    for token in answer.texts:
        texts.append(token[: max(0, at)])
        at -= len(token)
        if at + len(stop) <= 0:
            break
    return Answer(texts, [escape(token) for token in texts], "stop", stop)


def instance(schema: Any, key: int = 0, defs: Any = None, depth: int = 0) -> Any:
    """Return some value that a JSON schema allows; good for common schemas, not for all of them."""
    if not isinstance(schema, dict) or depth > 16:
        return {}
    defs = defs or schema.get("$defs") or schema.get("definitions") or {}
    if schema.get("enum"):
        return schema["enum"][key % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    other = _stands_for(schema, defs)
    if other is not None:
        return instance(other, key, defs, depth + 1)
    kind = schema.get("type", "object")
    return _typed(kind[0] if isinstance(kind, list) else kind, schema, key, defs, depth)


def _stands_for(schema: dict[str, Any], defs: Any) -> Any:
    """Return the schema that a reference or a choice leads to, if this is one."""
    if "$ref" in schema:
        return defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
    return next((schema[word][0] for word in ("anyOf", "oneOf", "allOf") if schema.get(word)), None)


def _typed(kind: str, schema: dict[str, Any], key: int, defs: Any, depth: int) -> Any:
    if kind == "object":
        properties = (schema.get("properties") or {}).items()
        return {name: instance(each, mix(key + at), defs, depth + 1) for at, (name, each) in enumerate(properties)}
    if kind == "array":
        items = schema.get("items", {"type": "string"})
        count = max(1, int(schema.get("minItems", 1)))
        return [instance(items, mix(key + at), defs, depth + 1) for at in range(count)]
    return _scalar(kind, schema, key)


def _scalar(kind: str, schema: dict[str, Any], key: int) -> Any:
    if kind == "string":
        word = written(max(3, int(schema.get("minLength", 0))), key, "length").text.strip()
        return word[: int(schema.get("maxLength", 80))]
    if kind in ("integer", "number"):
        low = schema.get("minimum", 0)
        high = schema.get("maximum", low + 100)
        return int(low + key % (int(high - low) + 1))
    return key % 2 == 0 if kind == "boolean" else None


class Vocabulary:
    """Numbers for tokens, and back. A token has the same number in every process unless two want the same one."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {END: _END_ID}
        self._tokens: dict[int, str] = {_END_ID: END}

    def ids(self, tokens: list[str]) -> list[int]:
        return [self._ids.get(token) or self._add(token) for token in tokens]

    def text(self, ids: list[int]) -> str:
        """Return what the numbers stand for; those past the vocabulary stand for nothing."""
        return "".join(self._tokens.get(number, "\ufffd" if number < VOCABULARY else "") for number in ids)

    def _add(self, token: str) -> int:
        number = zlib.crc32(token.encode()) % (VOCABULARY - 3) + 3
        while number in self._tokens:
            number += 1
        self._ids[token] = number
        self._tokens[number] = token
        return number
