"""GET /v1/models and /v1/models/{id}: the caller's permitted models, answered without a backend."""

from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

import msgspec

from extproc.config import Catalogue, Model
from extproc.errors import model_not_found, not_found
from extproc.routing import named, permits

_ROOT = "/v1/models"
_CREATED = 1_700_000_000  # the configuration has no dates; clients expect a number


def is_ours(path: str) -> bool:
    return path == _ROOT or (path.startswith(_ROOT + "/") and len(path) > len(_ROOT) + 1)


def answer(catalogue: Catalogue, method: str, path: str, permitted: Collection[str]) -> bytes:
    """Raises ApiError (404) for a model that does not exist or is not the caller's, and for what is not served."""
    if method != "GET" or not is_ours(path):
        raise not_found(method, path)
    if path == _ROOT:
        models = [_card(m) for m in catalogue.models.values() if permits(permitted, m.name)]
        return msgspec.json.encode({"object": "list", "data": models})
    wanted = unquote(path[len(_ROOT) + 1 :], errors="replace")
    model = named(catalogue, wanted)
    if model is None or not permits(permitted, model.name):
        raise model_not_found(wanted)
    return msgspec.json.encode(_card(model))


def _card(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "llm-mesh",
        "root": model.served_name,
        "max_model_len": model.context_tokens,
    }
