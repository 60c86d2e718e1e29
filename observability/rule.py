"""The values that rules are made of, and how they become Prometheus's own shape.

`scaled` shortens every duration of a group by one factor, so that a test can see alerts fire in seconds that take an
hour in production: windows, offsets and `for` keep their proportions.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Json = dict[str, Any]
Severity = Literal["critical", "warning", "info"]  # wakes somebody; is looked at on the next day; is good to know
RUNBOOK = "docs/runbook.md"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_IN_EXPRESSION = re.compile(r"(?:(?<=\[)|(?<=offset )|(?<=:))(\d+)(ms|s|m|h|d)(?=[\]:\s)]|$)")


class Recorded(msgspec.Struct, frozen=True):
    """A recording rule. Its name says level:metric:operations."""

    name: str
    expr: str
    labels: dict[str, str] = {}

    def to_json(self) -> Json:
        labels = {"labels": self.labels} if self.labels else {}
        return {"record": self.name, "expr": self.expr, **labels}


class Alert(msgspec.Struct, frozen=True):
    """Fires when `expr` has had a result for `wait`. `summary` is what somebody reads who was woken."""

    name: str
    expr: str
    wait: str  # "0s" = at once
    severity: Severity
    summary: str
    labels: dict[str, str] = {}

    def to_json(self) -> Json:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {"summary": self.summary, "runbook": f"{RUNBOOK}#{self.name.lower()}"},
        }


class Group(msgspec.Struct, frozen=True):
    """Rules that are evaluated one after the other: what is recorded above can be used below."""

    name: str
    rules: Sequence[Recorded | Alert]

    def to_json(self) -> Json:
        return {"name": self.name, "rules": [rule.to_json() for rule in self.rules]}


def seconds(duration: str) -> float:
    """Of a duration such as 90s or 3d."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"`{duration}` is no duration such as 5m")
    return int(match[1]) * _UNITS[match[2]]


def scaled(group: Json, factor: float) -> Json:
    """The group with every duration divided by the factor; windows keep at least four seconds."""

    def shorter(match: re.Match[str]) -> str:
        return _text(seconds(match[0]) / factor, least=4.0)

    rules = []
    for rule in group["rules"]:
        changed = {**rule, "expr": _IN_EXPRESSION.sub(shorter, rule["expr"])}
        if "for" in rule:
            changed["for"] = _text(seconds(rule["for"]) / factor)
        rules.append(changed)
    return {**group, "rules": rules}


def _text(value: float, least: float = 0.0) -> str:
    return f"{round(max(value, least) * 1000)}ms"
