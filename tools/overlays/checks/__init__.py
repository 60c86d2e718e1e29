"""What can be wrong with a built overlay. `check` runs everything; each module asks one kind of question.

A check is a function from a build (and the processor's configuration in it) to findings. A finding names the object,
what is wrong, and what to do. No check reads the cluster or the overlays' files; what they know (vLLM's flags and
metrics, schemas) is read once.
"""

from collections.abc import Callable, Iterable

from extproc import config
from extproc.config import Catalogue
from extproc.errors import ConfigError
from tools.overlays.checks import (
    availability,
    gateway,
    gpus,
    isolation,
    models,
    ports,
    references,
    restricted,
    retries,
    routes,
    scaling,
    schemas,
    selectors,
    serving,
)
from tools.overlays.objects import Build, Finding, at

_OF_BUILD: tuple[Callable[[Build], Iterable[Finding]], ...] = (
    references.check,
    restricted.check,
    availability.check,
    isolation.check,
    selectors.check,
    routes.check,
    ports.check,
    gpus.check,
    scaling.check,
)
_OF_CATALOGUE: tuple[Callable[[Build, Catalogue], Iterable[Finding]], ...] = (
    models.check,
    serving.check,
    retries.check,
    gateway.check,
)
CONFIG_MAP, CONFIG_FILE = "llm-mesh", "llm-mesh.yaml"


def check(build: Build) -> list[Finding]:
    """Everything that is wrong with the build. Fields first: the other checks read them as their schemas have them."""
    found = list(schemas.check(build))
    if found:
        return found
    found = [f for each in _OF_BUILD for f in _asked(each, build)]
    try:
        known = catalogue(build)
    except ConfigError as error:
        return [*found, Finding(f"ConfigMap {CONFIG_MAP}", str(error), f"mend overlays/base/{CONFIG_FILE}")]
    return [*found, *(f for each in _OF_CATALOGUE for f in _asked(each, build, known))]


def _asked(each: Callable[..., Iterable[Finding]], *given: Build | Catalogue) -> list[Finding]:
    """A field of a kind without schema can be of any shape: that is the build's fault, not ours."""
    try:
        return list(each(*given))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        name = each.__module__.rpartition(".")[2]
        do = "look for a field of the wrong type; `make tools` brings the schemas that would name it"
        return [Finding("build", f"it can not be read ({name}: {type(error).__name__}: {error})", do)]


def catalogue(build: Build) -> Catalogue:
    """The processor's configuration in the build. Raises ConfigError."""
    text = at(build.named("ConfigMap", CONFIG_MAP), "data", CONFIG_FILE, default="")
    if not text:
        raise ConfigError(f"there is no ConfigMap {CONFIG_MAP} with the file {CONFIG_FILE}")
    return config.load(str(text).encode(), CONFIG_FILE)
