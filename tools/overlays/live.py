"""A table that grows while people watch; where nobody watches (a log, a pipe) it is printed once, when it is whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

Show = Callable[[Table], None]


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda table: live.update(table, refresh=True)
        return
    last: list[Table] = []
    try:
        yield lambda table: last.__setitem__(slice(None), [table])
    finally:
        for table in last:
            console.print(table)
