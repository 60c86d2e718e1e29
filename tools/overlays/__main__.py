"""The commands behind `make overlays`, `make deploy`, `make download-models` and `make smoke`."""

import argparse
import os
import sys

from rich.console import Console

from extproc.errors import LlmMeshError
from tools.overlays import deploy, download, show, smoke
from tools.overlays.kubectl import Kubectl


def main(argv: list[str] | None = None) -> int:
    a = _parser().parse_args(argv or sys.argv[1:] or ["check"])
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    try:
        return _run(a, console)
    except (LlmMeshError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted: what was applied stays")
        return 130


def _parser() -> argparse.ArgumentParser:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="tools.overlays", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="build and check overlays")
    check.add_argument("names", nargs="*", metavar="OVERLAY", help="default: all")
    for name, words, seconds in (
        ("deploy", "check an overlay, apply it, and wait until it runs", "900"),
        ("download-models", "the model files of an overlay into its volume", "3600"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("overlay", metavar="OVERLAY")
        command.add_argument("--context", default=env("CONTEXT", ""), help="of KUBECONFIG (CONTEXT)")
        command.add_argument("--timeout", type=float, default=env("TIMEOUT") or seconds, help="seconds (TIMEOUT)")
        command.add_argument(
            "--force", action="store_true", default=bool(env("FORCE")), help="take fields over (FORCE)"
        )
    smoke = commands.add_parser("smoke", help="ask the API what clients ask")
    smoke.add_argument("--base-url", default=env("BASE_URL") or env("OPENAI_BASE_URL", ""), help="(BASE_URL)")
    smoke.add_argument("--api-key", default=env("API_KEY") or env("OPENAI_API_KEY", ""), help="(API_KEY)")
    return parser


def _run(a: argparse.Namespace, console: Console) -> int:
    if a.command == "check":
        return show.run(a.names, console)
    if a.command == "smoke":
        return smoke.run(a.base_url, a.api_key, console)
    if a.command == "deploy":
        return deploy.run(a.overlay, Kubectl(a.context), console, a.timeout, force=a.force)
    return download.run(a.overlay, Kubectl(a.context), console, a.timeout)


if __name__ == "__main__":
    sys.exit(main())
