"""`make overlays` shows a line for each overlay, and below what is wrong and what to do."""

import os
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tools.overlays import show
from tools.overlays.build import OVERLAYS, BuildError

UNEVEN = """
resources: [BASE]
patches:
  - target: {kind: VirtualService, name: llama2}
    patch: |
      - {op: replace, path: /spec/http/0/route/0/weight, value: 90}
"""


def shown(names: list[str], root: Path = OVERLAYS) -> tuple[int, str]:
    text = StringIO()
    return show.run(names, Console(file=text, width=200), root), text.getvalue()


def overlay(root: Path, name: str, text: str) -> None:
    (root / name).mkdir()
    (root / name / "kustomization.yaml").write_text(
        text.replace("BASE", os.path.relpath(OVERLAYS / "base", root / name))
    )


def test_a_sound_overlay_is_one_line_with_its_objects_models_and_gpus() -> None:
    status, text = shown(["base"])
    assert status == 0, text
    assert re.search(r"✓ +base +\d+ +llama2, mistral, codellama, bge-small +7 +0 ", text), text
    assert "→" not in text


def test_what_is_wrong_stands_below_with_what_to_do(tmp_path: Path) -> None:
    overlay(tmp_path, "sound", "resources: [BASE]\n")
    overlay(tmp_path, "uneven", UNEVEN)
    status, text = shown([], tmp_path)
    assert status == 1
    assert re.search(r"✓ +sound .* 0 ", text), text
    assert re.search(r"✗ +uneven .* 1 ", text), text
    assert "✗ uneven: VirtualService llama2: the weights of the route `llama2` are 90 + 0 = 90, not 100\n" in text
    assert "  → let them add up to 100" in text


def test_an_overlay_that_does_not_build_does_not_hide_the_others(tmp_path: Path) -> None:
    overlay(tmp_path, "broken", "resources: [nowhere.yaml]\n")
    overlay(tmp_path, "sound", "resources: [BASE]\n")
    status, text = shown([], tmp_path)
    assert status == 1
    assert re.search(r"✗ broken: kustomize: .*nowhere\.yaml", text), text
    assert re.search(r"✓ +sound", text), text


def test_one_overlay_may_be_asked_for_by_name(tmp_path: Path) -> None:
    overlay(tmp_path, "one", "resources: [BASE]\n")
    overlay(tmp_path, "other", "resources: [nowhere.yaml]\n")
    status, text = shown(["one"], tmp_path)
    assert status == 0
    assert "other" not in text
    with pytest.raises(BuildError, match="there is no overlay `two`; there are: one, other"):
        shown(["two"], tmp_path)
