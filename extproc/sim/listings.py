"""Answers that only list something: the models served, the requests that arrived. Pure."""

from typing import Any

import msgspec

from extproc.sim.http import Request


def model_list(model: str, served: tuple[str, ...], max_model_len: int, created: int) -> bytes:
    """Return the answer of GET /v1/models."""
    permission = {
        "id": "modelperm-0000000000000000",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    cards = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": max_model_len,
            "permission": [permission],
        }
        for name in served
    ]
    return msgspec.json.encode({"object": "list", "data": cards})


def record(request: Request) -> dict[str, Any]:
    """Show one request to a test."""
    try:
        body = msgspec.json.decode(request.body)
    except msgspec.DecodeError:
        body = request.body.decode(errors="replace")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    return {"method": request.method, "path": request.path, "headers": headers, "body": body}
