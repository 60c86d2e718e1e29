"""Which metrics there are, and which an expression asks for.

Sources: the processor's own list (extproc/metrics.py), vLLM's (tools/overlays/vllm-metrics-0.32.0.tsv), the exporters'
(exporters/*.tsv: only what we use, each read in the exporter's own documentation or seen on its port), Prometheus's
own, and what our rules record.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY

import extproc.metrics  # noqa: F401  registers them
from observability.rule import Recorded
from observability.rules import groups

ROOT = Path(__file__).resolve().parents[1]
EXPORTERS = ROOT / "observability" / "exporters"
_VLLM = ROOT / "tools" / "overlays" / "vllm-metrics-0.32.0.tsv"
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_OWN = {"up", "ALERTS"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_SELECTOR = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\boffset\s+\w+")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b")
_WORDS = {"and", "or", "unless", "bool", "inf", "nan", "e"}


def processor() -> set[str]:
    """What extproc/metrics.py has put into the library's registry."""
    found: set[str] = set()
    for family in REGISTRY.collect():
        if family.name.startswith("llm_"):
            found |= set(_series(family.name + "_total" * (family.type == "counter"), family.type))
    return found


def listed(file: Path) -> set[str]:
    """Of a list of `name TAB type` lines."""
    lines = [line.split("\t") for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {series for name, kind, *_ in lines for series in _series(name, kind)}


def _series(name: str, kind: str) -> Iterable[str]:
    return [name + suffix for suffix in _SUFFIXES[kind]] if kind in _SUFFIXES else [name]


def exporters() -> dict[str, set[str]]:
    return {file.stem: listed(file) for file in sorted(EXPORTERS.glob("*.tsv"))}


def recorded() -> set[str]:
    return {rule.name for group in groups() for rule in group.rules if isinstance(rule, Recorded)}


def known() -> set[str]:
    return processor() | listed(_VLLM) | set().union(*exporters().values()) | recorded() | _OWN


def used(expression: str) -> set[str]:
    """The metrics that a PromQL expression selects."""
    bare = _QUOTED.sub('""', expression)
    for pattern in (_SELECTOR, _GROUPING):
        bare = pattern.sub(" ", bare)
    return {name for name in _NAME.findall(bare) if name not in _WORDS}
