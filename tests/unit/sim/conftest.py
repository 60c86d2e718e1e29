"""A simulator in the test's own event loop, on a port of its own."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import openai
import pytest

from extproc import sim

Start = Callable[..., Awaitable[sim.Server]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a simulator with these arguments; all are stopped when the test ends."""
    servers: list[sim.Server] = []

    async def begin(*arguments: str) -> sim.Server:
        parser = argparse.ArgumentParser()
        sim.add_arguments(parser)
        server = sim.Server(sim.settings(parser.parse_args(["--model", "org/tiny", *arguments])))
        await server.listen("127.0.0.1", 0)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        await server.stop()


@pytest.fixture
async def client() -> AsyncIterator[Callable[[sim.Server], openai.AsyncOpenAI]]:
    """Make the official client for a simulator."""
    made: list[openai.AsyncOpenAI] = []

    def make(server: sim.Server) -> openai.AsyncOpenAI:
        one = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


class Raw:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str, body: object = None, *, method: str = "POST", **headers: str) -> None:
        data = b"" if body is None else msgspec.json.encode(body)
        lines = [f"{method} {path} HTTP/1.1", "host: sim", "content-type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(data)}", "", ""]
        self.writer.write("\r\n".join(lines).encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a status and its headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        return status, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def chunk(self) -> bytes:
        """Read one HTTP chunk; empty at the end of the body."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks(self) -> list[bytes]:
        found = []
        while data := await self.chunk():
            found.append(data)
        return found


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[sim.Server], Awaitable[Raw]]]:
    """Open a bare connection to a simulator."""
    opened: list[Raw] = []

    async def one(server: sim.Server) -> Raw:
        opened.append(Raw(*await asyncio.open_connection("127.0.0.1", server.port)))
        return opened[-1]

    yield one
    for raw in opened:
        raw.writer.close()


def chat(text: str = "What is a token?", **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.fixture(name="chat")
def _chat() -> Callable[..., dict[str, object]]:
    return chat
