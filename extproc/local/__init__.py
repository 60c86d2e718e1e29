"""`llm-mesh run`: the whole platform on this machine, for people."""

import argparse
import asyncio
import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from extproc.local import observe
from extproc.local.process import StackError, require_free
from extproc.local.stack import Settings, Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Settings(Path(".run"))
    env = os.environ.get
    parser.add_argument("--config", type=Path, default=default.config)
    parser.add_argument("--directory", type=Path, default=default.directory, help="logs and generated files")
    parser.add_argument("--workers", type=int, default=env("WORKERS", "2"), help="processor workers (WORKERS)")
    parser.add_argument("--http-port", type=int, default=env("HTTP_PORT", "8080"), help="(HTTP_PORT)")
    parser.add_argument("--https-port", type=int, default=env("HTTPS_PORT", "8443"), help="(HTTPS_PORT)")
    parser.add_argument("--admin-port", type=int, default=env("ADMIN_PORT", "9001"), help="(ADMIN_PORT)")
    parser.add_argument(
        "--redis", default=env("REDIS_URL", ""), help="use this one instead of starting one (REDIS_URL)"
    )
    parser.add_argument("--backend", default=env("BACKEND", ""), help="URL of a real vLLM server (BACKEND)")
    parser.add_argument(
        "--observe",
        action="store_true",
        default=env("OBSERVE", "") not in ("", "0"),
        help="Prometheus with the rules of observability/ (OBSERVE=1)",
    )
    parser.add_argument("--prometheus-port", type=int, default=env("PROMETHEUS_PORT", "9090"), help="(PROMETHEUS_PORT)")
    parser.add_argument("--request-log", action="store_true", help="one JSON line a request in processor.log")
    parser.add_argument("--prefill-us-per-token", default="200", help="of the simulated backends")
    parser.add_argument("--decode-ms-per-token", default="15", help="of the simulated backends")


def run(arguments: argparse.Namespace) -> int:
    with _alone(arguments.directory):
        return asyncio.run(_run(arguments))


async def _run(a: argparse.Namespace) -> int:
    for port, variable in ((a.http_port, "HTTP_PORT"), (a.https_port, "HTTPS_PORT"), (a.admin_port, "ADMIN_PORT")):
        require_free(port, variable)
    if a.observe:
        require_free(a.prometheus_port, "PROMETHEUS_PORT")
        observe.program("prometheus")  # said before anything is started
    settings = Settings(
        directory=a.directory.resolve(),
        config=a.config.resolve(),
        workers=a.workers,
        http_port=a.http_port,
        https_port=a.https_port,
        admin_port=a.admin_port,
        redis_url=a.redis,
        backend=a.backend,
        simulator=("--prefill-us-per-token", a.prefill_us_per_token, "--decode-ms-per-token", a.decode_ms_per_token),
        drain_seconds=0.2,
        request_log=a.request_log,
        admin_token=secrets.token_urlsafe(24),
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    print("starting the platform (logs in " + str(a.directory) + ")")
    environment = settings.directory / "env"
    starting = asyncio.ensure_future(_start(settings))
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 130
    stack = await starting
    try:
        _write_private(environment, _environment(stack))
        print(_how_to_call(stack, environment, Path.cwd()))
        if a.observe:
            url = await observe.observe(stack, a.prometheus_port)
            print(f"Prometheus: {url} (rules and alerts of observability/, see docs/runbook.md)\n", flush=True)
        await _watch(stack, stopping)
    finally:
        print("stopping …")
        environment.unlink(missing_ok=True)
        await stack.stop()
    return 0 if stopping.is_set() else 1


async def _start(settings: Settings) -> Stack:
    stack = Stack(settings, lambda name, seconds: print(f"  ✓ {name:<10} {seconds:5.1f} s", flush=True))
    await stack.__aenter__()
    return stack


async def _watch(stack: Stack, stopping: asyncio.Event) -> None:
    """Until Ctrl-C. A backend or Redis that ends is said, and lived without; Envoy and the processor are not."""
    told: set[str] = set()
    while not stopping.is_set():
        for child in stack.children.values():
            if child.ended and child.name not in told:
                told.add(child.name)
                print(f"! {child.name} {child.ending()} (log: {child.log})", file=sys.stderr, flush=True)
        if told & {"envoy", "processor"}:
            return
        try:
            await asyncio.wait_for(stopping.wait(), 0.5)
        except TimeoutError:
            continue


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Raises StackError if another run uses the directory: it holds certificates, logs and the file to source."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StackError(f"another run uses {directory}: stop it, or choose another with --directory") from error
        yield


def _environment(stack: Stack) -> str:
    return (
        f"export OPENAI_BASE_URL={stack.https_url}\n"
        f"export OPENAI_API_KEY={stack.api_key}\n"
        f"export SSL_CERT_FILE={stack.ca_file}\n"
        f"export LLM_MESH_ADMIN={stack.admin_url}\n"
        f"export LLM_MESH_ADMIN_TOKEN={stack.settings.admin_token}\n"
        f"export LLM_MESH_REDIS={stack.redis_url}\n"  # not REDIS_URL: the next run would take it for its own
    )


def _how_to_call(stack: Stack, environment: Path, here: Path) -> str:
    path = environment.relative_to(here) if environment.is_relative_to(here) else environment
    return f"""
ready: {stack.base_url} and {stack.https_url} (admin: {stack.admin_url}/health, /metrics)
console: {stack.admin_url}/console/   token: {stack.settings.admin_token}

  source {path}
  curl -s $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \\
    -H 'Content-Type: application/json' --cacert $SSL_CERT_FILE \\
    -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'

or with the openai package (it is in .venv):

  .venv/bin/python -c 'import openai; print(openai.OpenAI().chat.completions.create(
      model="gpt-4o", messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)'

Ctrl-C stops everything.
"""
