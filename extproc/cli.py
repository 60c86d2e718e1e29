"""The command `llm-mesh`: one sub-command a job, each a thin shell round a module of its own."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from extproc.errors import LlmMeshError, StoreUnavailable

_REDIS = os.environ.get("LLM_MESH_REDIS") or os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser(words[0] if words else "").parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return int(arguments.run(arguments))
    except StoreUnavailable as error:
        from extproc.store.address import without_credentials

        where = without_credentials(arguments.redis)
        print(f"llm-mesh: no Redis at {where}: {error}. Name it with --redis or REDIS_URL.", file=sys.stderr)
        return 1
    except (LlmMeshError, OSError) as error:
        print(f"llm-mesh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(wanted: str) -> argparse.ArgumentParser:
    """Only the wanted command is filled in: a worker need not load what the others import."""
    parser = argparse.ArgumentParser(prog="llm-mesh", description="OpenAI-compatible serving on a service mesh.")
    parser.add_argument("--version", action="version", version=f"llm-mesh {version('llm-mesh')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (words, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=words) if words else commands.add_parser(name)
        if name == wanted:
            add(command)
    return parser


def _add_serve(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", required=True, help="the configuration file")
    p.add_argument("--sockets", default="", metavar="DIR", help="one Unix socket a worker in this directory")
    p.add_argument("--bind", default="127.0.0.1:9002", help="host:port for all workers, where --sockets is not given")
    p.add_argument("--workers", type=int, default=1, help="processes; one uses up to one core (default 1)")
    p.add_argument("--replicas", type=int, default=1, help="gateway pods; limits are shared out while Redis is away")
    p.add_argument("--redis", default=_REDIS, metavar="URL", help="redis://, rediss:// or unix:// (or REDIS_URL)")
    p.add_argument(
        "--admin", default="127.0.0.1:9001", metavar="HOST:PORT", help="/health, /ready, /live, /metrics, /console"
    )
    p.add_argument("--admin-token-file", default="", metavar="FILE", help="of the console (or LLM_MESH_ADMIN_TOKEN)")
    p.add_argument("--drain-seconds", type=float, default=2.0, help="serve on for so long after SIGTERM")
    p.add_argument("--redis-timeout-ms", type=int, default=100)
    p.add_argument("--request-log", action="store_true", help="one JSON line a request on standard output")
    p.add_argument(
        "--envoy-admin",
        default="",
        type=_host_port,
        metavar="HOST:PORT",
        help="Envoy's, to notice full models; default: they are not",
    )
    p.set_defaults(run=_serve)


def _host_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text and not (host and "/" not in host and port.isdecimal() and int(port) < 65_536):
        raise argparse.ArgumentTypeError(f"`{text}` is no HOST:PORT")
    return text


def _serve(a: argparse.Namespace) -> int:
    from extproc.supervisor import ServeOptions, supervise

    host, _, port = a.admin.rpartition(":")
    options = ServeOptions(
        config=a.config,
        sockets=a.sockets,
        bind=a.bind,
        workers=a.workers,
        replicas=a.replicas,
        redis_url=a.redis,
        admin_host=host.strip("[]"),
        admin_port=int(port),
        drain_seconds=a.drain_seconds,
        redis_timeout_ms=a.redis_timeout_ms,
        request_log=a.request_log,
        admin_token=os.environ.pop("LLM_MESH_ADMIN_TOKEN", ""),  # the workers have no use for it
        admin_token_file=a.admin_token_file,
        envoy_admin=a.envoy_admin,
    )
    asyncio.run(supervise(options))
    return 0


def _add_worker(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", required=True)
    p.add_argument("--bind", required=True)
    p.add_argument("--redis", required=True)
    p.add_argument("--index", type=int, required=True)
    p.add_argument("--shares", type=int, required=True)
    p.add_argument("--status-file", required=True)
    p.add_argument("--drain-seconds", type=float, required=True)
    p.add_argument("--redis-timeout-ms", type=int, required=True)
    p.add_argument("--request-log", action="store_true")
    p.add_argument("--gateway", default="")
    p.add_argument("--load-file", default="")
    p.add_argument("--workers", type=int, default=1)
    p.set_defaults(run=_worker)


def _worker(a: argparse.Namespace) -> int:
    import uvloop

    from extproc import server
    from extproc.orphans import die_with_parent
    from extproc.worker import Options

    options = Options(
        config=a.config,
        bind=a.bind,
        redis_url=a.redis,
        index=a.index,
        shares=a.shares,
        status_file=a.status_file,
        drain_seconds=a.drain_seconds,
        redis_timeout_seconds=a.redis_timeout_ms / 1000,
        request_log=a.request_log,
        gateway=a.gateway,
        load_file=a.load_file,
        workers=a.workers,
    )
    die_with_parent()  # a worker that is left over would take its successor's socket away when it ends
    uvloop.run(server.serve(options))
    return 0


def _add_check(p: argparse.ArgumentParser) -> None:
    p.add_argument("file")
    p.set_defaults(run=_check)


def _check(a: argparse.Namespace) -> int:
    from extproc import config

    catalogue = config.load(Path(a.file).read_bytes(), a.file)
    print(f"{a.file}: ok, revision {catalogue.revision}: {', '.join(catalogue.models)}")
    return 0


def _add_keys(p: argparse.ArgumentParser) -> None:
    from extproc import keys_cli

    keys_cli.add_arguments(p, _REDIS)


def _add_usage(p: argparse.ArgumentParser) -> None:
    from extproc import usage_cli

    usage_cli.add_arguments(p, _REDIS)


def _add_top(p: argparse.ArgumentParser) -> None:
    from extproc import top_cli

    top_cli.add_arguments(p)


def _add_sim(p: argparse.ArgumentParser) -> None:
    from extproc import sim

    sim.add_arguments(p)
    p.set_defaults(run=sim.run)


def _add_run(p: argparse.ArgumentParser) -> None:
    from extproc import local

    local.add_arguments(p)
    p.set_defaults(run=local.run)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("the whole platform on this machine", _add_run),
    "serve": ("run the external processor", _add_serve),
    "worker": ("", _add_worker),  # started by serve
    "check": ("validate a configuration file", _add_check),
    "keys": ("create, list and revoke API keys", _add_keys),
    "usage": ("tokens and cost by tenant, user, key, model, arm", _add_usage),
    "top": ("what the platform does now, in the terminal", _add_top),
    "sim": ("a simulated vLLM server", _add_sim),
}
