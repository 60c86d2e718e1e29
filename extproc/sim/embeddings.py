"""Embedding vectors: unit length, the same for the same text, in both encodings of the API. Pure."""

import base64
import hashlib
import math
import sys
from array import array
from typing import Any

import msgspec

from extproc.sim.answers import Head, usage
from extproc.sim.bodies import EmbeddingRequest

DIMENSIONS = 384


def vector(tokens: list[str], dimensions: int = DIMENSIONS) -> "array[float]":
    """Return float32 numbers; fewer dimensions are the first of more, scaled to unit length again."""
    noise = array("h", hashlib.shake_128("".join(tokens).encode()).digest(dimensions * 2))
    length = math.sqrt(sum(number * number for number in noise)) or 1.0
    return array("f", [number / length for number in noise])


def _base64(numbers: "array[float]") -> str:
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


class EmbeddingWriter:
    def __init__(self, inputs: list[list[str]], head: Head, request: EmbeddingRequest) -> None:
        self._inputs = inputs
        self.head = head
        self._request = request

    def caches(self, cached_tokens: int, created_tokens: int) -> None:
        """Embeddings say nothing of it."""

    def plain(self) -> bytes:
        return msgspec.json.encode(
            {
                "id": self.head.id,
                "object": "list",
                "created": self.head.created,
                "model": self.head.model,
                "data": [self._item(at, tokens) for at, tokens in enumerate(self._inputs)],
                "usage": usage(self.head, 0) | {"prompt_tokens_details": None},
            }
        )

    def greeting(self) -> list[bytes]:
        return []

    def opening(self) -> list[bytes]:
        return []

    def token(self, choice: int, at: int) -> bytes:
        raise NotImplementedError

    def closing(self) -> list[bytes]:
        return []

    def _item(self, at: int, tokens: list[str]) -> dict[str, Any]:
        numbers = vector(tokens, self._request.dimensions or DIMENSIONS)
        coded = _base64(numbers) if self._request.encoding_format == "base64" else numbers.tolist()
        return {"index": at, "object": "embedding", "embedding": coded}
