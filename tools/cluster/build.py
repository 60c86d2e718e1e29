"""`make tools`: compiles the pinned Go tools into the cache, each module once; with `collection`, those that only
`make test-observe` needs.

A build fills a folder of its own and is renamed into place when it is whole, so an interrupted one leaves nothing that
looks finished; a lock per module lets a second `make tools` wait for the first. The lock ends with its holder.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from extproc.local.process import StackError
from extproc.orphans import die_with_parent
from tools.cluster.binaries import COLLECTION, RECIPES, Recipe, beside_python, cache, place

_VERSION_VARIABLE = "k8s.io/component-base/version.gitVersion"
_POLL_SECONDS = 0.2
_LAST_LINES = 15
Show = Callable[[str], None]


class BuildError(StackError):
    """A module does not build; the message has the compiler's last words and where the rest is."""


def main() -> int:
    console = Console(highlight=False)
    recipes = COLLECTION if sys.argv[1:] == ["collection"] else RECIPES
    try:
        built = [recipe.name for recipe in recipes if _build_shown(console, recipe)]
    except StackError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the next `make tools` goes on from here")
        return 130
    console.print(f"tools: {', '.join(built) + ' built' if built else 'all are built'}, in {escape(str(cache()))}")
    return 0


def _build_shown(console: Console, recipe: Recipe) -> bool:
    if place(recipe).exists():
        return False
    about = f"{recipe.name} ({_expectation(recipe)})"
    if not console.is_terminal:
        console.print(f"building {about} …")
    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description} [dim]{task.fields[step]}[/dim]")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"building {about}", total=None, step="")
        seconds = build(recipe, lambda step: progress.update(task, step=escape(step[-60:])))
    console.print(f"[green]✓[/green] {recipe.name} built in {_duration(seconds)}")
    return True


def build(recipe: Recipe, show: Show = lambda _step: None) -> float:
    """Build the module if it is not there; seconds it took. Raises BuildError."""
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(recipe, show):
        if place(recipe).exists():
            return 0.0
        began = time.monotonic()
        with _workshop(recipe) as folder:
            if recipe.programs:
                _compile(recipe, folder / "bin", show)
            _copy(recipe, folder / "files")
            folder.rename(place(recipe))
        seconds = time.monotonic() - began
        _last_seconds(recipe).write_text(f"{seconds:.0f}\n")
        return seconds


@contextmanager
def _locked(recipe: Recipe, show: Show) -> Iterator[None]:
    with (cache() / f"{recipe.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show("waiting for the build that is under way")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _workshop(recipe: Recipe) -> Iterator[Path]:
    """A folder to build in. Those of builds that were killed go: the lock says that nobody works in them."""
    prefix = f".{recipe.name}-"
    for left in cache().glob(f"{prefix}*"):
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=cache()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compile(recipe: Recipe, to: Path, show: Show) -> None:
    flags = "-s -w"
    if recipe.stamped:
        flags += f" -X {_VERSION_VARIABLE}={_module(recipe, recipe.stamped)['Version']}"
    to.mkdir()
    tags = ("-tags", recipe.tags) if recipe.tags else ()
    _go(recipe, "build", "-v", *tags, "-ldflags", flags, "-o", f"{to}/", "tool", show=show)
    for built, ours in recipe.programs.items():
        (to / built).rename(to / ours)


def _copy(recipe: Recipe, to: Path) -> None:
    for module, patterns in recipe.files.items():
        root = Path(_module(recipe, module)["Dir"])
        for pattern in patterns:
            found = [path for path in root.glob(pattern) if path.is_file()]
            if not found:
                raise BuildError(f"{module} has no file {pattern}: did its layout change?")
            for path in found:
                target = to / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _module(recipe: Recipe, path: str) -> dict[str, str]:
    """Version, folder and the like of a Go module that the recipe's go.mod pins; it is downloaded if need be."""
    module: dict[str, str] = json.loads(_go(recipe, "mod", "download", "-json", path))
    return module


def _go(recipe: Recipe, *arguments: str, show: Show = lambda _step: None) -> str:
    """Run go in the recipe's folder; what it printed. Everything it says goes to the log, its last line to `show`."""
    log = cache() / f"{recipe.name}.log"
    # What is set in the user's shell shall not decide what is built.
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    with log.open("w") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [beside_python("go"), *arguments],
            cwd=recipe.folder,
            env=environment,
            stdout=output,
            stderr=errors,
            preexec_fn=die_with_parent,  # noqa: PLW1509  one thread more at most: the progress display's
        )
        try:
            _watch(process, log, show)
        finally:
            process.terminate()
            status = process.wait()
        output.seek(0)
        text = output.read()
    if status != 0:
        raise BuildError(f"{recipe.name} does not build (whole log: {log})\n{_tail(log, _LAST_LINES) or text}")
    return text


def _watch(process: subprocess.Popen[bytes], log: Path, show: Show) -> None:
    while True:
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            show(_tail(log, 1))
        else:
            return


def _tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])


def _last_seconds(recipe: Recipe) -> Path:
    return cache() / f"{recipe.name}.seconds"


def _expectation(recipe: Recipe) -> str:
    file = _last_seconds(recipe)
    if file.exists():
        return f"it took {_duration(float(file.read_text()))} here last time"
    return f"about {_duration(recipe.usual_seconds)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
