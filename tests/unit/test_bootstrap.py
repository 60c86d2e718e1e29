"""Envoy's bootstrap on one machine has all that mesh/ says, in a gateway's order."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from extproc import config
from extproc.local.bootstrap import Site, bootstrap, merge
from extproc.local.stack import ROOT

MESH = ROOT / "mesh"
SITE = Site(
    http_port=8080,
    https_port=8443,
    admin_port=9000,
    certificate="/c.pem",
    private_key="/k.pem",
    sockets=("/run/0.sock", "/run/1.sock"),
    models={"llama2": "127.0.0.1:8001", "mistral": "backend:8002"},
    max_body_bytes=4_000_000,
)
APPLIED = {
    ("CLUSTER", "ADD"),
    ("LISTENER", "MERGE"),
    ("HTTP_FILTER", "INSERT_BEFORE"),
    ("NETWORK_FILTER", "MERGE"),
    ("HTTP_ROUTE", "MERGE"),
}


def files() -> list[Path]:
    return sorted((MESH / "envoyfilter").glob("*.yaml"))


def patches(kind: str = "") -> list[Any]:
    found = [p for path in files() for p in yaml.safe_load(path.read_text())["spec"]["configPatches"]]
    return [p for p in found if kind in ("", p["applyTo"])]


def within(small: Any, big: Any) -> bool:
    """Whether all of `small` stands in `big`."""
    if isinstance(small, dict):
        return isinstance(big, dict) and all(k in big and within(v, big[k]) for k, v in small.items())
    if isinstance(small, list):
        return isinstance(big, list) and all(any(within(v, w) for w in big) for v in small)
    return bool(small == big)


def managers(config: Any) -> list[Any]:
    listeners = config["static_resources"]["listeners"]
    return [one["filter_chains"][0]["filters"][0]["typed_config"] for one in listeners]


def manager() -> Any:
    return managers(bootstrap(MESH, SITE))[0]


def routes() -> list[Any]:
    return list(manager()["route_config"]["virtual_hosts"][0]["routes"])


@pytest.mark.parametrize("path", files(), ids=lambda p: p.name)
def test_there_is_no_patch_of_a_kind_that_would_be_left_out(path: Path) -> None:
    resource = yaml.safe_load(path.read_text())
    assert resource["kind"] == "EnvoyFilter"
    kinds = {(p["applyTo"], p["patch"]["operation"]) for p in resource["spec"]["configPatches"]}
    assert kinds <= APPLIED


def test_the_filters_stand_before_the_router_in_the_order_of_the_mesh() -> None:
    assert [f["name"] for f in manager()["http_filters"]] == [
        "llm.ext_proc",
        "llm.usage",
        "envoy.filters.http.router",
    ]


def test_each_filter_is_as_the_mesh_says() -> None:
    filters = {f["name"]: f for f in manager()["http_filters"]}
    code = (MESH / "lua" / "usage.lua").read_text()
    for patch in patches("HTTP_FILTER"):
        value = deepcopy(patch["patch"]["value"])
        if value["name"] == "llm.usage":
            value["typed_config"]["default_source_code"]["inline_string"] = code
        assert filters[value["name"]] == value


def test_the_connection_managers_settings_are_merged() -> None:
    for patch in patches("NETWORK_FILTER"):
        assert within(patch["patch"]["value"]["typed_config"], manager())


def test_the_listeners_settings_are_merged_and_its_buffer_fits_the_delivered_configuration() -> None:
    delivered = config.load((ROOT / "overlays" / "base" / "llm-mesh.yaml").read_bytes(), "llm-mesh.yaml").config
    site = msgspec.structs.replace(SITE, max_body_bytes=delivered.max_body_bytes)
    assert patches("LISTENER")
    for listener in bootstrap(MESH, site)["static_resources"]["listeners"]:
        for patch in patches("LISTENER"):
            assert within(patch["patch"]["value"], listener)


def test_each_route_patch_finds_its_route() -> None:
    by_name = {route["name"]: route for route in routes()}
    for patch in patches("HTTP_ROUTE"):
        wanted = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
        assert within(patch["patch"]["value"], by_name[wanted])


def test_the_processors_cluster_has_one_endpoint_a_worker() -> None:
    clusters = {c["name"]: c for c in bootstrap(MESH, SITE)["static_resources"]["clusters"]}
    for patch in patches("CLUSTER"):
        value = patch["patch"]["value"]
        made = clusters[value["name"]]
        assert {k: v for k, v in made.items() if k != "load_assignment"} == {
            k: v for k, v in value.items() if k != "load_assignment"
        }
    endpoints = clusters["llm-ext-proc"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [e["endpoint"]["address"]["pipe"]["path"] for e in endpoints] == ["/run/0.sock", "/run/1.sock"]


def test_every_model_has_a_route_and_a_cluster() -> None:
    clusters = {c["name"]: c for c in bootstrap(MESH, SITE)["static_resources"]["clusters"]}
    led = {r["match"]["headers"][0]["string_match"]["exact"]: r["route"]["cluster"] for r in routes() if "route" in r}
    assert led == {"llama2": "model-llama2", "mistral": "model-mistral"}
    endpoint = clusters["model-mistral"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"] == {"address": "backend", "port_value": 8002}


def test_replicas_are_chosen_tried_again_and_put_out_as_the_mesh_says() -> None:
    site = msgspec.structs.replace(SITE, replicas={"llama2": ("127.0.0.1:8003",), "mistral": ()})
    clusters = {c["name"]: c for c in bootstrap(MESH, site)["static_resources"]["clusters"]}
    both, alone = clusters["model-llama2"], clusters["model-mistral"]
    endpoints = both["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [e["endpoint"]["address"]["socket_address"]["port_value"] for e in endpoints] == [8001, 8003]
    assert "outlier_detection" not in alone  # nobody could take its place

    rule = yaml.safe_load((MESH / "destination-rule" / "llama2.yaml").read_text())["spec"]["trafficPolicy"]
    said, made = rule["outlierDetection"], both["outlier_detection"]
    assert made["split_external_local_origin_errors"] == said["splitExternalLocalOriginErrors"]
    assert made["consecutive_local_origin_failure"] == said["consecutiveLocalOriginFailures"]
    assert made["consecutive_gateway_failure"] == said["consecutiveGatewayErrors"]
    assert made["enforcing_consecutive_5xx"] == said["consecutive5xxErrors"] == 0
    assert (made["interval"], made["base_ejection_time"]) == (said["interval"], said["baseEjectionTime"])
    assert made["max_ejection_percent"] == said["maxEjectionPercent"]
    assert both["common_lb_config"]["healthy_panic_threshold"]["value"] == said["minHealthPercent"]
    assert both["lb_policy"] == rule["loadBalancer"]["simple"]


@pytest.mark.parametrize("path", sorted((MESH / "virtual-service").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_is_tried_again_is_what_the_mesh_says(path: Path) -> None:
    retries = [
        r["retries"] for r in yaml.safe_load(path.read_text())["spec"]["http"] if r.get("retries", {}).get("retryOn")
    ]
    policy = next(r["route"]["retry_policy"] for r in routes() if "route" in r)
    status = {"retriable-status-codes": str(policy["retriable_status_codes"][0])}
    made = {status.get(each, each) for each in policy["retry_on"].split(",")}
    assert all(set(r["retryOn"].split(",")) == made and r["attempts"] == policy["num_retries"] for r in retries)


def test_what_no_model_was_chosen_for_leads_to_no_backend() -> None:
    rest = [r for r in routes() if "route" not in r]
    assert rest[-1]["match"] == {"prefix": "/"}
    assert all(r["direct_response"]["status"] == 503 for r in rest)
    assert [r for r in routes() if "route" in r] == routes()[: len(SITE.models)]


def test_no_circuit_breaker_is_left_at_envoys_default() -> None:
    for cluster in bootstrap(MESH, SITE)["static_resources"]["clusters"]:
        [thresholds] = cluster["circuit_breakers"]["thresholds"]
        bounds = [thresholds[name] for name in ("max_connections", "max_pending_requests", "max_requests")]
        if cluster["name"] == "llm-ext-proc":  # its requests are decisions, and last milliseconds
            assert bounds.pop() == 1000
        assert min(bounds) > 10_000


def test_both_listeners_have_the_same_chain_and_one_has_tls() -> None:
    config = bootstrap(MESH, SITE)
    plain, tls = managers(config)
    assert plain == tls
    sockets = [one["filter_chains"][0].get("transport_socket") for one in config["static_resources"]["listeners"]]
    assert sockets[0] is None
    assert "/c.pem" in str(sockets[1])


def test_a_body_of_the_largest_size_fits_wherever_it_is_held() -> None:
    config = bootstrap(MESH, SITE)
    assert manager()["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"] >= SITE.max_body_bytes
    for listener in config["static_resources"]["listeners"]:
        assert listener["per_connection_buffer_limit_bytes"] >= SITE.max_body_bytes


def test_it_is_made_anew_each_time() -> None:
    first = bootstrap(MESH, SITE)
    again = deepcopy(first)
    first["static_resources"]["clusters"].clear()
    managers(first)[0]["http_filters"].clear()
    assert bootstrap(MESH, SITE) == again


def test_every_type_it_names_is_one_of_envoys() -> None:
    def types(value: Any) -> set[str]:
        if isinstance(value, dict):
            here = {value["@type"]} if "@type" in value else set()
            return here.union(*(types(v) for v in value.values()))
        return set().union(*(types(v) for v in value)) if isinstance(value, list) else set()

    found = types(bootstrap(MESH, SITE))
    assert found
    assert all(name.startswith("type.googleapis.com/envoy.") for name in found)


def test_merging_is_protobufs() -> None:
    into = {"a": {"x": 1, "y": [1]}, "b": [1], "c": 1, "d": {"e": 1}}
    merge(into, {"a": {"x": 2, "y": [2], "z": 3}, "b": [2], "c": 3, "d": 4, "f": {}})
    assert into == {"a": {"x": 2, "y": [1, 2], "z": 3}, "b": [1, 2], "c": 3, "d": 4, "f": {}}
