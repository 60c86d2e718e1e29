"""What the console's tests stand on: a platform whose console is on, and metrics as text."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from stack_rig import NO_TLS, Json, Platform, running, write_config

from extproc.local.stack import Settings

TOKEN = "a-token-for-tests-0123456789"


@pytest.fixture
def families() -> Callable[[str], list[Metric]]:
    """Metric families from the lines that /metrics would show; types and buckets come with the names."""

    return _read


def _read(lines: str) -> list[Metric]:
    by_name: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, lines.split("\n"))):
        by_name.setdefault(line.partition("{")[0], []).append(line)
    text = ""
    for name, some in by_name.items():
        kind = "histogram" if name.endswith("_bucket") else "counter"
        text += "\n".join([f"# TYPE {name.removesuffix('_bucket')} {kind}", *some]) + "\n"
    return list(text_string_to_metric_families(text))


@pytest.fixture(scope="session")
def token() -> str:
    return TOKEN


@pytest.fixture(scope="module")
def observed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose console is on."""
    if request.config.getoption("--mesh"):
        pytest.skip("about the local stack's own processor")
    folder = tmp_path_factory.mktemp("observed")
    config = write_config(folder / "llm-mesh.yaml", _limit)
    with running(Settings(folder / "run", config, admin_token=TOKEN, drain_seconds=0.2)) as platform:
        yield platform


def _limit(text: Json) -> None:
    """Tenants with a budget and with limits that a test can come close to."""
    text["tenants"] = [
        {"name": "thrifty", "limits": {"requests_per_minute": 0, "budget_usd_per_month": 0.001}},
        {"name": "slow", "limits": {"requests_per_minute": 10, "tokens_per_minute": 100_000, "max_in_flight": 40}},
    ]


@pytest.fixture
def api(observed: Platform) -> Iterator[httpx.Client]:
    """The console's API, asked with the token."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    url = f"{observed.stack.admin_url}/console/api/"
    with httpx.Client(base_url=url, headers=headers, verify=NO_TLS) as client:
        yield client
