"""What a receipt costs the worker that settles it: CPU microseconds from Envoy's bytes to the store's door.

    .venv/bin/python tests/bench/receipts.py

The store is left out: it answers at once. The variants take turns in one process, with the shared directory of metrics
that workers have and a reader at the other end of the request log; the best of the turns, since others use the machine.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = FOLDER.name  # before the library is loaded: it looks once
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from envoy_messages import entry, logs  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from unit_rig import CATALOGUE, ticket  # noqa: E402

from extproc import wire  # noqa: E402
from extproc.admission import Settlement  # noqa: E402
from extproc.request_log import RequestLog  # noqa: E402
from extproc.settling import Settler  # noqa: E402
from extproc.store import MemoryStore  # noqa: E402
from extproc.worker import Options, Worker  # noqa: E402

SIZES, RECEIPTS, TURNS = (1, 8, 64, 512), 2048, 25
USAGE = {"prompt_tokens": 90, "total_tokens": 150, "completion_tokens": 60}
REPORT = {"first_us": 1_000_100_000, "events": 60, "bytes": 9000, "done": True, "usage": USAGE}
TIMES = {  # microseconds
    "last_rx_byte": 120,
    "first_upstream_tx_byte": 900,
    "first_upstream_rx_byte": 90_000,
    "first_downstream_tx_byte": 90_150,
}


class Store(MemoryStore):
    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return [True] * len(settlements)


def messages(size: int, *, traced: bool) -> list[bytes]:
    return [b"".join([one(n + k, traced) for k in range(size)]) for n in range(0, RECEIPTS, size)]


def one(number: int, traced: bool) -> bytes:
    trace = f"00-{number + 1:032x}-{number + 1:016x}-01" if traced else ""
    model = ("mistral", "llama2")[number % 2]
    asked = ticket(
        request_id=f"r-{number}", model=model, stream=number % 3 > 0, decided_us=180, store_us=90, trace=trace
    )
    made = entry(asked, upstream=f"outbound|8000|stable|{model}.llm.svc.cluster.local", **REPORT)
    common = made.common_properties
    for name, us in TIMES.items():
        getattr(common, "time_to_" + name).FromMicroseconds(us + number % 50)
    address = common.upstream_remote_address.socket_address
    address.address, address.port_value = "10.0.0.7", 8000
    common.upstream_request_attempt_count = 1
    made.response.response_code_details = "via_upstream"
    return bytes(logs(made).SerializeToString())  # messages in a row are one message


def drained() -> int:
    """A pipe whose other end is read by a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        while os.read(reader, 1 << 20):
            pass
        os._exit(0)
    os.close(reader)
    return writer


async def turn(settler: Settler, raw: list[bytes]) -> float:
    began = time.process_time()
    for each in raw:
        await settler._take(wire.parse_access_logs(each))
    return (time.process_time() - began) / RECEIPTS * 1e6


async def main() -> None:
    pipe = drained()
    worker = Worker(Options("", "", ""), CATALOGUE, Store(lambda: 0))
    variants = {
        "settled": (Settler(worker), False),
        "and logged": (Settler(worker, RequestLog(pipe)), False),
        "settled, traced (exemplars; no span)": (Settler(worker), True),
    }
    table = Table("µs a receipt; receipts in a message:", *map(str, SIZES))
    best = {(name, size): float("inf") for name in variants for size in SIZES}
    sent = {(size, traced): messages(size, traced=traced) for size in SIZES for traced in (False, True)}
    for _ in range(TURNS):
        for name, (settler, traced) in variants.items():
            for size in SIZES:
                best[name, size] = min(best[name, size], await turn(settler, sent[size, traced]))
    for name in variants:
        table.add_row(name, *(f"{best[name, size]:.1f}" for size in SIZES))
    os.close(pipe)
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
