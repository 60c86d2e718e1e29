"""A simulator in the test's own event loop, on a port of its own."""

import argparse
import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from sim_rig import Api, Connect, Raw, Start

from extproc import sim


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
async def official() -> AsyncIterator[Api]:
    """Make the official client for a simulator."""
    made: list[openai.AsyncOpenAI] = []

    def make(server: sim.Server) -> openai.AsyncOpenAI:
        one = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open a bare connection to a simulator."""
    opened: list[Raw] = []

    async def one(server: sim.Server) -> Raw:
        opened.append(Raw(*await asyncio.open_connection("127.0.0.1", server.port)))
        return opened[-1]

    yield one
    for raw in opened:
        raw.writer.close()
