"""What is tried again, and how long an answer may take.

A request that a model has answered, be it with an error, is not tried again: it would be worked on twice. One whose
replica was lost before a word of the answer came is (docs/chaos.md). A plain answer has its first byte when it is
whole, so no time-out may be shorter than the longest silence that the connection manager permits.
"""

from collections.abc import Iterator

from extproc.config import Catalogue
from tools.overlays.checks.routes import destinations
from tools.overlays.objects import Build, Finding, Json, at, envoy_patches, seconds, title

SAFE = frozenset({"connect-failure", "refused-stream", "reset-before-request", "reset", "503", "unavailable"})
_SILENCE_SECONDS = 300.0  # Envoy's own stream_idle_timeout, where no EnvoyFilter says otherwise


def check(build: Build, catalogue: Catalogue) -> Iterator[Finding]:
    silence = _silence(build)
    for o in build.of("VirtualService"):
        for route in at(o, "spec", "http", default=[]):
            if destinations(route):
                yield from _retries(o, route, silence)
                yield from _timeout(o, route, silence, catalogue.config.reservation_seconds)
    yield from _streams(build, catalogue.config.reservation_seconds)


def _silence(build: Build) -> float:
    """How long a request may be without a byte."""
    values = [at(v, "typed_config", "stream_idle_timeout") for _, v in envoy_patches(build, "NETWORK_FILTER")]
    return max((seconds(v) for v in values if v), default=_SILENCE_SECONDS)


def _retries(o: Json, route: Json, silence: float) -> Iterator[Finding]:
    name, retries = route.get("name", ""), route.get("retries") or {}
    conditions = {c.strip() for c in str(retries.get("retryOn") or "").split(",") if c.strip()}
    if conditions - SAFE:
        wrong = f"the route `{name}` retries on {', '.join(sorted(conditions - SAFE))}: the model may have answered it"
        yield Finding(title(o), wrong, f"retry on {', '.join(sorted(SAFE))} only")
    if not conditions and retries.get("attempts") != 0:
        wrong = f"the route `{name}` does not say what it retries on: Istio's defaults change with its version"
        yield Finding(title(o), wrong, "add retries: {attempts: 2, retryOn: connect-failure,refused-stream,503}")
    patience = retries.get("perTryTimeout")
    if patience is not None and seconds(patience) < silence:
        wrong = f"perTryTimeout {patience} of the route `{name}` cuts plain answers off, and asks for them again"
        yield Finding(title(o), wrong, f"leave it out, or let it be {silence:.0f}s or more")


def _timeout(o: Json, route: Json, silence: float, reservation: int) -> Iterator[Finding]:
    name, timeout = route.get("name", ""), route.get("timeout")
    if timeout is None or seconds(timeout) == 0:
        wrong = f"the route `{name}` has no timeout: a stream could outlive its reservation ({reservation} s)"
        yield Finding(title(o), wrong, f"add timeout: {reservation - 100}s")
    elif seconds(timeout) >= reservation:
        wrong = f"timeout {timeout} of the route `{name}` is not below reservation_seconds ({reservation})"
        yield Finding(title(o), wrong, "lower it: a stream must be over before its reservation is swept")
    elif seconds(timeout) < silence:
        wrong = f"timeout {timeout} of the route `{name}` cuts plain answers off"
        yield Finding(title(o), wrong, f"let it be {silence:.0f}s or more")


def _streams(build: Build, reservation: int) -> Iterator[Finding]:
    """max_stream_duration, wherever Envoy has it: routes, and the connection manager's common options."""
    patches = [p for kind in ("HTTP_ROUTE", "VIRTUAL_HOST", "NETWORK_FILTER") for p in envoy_patches(build, kind)]
    for o, value in patches:
        for text in _values(value, "max_stream_duration"):
            if seconds(text) >= reservation:
                wrong = f"max_stream_duration {text} is not below reservation_seconds ({reservation})"
                yield Finding(title(o), wrong, "lower it: a stream must be over before its reservation is swept")


def _values(value: object, key: str) -> Iterator[str]:
    """Every text under that key, however deep; Envoy nests max_stream_duration in itself."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            yield from _values(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, key)
