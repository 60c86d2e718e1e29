"""`python -m tools.sizing`: print the tables; `--markdown` writes them into docs/sizing.md between its markers."""

import argparse
import sys

from rich.console import Console
from rich.table import Table as Grid

from extproc.errors import LlmMeshError
from tools.overlays.build import ROOT, build, overlays
from tools.sizing.deployed import Deployed, deployed
from tools.sizing.figures import GPUS, MODELS
from tools.sizing.memory import Settings
from tools.sizing.published import comparison
from tools.sizing.tables import Table, matrix, ours, parallel

DOCUMENT = ROOT / "docs" / "sizing.md"
BEGIN, END = "<!-- python -m tools.sizing --markdown -->", "<!-- end -->"


def main(argv: list[str] | None = None) -> int:
    a = _parser().parse_args(argv)
    try:
        if a.markdown:
            DOCUMENT.write_text(filled_in(DOCUMENT.read_text(), everything()))
        else:
            _show(a)
    except LlmMeshError as error:
        print(f"sizing: {error}", file=sys.stderr)
        return 1
    return 0


def everything() -> list[Table]:
    """What docs/sizing.md holds."""
    plain = Settings()
    return [ours(all_deployed()), matrix(plain), parallel(plain), comparison()]


def all_deployed() -> list[Deployed]:
    """Of each overlay, built by Kustomize. Raises LlmMeshError."""
    return [d for directory in overlays() for d in deployed(build(directory))]


def filled_in(document: str, tables: list[Table]) -> str:
    """The document with the tables between its markers."""
    head, _, rest = document.partition(BEGIN)
    tail = rest.partition(END)[2]
    body = "\n\n".join(f"### {t.title}\n\n{t.markdown()}" for t in tables)
    return f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}"


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m tools.sizing", description="Which model fits on which GPU. Computed.")
    p.add_argument("--markdown", action="store_true", help=f"write the tables into {DOCUMENT.relative_to(ROOT)}")
    p.add_argument("--model", default="", help="models whose name contains this")
    p.add_argument("--gpu", default="", help="GPUs whose name contains this")
    p.add_argument("--utilization", type=float, default=0.9, help="--gpu-memory-utilization (default 0.9)")
    p.add_argument("--shards", type=int, default=1, help="--tensor-parallel-size")
    p.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], default="auto")
    p.add_argument("--overlays", action="store_true", help="the Deployments of the overlays alone")
    return p


def _show(a: argparse.Namespace) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    if a.overlays:
        _print(console, ours(all_deployed()))
        return
    models = tuple(m for m in MODELS if a.model.lower() in m.name.lower())
    gpus = tuple(g for g in GPUS if a.gpu.lower() in g.name.lower())
    if not models or not gpus:
        raise LlmMeshError(f"there are: {', '.join(x.name for x in (*MODELS, *GPUS))}")
    kv_bits = 8 if a.kv_cache_dtype == "fp8" else 16
    _print(console, matrix(Settings(utilization=a.utilization, shards=a.shards, kv_bits=kv_bits), models, gpus))
    console.print(
        "KV-cache tokens · requests at the model's full context · requests of 1,024 tokens. – no room; ✗ vLLM"
    )
    console.print(
        "has no kernel for it there; † small weights, 16-bit arithmetic. Computed, not measured: docs/sizing.md"
    )


def _print(console: Console, table: Table) -> None:
    grid = Grid(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if i < 2 else "right")
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)


if __name__ == "__main__":
    sys.exit(main())
