"""The bench's rig with the peers beside it: same backend, same client, each a variant with a port and processes."""

import asyncio
import contextlib
from functools import partial
from pathlib import Path

import psutil
from peer_cache import place
from peer_catalogue import Launch, Peer, Site
from process_tree import Tree
from rig import DIRECT, ENVOY, PLATFORM, PROCESSOR, Rig

from extproc.local.process import Child, StackError, answers, free_port
from extproc.local.stack import valkey_program

GATEWAY = "gateway"  # a peer's part: all its processes, its Redis among them
_START_SECONDS = 180.0  # LiteLLM loads for 10 s where nothing else runs
_LAST_LINES, _LINE_CHARACTERS = 20, 300
_PLATFORM = (PLATFORM, "supervisor", PROCESSOR, "Valkey")
_GATEWAY_CORE = 0


class PeerRig(Rig):
    def __init__(self, directory: Path, peers: tuple[Peer, ...], simulator: tuple[str, ...], *, pinned: bool) -> None:
        super().__init__(directory / "rig", simulator, pinned=pinned)
        self.directory = directory
        self.peers = peers
        self.launches: dict[str, Launch] = {}
        self.running: dict[str, list[Child]] = {}  # who asks first

    async def _complete(self) -> None:
        await super()._complete()
        for peer in self.peers:
            await self._start_peer(peer)
        for name, (gateway, *_) in self.running.items():
            await ready(gateway, f"http://127.0.0.1:{self.ports[name]}{self.launches[name].probe}")
            if self.pinned:
                for tree in self._trees(name):
                    tree.pin(_GATEWAY_CORE)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(stop_all(children) for children in self.running.values()))
        await super().__aexit__()

    async def _start_peer(self, peer: Peer) -> None:
        site = self._site_of(peer)
        launch = peer.launch(site)
        for name, text in launch.files.items():
            (site.directory / name).write_text(text)
        children = self.running[peer.name] = [_child(peer.name, launch.command, site.directory, launch.environment)]
        if peer.redis:
            children.append(_child("valkey", valkey(site.redis_port), site.directory, {}))
        for child in reversed(children):
            await child.start()
        self.ports[peer.name] = site.port
        self.launches[peer.name] = launch

    def _site_of(self, peer: Peer) -> Site:
        directory = self.directory / peer.name.replace(" ", "-")
        directory.mkdir(parents=True)
        return Site(
            installed=place(peer),
            directory=directory,
            backend=self.stack.models[self.model],
            model=self.stack.catalogue.models[self.model].served_name,
            port=free_port(),
            metrics_port=free_port(),
            redis_port=free_port(),
        )

    # --- what the parts say -------------------------------------------------------------------------------------------

    def _trees(self, peer: str) -> list[Tree]:
        return [Tree(child.pid) for child in self.running[peer]]

    def cpu_seconds(self, variant: str) -> dict[str, float]:
        if variant not in self.running:
            return super().cpu_seconds(variant)
        gateway = sum(tree.cpu_seconds() for tree in self._trees(variant))
        return {GATEWAY: gateway, "backend": super().cpu_seconds(DIRECT)["backend"]}

    def memory_mb(self, variant: str) -> float:
        """Of all processes that make the gateway of this variant."""
        if variant in self.running:
            return sum(tree.megabytes() for tree in self._trees(variant))
        parts = {ENVOY: (ENVOY,), PLATFORM: _PLATFORM}.get(variant, ())
        return sum(process.memory_full_info().pss for part in parts for process in self.parts[part]) / 1e6

    def _others_seconds(self) -> float:
        peers = sum(tree.cpu_seconds() for peer in self.running for tree in self._trees(peer))
        return super()._others_seconds() - peers


def _child(name: str, command: tuple[str, ...], directory: Path, environment: dict[str, str]) -> Child:
    return Child(name, command, directory / f"{name.replace(' ', '-')}.log", environment)


def valkey(port: int) -> tuple[str, ...]:
    flags = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no")
    return (valkey_program("valkey-server"), *flags)


async def ready(child: Child, url: str) -> None:
    """Wait for its answer. Raises StackError with the end of its log, which goes with the directory."""
    try:
        await child.ready(partial(answers, url), _START_SECONDS)
    except StackError as error:
        lines = child.log.read_text(errors="replace").splitlines()
        lines = [line[-_LINE_CHARACTERS:] for line in lines[-_LAST_LINES:]]
        raise StackError(
            "\n  ".join([f"{child.name} does not start ({error}). The end of its log:", *lines])
        ) from error


async def stop_all(children: list[Child]) -> None:
    """Gracefully; then what is left of their trees, whoever leads it."""
    for child in children:
        if child.process is None:
            continue
        tree = Tree(child.pid)
        seen = tree.members()
        await child.stop()
        tree.kill()
        for process in seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # it knows itself by its start time
