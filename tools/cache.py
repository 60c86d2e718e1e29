"""What is fetched or made once and kept outside the repository: where it lies, one maker at a time, no half-made thing
taken for a whole one. Who makes something says what it is made from; a change of that makes it again.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from extproc.local.process import StackError
from extproc.orphans import die_with_parent

_LAST_CHARACTERS = 2000


class SetupError(StackError):
    """Something can not be made; the message has the last words of what failed."""


def folder(name: str) -> Path:
    return Path(os.environ.get("LLM_MESH_CACHE") or "~/.cache/llm-mesh").expanduser() / name


def ensure(console: Console, place: Path, what: str, inputs: Sequence[bytes], make: Callable[[], None]) -> None:
    """Make what lies in `place`, unless it is there whole and made from the same inputs. Raises SetupError."""
    place.mkdir(parents=True, exist_ok=True)
    mark, wanted = place / "ready", hashlib.sha256(b"".join(inputs) + sys.version.encode()).hexdigest()
    with _locked(place, console):
        if mark.exists() and mark.read_text() == wanted:
            return
        mark.unlink(missing_ok=True)
        began = time.monotonic()
        console.print(f"setting up {what} in {place} …")
        make()
        mark.write_text(wanted)
        console.print(f"[green]✓[/green] {what.partition(':')[0]} is set up, {time.monotonic() - began:.0f} s")


@contextmanager
def _locked(place: Path, console: Console) -> Iterator[None]:
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("waiting for the set-up that is under way …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(what: str, *command: str, quiet: bool = True, cwd: Path | None = None) -> None:
    """Raises SetupError with what the command said, if it was quiet."""
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command,
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
        cwd=cwd,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise SetupError(f"{what} can not be made:\n{(done.stdout or '').strip()[-_LAST_CHARACTERS:]}")


def environment(venv: Path, lock: Path) -> None:
    """A Python environment with exactly the locked packages; uv shows its own progress."""
    python = venv / "bin" / "python"
    if not python.exists():
        run("the environment", sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv))
    uv = str(Path(sys.executable).parent / "uv")
    run("the packages", uv, "pip", "sync", "--python", str(python), "--require-hashes", str(lock), quiet=False)
