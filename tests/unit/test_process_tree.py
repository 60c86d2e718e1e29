"""What the bench counts of a program: all its processes, those that have ended, and those that have left it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from process_tree import Tree, pin
from stack_rig import eventually

_BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
_WAIT = "import sys; print(flush=True); sys.stdin.read()\n"


@contextmanager
def program(text: str) -> Iterator[Tree]:
    """In a session of its own; it goes on to `text` at once, and says a line when that is done."""
    command = [sys.executable, "-c", f"import os, subprocess, sys\n{text}{_WAIT}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield Tree(process.pid)
        finally:
            Tree(process.pid).kill()


def test_a_child_that_has_ended_still_counts() -> None:
    with program(f"subprocess.run([sys.executable, '-c', {_BURN!r}])\n") as tree:
        assert len(tree.members()) == 1
        assert tree.cpu_seconds() >= 0.3


def test_a_child_that_lives_counts_with_its_own_children() -> None:
    grandchild = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {_BURN + 'input()'!r}])\n"
    with program(f"subprocess.Popen([sys.executable, '-c', {grandchild!r}])\n") as tree:
        assert eventually(lambda: tree.cpu_seconds() >= 0.3)
        assert len(tree.members()) == 3


def test_an_orphan_of_the_session_counts() -> None:
    orphan = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_BURN + 'input()'!r}])\n"
    with program(f"subprocess.run([sys.executable, '-c', {orphan!r}])\n") as tree:
        assert eventually(lambda: len(tree.members()) == 2 and tree.cpu_seconds() >= 0.3)


def test_a_process_that_left_the_session_is_killed_with_the_rest() -> None:
    with program("subprocess.Popen([sys.executable, '-c', 'input()'], start_new_session=True)\n") as tree:
        away = [process for process in tree.members() if process.pid != tree.root]
        assert [os.getsid(process.pid) for process in away] == [away[0].pid]
        tree.kill()
        assert eventually(lambda: not any(map(running, away)))
        assert eventually(lambda: not any(map(running, tree.members())))


def running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_memory_that_processes_share_counts_once() -> None:
    share = "block = bytearray(os.urandom(50_000_000))\nfor _ in range(3):\n    if not os.fork(): sys.stdin.read()\n"
    with program(share) as tree:
        eventually(lambda: len(tree.members()) == 4)
        assert 50 < tree.megabytes() < 150


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nothing to choose")
def test_every_thread_is_pinned() -> None:
    core = max(os.sched_getaffinity(0))
    with program(
        "import threading\nfor _ in range(3): threading.Thread(target=sys.stdin.read, daemon=True).start()\n"
    ) as tree:
        process = psutil.Process(tree.root)
        pin(process, core)
        assert [os.sched_getaffinity(thread.id) for thread in process.threads()] == [{core}] * 4
