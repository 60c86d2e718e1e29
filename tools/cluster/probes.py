"""Probes and hooks, as a kubelet runs them, but at least once a second: nobody waits for a period of ten."""

import asyncio
import contextlib
from typing import Any

import aiohttp

from tools.cluster import podspec
from tools.cluster.container import Container

Json = dict[str, Any]
_LONGEST_PERIOD_SECONDS = 1.0


async def act(action: Json, spec: Json, ip: str, container: Container, seconds: float) -> bool:
    """One probe or hook: exec, httpGet, tcpSocket or sleep. Whether it succeeded."""
    if "exec" in action:
        return await container.execute(action["exec"]["command"], seconds)
    if "sleep" in action:
        await asyncio.sleep(action["sleep"]["seconds"])
        return True
    if "httpGet" in action:
        return await _get(action["httpGet"], spec, ip, seconds)
    with contextlib.suppress(OSError, TimeoutError):
        port = podspec.port_of(spec, action["tcpSocket"]["port"])
        _, writer = await asyncio.wait_for(asyncio.open_connection(ip, port), seconds)
        writer.close()
        return True
    return False


async def _get(action: Json, spec: Json, ip: str, seconds: float) -> bool:
    url = f"{action.get('scheme', 'HTTP').lower()}://{action.get('host', ip)}"
    url += f":{podspec.port_of(spec, action['port'])}{action.get('path', '/')}"
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, ssl=False) as response:
            return 200 <= response.status < 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


class Probe:
    """Ask again and again: `passing` is None until the threshold was reached one way or the other."""

    def __init__(self, probe: Json, spec: Json, ip: str, container: Container) -> None:
        self._act = (probe, spec, ip, container, float(probe.get("timeoutSeconds", 1)))
        self._delay = min(float(probe.get("initialDelaySeconds", 0)), _LONGEST_PERIOD_SECONDS)
        self._period = min(float(probe.get("periodSeconds", 10)), _LONGEST_PERIOD_SECONDS)
        self._up_after = int(probe.get("successThreshold", 1))
        # As long as it would take with the period that the specification names.
        self._down_after = int(probe.get("failureThreshold", 3) * float(probe.get("periodSeconds", 10)) / self._period)
        self._count = 0
        self.passing: bool | None = None

    async def turn(self) -> bool | None:
        """Ask once, wait once; the state after it."""
        await asyncio.sleep(self._delay)
        self._delay = self._period
        good = await act(*self._act)
        self._count = max(1, self._count + 1) if good else min(-1, self._count - 1)
        if self._count >= self._up_after:
            self.passing = True
        elif -self._count >= self._down_after:
            self.passing = False
        return self.passing
