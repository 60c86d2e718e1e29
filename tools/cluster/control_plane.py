"""Kubernetes without machines: etcd, the API server, its controllers, the scheduler, and KWOK, which plays the nodes.

Everything but the containers is real: admission, defaults, RBAC, quotas, scheduling, rollouts. Pods become Ready
without running and have addresses that lead nowhere. Each part listens on a free port of 127.0.0.1 and ends with this
process.
"""

import asyncio
import json
import os
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from extproc.local.process import Child, Report, Service, StackError, answers, free_port
from tools.cluster.binaries import beside_python, crd_files, kwok_file, tool
from tools.cluster.pki import MASTERS, Pki

Json = dict[str, Any]
Probe = Callable[[], Awaitable[bool]]

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1
_ISSUER = "https://kubernetes.default.svc.cluster.local"
_SERVICES = "10.96.0.0/16"
_PODS = "10.244.0.0/16"
_STAGES = "node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-complete", "pod/fast/pod-delete"


class KubectlError(StackError):
    """kubectl says no; the message is what it printed."""


class ControlPlane(Service):
    """Start with `async with ControlPlane(directory) as plane:`; logs, keys and data lie in the directory."""

    def __init__(self, directory: Path, report: Report = lambda _name, _seconds: None) -> None:
        super().__init__(report)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.server = f"https://127.0.0.1:{free_port()}"
        self.pki = Pki(directory)
        self.kubeconfig = self.pki.kubeconfig("admin", self.server, MASTERS)
        self.children: dict[str, Child] = {}
        self._tls = ssl.create_default_context(cafile=str(self.pki.ca_file))

    async def start(self) -> None:
        etcd = f"http://127.0.0.1:{free_port()}"
        # Together: the API server needs longer for its first steps than etcd to be up.
        await asyncio.gather(self._start_etcd(etcd), self._start_apiserver(etcd))
        await asyncio.gather(self._start_controllers(), self._start_scheduler(), self._start_kwok())

    async def stop(self) -> None:
        """Clients first: the API server would wait for their watches."""
        servers = [self.children[name] for name in ("kube-apiserver", "etcd") if name in self.children]
        await asyncio.gather(*(child.stop() for child in self.children.values() if child not in servers))
        for child in servers:
            await child.stop()
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    # --- what can be done with it -------------------------------------------------------------------------------------

    async def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002  as subprocess calls it
        """Run kubectl as administrator; what it printed. Raises KubectlError."""
        process = await asyncio.create_subprocess_exec(
            beside_python("kubectl"),
            *arguments,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubectl")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(None if input is None else input.encode())
        if process.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {errors.decode().strip()}")
        return output.decode()

    async def create(self, objects: Iterable[Json]) -> str:
        """Create them all, status included where the API takes it (nodes)."""
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return await self.kubectl("create", "-f", "-", input=json.dumps(listing))

    async def apply_crds(self) -> None:
        """The custom resource definitions of Istio, Gateway API, KEDA and the Prometheus operator, ready for use."""
        files = [f"--filename={path}" for path in crd_files()]
        applied = await self.kubectl("apply", "--server-side", "--output=name", *files)
        names = {line.partition("/")[2] for line in applied.split()}
        deadline = time.monotonic() + _START_SECONDS
        # `kubectl wait` fails on those that have no conditions yet.
        while waiting := names - set((await self.kubectl("api-resources", "--output=name", "--cached=false")).split()):
            if time.monotonic() > deadline:
                raise StackError(f"the API server does not serve {', '.join(sorted(waiting))}")
            await asyncio.sleep(_POLL_SECONDS)

    async def token(self, namespace: str, service_account: str, audience: str) -> str:
        """A signed token of the service account, as a projected volume would hold it."""
        text = await self.kubectl(
            "create", "token", service_account, f"--namespace={namespace}", f"--audience={audience}"
        )
        return text.strip()

    # --- the parts ----------------------------------------------------------------------------------------------------

    async def _start(self, name: str, probe: Probe, *options: str) -> None:
        child = self.children[name] = Child(name, [str(tool(name)), *options], self.directory / f"{name}.log")
        child.log.unlink(missing_ok=True)
        await self.timed(name, child.up(probe, _START_SECONDS))

    async def _start_etcd(self, url: str) -> None:
        peers = f"http://127.0.0.1:{free_port()}"
        await self._start(
            "etcd",
            partial(answers, f"{url}/readyz"),
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",  # nothing here must survive a power cut
            "--log-level=warn",
        )

    async def _start_apiserver(self, etcd: str) -> None:
        await self._start(
            "kube-apiserver",
            partial(self._answers, f"{self.server}/readyz"),
            *self._serving(int(self.server.rpartition(":")[2])),
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # an Endpoints object may not hold a loopback address
            f"--etcd-servers={etcd}",
            f"--client-ca-file={self.pki.ca_file}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",  # beside the default ones
            "--enable-aggregator-routing=true",  # webhooks are asked at their endpoints: no kube-proxy is here
            "--allow-privileged=true",  # as every real cluster: PodSecurity decides
            f"--service-cluster-ip-range={_SERVICES}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={self.pki.token_key}",
            f"--service-account-signing-key-file={self.pki.token_key}",
        )

    async def _start_controllers(self) -> None:
        await self._start(
            "kube-controller-manager",
            self._has_default_service_account,
            *self._serving(free_port()),
            *self._client("system:kube-controller-manager"),
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.pki.token_key}",
            f"--root-ca-file={self.pki.ca_file}",
            "--kube-api-qps=500",  # at the default, 20, the controllers need 4 s to get their tokens
            "--kube-api-burst=1000",
            f"--flex-volume-plugin-dir={self.directory}",  # it is made where it is missing; the default is in /usr
        )

    async def _start_scheduler(self) -> None:
        port = free_port()
        probe = partial(self._answers, f"https://127.0.0.1:{port}/readyz")
        await self._start("kube-scheduler", probe, *self._serving(port), *self._client("system:kube-scheduler"))

    async def _start_kwok(self) -> None:
        address = f"127.0.0.1:{free_port()}"
        await self._start(
            "kwok",
            partial(answers, f"http://{address}/healthz"),
            f"--kubeconfig={self.pki.kubeconfig('kwok', self.server, MASTERS)}",
            *(f"--config={kwok_file(f'kustomize/stage/{stage}.yaml')}" for stage in _STAGES),
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            f"--server-address={address}",
            f"--cidr={_PODS}",
            "--node-lease-duration-seconds=40",
        )

    def _serving(self, port: int) -> tuple[str, ...]:
        return (
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={self.pki.server_certificate}",
            f"--tls-private-key-file={self.pki.server_key}",
        )

    def _client(self, user: str) -> tuple[str, ...]:
        return f"--kubeconfig={self.pki.kubeconfig(user, self.server)}", "--leader-elect=false"

    async def _has_default_service_account(self) -> bool:
        """Without it no pod is admitted; the controllers make it."""
        try:
            await self.kubectl("get", "serviceaccount", "default")
        except KubectlError:
            return False
        return True

    async def _answers(self, url: str) -> bool:
        """As `answers`, of a server with a certificate of ours."""
        try:
            timeout = aiohttp.ClientTimeout(total=1.0)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, ssl=self._tls) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
