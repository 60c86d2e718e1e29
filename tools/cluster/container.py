"""One container of a pod: a process in the pod's network, with a root of its own and the volumes that its spec mounts.

There is no image: the root is this machine's, laid under a layer of its own (overlayfs), so that what a container
writes is seen by nobody else and is gone with it. What an image would bring is laid in by `Image`. The process is the
first of a PID namespace: it gets signals as a container's does, and nothing of it outlives it.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from extproc.local.stack import ROOT
from extproc.orphans import die_with_parent

_TMP = "/tmp"  # noqa: S108  the container's own
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Image(msgspec.Struct, frozen=True):
    """What stands in for a container image: its entrypoint, and files of this machine by their path in the image."""

    entrypoint: tuple[str, ...]
    files: Mapping[str, Path] = {}


class Mount(msgspec.Struct, frozen=True):
    path: str  # in the container
    source: Path
    read_only: bool = False


class Identity(msgspec.Struct, frozen=True):
    """As the security context says."""

    user: int = 0
    group: int = 0
    groups: tuple[int, ...] = ()


class Process(msgspec.Struct, frozen=True):
    """All that is needed to start a container."""

    image: Image
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    identity: Identity
    namespace: str  # network namespace
    directory: Path  # empty, the container's own
    log: Path
    read_only: bool = False


def script(process: Process) -> str:
    """The shell commands that lay out the root and become the container's process."""
    top, root = process.directory, process.directory / "root"
    lines = [
        "set -e",
        f"mount -t tmpfs tmpfs {top}",
        f"mkdir {top}/upper {top}/work {root}",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={top}/upper,workdir={top}/work {root}",
        *(f"mount -t tmpfs -o mode=1777 tmpfs {root}/{name}" for name in ("run", _TMP[1:])),
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount --rbind /sys {root}/sys",
        f"rm -rf {root}/var/run; ln -s ../run {root}/var/run",  # an absolute link would lead out of here
    ]
    for target, source in process.image.files.items():
        lines += [
            f"mkdir -p {root}{Path(target).parent}",
            f"touch {root}{target}",
            f"mount --bind {source} {root}{target}",
        ]
    for mount in sorted(process.mounts, key=lambda m: m.path):
        make = f"mkdir -p {root}{mount.path}"
        if mount.source.is_file():
            make = f"mkdir -p {root}{Path(mount.path).parent}; touch {root}{mount.path}"
        lines += [make, f"mount --bind {mount.source} {root}{mount.path}"]
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {root}{mount.path}")
    # After the volumes: this repository may lie below one of them, such as /tmp.
    for tree in _trees():
        lines += [f"mkdir -p {root}{tree}", f"mount --rbind {tree} {root}{tree}"]
        lines += [f"chmod a+rx {root}{parent}" for parent in tree.parents if str(parent) != "/"]
    if process.read_only:
        kept = {mount.path for mount in process.mounts}
        lines += [f"mount -o remount,bind,ro {root}{path}" for path in ("/run", _TMP, "") if path not in kept]
    groups = ",".join(str(g) for g in process.identity.groups)
    user = f"--userspec={process.identity.user}:{process.identity.group} --groups={groups}"
    lines.append(f"exec chroot {user} {root} {shlex.join(process.command)}")
    return "\n".join(lines)


def _trees() -> list[Path]:
    """What is bound in as it is: this repository, with its environment, and the interpreter below it."""
    return sorted({ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()})


class Container:
    """A running process of a container; start again by making another."""

    def __init__(self, process: Process) -> None:
        self._spec = process
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._spec.directory.mkdir(parents=True, exist_ok=True)
        command = ["nsenter", f"--net=/run/netns/{self._spec.namespace}", "unshare", "--mount", "--propagation=private"]
        command += ["--pid", "--fork", "--kill-child=KILL", "sh", "-c", script(self._spec)]
        self._spec.log.touch()
        self._spec.log.chmod(0o666)  # a container may open its own /dev/stdout
        with self._spec.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH, "HOME": _TMP, **self._spec.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Of the process itself; 0 when it has ended."""
        assert self._process is not None  # noqa: S101
        outer = self._process.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
            return int(children[0]) if children else 0
        return 0

    async def wait(self) -> int:
        """The exit status, as a container's: 128 + n for signal n."""
        assert self._process is not None  # noqa: S101
        status = await self._process.wait()
        return status if status >= 0 else 128 - status

    def signal(self, number: signal.Signals) -> None:
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def execute(self, command: Sequence[str], seconds: float) -> bool:
        """Run a command inside, as a probe or a hook does. Whether it ended well and in time."""
        if not (pid := self.pid):
            return False
        inside = ["nsenter", f"--target={pid}", "--mount", "--pid", "--net", "--root", "--wd"]
        with self._spec.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *inside,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH, **self._spec.environment},
                preexec_fn=die_with_parent,
            )
        try:
            return await asyncio.wait_for(process.wait(), seconds) == 0
        except TimeoutError:
            process.kill()
            await process.wait()
            return False
