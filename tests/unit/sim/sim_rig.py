"""What the simulator's tests share: a bare connection, a small request, and the fixtures' types."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import openai
from prometheus_client.metrics_core import Metric

from extproc import sim


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

    async def until_reset(self) -> bytes:
        """Read chunks until the peer resets the connection; return their content."""
        seen = b""
        try:
            while data := await self.reader.read(1 << 16):
                seen += data
        except ConnectionResetError:
            seen += bytes(self.reader._buffer)  # type: ignore[attr-defined]  # it keeps what came before the reset
            return _content(seen)
        raise AssertionError("closed without a reset")


def _content(chunks: bytes) -> bytes:
    content = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        content += rest[: int(size, 16)]
        chunks = rest[int(size, 16) + 2 :]
    return content


def chat(text: str = "What is a token?", **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


Start = Callable[..., Awaitable[sim.Server]]
Api = Callable[[sim.Server], openai.AsyncOpenAI]
Connect = Callable[[sim.Server], Awaitable[Raw]]
Scrape = Callable[[sim.Server], Awaitable[list[Metric]]]
