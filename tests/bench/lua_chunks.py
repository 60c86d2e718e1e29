"""What mesh/lua/usage.lua costs Envoy: CPU microseconds of the Envoy process per streamed chunk and per small answer.

    .venv/bin/python tests/bench/lua_chunks.py [other.lua ...]

All connections go in lockstep (each upstream writes one event, then each client reads it), so that one event is one
chunk; the variants take turns in one Envoy at --concurrency 1; medians of the turns. Other Lua files are measured as
further variants, to compare.
"""

import asyncio
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "envoy"))
from envoy_runner import lua_filter, metadata_filter, running

CONNECTIONS, EVENTS, ANSWERS, TURNS = 100, 60, 30, 15
EVENT = (
    b'data: {"id":"chatcmpl-99f646e54fc0251b","object":"chat.completion.chunk","created":1795421256,'
    b'"model":"mistral-7b","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null,"token_ids":null}]}\n\n'
)
USAGE = b'"usage":{"prompt_tokens":13,"total_tokens":17,"completion_tokens":4,"prompt_tokens_details":null}'
LAST = b'data: {"id":"c","choices":[],%b}\n\ndata: [DONE]\n\n' % USAGE
PLAIN = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1795421256,"model":"mistral-7b","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],%b,"prompt_logprobs":null}'
) % (b"word " * 100, USAGE)
POST = b"POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n"
HEADERS = "".join(f"x-ratelimit-{i}: {i}\n" for i in range(6))

Turn = Callable[[int, socket.socket], float]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_to(peer: socket.socket, end: bytes) -> None:
    data = b""
    while not data.endswith(end):
        more = peer.recv(65536)
        if not more:
            raise ConnectionError(data)
        data += more


@contextmanager
def connected(port: int, upstream: socket.socket) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Clients with a request under way each, and the upstream's ends."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CONNECTIONS)]
        for client in clients:
            client.sendall(POST)
        ends = [stack.enter_context(upstream.accept()[0]) for _ in range(CONNECTIONS)]
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            read_to(end, b"\r\n\r\n")
        yield clients, ends


def cpu(envoy: psutil.Process) -> float:
    """Seconds, exact to the nanosecond: /proc/PID/stat counts in ticks of 10 ms."""
    tasks = Path(f"/proc/{envoy.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def streamed(envoy: psutil.Process) -> Turn:
    def turn(port: int, upstream: socket.socket) -> float:
        with connected(port, upstream) as (clients, ends):
            write_all(
                clients,
                ends,
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                + chunk(EVENT),
            )
            before = cpu(envoy)
            for _ in range(EVENTS):
                write_all(clients, ends, chunk(EVENT))
            used = cpu(envoy) - before
            write_all(clients, ends, chunk(LAST) + b"0\r\n\r\n", b"0\r\n\r\n")
        return used / (CONNECTIONS * EVENTS) * 1e6

    return turn


def plain(envoy: psutil.Process) -> Turn:
    response = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(PLAIN),
        PLAIN,
    )

    def turn(port: int, upstream: socket.socket) -> float:
        with connected(port, upstream) as (clients, ends):
            write_all(clients, ends, response, b"}")
            before = cpu(envoy)
            for _ in range(ANSWERS):
                for client in clients:
                    client.sendall(POST)
                for end in ends:
                    read_to(end, b"\r\n\r\n")
                write_all(clients, ends, response, b"}")
            used = cpu(envoy) - before
        return used / (CONNECTIONS * ANSWERS) * 1e6

    return turn


def write_all(clients: list[socket.socket], ends: list[socket.socket], data: bytes, until: bytes = b"\n\n\r\n") -> None:
    for end in ends:
        end.sendall(data)
    for client in clients:
        read_to(client, until)


async def main(others: list[Path]) -> None:
    forward = {"forward": True, "headers": HEADERS}
    chains = {
        "no Lua": [metadata_filter(forward)],
        "usage.lua, not forwarded": [metadata_filter({"model": "m"}), lua_filter()],
        "usage.lua": [metadata_filter(forward), lua_filter()],
        "usage.lua, strip": [metadata_filter({**forward, "strip_usage": True}), lua_filter()],
        "usage.lua, strip and fill": [metadata_filter({**forward, "strip_usage": True, "fill": 262144}), lua_filter()],
    }
    for other in others:
        chains[other.name + " (other)"] = [metadata_filter(forward), lua_filter(other)]
        chains[other.name + " (other), strip"] = [metadata_filter({**forward, "strip_usage": True}), lua_filter(other)]
    upstream = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS * 2)
    port = upstream.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), chains, dict.fromkeys(chains, port)) as gateway:
            envoy = psutil.Process(gateway.pid)
            figures = {name: {chain: [] for chain in chains} for name in ("chunk", "answer")}
            for _ in range(TURNS):
                for chain in chains:
                    figures["chunk"][chain].append(streamed(envoy)(gateway.ports[chain], upstream))
                    figures["answer"][chain].append(plain(envoy)(gateway.ports[chain], upstream))
    table = Table("variant", "µs a chunk", "added", "µs a small answer", "added")
    base = {name: statistics.median(values["no Lua"]) for name, values in figures.items()}
    for chain in chains:
        cells = [statistics.median(figures[name][chain]) for name in figures]
        table.add_row(
            chain,
            *(
                f"{x:.2f}"
                for pair in zip(cells, (c - b for c, b in zip(cells, base.values(), strict=True)), strict=True)
                for x in pair
            ),
        )
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]]))
