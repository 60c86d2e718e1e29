"""The platform as a cluster runs it, on one machine: an overlay's own objects, applied to a real API server, scheduled,
injected by istiod, and run by our node agent. What a client, a test or a person needs of it has the shape of
`extproc.local.stack.Stack`, so that whoever knows one knows the other.
"""

import asyncio
import base64
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trustme
import yaml

from extproc import config
from extproc.local.observe import program
from extproc.local.process import Report, StackError, answers, free_port
from extproc.local.stack import ROOT, Api, envoy_program, valkey_program
from tools.cluster import istio
from tools.cluster.agent import Agent
from tools.cluster.binaries import tool
from tools.cluster.container import Image
from tools.cluster.control_plane import ControlPlane
from tools.cluster.front import Front
from tools.cluster.network import Door, Namespace, Network
from tools.cluster.nodes import volumes
from tools.cluster.pod import Pod

Json = dict[str, Any]
SPACE = "llm"
MONITORING = "monitoring"  # the operator's and Prometheus's, which the component observability counts on
_GATEWAY = "llm-gateway"
_ROLLOUT_SECONDS = 120.0


class MeshSettings(msgspec.Struct, frozen=True):
    """Port 0 = any free one."""

    directory: Path  # logs, keys, data
    overlay: Path = ROOT / "overlays" / "dev"
    number: int = 0  # of the cluster on this machine
    http_port: int = 0
    https_port: int = 0
    fake_nodes: bool = False  # GPU pools played by KWOK, to try overlays on


class MeshStack(Api):
    """Start with `async with MeshStack(settings) as mesh:`."""

    def __init__(self, settings: MeshSettings, report: Report = lambda _name, _seconds: None) -> None:
        super().__init__(report)
        self.settings = settings
        settings.directory.mkdir(parents=True, exist_ok=True)
        self.http_port = settings.http_port or free_port()
        self.https_port = settings.https_port or free_port()
        self.ca_file = settings.directory / "gateway-ca.pem"
        self.api_key = ""
        self.models: dict[str, str] = {}
        self.redis_url = ""
        self.admin_url = ""
        self.envoy_port = 0
        self.network = Network(settings.number)
        self.plane = ControlPlane(settings.directory / "control-plane", report)
        self.front = Front(Path(envoy_program()), settings.directory, self.http_port, self.https_port)
        self._started = contextlib.AsyncExitStack()  # what runs, to be stopped the other way round

    @property
    def children(self) -> dict[str, Any]:
        """The logs of what runs, by the names that the local stack gives its parts."""
        return {"processor": _Logged(self.pods(_GATEWAY)[0], "processor")}

    async def start(self) -> None:
        self._started.push_async_callback(clear, self.settings.number)
        await self.timed("network", self.network.start())
        forget(self.settings.number)
        self._pods = Path(tempfile.mkdtemp(prefix=_pods(self.settings.number)))  # what they write is theirs, and no log
        await self._started.enter_async_context(self.plane)
        await self.timed("istio's resources", self._install())
        await self.timed("istiod", self.start_istiod())
        self._started.push_async_callback(self.stop_istiod)
        await self.timed("nodes", self._start_agent())
        await self.timed("overlay", self.apply())
        await self.timed("pods", self.rolled_out())
        self._started.push_async_callback(self.front.child.stop)
        await self.front.child.start()
        await self._open_doors()
        self.api_key = await self.create_key()
        headers = {"authorization": f"Bearer {self.api_key}"}
        await self.timed("first answer", self.front.child.ready(partial(answers, f"{self.base_url}/models", headers)))

    async def stop(self) -> None:
        await self._started.aclose()

    # --- what tests do with it ----------------------------------------------------------------------------------------

    async def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return await self.plane.kubectl("--namespace", SPACE, *arguments, input=text)

    def pods(self, app: str) -> list[Pod]:
        """The ready pods of an app, oldest first. Raises StackError if there are none."""
        if found := self.agent.ready(app):
            return found
        raise StackError(f"no pod of {app} is ready")

    async def door(self, pod: Callable[[], Pod], port: int) -> str:
        """host:port of this machine that leads to a port of a pod, past its proxy, for those who look on."""

        def namespace() -> Namespace:
            found = pod().namespace
            assert found is not None  # noqa: S101  a ready pod has one
            return found

        door = Door(namespace, port)
        self._started.callback(door.close)
        return f"127.0.0.1:{await door.open()}"

    async def rolled_out(self) -> None:
        """Until every Deployment and StatefulSet has what it wants."""
        kinds = "deployments,statefulsets"
        names = (await self.kubectl("get", kinds, "-o", "name")).split()
        wait = f"--timeout={_ROLLOUT_SECONDS:.0f}s"
        try:
            await asyncio.gather(*(self.kubectl("rollout", "status", name, wait) for name in names))
        except StackError as error:
            troubles = [f"{p.name}: {p.message}" for p in self.agent.pods.values() if p.message]
            raise StackError("\n".join([str(error), *troubles])) from error

    # --- the parts ----------------------------------------------------------------------------------------------------

    async def _install(self) -> None:
        """Volumes for claims that name no class, and all that an administrator installs before an overlay. Of the
        Prometheus operator that is what it brings to the API server: its kinds and its namespace."""
        await self.plane.create([*volumes(("",)), namespace(MONITORING)])
        await self.plane.apply_crds()
        await istio.install(self.plane, self.network.host_ip)

    async def start_istiod(self) -> None:
        self.istiod = await istio.start(self.plane, self.network.host_ip, self.settings.directory / "istiod.log")

    async def stop_istiod(self) -> None:
        await self.istiod.stop()

    async def _start_agent(self) -> None:
        self.agent = Agent(
            self.plane.kubeconfig,
            self.network,
            self.settings.directory,
            self._pods,
            images,
            tool("pilot-agent"),
            dict.fromkeys(istio.NAMES, self.network.host_ip),
        )
        self.agent.on_change.append(self._on_change)
        self._started.push_async_callback(self.agent.stop)
        await self.agent.start()

    async def apply(self) -> None:
        """What `make deploy` does with an overlay, after the Secrets that it expects."""
        text = await self.plane.kubectl("kustomize", str(self.settings.overlay))
        self.catalogue = config.load(_configuration(text), str(self.settings.overlay))
        await self.plane.kubectl("apply", "--server-side", "-f", "-", input=only(text, "Namespace"))
        await self.plane.kubectl("apply", "--server-side", "-f", "-", input=gateway_secret(self.ca_file))
        await self.plane.kubectl("apply", "--server-side", "-f", "-", input=text)

    def _on_change(self) -> None:
        """New connections go to the gateway's ready pods."""
        ready = self.agent.ready(_GATEWAY)
        self.front.send_to([pod.ip for pod in ready])
        if ready:
            self.admin_url = f"http://{ready[0].ip}:9001"

    async def _open_doors(self) -> None:
        for model in self.catalogue.models:
            self.models[model] = await self.door(partial(self._first, model), 8000)
        self.redis_url = "redis://" + await self.door(partial(self._first, "valkey"), 6379)
        envoy = await self.door(partial(self._first, _GATEWAY), 15000)
        self.envoy_port = int(envoy.rpartition(":")[2])

    def _first(self, app: str) -> Pod:
        return self.pods(app)[0]


async def clear(number: int = 0) -> None:
    """Nothing is left of a cluster that was killed: its pods' processes, networks and files. One that runs is ended."""
    await Network(number).clear()
    forget(number)


def forget(number: int) -> None:
    """The files of its pods go."""
    for left in Path(tempfile.gettempdir()).glob(f"{_pods(number)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _pods(number: int) -> str:
    return f"llm-mesh-pods{number}-"


class _Logged:
    def __init__(self, pod: Pod, container: str) -> None:
        self.log = pod.log_of(container)


def images(name: str) -> Image:
    """What stands in for each image that the overlays name."""
    envoy = Path(envoy_program()).resolve()
    if "proxyv2" in name:
        return Image(("/usr/local/bin/pilot-agent",), istio.proxy_files(envoy))
    if "valkey" in name:
        programs = {f"/usr/local/bin/{n}": Path(valkey_program(n)) for n in ("valkey-server", "valkey-cli")}
        return Image(("/usr/bin/env",), programs)  # its entrypoint runs what it is given
    if "prometheus" in name:
        return Image(("/bin/prometheus",), {"/bin/prometheus": program("prometheus").resolve()})
    if "llm-mesh" in name:
        return Image((str(ROOT / ".venv" / "bin" / "llm-mesh"),))
    raise StackError(f"nothing here stands in for the image {name}")


def gateway_secret(ca_file: Path) -> str:
    """The certificate that clients see, as the Secret that the Gateway names; who signed it goes to the file."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(c.bytes() for c in issued.cert_chain_pems)
    pems = {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes()}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "llm-gateway-tls", "namespace": SPACE},
        "data": {name: base64.b64encode(pem).decode() for name, pem in pems.items()},
    }
    return msgspec.json.encode(secret).decode()


def only(text: str, kind: str) -> str:
    """The objects of a kind in an overlay's YAML, as JSON."""
    found = [o for o in yaml.load_all(text, yaml.CSafeLoader) if o["kind"] == kind]
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": found}).decode()


def namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _configuration(text: str) -> bytes:
    """The processor's, out of the overlay's objects."""
    for manifest in yaml.load_all(text, yaml.CSafeLoader):
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"] == "llm-mesh":
            return str(manifest["data"]["llm-mesh.yaml"]).encode()
    raise StackError("the overlay has no ConfigMap llm-mesh")
