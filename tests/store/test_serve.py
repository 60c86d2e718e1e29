"""`llm-mesh serve` as its pod starts and ends it: the store comes later, sockets are shared, receipts are settled."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from envoy_messages import entry, error_of, headers, logs, read
from grpc_health.v1 import health_pb2, health_pb2_grpc
from store_rig import Valkey, eventually
from unit_rig import CONFIG, ticket

from extproc import wire
from extproc.local.process import Child, free_port
from extproc.store import RedisStore

ANSWERED = 'llm_requests_total{endpoint="chat",model="mistral",status="200"} '
GRACE_SECONDS = 30.0  # Kubernetes' own default


class Processor:
    """One `serve` with a worker, on an address that a probe of the kubelet can reach."""

    def __init__(self, folder: Path, redis_url: str, *options: str, umask: str = "022") -> None:
        self.folder = folder
        config = folder / "llm-mesh.yaml"
        config.write_bytes(CONFIG)
        self.port = free_port()
        self.socket = folder / "worker-0.sock"
        command = [sys.executable, "-m", "extproc", "serve", "--config", str(config), "--sockets", str(folder)]
        command += ["--workers", "1", "--admin", f"0.0.0.0:{self.port}", "--drain-seconds", "0", "--redis", redis_url]
        command += options
        masked = ["sh", "-c", f'umask {umask} && exec "$@"', "sh", *command]
        self.child = Child("processor", masked, folder / "processor.log", {"TMPDIR": str(folder)})

    async def probe(self, path: str) -> tuple[int, str]:
        """Status and text; 0 where nobody listens."""
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def says(self, path: str, status: int, words: str = "") -> None:
        async def heard() -> bool:
            got, text = await self.probe(path)
            return got == status and words in text

        await self.child.ready(heard, 20)

    async def worker(self) -> int:
        """Its process."""
        _, text = await self.probe("/health")
        (pid,) = json.loads(text)["workers"]["pids"]
        return int(pid)

    async def logs(self, words: str) -> None:
        async def logged() -> bool:
            return words in self.child.log.read_text()

        await self.child.ready(logged, 20)

    async def is_closed(self) -> bool:
        """Whether no worker takes connections any more."""
        try:
            _, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return True
        writer.close()
        return False

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            yield channel

    async def health(self, service: str) -> int:
        async with self.channel() as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            return int((await ask(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)).status)

    async def decide(self, message: Any) -> bytes:
        async with self.channel() as channel:
            process = channel.unary_unary(f"/{wire.PROCESS}/Process", type(message).SerializeToString)
            reply: bytes = await process(message, wait_for_ready=True)
            return reply


Start = Callable[..., Processor]


@pytest.fixture
async def start(own_valkey: Valkey) -> AsyncIterator[Start]:
    """A processor that is ended with the test; its folder is short, as a socket's path must be."""
    made: list[Processor] = []

    def one(redis_url: str = own_valkey.url, *options: str, **shell: str) -> Processor:
        made.append(Processor(own_valkey.socket.parent, redis_url, *options, **shell))
        return made[-1]

    yield one
    for each in made:
        await each.child.stop()


async def test_without_the_store_it_starts_says_what_is_away_and_takes_requests_when_it_comes(
    start: Start, own_valkey: Valkey
) -> None:
    own_valkey.kill()
    processor = start()
    await processor.child.start()
    await processor.says("/started", 200, "1 of 1 workers run")
    await processor.says("/ready", 503, "0 of 1 workers serve")
    await processor.says("/live", 200)
    await processor.says("/health", 200, '"redis":"down"')
    states = health_pb2.HealthCheckResponse
    assert [await processor.health(service) for service in ("", "llm_mesh")] == [states.NOT_SERVING] * 2
    refused = await processor.decide(headers(method="GET", path="/v1/models", authorization="Bearer sk-llm-x"))
    assert error_of(refused) == (503, "service_unavailable")
    await processor.logs("Redis is away: ")
    own_valkey.start()
    await processor.says("/health", 200, '"redis":"up"')
    await processor.says("/ready", 200, "1 of 1 workers serve")
    assert [await processor.health(service) for service in ("", "llm_mesh")] == [states.SERVING] * 2
    await processor.logs("Redis is back")
    refused = await processor.decide(headers(method="GET", path="/v1/models", authorization="Bearer sk-llm-x"))
    assert error_of(refused) == (401, "invalid_api_key")


async def test_when_the_store_goes_away_it_stays_ready(start: Start, own_valkey: Valkey) -> None:
    processor = start()
    await processor.child.start()
    await processor.says("/health", 200, '"status":"ok"')
    own_valkey.kill()
    await processor.says("/health", 200, '"redis":"down"')
    assert (await processor.probe("/ready"))[0] == 200
    assert await processor.health("llm_mesh") == health_pb2.HealthCheckResponse.SERVING


async def test_certificates_that_the_proxy_writes_later_are_waited_for_and_named(start: Start, tmp_path: Path) -> None:
    from certificates import Files

    processor = start(Files(tmp_path / "certificates").url(free_port()))
    await processor.child.start()
    await processor.says("/started", 200)
    await processor.logs("Redis is away: TLS: ")
    await processor.logs("root-cert.pem can not be used: No such file or directory")


async def test_an_address_that_is_none_is_said_and_nothing_starts(start: Start) -> None:
    processor = start("http://no-redis-at-all")
    await processor.child.start()
    await processor.logs("not a Redis URL (the scheme must be redis, rediss or unix): http://no-redis-at-all")
    assert await processor.probe("/live") == (0, "")


async def test_what_workers_counted_that_were_killed_stays_and_their_files_do_not(start: Start) -> None:
    processor = start()
    await processor.child.start()
    for kills in range(1, 4):
        await processor.says("/health", 200, '"status":"ok"')
        async with processor.channel() as channel:
            _stream = await sent(channel, 10, f"life-{kills}")
            await processor.says("/metrics", 200, ANSWERED + f"{kills}0.0")
        os.kill(await processor.worker(), signal.SIGKILL)
        await processor.says("/metrics", 200, f'llm_worker_restarts_total{{worker="0"}} {kills}.0')
    await processor.says("/health", 200, '"status":"ok"')
    await processor.says("/metrics", 200, ANSWERED + "30.0")
    (runtime,) = processor.folder.glob("llm-mesh-*")
    files = {path.name for path in (runtime / "metrics").glob("*.db")}
    assert {name for name in files if "ended" in name} == {"counter_ended.db", "histogram_ended.db"}
    assert len({name for name in files if name.startswith("counter_")}) == 2  # that one, and the living worker's


async def test_a_worker_that_can_not_start_is_counted_and_fills_no_directory(start: Start) -> None:
    processor = start()
    await processor.child.start()
    await processor.says("/health", 200, '"status":"ok"')
    (processor.folder / "llm-mesh.yaml").write_text("models: none")  # kept by one that runs, refused by one that starts
    os.kill(await processor.worker(), signal.SIGKILL)
    await processor.says("/metrics", 200, 'llm_worker_restarts_total{worker="0"} 4.0')
    await processor.says("/metrics", 200, 'llm_workers{state="alive"} 0.0')
    assert (await processor.probe("/ready"))[0] == 503
    assert (await processor.probe("/health"))[0] == 503
    assert (await processor.probe("/live"))[0] == 200
    (runtime,) = processor.folder.glob("llm-mesh-*")
    assert len(list((runtime / "metrics").glob("counter_*.db"))) <= 2


async def test_requests_are_logged_where_it_is_wanted(start: Start, own_valkey: Valkey) -> None:
    processor = start(own_valkey.url, "--request-log")
    await processor.child.start()
    await processor.says("/health", 200, '"status":"ok"')
    async with processor.channel() as channel:
        _stream = await sent(channel, 50)
        await processor.says("/metrics", 200, ANSWERED + "50.0")
    lines = [line for line in processor.child.log.read_text().splitlines() if line.startswith("{")]
    assert [json.loads(line)["completion_tokens"] for line in lines] == [2] * 50


@pytest.mark.parametrize("umask", ["000", "022", "077"])
async def test_the_socket_is_for_the_group_and_nobody_else(start: Start, umask: str) -> None:
    processor = start(umask=umask)
    await processor.child.start()
    await processor.says("/ready", 200)
    assert stat.S_IMODE(processor.socket.stat().st_mode) == 0o660


async def test_sockets_that_a_killed_processor_left_behind_are_replaced(start: Start) -> None:
    first = start()
    await first.child.start()
    await first.says("/ready", 200)
    first.child.kill()
    assert first.child.process is not None
    await first.child.process.wait()
    assert first.socket.exists()
    await eventually(first.is_closed)  # the kernel ends its worker
    second = start()
    await second.child.start()
    await second.says("/ready", 200)
    assert await second.health("llm_mesh") == health_pb2.HealthCheckResponse.SERVING
    refused = await second.decide(headers(method="GET", path="/v1/models"))
    assert read(refused).immediate_response.status.code == 401


async def test_receipts_that_came_just_before_the_end_are_settled(start: Start, own_valkey: Valkey) -> None:
    processor = start()
    await processor.child.start()
    await processor.says("/health", 200, '"status":"ok"')
    async with processor.channel() as channel:
        _stream = await sent(channel, 500)
        await ended(processor)
    assert await accounted(own_valkey) == 500


async def test_a_store_that_comes_back_in_time_gets_the_last_receipts(start: Start, own_valkey: Valkey) -> None:
    processor = start()
    await processor.child.start()
    await processor.says("/health", 200, '"status":"ok"')
    own_valkey.kill()
    await processor.says("/health", 200, '"redis":"down"')
    async with processor.channel() as channel:
        _stream = await sent(channel, 500)
        await processor.says("/health", 200, '"settlement_backlog":500')
        ending = asyncio.create_task(ended(processor))
        await processor.child.ready(processor.is_closed)
        assert not ending.done()
        own_valkey.start()
        await ending
    assert await accounted(own_valkey) == 500


async def test_a_store_that_stays_away_does_not_hold_the_end_up(start: Start, own_valkey: Valkey) -> None:
    own_valkey.kill()
    processor = start()
    await processor.child.start()
    await processor.says("/started", 200)
    async with processor.channel() as channel:
        _stream = await sent(channel, 5)
        await processor.says("/health", 200, '"settlement_backlog":5')
        await ended(processor)
    assert "5 requests are not settled" in processor.child.log.read_text()


async def sent(channel: grpc.aio.Channel, count: int, name: str = "r") -> Any:
    """A stream as Envoy's, on which so many receipts were sent; it stays open."""
    method = f"/{wire.ACCESS_LOGS}/StreamAccessLogs"
    stream = channel.stream_unary(method, lambda message: message.SerializeToString())(wait_for_ready=True)
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    await stream.write(logs(*(entry(ticket(request_id=f"{name}-{n}"), usage=usage) for n in range(count))))
    return stream


async def ended(processor: Processor) -> None:
    process = processor.child.process
    assert process is not None
    process.terminate()
    assert await asyncio.wait_for(process.wait(), GRACE_SECONDS) == 0


async def accounted(valkey: Valkey) -> int:
    """Requests in the usage report."""
    store = RedisStore(valkey.url)
    await store.start()
    days = [str(datetime.now(UTC).date() + timedelta(days)) for days in (-1, 1)]
    rows = await store.usage(*days)
    await store.aclose()
    return sum(row.requests for row in rows)
