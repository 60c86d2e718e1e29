"""The pods' network: one bridge on this machine, a network namespace with an address of its own for each pod.

Owns `ip` and addresses; knows nothing of Kubernetes. Nothing is routed beyond the bridge: a pod reaches the other pods
and this machine, no more. Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) and Debian's packages iproute2 and iptables.
"""

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from extproc.local.process import StackError

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")
_LINKS = Path("/sys/class/net")


class Network:
    """A bridge and the addresses on it. `number` (0–255) tells clusters on one machine apart."""

    def __init__(self, number: int) -> None:
        self.subnet = ipaddress.IPv4Network(f"10.245.{number}.0/24")
        self.bridge = f"llm-mesh{number}"
        self.host_ip = str(self.subnet[1])
        self._free = [str(ip) for ip in self.subnet][250:1:-1]

    async def start(self) -> None:
        require_root()
        await self.clear()  # what a run that was killed has left
        await run("ip", "link", "add", self.bridge, "type", "bridge")
        await run("ip", "addr", "add", f"{self.host_ip}/{self.subnet.prefixlen}", "dev", self.bridge)
        await run("ip", "link", "set", self.bridge, "up")

    async def clear(self) -> None:
        """Nothing of the network is left, nor of what ran in it."""
        for namespace in _NAMESPACES.glob(f"{self.bridge}-*"):
            for pid in (await run("ip", "netns", "pids", namespace.name)).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            await run("ip", "netns", "del", namespace.name)
        for link in (*_LINKS.glob(f"{self.bridge}.*"), *_LINKS.glob(self.bridge)):
            with contextlib.suppress(StackError):  # gone with the namespace that held its other end
                await run("ip", "link", "del", link.name)

    async def join(self) -> "Namespace":
        """A new namespace with an address on the bridge."""
        ip = self._free.pop()
        last = ip.rpartition(".")[2]
        name, outside = f"{self.bridge}-{last}", f"{self.bridge}.{last}"
        await run("ip", "netns", "add", name)
        await run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        await run("ip", "link", "set", outside, "master", self.bridge, "up")
        for command in (f"addr add {ip}/{self.subnet.prefixlen} dev eth0", "link set eth0 up", "link set lo up"):
            await run("ip", "-n", name, *command.split())
        await run("ip", "-n", name, "route", "add", "default", "via", self.host_ip)
        return Namespace(name, ip)

    async def leave(self, namespace: "Namespace") -> None:
        with contextlib.suppress(StackError):
            await run("ip", "netns", "del", namespace.name)  # takes its end of the cable with it
        self._free.insert(0, namespace.ip)  # the address rests as long as there are others


class Namespace:
    def __init__(self, name: str, ip: str) -> None:
        self.name = name
        self.ip = ip

    def socket(self) -> socket.socket:
        """A TCP socket that lives in the namespace. Call it in a thread of its own: that changes sides for a moment."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home, (_NAMESPACES / self.name).open() as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"no way into {self.name}")
            try:
                return socket.socket()
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)


def require_root() -> None:
    missing = [tool for tool in ("ip", "iptables", "unshare", "nsenter", "chroot") if not shutil.which(tool)]
    if os.geteuid() != 0:
        raise StackError("pods get network namespaces of their own here: run this as root")
    if missing:
        raise StackError(f"missing: {', '.join(missing)} (Debian: apt-get install iproute2 iptables util-linux)")


async def run(*command: str) -> str:
    """A command's output. Raises StackError with its last words."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise StackError(f"{' '.join(command)}: {(err + out).decode().strip()}")
    return out.decode()


class Door:
    """A port of this machine that leads to one of 127.0.0.1 in a pod, past the pod's proxy: for those who look on."""

    def __init__(self, namespace: Callable[[], Namespace], port: int) -> None:
        self._namespace = namespace  # asked at each connection: pods come and go
        self._port = port
        self._server: asyncio.Server | None = None

    async def open(self, at: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", at)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            inside = await loop.run_in_executor(None, self._namespace().socket)
            inside.setblocking(False)
            await loop.sock_connect(inside, ("127.0.0.1", self._port))
            there, back = await asyncio.open_connection(sock=inside)
        except (OSError, StackError):
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
