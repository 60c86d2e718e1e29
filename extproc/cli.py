"""The command `llm-mesh`: one sub-command a job, each a thin shell round a module of its own."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.errors import LlmMeshError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return int(arguments.run(arguments))
    except LlmMeshError as error:
        print(f"llm-mesh: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"llm-mesh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-mesh", description="OpenAI-compatible serving on a service mesh.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_worker(commands)
    _add_check(commands)
    _add_keys(commands)
    _add_usage(commands)
    _add_sim(commands)
    _add_run(commands)
    return parser


def _add_serve(commands: "_Commands") -> None:
    p = commands.add_parser("serve", help="run the external processor")
    p.add_argument("--config", required=True, help="the configuration file")
    p.add_argument("--sockets", default="", metavar="DIR", help="one Unix socket a worker in this directory")
    p.add_argument("--bind", default="127.0.0.1:9002", help="host:port for all workers, where --sockets is not given")
    p.add_argument("--workers", type=int, default=1, help="processes; one uses up to one core (default 1)")
    p.add_argument("--replicas", type=int, default=1, help="gateway pods; limits are shared out while Redis is away")
    p.add_argument("--redis", default=_REDIS, metavar="URL", help="redis://, rediss:// or unix:// (or REDIS_URL)")
    p.add_argument("--admin", default="127.0.0.1:9001", metavar="HOST:PORT", help="/health and /metrics")
    p.add_argument("--drain-seconds", type=float, default=2.0, help="serve on for so long after SIGTERM")
    p.add_argument("--redis-timeout-ms", type=int, default=100)
    p.set_defaults(run=_serve)


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
        admin_host=host,
        admin_port=int(port),
        drain_seconds=a.drain_seconds,
        redis_timeout_ms=a.redis_timeout_ms,
    )
    asyncio.run(supervise(options))
    return 0


def _add_worker(commands: "_Commands") -> None:
    p = commands.add_parser("worker")  # started by serve
    p.add_argument("--config", required=True)
    p.add_argument("--bind", required=True)
    p.add_argument("--redis", required=True)
    p.add_argument("--index", type=int, required=True)
    p.add_argument("--shares", type=int, required=True)
    p.add_argument("--status-file", required=True)
    p.add_argument("--drain-seconds", type=float, required=True)
    p.add_argument("--redis-timeout-ms", type=int, required=True)
    p.set_defaults(run=_worker)


def _worker(a: argparse.Namespace) -> int:
    import uvloop

    from extproc import server
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
    )
    uvloop.run(server.serve(options))
    return 0


def _add_check(commands: "_Commands") -> None:
    p = commands.add_parser("check", help="validate a configuration file")
    p.add_argument("file")
    p.set_defaults(run=_check)


def _check(a: argparse.Namespace) -> int:
    from extproc import config

    catalogue = config.load(Path(a.file).read_bytes(), a.file)
    print(f"{a.file}: ok, revision {catalogue.revision}: {', '.join(catalogue.models)}")
    return 0


def _add_keys(commands: "_Commands") -> None:
    from extproc import keys_cli

    keys_cli.add_arguments(commands.add_parser("keys", help="create, list and revoke API keys"), _REDIS)


def _add_usage(commands: "_Commands") -> None:
    from extproc import usage_cli

    usage_cli.add_arguments(commands.add_parser("usage", help="tokens and cost by tenant, user, key, model"), _REDIS)


def _add_sim(commands: "_Commands") -> None:
    from extproc import sim

    p = commands.add_parser("sim", help="a simulated vLLM server")
    sim.add_arguments(p)
    p.set_defaults(run=sim.run)


def _add_run(commands: "_Commands") -> None:
    from extproc import local

    p = commands.add_parser("run", help="the whole platform on this machine")
    local.add_arguments(p)
    p.set_defaults(run=local.run)
