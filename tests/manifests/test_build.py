"""Kustomize is asked for directories that there are, and its errors reach people with the overlay's name."""

from pathlib import Path

import pytest

from tools.overlays.build import BuildError, build, find, overlays


def overlay(root: Path, name: str, text: str) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "kustomization.yaml").write_text(text)
    return directory


def test_a_build_has_the_objects_and_the_text_that_kustomize_printed(tmp_path: Path) -> None:
    directory = overlay(tmp_path, "one", "namespace: llm\nconfigMapGenerator:\n- {name: m, literals: [a=b]}\n")
    made = build(directory)
    assert made.name == "one"
    assert [(o["kind"], o["metadata"]["namespace"], o["data"]) for o in made.objects] == [
        ("ConfigMap", "llm", {"a": "b"})
    ]
    assert made.text.startswith("apiVersion: v1\n")


def test_an_error_of_kustomize_starts_with_the_overlay_and_has_its_words(tmp_path: Path) -> None:
    directory = overlay(tmp_path, "broken", "resources: [nowhere.yaml]\n")
    with pytest.raises(BuildError, match=r"^broken: .*nowhere\.yaml.*no such file"):
        build(directory)


def test_base_comes_first_and_components_and_other_folders_are_no_overlays(tmp_path: Path) -> None:
    for name in ("alpha", "base", "zulu"):
        overlay(tmp_path, name, "")
    overlay(tmp_path, "components/simulator", "kind: Component\n")
    (tmp_path / "notes").mkdir()
    assert [path.name for path in overlays(tmp_path)] == ["base", "alpha", "zulu"]


def test_an_unknown_overlay_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    overlay(tmp_path, "base", "")
    overlay(tmp_path, "dev", "")
    assert find("dev", tmp_path).name == "dev"
    with pytest.raises(BuildError, match="there is no overlay `prod`; there are: base, dev"):
        find("prod", tmp_path)
