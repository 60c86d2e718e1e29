"""Dashboards as code: each module is one, `boards` builds them all as Grafana's JSON."""

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability.dashboards import cache, cost, models, scaling, service

Json = dict[str, Any]


def boards() -> dict[str, Json]:
    """Name -> what Grafana imports."""
    made = {
        "service": service.board(),
        "models": models.board(),
        "cost": cost.board(),
        "cache": cache.board(),
        "scaling": scaling.board(),
    }
    return {name: _numbered(json.loads(json.dumps(board, cls=JSONEncoder))) for name, board in made.items()}


def _numbered(board: Json) -> Json:
    """With ids, by which Grafana's links name a panel."""
    panels = [{**panel, "id": number} for number, panel in enumerate(board["panels"], 1)]
    return {**board, "panels": panels}
