"""Panels of what the autoscaler goes by, for the boards that show a model."""

from typing import Any

from observability.dashboards.panels import Limit, Query, plot

OURS = '{model=~"$model"}'


def gpu_utilisation(width: int) -> Any:
    return plot(
        "GPU utilisation",
        "percentunit",
        Query(f"model:gpu_utilisation:avg{OURS}", "{{model}}"),
        limit=Limit(0.7, "orange"),
        about="The autoscaler aims at 70 %.",
        width=width,
    )


def waiting(width: int) -> Any:
    return plot(
        "Waiting at each replica",
        "short",
        Query(f"model:vllm_requests_waiting:avg{OURS}", "{{model}}"),
        limit=Limit(5, "orange"),
        about="The autoscaler adds replicas above 5.",
        width=width,
    )
