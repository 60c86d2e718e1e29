"""What the whole-stack tests stand on: a platform, callers on it, what reached a backend, what was accounted."""

import asyncio
import base64
import contextlib
import itertools
import os
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec
import openai
import redis
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from extproc.local.stack import ROOT, Settings, Stack
from extproc.pricing import cost_micros
from extproc.store import RedisStore
from extproc.store.keyspace import METRICS
from tools.cluster.mesh import MeshSettings, MeshStack

T = TypeVar("T")
Json = dict[str, Any]
NO_TLS = ssl.SSLContext(
    ssl.PROTOCOL_TLS_CLIENT
)  # for plain HTTP: reading the machine's certificates takes 20 ms a client
OPENMETRICS = "application/openmetrics-text;version=1.0.0"  # as Prometheus asks; exemplars are in no other text
CONFIG = ROOT / "overlays" / "base" / "llm-mesh.yaml"
SERVED = {
    "llama2": "meta-llama/Llama-2-7b-chat-hf",
    "mistral": "TheBloke/Mistral-7B-Instruct-v0.2-AWQ",
    "codellama": "codellama/CodeLlama-7b-Instruct-hf",
    "bge-small": "BAAI/bge-small-en-v1.5",
}
_numbers = itertools.count()


class Platform:
    """A running stack, driven from synchronous tests: its event loop has a thread of its own."""

    def __init__(self, stack: Callable[[], Stack | MeshStack]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.stack: Any = self.do(_started(stack))
        self.store: RedisStore = self.do(_connected(self.stack.redis_url))
        self.redis: redis.Redis[str] = redis.Redis.from_url(self.stack.redis_url, decode_responses=True)

    def do(self, work: Any) -> Any:
        """Run a coroutine of the stack's and wait for it."""
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(timeout=300)

    def close(self) -> None:
        self.redis.close()
        self.do(self.store.aclose())
        self.do(self.stack.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def key(self, *, limited: bool = False, **fields: Any) -> str:
        """A key of a tenant of its own; fields as in KeyRecord.

        Without limits unless `limits` says so, or, where it is `limited`, with those of the configuration.
        """
        free = {} if limited else {"requests_per_minute": 0, "tokens_per_minute": 0}
        fields.setdefault("tenant", "t-" + uuid.uuid4().hex[:8])
        fields["limits"] = {**free, **fields.get("limits", {})}
        key: str = self.do(self.stack.create_key(**fields))
        return key

    def client(self, key: str = "", **options: Any) -> openai.OpenAI:
        """The official client; close it (or use `with`)."""
        options.setdefault("http_client", openai.DefaultHttpxClient(verify=NO_TLS))
        return openai.OpenAI(base_url=self.stack.base_url, api_key=key or self.key(), max_retries=0, **options)


async def _started(make: Callable[[], Stack | MeshStack]) -> Stack | MeshStack:
    return await make().__aenter__()


async def _connected(url: str) -> RedisStore:
    store = RedisStore(url, timeout_seconds=10.0)
    await store.start()
    return store


@contextlib.contextmanager
def running(settings: Settings | MeshSettings) -> Iterator[Platform]:
    """The local stack, or a mesh on a real control plane, as the settings say."""
    platform = Platform(
        partial(MeshStack, settings) if isinstance(settings, MeshSettings) else partial(Stack, settings)
    )
    try:
        yield platform
    finally:
        platform.close()


def eventually(check: Callable[[], T], seconds: float = 20.0) -> T:
    """Ask again until the answer is truthy. What is checked says what it saw last."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.02)
    return value


def said(text: str) -> dict[str, str]:
    """The header that makes a backend answer with this text."""
    return {"x-sim-text": base64.b64encode(text.encode()).decode()}


def unique(text: str = "Question") -> str:
    """A prompt that nobody else asks."""
    return f"{text} {next(_numbers)}-{uuid.uuid4().hex[:8]}"


def ask(content: str = "", **fields: Any) -> Json:
    """A chat request as JSON."""
    return {"model": "llama2", "messages": [{"role": "user", "content": content or unique()}], **fields}


class Caller:
    """One API key, of a tenant of its own unless `tenant` is given, with both clients and its account."""

    def __init__(self, platform: Platform, **key: Any) -> None:
        self.platform = platform
        self.tenant: str = key.setdefault("tenant", "t-" + uuid.uuid4().hex[:8])
        self.key = platform.key(**key)
        self._prefix = f"llm:{{{self.tenant}}}:"
        self.openai = platform.client(self.key)
        self.http = httpx.Client(
            base_url=platform.stack.base_url,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
            verify=NO_TLS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.openai.close()
        self.http.close()

    def chat(self, content: str = "", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.http.post("/chat/completions", json=ask(content, **fields), headers=headers)

    def account(self) -> Json:
        """The sums of the tenant's counters, straight from Redis: `llm-mesh usage` is tested with them."""
        sums = dict.fromkeys(METRICS, 0)
        today = datetime.now(UTC).date()
        for day in (today - timedelta(days=1), today, today + timedelta(days=1)):
            for row in self.platform.redis.hvals(f"{self._prefix}usage:{day}"):
                sums = {name: sums[name] + more for name, more in zip(METRICS, msgspec.json.decode(row), strict=True)}
        return sums

    def settled(self, requests: int) -> Json:
        """The account once so many requests are settled and nothing is reserved any more."""

        def whole() -> Json | None:
            account = self.account()
            assert account["requests"] <= requests, account
            return account if account["requests"] == requests and self.reserved() == 0 else None

        return eventually(whole)

    def settled_exactly(self, requests: int) -> Json:
        """As `settled`, and nothing more comes: receipts keep their order, so a later one has all before it."""
        self.settled(requests)
        with Caller(self.platform) as other:
            assert other.chat(max_tokens=1).status_code == 200
            other.settled(1)
        return self.settled(requests)

    def reserved(self) -> int:
        """Reservations of the tenant that are not settled; each is counted twice, as it is kept."""
        client = self.platform.redis
        return int(client.hlen(self._prefix + "reserved")) + int(client.zcard(self._prefix + "reserved:at"))


MakeCaller = Callable[..., Caller]
StartPlatform = Callable[..., contextlib.AbstractContextManager[Platform]]


class Backend:
    """An HTTP server in this process; `answer` gives the JSON (or nothing) to each request's bytes."""

    def __init__(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._respond(b"")

            def do_POST(self) -> None:
                chunked = self.headers.get("transfer-encoding") == "chunked"
                length = int(self.headers.get("content-length") or 0)
                self._respond(b"".join(self._chunks()) if chunked else self.rfile.read(length))

            def _chunks(self) -> Iterator[bytes]:
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

            def _respond(self, body: bytes) -> None:
                said = owner.answer(self.command, self.path, body)
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes) -> bytes:
        raise NotImplementedError


@contextlib.contextmanager
def connected(platform: Platform) -> Iterator["redis.Redis[str]"]:
    client = redis.Redis.from_url(platform.stack.redis_url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()
        client.connection_pool.disconnect()


def usage_rows(platform: Platform) -> list[Json]:
    today = datetime.now(UTC).date()
    rows = platform.do(platform.store.usage(str(today - timedelta(days=1)), str(today + timedelta(days=1))))
    return [msgspec.structs.asdict(row) for row in rows]


def price(prompt_tokens: int, completion_tokens: int, model: str = "llama2", cached_tokens: int = 0) -> int:
    """Micro-dollars by the price list."""
    from extproc import config
    from extproc.chat import Usage

    catalogue = config.load(CONFIG.read_bytes(), "base")
    return cost_micros(Usage(prompt_tokens, completion_tokens, cached_tokens), catalogue.models[model])


def arrived(platform: Platform, model: str, marker: str) -> list[Json]:
    """The requests at a model's backend whose body or headers hold the marker."""
    with httpx.Client(verify=NO_TLS) as client:
        records = client.get(f"http://{platform.stack.models[model]}/sim/requests").json()
    return [r for r in records if marker in msgspec.json.encode(r).decode()]


class Metrics:
    """One scrape of the admin port."""

    def __init__(self, platform: Platform, accept: str = "text/plain") -> None:
        with httpx.Client(verify=NO_TLS, headers={"accept": accept}) as client:
            self.text = client.get(f"{platform.stack.admin_url}/metrics").text
        parse = openmetrics if accept == OPENMETRICS else plain_text
        self._samples = [s for family in parse(self.text) for s in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples that carry these labels."""
        return sum(s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items())

    def exemplars(self, name: str) -> list[Any]:
        """Those of the metric's buckets."""
        return [s.exemplar for s in self._samples if s.name == f"{name}_bucket" and s.exemplar]

    def labels(self, name: str) -> set[frozenset[str]]:
        return {frozenset(s.labels) for s in self._samples if s.name == name}


def log_lines(platform: Platform, **fields: Any) -> list[Json]:
    """The request log's lines that have these values, oldest first."""
    text = platform.stack.children["processor"].log.read_text()
    lines = [msgspec.json.decode(line) for line in text.splitlines() if line.startswith('{"kind":"request"')]
    return [line for line in lines if fields.items() <= line.items()]


def health(platform: Platform) -> Json:
    with httpx.Client(verify=NO_TLS) as client:
        answer: Json = client.get(f"{platform.stack.admin_url}/health").json()
        return answer


def cli(platform: Platform | None, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`llm-mesh …` as a person runs it, against the platform's Redis."""
    where = {"REDIS_URL": platform.stack.redis_url} if platform else {}
    command = [str(Path(sys.executable).parent / "llm-mesh"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **where, **environment}
    )


def error_of(response: httpx.Response) -> Json:
    """The error object, whose shape is checked."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}, body
    error: Json = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert isinstance(error["type"], str)
    assert response.headers["x-request-id"]
    return error


def events_of(text: str) -> list[Json | str]:
    """The `data:` of each event: objects, and the words [DONE]."""
    found: list[Json | str] = []
    for event in text.split("\n\n"):
        for line in event.splitlines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else msgspec.json.decode(data))
    return found


def text_of(events: list[Any]) -> str:
    """The words of a chat stream."""
    chunks = [c for e in events if isinstance(e, dict) for c in e["choices"]]
    return "".join(c["delta"].get("content") or "" for c in chunks)


def usage_events(events: list[Any]) -> list[Json]:
    return [e["usage"] for e in events if isinstance(e, dict) and e.get("usage") is not None]


def write_config(path: Path, change: Callable[[Json], None]) -> Path:
    """The shipped configuration with a change."""
    text = yaml.safe_load(CONFIG.read_text())
    change(text)
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path
