"""The peers' programs, installed once from their lock files into the cache: environments of their own, never ours."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from peer_catalogue import Peer
from rich.console import Console

from tools import cache

_HERE = Path(__file__).parent
_PYTHON, _NODE = "requirements.lock", "package-lock.json"


def place(peer: Peer) -> Path:
    return cache.folder("peers") / peer.folder


def ensure(console: Console, peers: Sequence[Peer]) -> None:
    """Install what is missing. Raises SetupError."""
    for peer in {peer.folder: peer for peer in peers}.values():
        node = _lock(peer).name == _NODE
        if node and not shutil.which("npm"):
            raise cache.SetupError(f"{peer.name} needs Node.js with npm: install them, or choose others with --peer")
        install = partial(_install_node if node else _install_python, peer)
        cache.ensure(console, place(peer), f"{peer.folder} {version(peer)}", [_lock(peer).read_bytes()], install)


def _lock(peer: Peer) -> Path:
    (found,) = (path for path in (_HERE / peer.folder / name for name in (_PYTHON, _NODE)) if path.exists())
    return found


def _install_python(peer: Peer) -> None:
    cache.environment(place(peer) / "venv", _lock(peer))


def _install_node(peer: Peer) -> None:
    for name in ("package.json", _NODE):
        shutil.copy(_HERE / peer.folder / name, place(peer) / name)
    flags = ("--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
    cache.run("the packages", "npm", "ci", *flags, quiet=False, cwd=place(peer))


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    """By name, with that of Node where it is needed."""
    found = {peer.name: version(peer) for peer in peers}
    if any(peer.folder == "portkey" for peer in peers):
        found["node"] = subprocess.run(("node", "--version"), capture_output=True, text=True, check=True).stdout.strip()
    return found


def version(peer: Peer) -> str:
    read = node_version if _lock(peer).name == _NODE else python_version
    return read(_lock(peer).read_text(), peer.package)


def python_version(lock: str, package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)", lock, re.MULTILINE)
    if found is None:
        raise cache.SetupError(f"{package} does not stand in its lock file")
    return found[1]


def node_version(lock: str, package: str) -> str:
    return str(json.loads(lock)["packages"][f"node_modules/{package}"]["version"])
