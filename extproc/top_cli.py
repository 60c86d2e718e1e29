"""`llm-mesh top`: what the console shows, in a terminal, once a second; or one frame of it for scripts.

Asks the console's API at the admin port; console/terminal.py draws. The token comes from the environment or a file: on
a command line every process of the machine could read it.
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live as Screen

from extproc.console.shapes import Live, Usage
from extproc.console.terminal import TREND_SECONDS, Frame, draw
from extproc.errors import LlmMeshError

_SECONDS = 1.0
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class TopError(LlmMeshError):
    """The admin port does not answer as it should; the message says what to do."""


class WrongTokenError(TopError):
    """It will not get better, and each further try counts as a guess: others at this address would have to wait."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url = os.environ.get("LLM_MESH_ADMIN", "http://127.0.0.1:9001")
    parser.add_argument("--admin", default=url, metavar="URL", help=f"the admin port (or LLM_MESH_ADMIN; {url})")
    parser.add_argument("--token-file", default="", metavar="FILE", help="of the admin token (or LLM_MESH_ADMIN_TOKEN)")
    parser.add_argument("--once", action="store_true", help="one frame, and end")
    parser.set_defaults(run=_run)


def _run(a: argparse.Namespace) -> int:
    token = Path(a.token_file).read_text().strip() if a.token_file else os.environ.get("LLM_MESH_ADMIN_TOKEN", "")
    if not token:
        raise TopError("the admin token is needed: set LLM_MESH_ADMIN_TOKEN, or name its file with --token-file")
    root = a.admin.rstrip("/").removesuffix("/console")
    return asyncio.run(_once(root, token) if a.once else _watch(root, token))


async def _once(root: str, token: str) -> int:
    async with _session(token) as session:
        frame = await _ask(session, root)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(draw(frame, console.width))
    return 0


async def _watch(root: str, token: str) -> int:
    """Until Ctrl-C. While nothing answers, the last picture stays and says so; a wrong token ends it."""
    async with _session(token) as session:
        frame = await _ask(session, root)
        with Screen(screen=sys.stdout.isatty(), auto_refresh=False) as screen:
            while True:
                began = time.monotonic()
                trouble = ""
                try:
                    frame = await _ask(session, root, frame.live.time_ms - 1000 * TREND_SECONDS)
                except WrongTokenError:
                    raise
                except TopError as error:
                    trouble = str(error)
                screen.update(draw(frame, screen.console.width, trouble), refresh=True)
                await asyncio.sleep(max(0.0, _SECONDS - (time.monotonic() - began)))


def _session(token: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"authorization": f"Bearer {token}"}, timeout=_TIMEOUT)


async def _ask(session: aiohttp.ClientSession, root: str, since_ms: int = 0) -> Frame:
    live = msgspec.json.decode(await _get(session, f"{root}/console/api/live?since={since_ms}"), type=Live)
    try:
        usage = msgspec.json.decode(await _get(session, f"{root}/console/api/usage?by=tenant&span=today"), type=Usage)
    except WrongTokenError:
        raise
    except TopError as error:
        return Frame(live, None, str(error))
    return Frame(live, usage)


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    try:
        async with session.get(url) as response:
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise TopError(f"{url} does not answer: {error or type(error).__name__}") from error
    if response.status == 200:
        return body
    if response.status == 401:
        raise WrongTokenError(f"{url}: this is not the admin token")
    raise TopError(_refusal(url, response.status, body))


def _refusal(url: str, status: int, body: bytes) -> str:
    if status == 404:
        return f"{url}: there is no console. Was the processor started with an admin token?"
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        return f"{url}: status {status}"
