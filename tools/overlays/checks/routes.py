"""Weighted routes: they add up, and every share has somebody to answer it."""

from collections.abc import Iterator

from tools.overlays.objects import COMPONENT, Build, Finding, Json, at, matches, service_of, title


def check(build: Build) -> Iterator[Finding]:
    for o in build.of("VirtualService"):
        for route in at(o, "spec", "http", default=[]):
            name = route.get("name", "without name")
            yield from _weights(o, name, route)
            yield from _destinations(build, o, name, route)
            if COMPONENT in at(o, "metadata", "labels", default={}) and not models_of(route):
                wrong = f"the route `{name}` does not match the header x-llm-model exactly: it would take every request"
                do = "add match: [{headers: {x-llm-model: {exact: MODEL}}}], for the decision to reach it"
                yield Finding(title(o), wrong, do)


def model_routes(build: Build) -> dict[str, tuple[Json, Json]]:
    """model -> (VirtualService, its http route) for the routes that a decision leads to."""
    return {
        model: (o, route)
        for o in build.of("VirtualService")
        for route in at(o, "spec", "http", default=[])
        for model in models_of(route)
    }


def models_of(route: Json) -> set[str]:
    """The models whose decision this route takes; empty if it takes others as well."""
    wanted = [at(m, "headers", "x-llm-model", "exact", default="") for m in route.get("match") or []]
    return set(wanted) if all(wanted) else set()


def destinations(route: Json) -> list[Json]:
    return [at(d, "destination", default={}) for d in route.get("route") or []]


def rule_of(build: Build, host: str) -> Json | None:
    """The DestinationRule of a Service, by its short or its full name."""
    rules = build.of("DestinationRule")
    return next((o for o in rules if service_of(at(o, "spec", "host", default="")) == service_of(host)), None)


def _weights(o: Json, name: str, route: Json) -> Iterator[Finding]:
    weights = [int(d.get("weight", 0)) for d in route.get("route") or []]
    if len(weights) > 1 and sum(weights) != 100:
        wrong = f"the weights of the route `{name}` are {' + '.join(map(str, weights))} = {sum(weights)}, not 100"
        yield Finding(title(o), wrong, "let them add up to 100: they are shares in per cent")
    if any(w < 0 for w in weights):
        yield Finding(title(o), f"a weight of the route `{name}` is below 0", "let each be from 0 to 100")


def _destinations(build: Build, o: Json, name: str, route: Json) -> Iterator[Finding]:
    for entry in route.get("route") or []:
        host = str(at(entry, "destination", "host", default=""))
        service = build.named("Service", service_of(host))
        if service is None:
            yield Finding(title(o), f"the route `{name}` leads to {host}, which is no Service", "mend the host")
            continue
        subset = at(entry, "destination", "subset")
        live = entry.get("weight", 100) > 0
        if subset is not None:
            yield from _subset(build, o, (name, host, str(subset)), at(service, "spec", "selector", default={}), live)


def _subset(
    build: Build, o: Json, where: tuple[str, str, str], selector: dict[str, str], live: bool
) -> Iterator[Finding]:
    name, host, subset = where
    rule = rule_of(build, host)
    found = next((s for s in at(rule, "spec", "subsets", default=[]) if s.get("name") == subset), None)
    if found is None:
        wrong = f"the route `{name}` names the subset `{subset}`, which no DestinationRule of {host} has"
        yield Finding(title(o), wrong, f"add the subset to the DestinationRule of {host}, or mend the name")
        return
    labels = {**selector, **(found.get("labels") or {})}
    if live and not any(matches(labels, w.labels) for w in build.workloads()):
        wrong = (
            f"the route `{name}` gives the subset `{subset}` a share, but no Deployment has pods with {_words(labels)}"
        )
        yield Finding(title(o), wrong, f"deploy them first, or set the weight of `{subset}` to 0")


def _words(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())
