"""The gateway's pod and the EnvoyFilters that reach into it: the same sockets, the same sizes, closed when in doubt.

The two sides meet nowhere but here: Envoy takes its clusters and limits from istiod, the processor its own from its
command line and its configuration.
"""

from collections.abc import Iterator

from extproc.config import Catalogue
from tools.overlays.checks.serving import parse
from tools.overlays.objects import Build, Finding, Json, Workload, at, envoy_patches, title

GROWTH_BYTES = 65_536  # what the processor may add to a body: the served name, the usage event asked for
_PROCESSOR, _EXT_PROC, _LUA = "processor", "llm.ext_proc", "llm.usage"
_STEERING = "x-llm-"


def check(build: Build, catalogue: Catalogue) -> Iterator[Finding]:
    gateways = [w for w in build.workloads() if any(c["name"] == _PROCESSOR for c in w.containers())]
    if not gateways:
        wrong = f"no pod has a container `{_PROCESSOR}`: nobody would decide"
        yield Finding("gateway", wrong, "add overlays/base/gateway to the resources")
    for w in gateways:
        yield from _sockets(build, w)
        yield from _starts_first(w)
    yield from _filters(build)
    yield from _doors(build)
    yield from _routes(build)
    yield from _buffers(build, catalogue.config.max_body_bytes)


def _sockets(build: Build, w: Workload) -> Iterator[Finding]:
    processor = next(c for c in w.containers() if c["name"] == _PROCESSOR)
    arguments = parse(processor)
    directory = arguments.get("--sockets", "").rstrip("/")
    wanted = [f"{directory}/worker-{i}.sock" for i in range(int(arguments.get("--workers", "1")))]
    clusters = [(o, v) for o, v in envoy_patches(build, "CLUSTER") if _pipes(v)]
    if not clusters:
        yield Finding(w.title, "no EnvoyFilter adds a cluster of the processor's sockets", "add mesh/ to the resources")
    for o, value in clusters:
        if sorted(_pipes(value)) != wanted:
            wrong = f"its endpoints are {', '.join(_pipes(value))}, but the processor listens on {', '.join(wanted)}"
            do = f"let the processor's --workers and --sockets in {w.title} and the pipes here agree"
            yield Finding(title(o), wrong, do)
    for c in w.servers():
        if directory not in {m["mountPath"].rstrip("/") for m in c.get("volumeMounts") or []}:
            wrong = f"its container {c['name']} does not mount {directory}, where the sockets are"
            yield Finding(w.title, wrong, "mount the volume `sockets` there, in both containers")


def _pipes(cluster: Json) -> list[str]:
    localities = at(cluster, "load_assignment", "endpoints", default=[])
    endpoints = [e for locality in localities for e in locality.get("lb_endpoints") or []]
    return [p for e in endpoints if (p := at(e, "endpoint", "address", "pipe", "path"))]


def _starts_first(w: Workload) -> Iterator[Finding]:
    if any(c["name"] == _PROCESSOR for c in w.pod.get("containers", [])):
        wrong = f"`{_PROCESSOR}` is an ordinary container: Envoy could serve before it and after it"
        yield Finding(w.title, wrong, "make it an init container with restartPolicy: Always")


def _filters(build: Build) -> Iterator[Finding]:
    filters = {v["name"]: (o, v.get("typed_config", {})) for o, v in envoy_patches(build, "HTTP_FILTER") if "name" in v}
    for name in (_EXT_PROC, _LUA):
        if name not in filters:
            yield Finding("gateway", f"no EnvoyFilter brings {name}", "add mesh/ to the resources")
    if _EXT_PROC in filters and filters[_EXT_PROC][1].get("failure_mode_allow"):
        wrong = "failure_mode_allow: without the processor everybody would be let in"
        yield Finding(title(filters[_EXT_PROC][0]), wrong, "set it to false")
    if _LUA in filters and "envoy_on_response" not in at(
        filters[_LUA][1], "default_source_code", "inline_string", default=""
    ):
        wrong = "mesh/lua/usage.lua was not put into it"
        yield Finding(title(filters[_LUA][0]), wrong, "add mesh/ itself to the resources: its kustomization does that")


def _doors(build: Build) -> Iterator[Finding]:
    """What clients must not be able to do: name their model past the decision, or send a key in the clear."""
    managers = [v for _, v in envoy_patches(build, "NETWORK_FILTER")]
    if not any(matcher.get("prefix") == _STEERING for v in managers for matcher in _values(v, "key_matcher")):
        wrong = f"no EnvoyFilter takes the headers {_STEERING}* off: a client could choose its route past the decision"
        yield Finding("gateway", wrong, "add mesh/envoyfilter/connection-manager.yaml")
    for o in build.of("Gateway"):
        for server in at(o, "spec", "servers", default=[]):
            if at(server, "port", "protocol") == "HTTP" and not at(server, "tls", "httpsRedirect"):
                wrong = f"port {at(server, 'port', 'number')} is plain HTTP: keys would travel in the clear"
                yield Finding(title(o), wrong, "add tls: {httpsRedirect: true}")


def _values(value: object, key: str) -> Iterator[Json]:
    """Every object under that key, however deep."""
    if isinstance(value, dict):
        yield from (inner for name, inner in value.items() if name == key and isinstance(inner, dict))
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _values(inner, key)


def _routes(build: Build) -> Iterator[Finding]:
    """A filter's route is found by its name; istiod does not say when there is none."""
    named = {r.get("name") for o in build.of("VirtualService") for r in at(o, "spec", "http", default=[])}
    for o in build.of("EnvoyFilter"):
        for patch in at(o, "spec", "configPatches", default=[]):
            name = at(patch, "match", "routeConfiguration", "vhost", "route", "name")
            if name and name not in named:
                wrong = f"it changes the route `{name}`, which no VirtualService has"
                yield Finding(title(o), wrong, "let both have the same name")


def _buffers(build: Build, max_body_bytes: int) -> Iterator[Finding]:
    needed = max_body_bytes + GROWTH_BYTES
    fields = (("LISTENER", "per_connection_buffer_limit_bytes"), ("VIRTUAL_HOST", "request_body_buffer_limit"))
    patches = [
        (kind, field, o, v[field]) for kind, field in fields for o, v in envoy_patches(build, kind) if field in v
    ]
    if not any(kind == "LISTENER" for kind, *_ in patches):
        wrong = "no EnvoyFilter sets the listener's buffer: Istio's 32 KiB would refuse prompts with 413"
        yield Finding("gateway", wrong, f"add one with per_connection_buffer_limit_bytes: {needed}")
    for _kind, field, o, value in patches:
        if int(value) < needed:
            wrong = f"{field} {value} is below max_body_bytes ({max_body_bytes}) + {GROWTH_BYTES}"
            yield Finding(title(o), wrong, f"set it to {needed}")
