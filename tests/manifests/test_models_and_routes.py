"""Models, their objects and the routes to them: each mistake is found, by its name and with what to do."""

from copy import deepcopy

import pytest
from manifest_rig import Broken, Change, findings, found

VS, DR = "VirtualService", "DestinationRule"
ROUTE = ("spec", "http", 0)
CANARY_LABELS = {"app": "llama2", "version": "canary", "app.kubernetes.io/component": "model"}


def rename_app(b: Broken) -> None:
    b.put("Deployment", "codellama", "spec", "template", "metadata", "labels", "app", "codellama2")


def forget_in_configuration(b: Broken) -> None:
    data = b.get("ConfigMap", "llm-mesh")["data"]
    head, rest = data["llm-mesh.yaml"].split("  - name: bge-small", 1)
    data["llm-mesh.yaml"] = head + rest[rest.index("\ndefault_model") :].replace(
        '  - {pattern: "text-embedding-*", model: bge-small}', ""
    )


def new_in_configuration(b: Broken) -> None:
    data = b.get("ConfigMap", "llm-mesh")["data"]
    new = "models:\n  - {name: phi, context_tokens: 4096, price: {input: 1}}\n"
    data["llm-mesh.yaml"] = data["llm-mesh.yaml"].replace("models:\n", new, 1)


def mistyped_configuration(b: Broken) -> None:
    data = b.get("ConfigMap", "llm-mesh")["data"]
    data["llm-mesh.yaml"] = data["llm-mesh.yaml"].replace("context_tokens: 8192", "context_token: 8192")


MODELS: dict[str, tuple[Change, str]] = {
    "a configuration that the processor would refuse, by its line": (
        mistyped_configuration,
        "ConfigMap llm-mesh: llm-mesh.yaml:16: Object contains unknown field `context_token`",
    ),
    "no configuration at all": (
        lambda b: b.drop("ConfigMap", "llm-mesh"),
        "there is no ConfigMap llm-mesh with the file llm-mesh.yaml",
    ),
    "a model of the configuration without Deployment": (
        new_in_configuration,
        "model phi: it stands in overlays/base/llm-mesh.yaml, but there is no Deployment `phi`",
    ),
    "a model without Service": (lambda b: b.drop("Service", "mistral"), "model mistral: it has no Service"),
    "a model without DestinationRule": (
        lambda b: b.drop(DR, "mistral"),
        "no DestinationRule has the host mistral.llm.svc.cluster.local -> add mesh/destination-rule/mistral.yaml",
    ),
    "a model whose dead replicas are asked on": (
        lambda b: b.put(DR, "mistral", "spec", "trafficPolicy", "outlierDetection", None),
        "DestinationRule mistral: it has no outlierDetection",
    ),
    "a model without route": (
        lambda b: b.drop(VS, "mistral"),
        "model mistral: no VirtualService has a route that matches the header x-llm-model exactly with `mistral`",
    ),
    "a route by prefix, which is no decision": (
        lambda b: b.put(VS, "mistral", *ROUTE, "match", [{"headers": {"x-llm-model": {"prefix": "mis"}}}]),
        "the route `mistral` does not match the header x-llm-model exactly: it would take every request",
    ),
    "a route that other requests take as well": (
        lambda b: b.get(VS, "mistral")["spec"]["http"][0]["match"].append({"uri": {"prefix": "/"}}),
        "the route `mistral` does not match the header x-llm-model exactly",
    ),
    "a Deployment of a model that nobody configured": (
        rename_app,
        "Deployment codellama: its model `codellama2` is not in overlays/base/llm-mesh.yaml",
    ),
    "a model that was taken out of the configuration alone": (
        forget_in_configuration,
        "VirtualService bge-small: it routes to the model `bge-small`, which is not in",
    ),
    "the DestinationRule that such a model leaves": (
        forget_in_configuration,
        "DestinationRule bge-small: its model `bge-small` is not in",
    ),
    "a Service that selects one version": (
        lambda b: b.put("Service", "llama2", "spec", "selector", "version", "stable"),
        "subsets choose the version, the Service all arms -> let its selector be app: llama2 alone",
    ),
    "pods that are in no subset": (
        lambda b: b.put("Deployment", "llama2", "spec", "template", "metadata", "labels", "version", "v2"),
        "Deployment llama2: its pods (version: v2) are in no subset of DestinationRule llama2",
    ),
    "a route to another model's backend": (
        lambda b: b.put(VS, "llama2", *ROUTE, "route", 0, "destination", "host", "mistral.llm.svc.cluster.local"),
        "VirtualService llama2: the route of `llama2` leads to mistral",
    ),
}
ROUTES: dict[str, tuple[Change, str]] = {
    "weights that do not add up": (
        lambda b: b.put(VS, "llama2", *ROUTE, "route", 0, "weight", 90),
        "VirtualService llama2: the weights of the route `llama2` are 90 + 0 = 90, not 100 -> let them add up",
    ),
    "a share for a version that is not deployed": (
        lambda b: (
            b.put(VS, "llama2", *ROUTE, "route", 0, "weight", 90),
            b.put(VS, "llama2", *ROUTE, "route", 1, "weight", 10),
        ),
        "gives the subset `canary` a share, but no Deployment has pods with app: llama2, version: canary",
    ),
    "a subset that the DestinationRule has not": (
        lambda b: b.put(DR, "llama2", "spec", "subsets", 1, "name", "next"),
        "names the subset `canary`, which no DestinationRule of llama2.llm.svc.cluster.local has",
    ),
    "a host that is no Service": (
        lambda b: b.put(VS, "llama2", *ROUTE, "route", 1, "destination", "host", "lama2"),
        "the route `llama2` leads to lama2, which is no Service",
    ),
    "a port that the Service has not": (
        lambda b: b.put(VS, "llama2", *ROUTE, "route", 0, "destination", "port", "number", 8080),
        "the route `llama2` leads to port 8080 of llama2.llm.svc.cluster.local -> use one of its ports: 8000",
    ),
    "a Service port that no container declares": (
        lambda b: b.put("Service", "llama2", "spec", "ports", 0, "targetPort", 8001),
        "Service llama2: its port 8000 leads to 8001, which no container of Deployment llama2 declares",
    ),
    "a Service that selects nobody": (
        lambda b: b.put("Service", "valkey", "spec", "selector", "app", "redis"),
        "Service valkey: no pod of this build has its labels",
    ),
    "a retry of what a model may have answered": (
        lambda b: b.put(VS, "llama2", *ROUTE, "retries", "retryOn", "connect-failure,5xx,reset,gateway-error"),
        "retries on 5xx, gateway-error: the model may have answered it -> retry on 503, connect-failure",
    ),
    "a route that leaves its retries to Istio": (
        lambda b: b.put(VS, "llama2", *ROUTE, "retries", None),
        "the route `llama2` does not say what it retries on",
    ),
    "a try that is cut off before a plain answer is whole": (
        lambda b: b.put(VS, "llama2", *ROUTE, "retries", "perTryTimeout", "30s"),
        "perTryTimeout 30s of the route `llama2` cuts plain answers off, and asks for them again -> leave it out",
    ),
    "a time-out that cuts plain answers off": (
        lambda b: b.put(VS, "llama2", *ROUTE, "timeout", "2m"),
        "timeout 2m of the route `llama2` cuts plain answers off -> let it be 600s or more",
    ),
    "a time-out beyond the reservation": (
        lambda b: b.put(VS, "llama2", *ROUTE, "timeout", "1h"),
        "timeout 1h of the route `llama2` is not below reservation_seconds (3600)",
    ),
    "a route without time-out": (
        lambda b: b.put(VS, "llama2", *ROUTE, "timeout", None),
        "the route `llama2` has no timeout: a stream could outlive its reservation (3600 s) -> add timeout: 3500s",
    ),
}


@pytest.mark.parametrize(("change", "words"), MODELS.values(), ids=MODELS)
def test_models_and_objects_that_do_not_agree_are_found(change: Change, words: str) -> None:
    found(change, words)


@pytest.mark.parametrize(("change", "words"), ROUTES.values(), ids=ROUTES)
def test_a_route_that_goes_wrong_is_found(change: Change, words: str) -> None:
    found(change, words)


def test_a_canary_that_is_deployed_may_have_a_share() -> None:
    def change(b: Broken) -> None:
        canary = deepcopy(b.get("Deployment", "llama2"))
        canary["metadata"]["name"] = "llama2-canary"
        canary["spec"]["template"]["metadata"]["labels"].update(CANARY_LABELS)
        canary["spec"]["selector"]["matchLabels"] = CANARY_LABELS
        canary["spec"]["replicas"] = 1
        b.objects.append(canary)
        b.put(VS, "llama2", *ROUTE, "route", 0, "weight", 90)
        b.put(VS, "llama2", *ROUTE, "route", 1, "weight", 10)

    assert findings(change) == []
