"""What stands before the gateway's Service in a cluster, the cloud's load balancer: Envoy, TCP only, on this machine.

- the https port passes connections through to a ready gateway pod, TLS and all;
- the http port wraps them in TLS first, for clients that only speak plain HTTP here.
Endpoints are a file that Envoy watches; a pod that ends is gone from it while it still serves what it has.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extproc.local.process import Child

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy."
_PORT = 8443  # the gateway pods' own


class Front:
    def __init__(self, envoy: Path, directory: Path, http_port: int, https_port: int) -> None:
        self._endpoints = directory / "front-endpoints"
        self._endpoints.mkdir(parents=True, exist_ok=True)
        self._written: tuple[str, ...] | None = None
        config = directory / "front.json"
        config.write_text(json.dumps(_bootstrap(self._endpoints, http_port, https_port)))
        command = [
            str(envoy),
            "-c",
            str(config),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--log-level",
            "warning",
        ]
        self.child = Child("front", command, directory / "front.log")

    def send_to(self, addresses: Sequence[str]) -> None:
        """The pods that new connections go to from now on."""
        if tuple(addresses) == self._written:
            return
        self._written = tuple(addresses)
        for cluster in ("plain", "tls"):
            assignment = {
                "@type": _TYPE + "config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": cluster,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(a, _PORT)}} for a in addresses]}],
            }
            fresh = self._endpoints / f".{cluster}"
            fresh.write_text(json.dumps({"resources": [assignment]}))
            fresh.rename(self._endpoints / f"{cluster}.json")


def _bootstrap(endpoints: Path, http_port: int, https_port: int) -> Json:
    tls = {
        "name": "tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "localhost",  # and no ALPN: HTTP/1 and HTTP/2 both pass, as the client speaks them
        },
    }
    return {
        "node": {"id": "front", "cluster": "front"},
        "static_resources": {
            "listeners": [_listener("plain", http_port), _listener("tls", https_port)],
            "clusters": [{**_cluster("plain", endpoints), "transport_socket": tls}, _cluster("tls", endpoints)],
        },
    }


def _listener(cluster: str, port: int) -> Json:
    proxy = {
        "@type": _TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
        "idle_timeout": "3600s",
        "max_connect_attempts": 5,
    }
    return {
        "name": cluster,
        "address": _address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    }


def _cluster(name: str, endpoints: Path) -> Json:
    source = {"path": str(endpoints / f"{name}.json"), "watched_directory": {"path": str(endpoints)}}
    many = {"max_connections": 100_000, "max_pending_requests": 100_000}
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "path_config_source": source}},
        "circuit_breakers": {"thresholds": [many]},
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
