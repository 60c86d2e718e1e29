"""`make cluster`: the mesh on this machine, for people; `python -m tools.cluster --clear` after one that was killed."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from extproc.local.process import StackError
from extproc.local.stack import ROOT
from tools.cluster.mesh import MeshSettings, MeshStack, clear
from tools.cluster.network import require_root

_OVERLAYS = ROOT / "overlays"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("overlay", nargs="?", default="dev", help="a name under overlays/, or a folder")
    parser.add_argument("--directory", type=Path, default=Path(".run/cluster"), help="logs, keys and data")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--https-port", type=int, default=8443)
    parser.add_argument("--number", type=int, default=0, metavar="N", help="of the cluster, where several run here")
    parser.add_argument("--clear", action="store_true", help="only end what a killed run (or a running one) has left")
    a = parser.parse_args()
    overlay = _OVERLAYS / a.overlay if (_OVERLAYS / a.overlay).is_dir() else Path(a.overlay)
    settings = MeshSettings(
        directory=a.directory.resolve(),
        overlay=overlay.resolve(),
        number=a.number,
        http_port=a.http_port,
        https_port=a.https_port,
    )
    try:
        return asyncio.run(_clear(a.number) if a.clear else _run(settings))
    except StackError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


async def _clear(number: int) -> int:
    require_root()
    await clear(number)
    print("no pod's process, network or file is left")
    return 0


async def _run(settings: MeshSettings) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"starting a control plane and {settings.overlay.name} (logs in {settings.directory})")
    mesh = MeshStack(settings, lambda name, seconds: print(f"  ✓ {name:<24} {seconds:5.1f} s", flush=True))
    starting = asyncio.ensure_future(mesh.start())
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(_how_to_use(mesh))
            await stop
    finally:
        starting.cancel()
        stop.cancel()
        await asyncio.gather(starting, stop, return_exceptions=True)
        print("stopping …")
        await mesh.stop()
    return 0


def _how_to_use(mesh: MeshStack) -> str:
    return f"""
ready: {mesh.base_url} and {mesh.https_url} (admin: {mesh.admin_url}/health, /metrics)

  export KUBECONFIG={mesh.plane.kubeconfig}
  .venv/bin/kubectl --namespace llm get pods
  make smoke BASE_URL={mesh.base_url} API_KEY={mesh.api_key}

Pods run as processes of this machine, in network namespaces of their own; their logs are
{mesh.settings.directory}/POD-CONTAINER.log. Ctrl-C stops everything.
"""


if __name__ == "__main__":
    sys.exit(main())
