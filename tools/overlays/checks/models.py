"""Each model of the configuration has its objects, and there are no others."""

from collections.abc import Iterator

from extproc.config import Catalogue
from tools.overlays.checks.routes import destinations, model_routes, rule_of
from tools.overlays.objects import COMPONENT, NAMESPACE, Build, Finding, at, matches, service_of, title

_FILE = "overlays/base/llm-mesh.yaml"


def check(build: Build, catalogue: Catalogue) -> Iterator[Finding]:
    for model in catalogue.models:
        yield from _missing(build, model)
    yield from _strangers(build, set(catalogue.models))
    yield from _arms(build)


def _missing(build: Build, model: str) -> Iterator[Finding]:
    where = f"model {model}"
    arms = [w for w in build.models() if w.labels.get("app") == model]
    if not any(w.name == model and w.labels.get("version") == "stable" for w in arms):
        yield Finding(
            where,
            f"it stands in {_FILE}, but there is no Deployment `{model}` whose pods are labelled app: {model}, "
            f"version: stable, {COMPONENT}: model",
            f"add overlays/base/models/{model}, or take the model out of {_FILE}",
        )
    service = build.named("Service", model)
    if service is None:
        yield Finding(where, "it has no Service", f"add overlays/base/models/{model}/service.yaml")
    elif at(service, "spec", "selector") != {"app": model}:
        wrong = f"it selects {at(service, 'spec', 'selector')}: subsets choose the version, the Service all arms"
        yield Finding(title(service), wrong, f"let its selector be app: {model} alone")
    rule = rule_of(build, model)
    if rule is None:
        wrong = f"no DestinationRule has the host {host(model)}"
        yield Finding(where, wrong, f"add mesh/destination-rule/{model}.yaml")
    elif not at(rule, "spec", "trafficPolicy", "outlierDetection"):
        wrong = "it has no outlierDetection: a replica that is gone would be asked again and again"
        yield Finding(title(rule), wrong, "add it, as mesh/destination-rule/llama2.yaml does")
    if model not in model_routes(build):
        wrong = f"no VirtualService has a route that matches the header x-llm-model exactly with `{model}`"
        yield Finding(where, wrong, f"add mesh/virtual-service/{model}.yaml")


def _strangers(build: Build, known: set[str]) -> Iterator[Finding]:
    do = f"add the model to {_FILE}, or take this object away"
    for w in build.models():
        if w.labels.get("app") not in known:
            yield Finding(w.title, f"its model `{w.labels.get('app', '')}` is not in {_FILE}", do)
    for model, (o, _route) in model_routes(build).items():
        if model not in known:
            yield Finding(title(o), f"it routes to the model `{model}`, which is not in {_FILE}", do)
    for o in build.of("DestinationRule"):
        model = service_of(at(o, "spec", "host", default=""))
        if at(o, "metadata", "labels", COMPONENT) == "model" and model not in known:
            yield Finding(title(o), f"its model `{model}` is not in {_FILE}", do)


def _arms(build: Build) -> Iterator[Finding]:
    """A Deployment whose pods are in no subset gets no request: Istio chooses by subset alone."""
    for w in build.models():
        rule = rule_of(build, w.labels.get("app", ""))
        subsets = at(rule, "spec", "subsets", default=[])
        if rule is not None and not any(matches(s.get("labels") or {}, w.labels) for s in subsets):
            wrong = f"its pods (version: {w.labels.get('version', 'none')}) are in no subset of {title(rule)}"
            yield Finding(w.title, wrong, "label them with the version of a subset, or add the subset")
    for model, (o, route) in model_routes(build).items():
        hosts = {service_of(at(d, "host", default="")) for d in destinations(route)}
        if hosts - {model}:
            wrong = f"the route of `{model}` leads to {', '.join(sorted(hosts - {model}))}"
            yield Finding(title(o), wrong, f"let every destination have the host {host(model)}")


def host(model: str) -> str:
    return f"{model}.{NAMESPACE}.svc.cluster.local"
