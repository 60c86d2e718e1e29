"""Building the pinned Go tools, with a module that compiles in a second."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.cluster.binaries import MissingToolError, Recipe, place, tool
from tools.cluster.build import BuildError, build


@pytest.fixture
def recipe(cache: Path, tmp_path: Path) -> Recipe:
    assert not cache.exists()
    folder = tmp_path / "greeter"
    (folder / "hello").mkdir(parents=True)
    (folder / "go.mod").write_text("module example.com/greeter\n\ngo 1.26\n\ntool example.com/greeter/hello\n")
    (folder / "go.sum").touch()
    (folder / "hello" / "main.go").write_text('package main\n\nfunc main() { print("hello") }\n')
    return Recipe(folder, usual_seconds=1, programs={"hello": "greet"})


def test_a_module_is_built_once(recipe: Recipe) -> None:
    assert build(recipe) > 0
    said = subprocess.run([place(recipe) / "bin" / "greet"], capture_output=True, check=True)
    assert said.stderr == b"hello"
    assert build(recipe) == 0


def test_two_builds_at_once_compile_once(recipe: Recipe) -> None:
    with ThreadPoolExecutor() as threads:
        seconds = list(threads.map(build, [recipe, recipe]))
    assert sorted(second > 0 for second in seconds) == [False, True]


def test_another_pin_is_another_build(recipe: Recipe) -> None:
    before = place(recipe)
    with (recipe.folder / "go.mod").open("a") as text:
        text.write("\n// raised\n")
    assert place(recipe) != before


def test_another_source_of_ours_is_another_build(recipe: Recipe) -> None:
    before = place(recipe)
    (recipe.folder / "main.go").write_text("package main\n")
    assert place(recipe) != before


def test_a_build_that_fails_says_what_the_compiler_said_and_leaves_nothing(recipe: Recipe, cache: Path) -> None:
    (recipe.folder / "hello" / "main.go").write_text("package main\n\nfunc main() { print(nobody) }\n")
    with pytest.raises(BuildError, match="undefined: nobody"):
        build(recipe)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_what_a_killed_build_left_goes_with_the_next(recipe: Recipe, cache: Path) -> None:
    left = cache / ".greeter-killed"
    left.mkdir(parents=True)
    build(recipe)
    assert [path for path in cache.iterdir() if path.is_dir()] == [place(recipe)]


def test_a_tool_that_is_not_built_says_what_to_run(cache: Path) -> None:
    assert not cache.exists()
    with pytest.raises(MissingToolError, match="make tools"):
        tool("kube-apiserver")
