"""All groups, and the PrometheusRule objects that carry them into a cluster.

`groups` is also what a Prometheus without the operator takes: the local stack's, and promtool.
"""

from typing import Any

from observability import alerts, recorded, slo
from observability.rule import Alert, Group

Json = dict[str, Any]
_NAMES = {"recorded": recorded, "slo": slo, "alerts": alerts}


def groups() -> list[Group]:
    return [group for module in _NAMES.values() for group in module.groups()]


def all_alerts() -> list[Alert]:
    return [rule for group in groups() for rule in group.rules if isinstance(rule, Alert)]


def objects() -> dict[str, Json]:
    """File name -> PrometheusRule."""
    return {
        f"{name}.yaml": {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": f"llm-{name}", "namespace": "llm"},
            "spec": {"groups": [group.to_json() for group in module.groups()]},
        }
        for name, module in _NAMES.items()
    }
