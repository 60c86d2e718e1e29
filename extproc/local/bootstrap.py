"""Envoy's bootstrap for one machine, built from the definitions in mesh/.

The filters, the processor's cluster and the connection manager's settings are read from mesh/envoyfilter/*.yaml and
applied as Istio applies them, so that this filter chain is the one that a gateway runs. Only what Istio makes from its
own resources (listeners, TLS, routes, model clusters) is made here. Pure: values in, one dictionary out.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import yaml

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy."
_HCM = _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.filters.http.router"
_GROWTH_BYTES = 65_536  # of a body that the processor changes: the served name, the usage event asked for
_RETRIES = {  # mesh/virtual-service/llama2.yaml says why these
    "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
    "retriable_status_codes": [503],
    "num_retries": 2,
    "retry_host_predicate": [  # as Istio's: another replica, if there is one
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            },
        }
    ],
    "host_selection_retry_max_attempts": 5,
}
_EJECTION = {  # of one of several replicas; mesh/destination-rule/llama2.yaml says why these
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 3,
    "enforcing_consecutive_local_origin_failure": 100,
    "consecutive_gateway_failure": 5,
    "enforcing_consecutive_gateway_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "interval": "5s",
    "base_ejection_time": "15s",
    "max_ejection_percent": 100,
}
_RUNTIME = {"envoy.reloadable_features.http_reject_path_with_fragment": False}  # as Istio's bootstrap: it is cut off
_MANY = 100_000  # Envoy's default circuit breakers let 1,024 requests through


class Site(msgspec.Struct, frozen=True):
    """Where everything is on this machine."""

    http_port: int
    https_port: int
    admin_port: int
    certificate: str  # file, PEM
    private_key: str  # file, PEM
    sockets: tuple[str, ...]  # of the processor's workers
    models: Mapping[str, str]  # model -> host:port of its backend
    max_body_bytes: int
    replicas: Mapping[str, tuple[str, ...]] = {}  # model -> those beside it
    upstream_idle_seconds: int = 600
    max_stream_seconds: int = 3500  # less than `reservation_seconds`: a stream is over before it is swept


def bootstrap(mesh: Path, site: Site) -> Json:
    patches = [patch for resource in _resources(mesh) for patch in resource["spec"]["configPatches"]]
    clusters = [_model_cluster(name, (address, *site.replicas.get(name, ()))) for name, address in site.models.items()]
    for patch in patches:
        if patch["applyTo"] == "CLUSTER":
            clusters.append(_with_sockets(patch["patch"]["value"], site.sockets))
    manager = _connection_manager(patches, site)
    return {
        "node": {"id": "local", "cluster": "llm-mesh"},
        "admin": {"address": _address("127.0.0.1", site.admin_port)},
        "static_resources": {
            "listeners": [
                _listener("http", site.http_port, manager, None, patches, site),
                _listener("https", site.https_port, manager, _tls(site), patches, site),
            ],
            "clusters": clusters,
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _TYPE
                        + "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50_000,
                    },
                }
            ]
        },
    }


def _resources(mesh: Path) -> list[Json]:
    """EnvoyFilters in the order in which istiod applies them: priority, then name."""
    found = [yaml.safe_load(path.read_text()) for path in (mesh / "envoyfilter").glob("*.yaml")]
    code = (mesh / "lua" / "usage.lua").read_text()
    for resource in found:
        for patch in resource["spec"]["configPatches"]:
            value = patch["patch"]["value"]
            if value.get("name") == "llm.usage":
                value["typed_config"]["default_source_code"]["inline_string"] = code
    return sorted(found, key=lambda r: (r["spec"].get("priority", 0), r["metadata"]["name"]))


def _connection_manager(patches: Sequence[Json], site: Site) -> Json:
    filters: list[Json] = [
        {"name": _ROUTER, "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"}}
    ]
    manager: Json = {
        "@type": _HCM,
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "server_name": "llm-mesh",
        "http_filters": filters,
        "route_config": {"name": "llm", "virtual_hosts": [_virtual_host(patches, site)]},
    }
    for patch in patches:
        value = deepcopy(patch["patch"]["value"])
        if patch["applyTo"] == "HTTP_FILTER" and patch["patch"]["operation"] == "INSERT_BEFORE":
            filters.insert(len(filters) - 1, value)
        elif patch["applyTo"] == "NETWORK_FILTER":
            merge(manager, value["typed_config"])
    return manager


def merge(into: Json, value: Json) -> None:
    """Protobuf's merge: messages field by field, lists appended, scalars replaced."""
    for key, new in value.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new


def _virtual_host(patches: Sequence[Json], site: Site) -> Json:
    host: Json = {"name": "llm", "domains": ["*"], "routes": [_route(name, site) for name in site.models]}
    # Before the decision no model is chosen: these routes hold the request until then, and lead to no backend.
    nowhere: Json = {"direct_response": {"status": 503}}
    # Bodies are buffered only for callers who show something like a key, or whose token was verified; others get their
    # 401 on the headers alone.
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    for caller in (
        {"name": "authorization", "string_match": {"prefix": "Bearer sk-llm-", "ignore_case": True}},
        {"name": "x-llm-tenant", "present_match": True},
    ):
        match = {"prefix": "/v1/", "headers": [post, caller]}
        host["routes"].append({"name": "undecided", "match": match, **nowhere})
    host["routes"].append({"name": "rest", "match": {"prefix": "/"}, **nowhere})
    for patch in patches:
        if patch["applyTo"] == "HTTP_ROUTE":
            _merge_route(host["routes"], patch)
    host["request_body_buffer_limit"] = site.max_body_bytes + _GROWTH_BYTES
    return host


def _merge_route(routes: Sequence[Json], patch: Json) -> None:
    wanted = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
    for route in routes:
        if route["name"] == wanted:
            merge(route, patch["patch"]["value"])


def _route(model: str, site: Site) -> Json:
    return {
        "name": model,
        "match": {"prefix": "/", "headers": [{"name": "x-llm-model", "string_match": {"exact": model}}]},
        "route": {
            "cluster": f"model-{model}",
            "timeout": f"{site.max_stream_seconds}s",
            "idle_timeout": f"{site.upstream_idle_seconds}s",
            "retry_policy": _RETRIES,
        },
    }


def _model_cluster(name: str, addresses: Sequence[str]) -> Json:
    hosts = [address.rpartition(":") for address in addresses]
    limits = {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
    cluster: Json = {
        "name": f"model-{name}",
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": f"model-{name}",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(host, int(port))}} for host, _, port in hosts]}
            ],
        },
    }
    if len(addresses) > 1:  # the only one is never out: a test's five failures would take it from the next test
        cluster["lb_policy"] = "LEAST_REQUEST"
        cluster["outlier_detection"] = _EJECTION
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    return cluster


def _with_sockets(cluster: Json, sockets: Sequence[str]) -> Json:
    endpoints = [{"endpoint": {"address": {"pipe": {"path": path}}}} for path in sockets]
    assignment = {"cluster_name": cluster["name"], "endpoints": [{"lb_endpoints": endpoints}]}
    return {**deepcopy(cluster), "load_assignment": assignment}


def _listener(name: str, port: int, manager: Json, tls: Json | None, patches: Sequence[Json], site: Site) -> Json:
    chain: Json = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": deepcopy(manager)}]
    }
    if tls is not None:
        chain["transport_socket"] = tls
    listener: Json = {"name": name, "address": _address("127.0.0.1", port), "filter_chains": [chain]}
    for patch in patches:
        if patch["applyTo"] == "LISTENER":
            merge(listener, patch["patch"]["value"])
    # A body that is held for the processor may be as long as this, whatever the route says. The mesh's own number is
    # for the delivered configuration.
    listener["per_connection_buffer_limit_bytes"] = max(1_048_576, site.max_body_bytes + _GROWTH_BYTES)
    return listener


def _tls(site: Site) -> Json:
    certificate = {"certificate_chain": {"filename": site.certificate}, "private_key": {"filename": site.private_key}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [certificate]},
        },
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
