"""Envoy's `/clusters`, as the local stack and as Istio name them, to what is under way at each model."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from extproc import envoy_clusters
from extproc.envoy_clusters import Reader, readings
from extproc.pressure import Reading, Readings

LOCAL = """\
model-llama2::observability_name::model-llama2
model-llama2::default_priority::max_requests::100000
model-llama2::127.0.0.1:7001::cx_active::2
model-llama2::127.0.0.1:7001::rq_active::7
model-llama2::127.0.0.1:7001::rq_error::0
model-llama2::127.0.0.1:7001::rq_total::90
model-llama2::127.0.0.1:7001::health_flags::healthy
model-llama2::127.0.0.1:7002::rq_active::1
model-llama2::127.0.0.1:7002::rq_total::10
model-llama2::127.0.0.1:7002::health_flags::/failed_outlier_check
llm-ext-proc::unix:///run/worker-0.sock::rq_active::3
llm-ext-proc::unix:///run/worker-0.sock::health_flags::healthy
"""
_HOST = "outbound|8000|{}|mistral.llm.svc.cluster.local::{}::"
ISTIO = "".join(
    f"{_HOST.format(subset, host)}rq_active::{active}\n{_HOST.format(subset, host)}rq_total::{active * 10}\n"
    f"{_HOST.format(subset, host)}health_flags::healthy\n"
    for subset, host, active in (
        ("", "10.0.0.1:8000", 0),  # the service without a subset lists them again
        ("", "[fd00::2]:8000", 0),
        ("stable", "10.0.0.1:8000", 4),
        ("canary", "[fd00::2]:8000", 1),
    )
)


def test_requests_and_healthy_replicas_are_summed_by_model() -> None:
    found = readings(LOCAL, 5.0)
    assert found == Readings(5.0, {"llama2": {"": Reading(in_flight=8, replicas=1, total=100)}})


def test_under_istio_the_subsets_count_and_the_whole_service_does_not() -> None:
    assert readings(ISTIO, 5.0).models == {
        "mistral": {"stable": Reading(in_flight=4, replicas=1, total=40), "canary": Reading(1, 1, 10)}
    }


@pytest.mark.parametrize("other", ["|9000|stable|mistral.llm.svc", "|8000|stable|mistral.team-b.svc"])
def test_another_port_and_another_namespace_are_no_model_of_ours(other: str) -> None:
    assert readings(f"outbound{other}.cluster.local::10.0.0.9:8000::rq_active::7\n", 5.0).models == {}


@pytest.mark.parametrize("text", ["", "nonsense", "model-x::1.2.3.4:5::rq_active::", "outbound|1||a::h::rq_active::1"])
def test_anything_else_is_no_model(text: str) -> None:
    assert readings(text, 0.0).models == {}


async def test_the_file_is_written_again_and_again_and_read_once_each_time(tmp_path: Path) -> None:
    answers = [LOCAL, "", ISTIO]

    async def clusters(_: web.Request) -> web.Response:
        text = answers.pop(0) if len(answers) > 1 else answers[0]
        return web.Response(text=text, status=200 if text else 503)  # once it is out of order, and then well again

    app = web.Application()
    app.router.add_get("/clusters", clusters)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (host, port) = runner.addresses[0][:2]
    file = tmp_path / "load.json"
    reader = Reader(file)
    assert reader.news() is None
    watching = asyncio.create_task(envoy_clusters.watch(f"{host}:{port}", file))
    seen: set[str] = set()
    while seen != {"llama2", "mistral"}:
        seen |= set(news.models if (news := reader.news()) else ())
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    reader.news()
    assert reader.news() is None
    await runner.cleanup()
