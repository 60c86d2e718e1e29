"""Fixtures for all suites: a whole platform, started once per session, and fresh callers on it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from stack_rig import Caller, MakeCaller, Platform, StartPlatform, running

from extproc.local.stack import Settings
from tools.cluster.mesh import MeshSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mesh", type=Path, metavar="OVERLAY", help="run on a real control plane what the overlay says")
    parser.addoption("--backend", default="", metavar="URL", help="a real server that is every model of the stack")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "simulated(what): a backend that does what a real one can not be told to")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a mesh, what is about the local stack's own parts is left out; with a real server, what one can not do too."""
    left_out = {"local": ("--mesh", "--backend"), "simulated": ("--backend",)}
    gone = {mark for mark, options in left_out.items() if any(map(config.getoption, options))}
    items[:] = [item for item in items if not any(map(item.get_closest_marker, gone))]


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform with two workers, shared by all tests that do not break it."""
    directory = tmp_path_factory.mktemp("platform")
    overlay = request.config.getoption("--mesh")
    local = Settings(directory, drain_seconds=1.0, request_log=True, backend=request.config.getoption("--backend"))
    with running(MeshSettings(directory, overlay) if overlay else local) as platform:
        yield platform


@pytest.fixture
def start_platform(request: pytest.FixtureRequest, tmp_path: Path) -> StartPlatform:
    """A platform of the test's own, to be broken: `with start_platform(workers=1) as platform:`."""
    if request.config.getoption("--mesh") or request.config.getoption("--backend"):
        pytest.skip("breaks the local stack's own parts")
    return lambda **settings: running(Settings(tmp_path / "platform", **settings))


@pytest.fixture
def client(platform: Platform) -> Iterator[openai.OpenAI]:
    """A caller of a tenant of its own, without limits."""
    with platform.client() as client:
        yield client


@pytest.fixture
def make_caller(platform: Platform) -> Iterator[MakeCaller]:
    """`make_caller(models=["llama2"], limits={…})`: fields as in KeyRecord; closed with the test."""
    with ExitStack() as stack:
        yield lambda **key: stack.enter_context(Caller(platform, **key))


@pytest.fixture
def caller(make_caller: MakeCaller) -> Caller:
    """A caller of a tenant of its own, without limits, that can look into its account."""
    return make_caller()
