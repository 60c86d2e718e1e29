"""Figures as JSON with the versions that they belong to, and as a page."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import page
from places import Found
from promises import Verdict
from report import ROOT, versions

FOLDER = ROOT / "load-results"
_NOT_TOLD = {"api_key", "results", "scenario"}


def head(name: str, about: str, settings: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
    """What stands over the figures. The key that was used does not."""
    told = {key: value for key, value in settings.items() if key not in _NOT_TOLD}
    return {
        "scenario": name,
        "about": " ".join(about.split()),
        "local": local,
        "versions": versions(),
        "settings": told,
    }


def save(
    folder: Path, about: Mapping[str, Any], runs: Mapping[str, Found], verdicts: list[Verdict]
) -> tuple[Path, Path]:
    """Return both files."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{about['scenario']}"
    data, shown = folder / f"{stem}.json", folder / f"{stem}.html"
    everything = {**about, "promises": verdicts, "runs": runs}
    data.write_bytes(msgspec.json.format(msgspec.json.encode(everything), indent=1))
    shown.write_text(page.page(about, runs, verdicts))
    return data, shown
