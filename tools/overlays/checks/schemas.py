"""Fields that exist: built-in kinds by Kubernetes' own schemas, others by their CustomResourceDefinitions.

Strict, unlike the API server: an unknown field of a custom resource is dropped there without a word. The definitions
are those that `make tools` keeps; a kind whose definition is not at hand is not judged, and `unjudged` says so.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from extproc.errors import LlmMeshError
from tools.cluster.binaries import crd_files
from tools.overlays.objects import Build, Finding, Json, at, title

KUBERNETES = "1.36.0"
_FREE = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource")
_NESTED = ("items", "additionalProperties")  # not oneOf and the like: they only say which fields go together


def check(build: Build) -> Iterator[Finding]:
    for o in build.objects:
        validator = _validator(o["apiVersion"], o["kind"])
        error = best_match(validator.iter_errors(o)) if validator else None
        if error is not None:
            where = ".".join(str(step) for step in error.absolute_path) or "its top"
            wrong = f"{where}: {_short(error.message)}"
            yield Finding(
                title(o), wrong, f"see `kubectl explain {o['kind'].lower()}`: {o['apiVersion']} has it otherwise"
            )
        elif validator is None and _group(o["apiVersion"]) in ("", "apps", "batch", "policy", "autoscaling"):
            yield Finding(
                title(o), f"Kubernetes {KUBERNETES} has no {o['kind']} in {o['apiVersion']}", "mend apiVersion"
            )


def unjudged(build: Build) -> list[str]:
    """Kinds whose definition is not at hand."""
    kinds = {(o["apiVersion"], o["kind"]) for o in build.objects}
    return sorted(f"{kind} ({_group(version)})" for version, kind in kinds if _validator(version, kind) is None)


@cache
def _validator(version: str, kind: str) -> Draft202012Validator | None:
    if "." in _group(version) and not _group(version).endswith(".k8s.io"):
        schema = _definition(version, kind)
        return Draft202012Validator(schema) if schema else None
    name = f"{kind.lower()}-{_group(version).split('.')[0]}-{version.rpartition('/')[2]}.json".replace("--", "-")
    file = _schemas() / name
    return Draft202012Validator(json.loads(file.read_text()), registry=_registry()) if file.is_file() else None


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def _schemas() -> Any:
    return resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"


@cache
def _registry() -> Registry[Any]:
    definitions: Resource[Any] = Resource.from_contents(json.loads((_schemas() / "_definitions.json").read_text()))
    return definitions @ Registry()


def _definition(version: str, kind: str) -> Json | None:
    """The schema of a custom kind, made strict."""
    for text in documents():
        if f"\n    kind: {kind}\n" in text:
            spec = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]
            for v in spec["versions"]:
                if f"{spec['group']}/{v['name']}" == version:
                    schema: Json = _strict(at(v, "schema", "openAPIV3Schema", default={}), top=True)
                    return schema
    return None


@cache
def documents() -> tuple[str, ...]:
    try:
        files = crd_files()
    except LlmMeshError:
        return ()
    return tuple(text for file in files for text in re.split(r"^---$", file.read_text(), flags=re.MULTILINE))


def _strict(schema: Any, *, top: bool = False) -> Any:
    """Kubernetes' structural schema as JSON Schema: no other fields than those named; its own words translated."""
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) if key in _NESTED else value for key, value in schema.items()}
    if "properties" in schema:
        result["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not any(schema.get(word) for word in _FREE):
            result["additionalProperties"] = False
    if top:
        result["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


def _short(message: str) -> str:
    return message if len(message) <= 200 else message[:200] + " …"
