"""CPU time and memory of a program that may be many processes: the one that was started in a session of its own, all
that it started, and what those have cost that have ended since.
"""

import contextlib
import os
import signal
from collections.abc import Callable

import psutil


class Tree:
    """Of the process `root`, which leads its session."""

    def __init__(self, root: int) -> None:
        self.root = root

    def members(self) -> list[psutil.Process]:
        """The session's, and descendants that have left it."""
        pids = {pid for pid in psutil.pids() if _session(pid) == self.root}
        with contextlib.suppress(psutil.NoSuchProcess):
            pids |= {process.pid for process in psutil.Process(self.root).children(recursive=True)}
        found = []
        for pid in sorted(pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def cpu_seconds(self) -> float:
        """User and system. What an ended process has used, its parent's account says: `children_…`."""
        return self._sum(_cpu)

    def megabytes(self) -> float:
        """Proportional: a page that several processes share counts once."""
        return self._sum(lambda process: process.memory_full_info().pss / 1e6)

    def pin(self, core: int) -> None:
        for process in self.members():
            pin(process, core)

    def kill(self) -> None:
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        found = 0.0
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                found += figure(process)
        return found


def pin(process: psutil.Process, core: int) -> None:
    """Every thread, since the kernel takes one at a time; those started later inherit it."""
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, [core])


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
