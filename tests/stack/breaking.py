"""What is done to a platform to break it, and how to see that it is whole again."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
from raw_http import connection, reset
from stack_rig import Platform, health


def at_once(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = {name: pool.submit(call) for name, call in calls.items()}
    return {name: future.result() for name, future in futures.items()}


def workers(platform: Platform) -> list[psutil.Process]:
    found = [psutil.Process(pid) for pid in health(platform)["workers"]["pids"]]
    return sorted(found, key=lambda process: process.pid)


def whole(platform: Platform) -> bool:
    """All parts say that they are well, and Envoy has heard it of all workers."""
    if health(platform)["status"] != "ok":
        return False
    clusters = httpx.get(f"http://127.0.0.1:{platform.stack.envoy_port}/clusters?format=json").json()
    hosts = [h for c in clusters["cluster_statuses"] if c["name"] == "llm-ext-proc" for h in c["host_statuses"]]
    return not any(flag.startswith("failed_") for host in hosts for flag in host["health_status"])


@contextlib.contextmanager
def paused(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end if it is still there."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


@contextlib.contextmanager
def back_again(platform: Platform, name: str) -> Iterator[None]:
    """The part runs again at the end, whatever happened."""
    try:
        yield
    finally:
        if platform.stack.children[name].ended:
            platform.do(platform.stack.restart(name))


def leave_before_the_answer(platform: Platform, request: bytes) -> None:
    with connection(platform) as sock:
        sock.sendall(request)
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            sock.recv(1)
        reset(sock)


def leave_when_seen(platform: Platform, request: bytes, last: bytes, times: int = 1) -> None:
    with connection(platform) as sock:
        sock.sendall(request)
        got = b""
        while got.count(last) < times:
            more = sock.recv(65536)
            assert more, got
            got += more
        reset(sock)
