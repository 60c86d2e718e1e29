"""The peers: how each is started, and what its documentation advises for production (docs/peers.md has the sources).

Pure: a function from where it shall run to what is written and started. One worker each.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import yaml

_KEY = "sk-bench-0123456789abcdef0123456789abcdef"  # LiteLLM wants its keys to look like this
_UNREACHED = 10_000_000  # a limit, a minute


class Site(msgspec.Struct, frozen=True):
    """Where a peer runs, and what for."""

    installed: Path  # what the cache has of it
    directory: Path  # its own
    backend: str  # host:port
    model: str
    port: int
    metrics_port: int
    redis_port: int


class Launch(msgspec.Struct, frozen=True):
    """What to start, and how it is asked."""

    command: tuple[str, ...]
    environment: dict[str, str] = {}
    files: dict[str, str] = {}  # into its directory
    headers: dict[str, str] = {}  # of every request
    probe: str = "/health"


class Peer(msgspec.Struct, frozen=True):
    name: str
    folder: str  # of its lock file
    package: str  # whose version counts
    launch: Callable[[Site], Launch]
    redis: bool = False


def litellm(site: Site) -> Launch:
    """A master key and nothing else: no database, no Redis."""
    return _litellm(site, {}, {})


def litellm_limits(site: Site) -> Launch:
    """With keys that carry limits, counted in Redis, and the response cache in Redis: as near as it comes to what the
    platform does. Keys in its own database would need PostgreSQL; its `custom_auth` enforces the same limits without.
    """
    redis = {"host": "127.0.0.1", "port": site.redis_port}
    more = {"cache": True, "cache_params": {"type": "redis", **redis}}
    general = {"custom_auth": "bench_auth.authenticate"}
    launch = _litellm(site, general, more, router_settings={f"redis_{name}": value for name, value in redis.items()})
    return msgspec.structs.replace(launch, files={**launch.files, "bench_auth.py": _AUTH})


def _litellm(site: Site, general: dict[str, object], more: dict[str, object], **sections: object) -> Launch:
    parameters = {
        "model": f"hosted_vllm/{site.model}",
        "api_base": f"http://{site.backend}/v1",
        "api_key": "none",
    }
    settings = {"request_timeout": 600, "set_verbose": False, "json_logs": True, "num_retries": 0, **more}
    config = {
        "model_list": [{"model_name": site.model, "litellm_params": parameters}],
        "general_settings": {"master_key": _KEY, **general},
        "litellm_settings": settings,
        **sections,
    }
    program = str(site.installed / "venv" / "bin" / "litellm")
    path = site.directory / "config.yaml"
    return Launch(
        (program, "--config", str(path), "--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1"),
        environment={
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # not from the network
        },
        files={path.name: yaml.safe_dump(config, sort_keys=False)},
        headers={"authorization": f"Bearer {_KEY}"},
        probe="/health/liveliness",
    )


_AUTH = f"""
from litellm.proxy._types import UserAPIKeyAuth


async def authenticate(request, api_key):
    if api_key != "{_KEY}":
        raise ValueError("unknown key")
    return UserAPIKeyAuth(
        api_key=api_key, user_id="bench", rpm_limit={_UNREACHED}, tpm_limit={_UNREACHED * 1000}
    )
"""


def vllm_router(site: Site) -> Launch:
    """Round robin is the cheapest of its policies; the default, cache_aware, also keeps a tree of the prompts."""
    program = str(site.installed / "venv" / "bin" / "vllm-router")
    return Launch(
        (
            program,
            *("--host", "127.0.0.1", "--port", str(site.port), "--prometheus-port", str(site.metrics_port)),
            *("--worker-urls", f"http://{site.backend}", "--policy", "round_robin"),
        ),
        environment={"TOKIO_WORKER_THREADS": "1"},
    )


def portkey(site: Site) -> Launch:
    program = site.installed / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return Launch(
        ("node", str(program), f"--port={site.port}", "--headless"),
        environment={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"},
        headers={
            "authorization": "Bearer none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://{site.backend}/v1",
        },
        probe="/",
    )


PEERS = (
    Peer("LiteLLM", "litellm", "litellm", litellm),
    Peer("LiteLLM+limits", "litellm", "litellm", litellm_limits, redis=True),
    Peer("vLLM router", "vllm-router", "vllm-router", vllm_router),
    Peer("Portkey", "portkey", "@portkey-ai/gateway", portkey),
)


def addressed(head: bytes, headers: dict[str, str]) -> bytes:
    """The head of a request with these headers instead of its own of the same names. What follows the head stays."""
    lines, blank, body = head.partition(b"\r\n\r\n")
    kept = [line for line in lines.split(b"\r\n") if line.partition(b":")[0].decode() not in headers]
    added = [f"{name}: {value}".encode() for name, value in headers.items()]
    return b"\r\n".join([*kept, *added]) + blank + body
