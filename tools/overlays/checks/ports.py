"""A request finds its way: route -> Service -> container, by ports that exist."""

from collections.abc import Iterator

from tools.overlays.objects import Build, Finding, Json, Workload, at, matches, service_of, title


def check(build: Build) -> Iterator[Finding]:
    for o in build.of("Service"):
        yield from _service(build, o)
    for o in build.of("VirtualService"):
        for route in at(o, "spec", "http", default=[]):
            yield from _route(build, o, route)


def _service(build: Build, o: Json) -> Iterator[Finding]:
    selector = at(o, "spec", "selector", default={})
    behind = [w for w in build.workloads() if w.namespace == o["metadata"].get("namespace", "")]
    behind = [w for w in behind if selector and matches(selector, w.labels)]
    if selector and not behind:
        yield Finding(title(o), f"no pod of this build has its labels {selector}", "mend the selector or the labels")
    for port in at(o, "spec", "ports", default=[]):
        target = port.get("targetPort", port["port"])
        for w in behind:
            if not _listens(w, target):
                wrong = f"its port {port['port']} leads to {target}, which no container of {w.title} declares"
                yield Finding(title(o), wrong, "mend targetPort, or the container's ports")


def _listens(w: Workload, target: str | int) -> bool:
    if any(c.get("image") == "auto" for c in w.containers()):
        return True  # Istio's gateway template brings ports of its own
    declared = [p for c in w.servers() for p in c.get("ports") or []]
    return any(target in (p.get("name"), p["containerPort"]) for p in declared)


def _route(build: Build, o: Json, route: Json) -> Iterator[Finding]:
    for entry in route.get("route") or []:
        host = str(at(entry, "destination", "host", default=""))
        number = at(entry, "destination", "port", "number")
        ports = at(build.named("Service", service_of(host)), "spec", "ports", default=[])
        if ports and number not in {p["port"] for p in ports} and (number is not None or len(ports) > 1):
            wrong = f"the route `{route.get('name', '')}` leads to port {number} of {host}"
            yield Finding(title(o), wrong, f"use one of its ports: {', '.join(str(p['port']) for p in ports)}")
