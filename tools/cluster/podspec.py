"""What a pod's specification says, as values: environment, volumes' files, commands. Pure: objects in, values out.

Objects are Kubernetes' JSON as it is. `Lookup` gives ConfigMaps and Secrets of the pod's namespace.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]
Lookup = Callable[[str, str], Json | None]  # kind, name
_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class Missing(Exception):  # noqa: N818  what a kubelet calls CreateContainerConfigError
    """A ConfigMap, a Secret or a key of theirs that is not there."""


# Every kubelet sets it, with or without service links. Istio's agent lets others read its certificates where it is set.
_ALWAYS = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def environment(pod: Json, container: Json, lookup: Lookup) -> dict[str, str]:
    values = dict(_ALWAYS)
    for entry in container.get("env", ()):
        if "valueFrom" in entry:
            value = _value_from(pod, container, entry["valueFrom"], lookup)
            if value is not None:
                values[entry["name"]] = value
        else:
            values[entry["name"]] = expand(entry.get("value", ""), values)
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes expands it: unknown names stay, `$$` is a dollar."""
    return _VARIABLE.sub(lambda m: "$" if m[0] == "$$" else values.get(m[1], m[0]), text)


def command(container: Json, entrypoint: list[str], values: Mapping[str, str]) -> list[str]:
    words = container.get("command") or entrypoint
    return [expand(word, values) for word in [*words, *container.get("args", ())]]


def _value_from(pod: Json, container: Json, source: Json, lookup: Lookup) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"])
    kind = "ConfigMap" if "configMapKeyRef" in source else "Secret"
    wanted = source["configMapKeyRef" if kind == "ConfigMap" else "secretKeyRef"]
    content = files(kind, wanted["name"], lookup, optional=wanted.get("optional", False))
    if wanted["key"] in content:
        return content[wanted["key"]].decode()
    if wanted.get("optional"):
        return None
    raise Missing(f"{kind} {wanted['name']} has no key {wanted['key']}")


def field(pod: Json, path: str) -> str:
    if found := re.fullmatch(r"metadata\.(labels|annotations)(?:\['(.+)'\])?", path):
        entries = pod["metadata"].get(found[1], {})
        if found[2]:
            return str(entries.get(found[2], ""))
        return "\n".join(f"{name}={json.dumps(value)}" for name, value in sorted(entries.items()))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "")
    return str(value)


def resource(container: Json, reference: Json) -> str:
    """A limit of the container's in units of the divisor, rounded up. No limit reads as one core and 1 GiB."""
    group, _, name = reference["resource"].partition(".")
    value = container.get("resources", {}).get(group, {}).get(name) or {"cpu": "1", "memory": "1Gi"}[name]
    divisor = reference.get("divisor", "1")
    return str(-int(-quantity(value) // quantity("1" if divisor == "0" else divisor)))


def quantity(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    if found is None:
        raise ValueError(f"not a quantity: {text}")
    return float(found[1]) * _UNITS[found[2]]


def files(kind: str, name: str, lookup: Lookup, *, optional: bool = False) -> dict[str, bytes]:
    """What a ConfigMap or a Secret holds."""
    found = lookup(kind, name)
    if found is None:
        if optional:
            return {}
        raise Missing(f"there is no {kind} {name}")
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
    return {key: value.encode() for key, value in found.get("data", {}).items()}


def volume_files(pod: Json, volume: Json, lookup: Lookup, token: Callable[[Json], str]) -> dict[str, bytes] | None:
    """The files of a volume that has content of its own; None for one that is just room."""
    if "configMap" in volume:
        return _picked(volume["configMap"], "ConfigMap", volume["configMap"]["name"], lookup)
    if "secret" in volume:
        return _picked(volume["secret"], "Secret", volume["secret"]["secretName"], lookup)
    if "downwardAPI" in volume:
        return _fields(pod, volume["downwardAPI"])
    if "projected" not in volume:
        return None
    found: dict[str, bytes] = {}
    for source in volume["projected"]["sources"]:
        for kind, wanted in source.items():
            if kind == "serviceAccountToken":
                found[wanted["path"]] = token(wanted).encode()
            elif kind == "downwardAPI":
                found |= _fields(pod, wanted)
            else:
                found |= _picked(wanted, kind[0].upper() + kind[1:], wanted["name"], lookup)
    return found


def _fields(pod: Json, source: Json) -> dict[str, bytes]:
    return {item["path"]: field(pod, item["fieldRef"]["fieldPath"]).encode() for item in source.get("items", ())}


def _picked(source: Json, kind: str, name: str, lookup: Lookup) -> dict[str, bytes]:
    content = files(kind, name, lookup, optional=source.get("optional", False))
    if "items" not in source:
        return content
    return {item["path"]: content[item["key"]] for item in source["items"] if item["key"] in content}


def is_native_sidecar(container: Json) -> bool:
    return container.get("restartPolicy") == "Always"


def port_of(container: Json, port: int | str) -> int:
    """A probe's port by number or by name."""
    if isinstance(port, int):
        return port
    return next(int(p["containerPort"]) for p in container.get("ports", ()) if p.get("name") == port)
