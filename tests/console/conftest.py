"""What the console's tests stand on: a platform whose console is on, and metrics as text."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from stack_rig import CONFIG, NO_TLS, Json, Platform, running, write_config

from extproc.admin import Admin
from extproc.console import Options
from extproc.local.process import free_port
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
        kind = "histogram" if name.endswith("_bucket") else "counter" if name.endswith("_total") else "gauge"
        text += "\n".join([f"# TYPE {name.removesuffix('_bucket')} {kind}", *some]) + "\n"
    return list(text_string_to_metric_families(text))


@pytest.fixture
def admin(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]:
    """An admin port without workers and without a store: `async with admin(token=…) as client:`."""

    @contextlib.asynccontextmanager
    async def start(token: str = TOKEN, token_file: str = "") -> AsyncIterator[httpx.AsyncClient]:
        counters = tmp_path / "metrics"
        counters.mkdir()
        page = Options(f"unix://{tmp_path}/no-redis.sock", str(CONFIG), token, token_file)
        port, admin = free_port(), Admin(tmp_path, counters, 1, page)
        await admin.start("127.0.0.1", port)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=NO_TLS) as client:
                yield client
        finally:
            await admin.stop()

    return start


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
