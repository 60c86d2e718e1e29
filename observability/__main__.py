"""`python -m observability` writes what is made from the tables; with `--check` it says what is not current."""

import json
import sys
from pathlib import Path

import yaml

from observability import rules

HERE = Path(__file__).resolve().parent
_HEAD = "# Made from the tables of observability/ by `python -m observability`: edit those.\n"


def generated() -> dict[Path, str]:
    from observability import dashboards  # noqa: PLC0415  its SDK is a tool of development: rules do without

    files = {HERE / "rules" / name: _HEAD + _yaml(value) for name, value in rules.objects().items()}
    for name, board in dashboards.boards().items():
        files[HERE / "grafana" / f"{name}.json"] = json.dumps(board, indent=1, sort_keys=True) + "\n"
    return files


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def stale() -> list[Path]:
    """Files that are missing, old, or left over."""
    files = generated()
    there = {*(HERE / "rules").glob("*"), *(HERE / "grafana").glob("*")}
    old = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return sorted({*old, *(there - files.keys())})


def main() -> int:
    changed = stale()
    if "--check" in sys.argv[1:]:
        sys.stdout.write("".join(f"not current: {path}\n" for path in changed))
        return bool(changed)
    files = generated()
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        if path in files:
            path.write_text(files[path])
        else:
            path.unlink()
        sys.stdout.write(f"{path.relative_to(HERE.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
