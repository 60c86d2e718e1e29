"""The nodes whose pods really run: watches what the scheduler gives them, runs it, reports it.

Owns the conversation with the API server; a pod's life is pod.py's. Services are found by name through each pod's hosts
file, which is all the DNS there is here: a name leads to one ready pod.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes_asyncio import client, config, watch

from tools.cluster.container import Image
from tools.cluster.network import Network
from tools.cluster.pod import Pod, World

Json = dict[str, Any]
_LEASES = "kube-node-lease"
_BEAT_SECONDS = 10.0
_ZONES = ("zone-a", "zone-b", "zone-c")


class Agent:
    """`nodes` are made, one per zone, and everything that is scheduled onto them is run."""

    def __init__(
        self,
        kubeconfig: Path,
        network: Network,
        logs: Path,
        directory: Path,
        images: Callable[[str], Image],
        pilot_agent: Path,
        services: dict[str, str],
    ) -> None:
        self.nodes = [f"local-{zone[-1]}" for zone in _ZONES]
        self.pods: dict[str, Pod] = {}  # by uid
        self.on_change: list[Callable[[], None]] = []
        self._kubeconfig = kubeconfig
        self._network = network
        self._fixed = services  # names that are not pods: name -> address
        self._world = World(
            network=network,
            directory=directory,
            logs=logs,
            images=images,
            lookup=self._lookup,
            token=self._token,
            changed=self._changed,
            pilot_agent=pilot_agent,
        )
        self._objects: dict[tuple[str, str, str], Json] = {}  # ConfigMaps and Secrets
        self._services: dict[tuple[str, str], Json] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._dirty: dict[str, Pod] = {}
        self._wake = asyncio.Event()
        self._tokens: dict[tuple[str, str, str], tuple[str, float]] = {}  # and until when they are good
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        settings = client.Configuration()
        await config.load_kube_config(str(self._kubeconfig), client_configuration=settings)
        self._api = client.ApiClient(settings)
        self._core: Any = client.CoreV1Api(self._api)  # plain JSON goes in where its types want objects
        self._coordination: Any = client.CoordinationV1Api(self._api)
        for node, zone in zip(self.nodes, _ZONES, strict=True):
            await self._register(node, zone)
        listings = {
            "ConfigMap": self._core.list_config_map_for_all_namespaces,
            "Secret": self._core.list_secret_for_all_namespaces,
            "Service": self._core.list_service_for_all_namespaces,
        }
        for kind, listing in listings.items():
            self._tasks.append(asyncio.create_task(self._follow(listing, self._note(kind))))
        self._tasks.append(asyncio.create_task(self._follow(self._core.list_pod_for_all_namespaces, self._pod)))
        self._tasks.append(asyncio.create_task(self._report()))
        self._tasks.append(asyncio.create_task(self._beat()))

    async def stop(self) -> None:
        """All pods at once, without their grace: nobody is served any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(pod.stop(0.5) for pod in self.pods.values()), *self._ending.values(), return_exceptions=True
        )
        await self._api.close()

    def ready(self, app: str) -> list[Pod]:
        """The ready pods of an app, oldest first."""
        found = [pod for pod in self.pods.values() if pod.app == app and pod.ready]
        return sorted(found, key=lambda pod: str(pod.manifest["metadata"]["creationTimestamp"]))

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def _register(self, name: str, zone: str) -> None:
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": zone,
            "topology.kubernetes.io/region": "here",
        }
        node = {"metadata": {"name": name, "labels": labels}}
        await self._core.create_node(node)
        room = {"cpu": "64", "memory": "256Gi", "pods": "200", "ephemeral-storage": "100Gi"}
        now = datetime.now(UTC).isoformat()
        condition = {"type": "Ready", "status": "True", "reason": "Here", "lastHeartbeatTime": now}
        addresses = [{"type": "InternalIP", "address": self._network.host_ip}]
        status = {"capacity": room, "allocatable": room, "conditions": [condition], "addresses": addresses}
        await self._core.patch_node_status(name, {"status": status})

    async def _beat(self) -> None:
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            for node in self.nodes:
                spec = {"holderIdentity": node, "renewTime": now, "leaseDurationSeconds": 40}
                lease = {"metadata": {"name": node}, "spec": spec}
                with contextlib.suppress(client.ApiException):
                    try:
                        await self._coordination.patch_namespaced_lease(node, _LEASES, lease)
                    except client.ApiException:
                        await self._coordination.create_namespaced_lease(_LEASES, lease)
            await asyncio.sleep(_BEAT_SECONDS)

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _follow(self, listing: Any, take: Callable[[str, Json], None]) -> None:
        """List and watch, for ever."""
        while True:
            with contextlib.suppress(client.ApiException, asyncio.TimeoutError, OSError):
                async with watch.Watch().stream(listing) as events:
                    async for event in events:
                        take(event["type"], event["raw_object"])
            await asyncio.sleep(0.2)

    def _note(self, kind: str) -> Callable[[str, Json], None]:
        def take(event: str, found: Json) -> None:
            space, name = found["metadata"]["namespace"], found["metadata"]["name"]
            if kind == "Service":
                self._services[space, name] = found
                if event == "DELETED":
                    del self._services[space, name]
                self._write_hosts()
                return
            self._objects[kind, space, name] = found
            if event == "DELETED":
                del self._objects[kind, space, name]

        return take

    def _lookup(self, kind: str, space: str, name: str) -> Json | None:
        return self._objects.get((kind, space, name))

    def _token(self, space: str, account: str, projection: Json) -> str:
        """Called from a pod's thread."""
        audience = projection.get("audience", "https://kubernetes.default.svc")
        seconds = int(projection.get("expirationSeconds", 3600))
        known = self._tokens.get((account, space, audience))
        if known and known[1] > time.monotonic():
            return known[0]
        request = {"spec": {"audiences": [audience], "expirationSeconds": seconds}}
        work = self._core.create_namespaced_service_account_token(account, space, request)
        token = str(asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10).status.token)
        self._tokens[account, space, audience] = token, time.monotonic() + seconds / 2
        return token

    # --- pods ---------------------------------------------------------------------------------------------------------

    def _pod(self, event: str, manifest: Json) -> None:
        meta = manifest["metadata"]
        if manifest["spec"].get("nodeName") not in self.nodes:
            return
        known = self.pods.get(meta["uid"])
        if known is None:
            if event != "DELETED" and "deletionTimestamp" not in meta:
                self.pods[meta["uid"]] = Pod(manifest, self._world)
        elif (event == "DELETED" or "deletionTimestamp" in meta) and meta["uid"] not in self._ending:
            work = self._end(known, meta.get("deletionGracePeriodSeconds") or 0)
            self._ending[meta["uid"]] = asyncio.create_task(work)

    async def _end(self, pod: Pod, grace_seconds: float) -> None:
        await pod.stop(grace_seconds)
        self.pods.pop(pod.uid, None)
        self._dirty.pop(pod.uid, None)
        with contextlib.suppress(client.ApiException):
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
            await self._core.delete_namespaced_pod(pod.name, pod.space, body=options)

    def _changed(self, pod: Pod) -> None:
        self._dirty[pod.uid] = pod
        self._wake.set()
        self._write_hosts()
        for tell in self.on_change:
            tell()

    async def _report(self) -> None:
        """Statuses to the API server, the newest of each pod."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                _, pod = self._dirty.popitem()
                with contextlib.suppress(client.ApiException):
                    await self._core.patch_namespaced_pod_status(pod.name, pod.space, {"status": pod.status()})

    def _write_hosts(self) -> None:
        names = dict(self._fixed)
        for (space, name), service in self._services.items():
            wanted = service["spec"].get("selector") or {}
            for pod in self.pods.values():
                labels = pod.manifest["metadata"].get("labels", {})
                if wanted and pod.space == space and pod.ready and wanted.items() <= labels.items():
                    names[f"{name}.{space}.svc.cluster.local"] = names[f"{name}.{space}.svc"] = pod.ip
        for pod in self.pods.values():
            if pod.ip:
                pod.write_hosts(names)
