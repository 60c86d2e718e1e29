"""`make overlays`: every overlay built and checked, a line for each, what is wrong below it."""

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from extproc.errors import ConfigError
from tools.overlays import build as kustomize
from tools.overlays.checks import catalogue, check, schemas
from tools.overlays.checks.availability import at_least
from tools.overlays.live import shown
from tools.overlays.objects import Build, Finding


def run(names: list[str], console: Console, root: Path = kustomize.OVERLAYS) -> int:
    """Check these overlays, or all; 0 if nothing is wrong. Raises BuildError for a name that is none."""
    directories = [kustomize.find(name, root) for name in names] or kustomize.overlays(root)
    table = Table("", "overlay", "objects", "models", "GPUs at least", "findings", "seconds", box=None)
    found: dict[str, list[Finding]] = {}
    unjudged: set[str] = set()
    with shown(console) as show:
        for directory in directories:
            table.caption = f"building {directory.name} …"
            show(table)
            build, found[directory.name] = _row(directory, table)
            unjudged |= set(schemas.unjudged(build)) if build else set()
        table.caption = None
        show(table)
    for name, findings in found.items():
        for f in findings:
            console.print(f"[red]✗[/red] {name}: [bold]{escape(f.where)}[/bold]: {escape(f.wrong)}")
            console.print(f"  → {escape(f.do)}")
    if unjudged:
        why = "`make tools` brings their definitions, where there are any"
        console.print(f"not judged by schema: {escape(', '.join(sorted(unjudged)))}; {why}")
    return 1 if any(found.values()) else 0


def _row(directory: Path, table: Table) -> tuple[Build | None, list[Finding]]:
    began = time.monotonic()
    try:
        build = kustomize.build(directory)
    except kustomize.BuildError as error:
        table.add_row("[red]✗[/red]", directory.name, "", "", "", "1", "")
        return None, [Finding("kustomize", str(error), "mend what it names")]
    findings = check(build)
    gpus = sum(w.gpus * at_least(build, w) for w in build.workloads())
    mark = "[red]✗[/red]" if findings else "[green]✓[/green]"
    numbers = [len(build.objects), _models(build), gpus, len(findings), f"{time.monotonic() - began:.1f}"]
    table.add_row(mark, directory.name, *map(str, numbers))
    return build, findings


def _models(build: Build) -> str:
    try:
        return ", ".join(catalogue(build).models)
    except ConfigError:
        return "?"
