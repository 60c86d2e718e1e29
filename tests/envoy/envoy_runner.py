"""A real Envoy for tests: one listener for each filter chain under test, one scripted upstream, one access log.

`set_metadata` plays the processor's part. An upstream script writes the very bytes that a test wants, in the pieces
that it wants; the client keeps what came even when the answer broke off; the receipt is the request's access-log
entry.
"""

import asyncio
import http.client
import io
import json
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USAGE_LUA = Path(__file__).parents[2] / "mesh/lua/usage.lua"
DEADLINE_SECONDS = 10
# A piece must reach Envoy in a read of its own. Nothing in Envoy tells when it has read, so the upstream pauses.
PAUSE_SECONDS = 0.004

ENVOY = "type.googleapis.com/envoy.extensions"

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def answer(
    *pieces: bytes,
    status: int = 200,
    kind: str = "application/json",
    headers: str = "",
    chunked: bool = True,
    end: bool = True,
) -> Script:
    """Writes each piece on its own; without `end` the connection breaks after the last."""

    async def write(writer: asyncio.StreamWriter) -> None:
        size = "transfer-encoding: chunked" if chunked else f"content-length: {sum(map(len, pieces))}"
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{headers}{size}\r\n\r\n".encode()
        for piece in pieces:
            writer.write(head + (b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece))
            await writer.drain()
            await asyncio.sleep(PAUSE_SECONDS)
            head = b""
        writer.write(head + (b"0\r\n\r\n" if chunked and end else b""))

    return write


def stream(*pieces: bytes, **options: Any) -> Script:
    return answer(*pieces, kind="text/event-stream; charset=utf-8", **options)


@dataclass
class Gateway:
    """A running Envoy. `chains` of `running` are the names that `get` takes."""

    ports: dict[str, int]
    log: Path
    scripts: dict[str, Script]
    pid: int
    _receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _read_to: int = 0
    _sent: int = 0

    async def connect(
        self, chain: str, script: Script, method: str = "POST"
    ) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        self._sent += 1
        path = f"/{self._sent}"
        self.scripts[path] = script
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[chain])
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        return path, reader, writer

    async def get(self, chain: str, script: Script, method: str = "POST") -> tuple[Answer, dict[str, Any]]:
        """The answer that the client got, and the receipt."""
        path, reader, writer = await self.connect(chain, script, method)
        raw = await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)
        writer.close()
        return parsed(raw, method), await self.receipt(path)

    async def receipt(self, path: str) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while path not in self._receipts:
            assert time.monotonic() < deadline, f"no access-log entry for {path}"
            await asyncio.sleep(PAUSE_SECONDS)
            self._read_log()
        return self._receipts.pop(path)

    def _read_log(self) -> None:
        with self.log.open("rb") as log:
            log.seek(self._read_to)
            lines = log.read()
        whole = lines.rfind(b"\n") + 1
        self._read_to += whole
        for line in lines[:whole].splitlines():
            entry = json.loads(line)
            if entry.get("usage"):
                entry["usage"] = json.loads(entry["usage"]["report"])
            self._receipts[entry["path"]] = entry


class _Received:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


def parsed(raw: bytes, method: str = "POST") -> Answer:
    response = http.client.HTTPResponse(_Received(raw), method=method)  # type: ignore[arg-type]
    response.begin()
    try:
        body, whole = response.read(), True
    except http.client.IncompleteRead as error:
        body, whole = error.partial, False
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body, whole)


def metadata_filter(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "processor",
        "typed_config": {
            "@type": f"{ENVOY}.filters.http.set_metadata.v3.Config",
            "metadata": [{"metadata_namespace": "llm", "value": values}],
        },
    }


def lua_filter(path: Path = USAGE_LUA) -> dict[str, Any]:
    return {
        "name": "lua",
        "typed_config": {
            "@type": f"{ENVOY}.filters.http.lua.v3.Lua",
            "default_source_code": {"filename": str(path)},
        },
    }


ROUTER = {
    "name": "router",
    "typed_config": {"@type": f"{ENVOY}.filters.http.router.v3.Router"},
}
RECEIPT = {
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "usage": "%DYNAMIC_METADATA(llm.usage)%",
    "fill": "%DYNAMIC_METADATA(llm.fill)%",
}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _listener(name: str, filters: list[dict[str, Any]], log: Path, cluster: str) -> dict[str, Any]:
    manager = {
        "@type": f"{ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*filters, ROUTER],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "60s"}}],
                }
            ]
        },
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": f"{ENVOY}.access_loggers.file.v3.FileAccessLog",
                    "path": str(log),
                    "log_format": {"json_format": RECEIPT},
                },
            }
        ],
    }
    return {
        "name": name,
        "address": _address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _cluster(name: str, port: int, **options: Any) -> dict[str, Any]:
    protocol = "http2_protocol_options" if name.startswith("http2") else "http_protocol_options"
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{ENVOY}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {protocol: {}},
                **options,
            }
        },
    }


async def _ports(admin: Path, process: asyncio.subprocess.Process, count: int) -> dict[str, int]:
    """Asks Envoy which ports it took, once it serves."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        await asyncio.sleep(PAUSE_SECONDS)
        if not admin.exists() or not admin.read_text():
            continue
        reader, writer = await asyncio.open_connection(*admin.read_text().rsplit(":", 1))
        writer.write(b"GET /listeners?format=json HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
        listeners = json.loads(parsed(await reader.read()).body).get("listener_statuses", [])
        writer.close()
        if len(listeners) == count:
            return {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in listeners}
    raise RuntimeError("Envoy did not start")


@asynccontextmanager
async def running(
    folder: Path, chains: dict[str, list[dict[str, Any]]], clusters: dict[str, int] | None = None
) -> AsyncIterator[Gateway]:
    """Chains of filters by name, each on a port of its own.

    A chain goes to the scripted upstream, or to the cluster of its name if `clusters` (name to port) has one; a
    cluster whose name starts with http2 is spoken to in HTTP/2.
    """
    clusters = clusters or {}
    scripts: dict[str, Script] = {}
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await scripts.pop(head.split(b" ", 2)[1].decode())(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            serving.discard(task)
            writer.close()

    upstream = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    scripted = upstream.sockets[0].getsockname()[1]
    log, admin = folder / "access.log", folder / "admin"
    bootstrap = {
        "admin": {"address": _address(0)},
        "static_resources": {
            "clusters": [
                _cluster("upstream", scripted, common_http_protocol_options={"max_requests_per_connection": 1}),
                *(_cluster(name, port) for name, port in clusters.items()),
            ],
            "listeners": [
                _listener(name, filters, log, name if name in clusters else "upstream")
                for name, filters in chains.items()
            ],
        },
    }
    config = folder / "bootstrap.json"
    config.write_text(json.dumps(bootstrap))
    with (folder / "envoy.log").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            Path(sysconfig.get_path("scripts")) / "envoy",
            *("-c", config, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"),
            *("--admin-address-path", admin, "--file-flush-interval-msec", "5"),
            stderr=errors,
        )
    try:
        yield Gateway(await _ports(admin, process, len(chains)), log, scripts, process.pid)
    finally:
        process.kill()
        await process.wait()
        upstream.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
