"""What Envoy's admin port says of the models' replicas: requests under way, and which are healthy.

`/clusters` and not `/stats`: Istio keeps most statistics from being made, what is listed here is always there.
The supervisor asks, a few times a second, and leaves the answer in a file that its workers read.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import msgspec

from extproc.pressure import Reading, Readings

log = logging.getLogger("llm-mesh")
INTERVAL_SECONDS = 0.1
_SHARE = 0.1  # of a core, at most: in a mesh of many services the answer is long
_TIMEOUT_SECONDS = 2.0
_PATIENCE = 100  # tries: the processor is up before its Envoy
# model-NAME in the local stack; outbound|PORT|SUBSET|NAME.llm.svc… under Istio, of which only the subsets are routed
# to: the cluster without one lists the same replicas once more.
_LINE = re.compile(
    r"^(?:model-(?P<local>[^:|]+)|outbound\|8000\|(?P<subset>[^|:]+)\|(?P<service>[^.:]+)\.llm\.svc[^:]*)"
    r"::.+?::(?:(?P<what>rq_active|rq_total)::(?P<count>\d+)|health_flags::(?P<flags>.*))$",
    re.MULTILINE,
)


def readings(text: str, at: float) -> Readings:
    """From the plain text of `/clusters`."""
    found: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for line in _LINE.finditer(text):
        sums = found[line["local"] or line["service"]][line["subset"] or ""]
        if line["what"]:
            sums[line["what"]] += int(line["count"])
        else:
            sums["healthy"] += line["flags"] == "healthy"
    return Readings(
        at,
        {
            model: {arm: Reading(sums["rq_active"], sums["healthy"], sums["rq_total"]) for arm, sums in arms.items()}
            for model, arms in found.items()
        },
    )


async def watch(admin: str, file: Path) -> None:
    """Ask `admin` (host:port) again and again, until cancelled. Where it does not answer, the file gets old."""
    import aiohttp  # noqa: PLC0415  workers, who read the file, have no use for it

    misses = 0
    patience = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=patience) as session:
        while True:
            at, spent = time.monotonic(), time.process_time()
            try:
                async with session.get(f"http://{admin}/clusters") as answer:
                    answer.raise_for_status()
                    _write(file, readings(await answer.text(), at))
                misses = 0
            except (aiohttp.ClientError, OSError, ValueError) as error:
                misses += 1
                if misses == _PATIENCE:
                    log.warning("Envoy's admin port %s says nothing: %s. Full models are not noticed.", admin, error)
            await asyncio.sleep(max(INTERVAL_SECONDS, (time.process_time() - spent) / _SHARE))


def _write(file: Path, found: Readings) -> None:
    draft = file.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode(found))
    draft.replace(file)


class Reader:
    """A worker's end of the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0

    def news(self) -> Readings | None:
        """What was not read yet."""
        with contextlib.suppress(OSError):
            written = self._file.stat().st_mtime_ns
            if written != self._seen:
                self._seen = written
                return msgspec.json.decode(self._file.read_bytes(), type=Readings)
        return None
