"""What istiod pushes to the gateway is what the local stack runs: filters, connection manager, routes, buffers."""

import json
from typing import Any

import pytest
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401  Any is resolved by what is imported
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2  # noqa: F401
from envoy.extensions.access_loggers.grpc.v3 import als_pb2  # noqa: F401
from envoy.extensions.filters.http.cors.v3 import cors_pb2  # noqa: F401
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as grpc_stats_pb2  # noqa: F401
from envoy.extensions.filters.http.lua.v3 import lua_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2  # noqa: F401
from envoy.extensions.http.original_ip_detection.xff.v3 import xff_pb2  # noqa: F401
from envoy.extensions.request_id.uuid.v3 import uuid_pb2  # noqa: F401
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict
from mesh_rig import Json, Mesh

from extproc.local.bootstrap import Site, bootstrap
from extproc.local.stack import ROOT

SITE = Site(0, 0, 0, "", "", ("a", "b"), {"llama2": "127.0.0.1:1"}, max_body_bytes=4_194_304)


@pytest.fixture(scope="module")
def local() -> Json:
    return bootstrap(ROOT / "mesh", SITE)["static_resources"]


@pytest.fixture
def listener(mesh: Mesh) -> Json:
    """The gateway's HTTPS listener as its Envoy has it."""
    dump = json.loads(mesh.envoy("/config_dump?resource=dynamic_listeners"))
    listeners = [entry["active_state"]["listener"] for entry in dump["configs"]]
    (found,) = [x for x in listeners if x["address"]["socket_address"]["port_value"] == 8443]
    return found


def manager(listener: Json) -> Any:
    (chain, *_) = listener["filter_chains"]
    config = chain["filters"][-1]["typed_config"]
    config = {name: value for name, value in config.items() if name != "@type"}
    return ParseDict(config, hcm_pb2.HttpConnectionManager(), ignore_unknown_fields=True)


def test_the_filters_are_the_same_and_in_the_same_order(listener: Json, local: Json) -> None:
    pushed, ours = manager(listener), manager(local["listeners"][1])
    assert [f.name for f in pushed.http_filters][-3:] == ["llm.ext_proc", "llm.usage", "envoy.filters.http.router"]
    assert list(pushed.http_filters)[-3:-1] == list(ours.http_filters)[-3:-1]


@pytest.mark.parametrize(
    "field",
    [
        "always_set_request_id_in_response",
        "normalize_path",
        "merge_slashes",
        "path_with_escaped_slashes_action",
        "stream_idle_timeout",
        "request_headers_timeout",
        "request_timeout",
        "local_reply_config",
        "early_header_mutation_extensions",
    ],
)
def test_the_connection_manager_is_set_the_same(listener: Json, local: Json, field: str) -> None:
    assert getattr(manager(listener), field) == getattr(manager(local["listeners"][1]), field)


def test_receipts_are_sent_the_same(listener: Json, local: Json) -> None:
    def receipts(found: Any) -> list[Any]:
        return [log for log in found.access_log if log.name == "llm.receipts"]

    assert receipts(manager(listener)) == receipts(manager(local["listeners"][1]))
    assert len(receipts(manager(listener))) == 1


def test_the_buffers_hold_the_same_body(listener: Json, local: Json) -> None:
    name = "per_connection_buffer_limit_bytes"
    assert listener[name] == local["listeners"][1][name] == SITE.max_body_bytes + 65_536


def test_requests_are_tried_again_for_the_same_reasons(mesh: Mesh, local: Json) -> None:
    config = local["listeners"][1]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = {"mesh": mesh.routes(), "local": config["route_config"]["virtual_hosts"][0]["routes"]}

    def policy(found: list[Json]) -> tuple[Any, ...]:
        (route,) = [r["route"] for r in found if r.get("name") == "llama2"]
        retry = route["retry_policy"]
        reasons = set(retry["retry_on"].split(","))
        return reasons, retry["num_retries"], retry.get("retriable_status_codes"), route["timeout"]

    assert policy(routes["mesh"]) == policy(routes["local"])


def test_an_undecided_request_has_no_upstream(mesh: Mesh) -> None:
    nowhere = {r["name"]: r["direct_response"]["status"] for r in mesh.routes() if "direct_response" in r}
    assert nowhere == {"undecided": 503, "rest": 503}


def test_envoy_took_all_that_was_pushed(mesh: Mesh) -> None:
    log = (mesh.stack.settings.directory / "istiod.log").read_text()
    assert [line for line in log.splitlines() if "ACK ERROR" in line] == []
