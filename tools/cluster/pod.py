"""One pod's life: its network, its volumes, its containers in order, their probes, and its end.

As a kubelet does it: init containers one after the other, native sidecars (restartPolicy Always) stay and end last, in
reverse; the rest starts together, is started again when it ends, and gets preStop, SIGTERM and the grace period.
"""

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tools.cluster import podspec, probes
from tools.cluster.container import Container, Identity, Image, Mount, Process
from tools.cluster.network import Namespace, Network, run

Json = dict[str, Any]
_RESTART_SECONDS = 1.0
_FILES_SECONDS = 1.0  # after so long a changed ConfigMap has arrived; a kubelet may take a minute
_CAPTURE = "-p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -x  -d 15090,15021,15020"
_CAPTURED = {"-i": "includeOutboundIPRanges", "-b": "includeInboundPorts"}  # all, unless an annotation says otherwise


class World(msgspec.Struct, frozen=True):
    """What a pod needs of what is around it."""

    network: Network
    directory: Path  # volumes and roots
    logs: Path
    images: Callable[[str], Image]
    lookup: Callable[[str, str, str], Json | None]  # kind, namespace, name
    token: Callable[[str, str, Json], str]  # namespace, service account, projection
    changed: Callable[["Pod"], None]  # there is a new status to report
    pilot_agent: Path


class State:
    """Of one container, for the status."""

    def __init__(self, spec: Json) -> None:
        self.spec = spec
        self.container: Container | None = None
        self.started = False
        self.ready = False
        self.restarts = 0
        self.exit_code: int | None = None
        self.waiting = "PodInitializing"
        self.up = asyncio.Event()  # it has started once

    def status(self) -> Json:
        state: Json = {"waiting": {"reason": self.waiting}}
        if self.exit_code is not None:
            state = {"terminated": {"exitCode": self.exit_code}}
        elif self.container is not None:
            state = {"running": {}}
        name, image = self.spec["name"], self.spec["image"]
        return {
            "name": name,
            "image": image,
            "imageID": image,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": state,
        }


class Pod:
    def __init__(self, manifest: Json, world: World) -> None:
        self.manifest = manifest
        self.world = world
        self.uid: str = manifest["metadata"]["uid"]
        self.name: str = manifest["metadata"]["name"]
        self.space: str = manifest["metadata"]["namespace"]
        self.namespace: Namespace | None = None
        self.message = ""
        spec = manifest["spec"]
        self._inits = [State(c) for c in spec.get("initContainers", ())]
        self._mains = [State(c) for c in spec["containers"]]
        self._directory: Path = world.directory / self.uid
        self._volumes: dict[str, Path] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._run = asyncio.create_task(self._begin())

    # --- what it looks like from outside ------------------------------------------------------------------------------

    @property
    def ip(self) -> str:
        return self.namespace.ip if self.namespace else ""

    @property
    def app(self) -> str:
        return str(self.manifest["metadata"].get("labels", {}).get("app", ""))

    @property
    def ready(self) -> bool:
        sidecars = [s for s in self._inits if podspec.is_native_sidecar(s.spec)]
        return not self._stopping and all(s.ready for s in (*sidecars, *self._mains))

    @property
    def phase(self) -> str:
        codes = [s.exit_code for s in self._mains]
        if all(code is not None for code in codes):
            return "Failed" if any(codes) else "Succeeded"
        return "Running" if any(s.container for s in self._mains) else "Pending"

    def status(self) -> Json:
        initialized = all(s.started if podspec.is_native_sidecar(s.spec) else s.exit_code == 0 for s in self._inits)
        truth = {"Initialized": initialized, "ContainersReady": self.ready, "Ready": self.ready}
        return {
            "phase": self.phase,
            "message": self.message,
            "hostIP": self.world.network.host_ip,
            "podIP": self.ip,
            "podIPs": [{"ip": self.ip}] if self.ip else [],
            "conditions": [{"type": name, "status": str(value)} for name, value in truth.items()],
            "initContainerStatuses": [s.status() for s in self._inits],
            "containerStatuses": [s.status() for s in self._mains],
        }

    def write_hosts(self, names: Mapping[str, str]) -> None:
        """What the cluster's DNS would say: service name -> address of a ready pod."""
        lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in sorted(names.items()))]
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            self._hosts.write_text("\n".join(lines) + "\n")

    def log_of(self, container: str) -> Path:
        return Path(self.world.logs, f"{self.name}-{container}.log")

    def volume(self, name: str) -> Path:
        """Where a volume's files lie on this machine."""
        return self._volumes[name]

    @property
    def _hosts(self) -> Path:
        return self._directory / "hosts"

    @property
    def _resolver(self) -> Path:
        return self._directory / "resolv.conf"

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        try:
            self._directory.mkdir(parents=True)
            self._hosts.touch()
            self._resolver.touch()  # no name server: what is not in the hosts file has no address, at once
            self.namespace = await self.world.network.join()
            self.manifest["status"] = {"podIP": self.ip, "hostIP": self.world.network.host_ip}
            self.world.changed(self)
            await self._capture()
            await self._filled()
            self._spawn(self._refresh_volumes())
            for state in self._inits:
                await self._initialize(state)
            for state in self._mains:
                self._spawn(self._keep(state))
        except Exception as error:  # noqa: BLE001  whatever is wrong with a pod is that pod's status
            self.message = f"{type(error).__name__}: {error}"
            self.world.changed(self)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        """A task that ends with the pod at the latest."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def _capture(self) -> None:
        """What Istio's CNI plugin does: traffic of a pod with a sidecar goes through the sidecar."""
        for state in (*self._inits, *self._mains):
            if state.spec["name"] == "istio-proxy" and "sidecar" in state.spec.get("args", ()):
                assert self.namespace is not None  # noqa: S101
                command = ("ip", "netns", "exec", self.namespace.name, str(self.world.pilot_agent), "istio-iptables")
                told = self.manifest["metadata"].get("annotations", {})
                names = {flag: f"traffic.sidecar.istio.io/{name}" for flag, name in _CAPTURED.items()}
                captured = [word for flag, name in names.items() for word in (flag, told.get(name, "*"))]
                await run(*command, *_CAPTURE.split(" "), *captured)

    async def _initialize(self, state: State) -> None:
        if podspec.is_native_sidecar(state.spec):
            self._spawn(self._keep(state))
            await state.up.wait()
            return
        while True:
            await self._start(state)
            state.exit_code = await state.container.wait() if state.container else 1
            if state.exit_code == 0:
                return
            state.restarts += 1
            state.waiting = "CrashLoopBackOff"
            self.world.changed(self)
            await asyncio.sleep(_RESTART_SECONDS)

    # --- volumes ------------------------------------------------------------------------------------------------------

    async def _filled(self) -> None:
        """All volumes are there: what they name may come later than the pod."""
        while True:
            try:
                return await self._fill_volumes()
            except podspec.Missing as missing:
                self.message = f"waits: {missing}"
                self.world.changed(self)
                await asyncio.sleep(0.2)

    async def _fill_volumes(self) -> None:
        group = self.manifest["spec"].get("securityContext", {}).get("fsGroup")
        for volume in self.manifest["spec"].get("volumes", ()):
            name = volume["name"]
            path = self._directory / "volumes" / name
            if "persistentVolumeClaim" in volume:
                path = self.world.directory / "claims" / self.space / volume["persistentVolumeClaim"]["claimName"]
            path.mkdir(parents=True, exist_ok=True)
            if group is not None:
                shutil.chown(path, group=group)
            path.chmod(0o2775 if group is not None else 0o777)
            self._volumes[name] = path
        await asyncio.to_thread(self._write_volumes)

    def _write_volumes(self) -> None:
        for volume in self.manifest["spec"].get("volumes", ()):
            content = podspec.volume_files(self.manifest, volume, self._lookup, self._token)
            if content is None:
                continue
            root = self._volumes[volume["name"]]
            for path in [path for path in root.rglob("*") if path.is_file()]:
                if str(path.relative_to(root)) not in content:
                    path.unlink()
            for name, data in content.items():
                path = root / name
                if not path.exists() or path.read_bytes() != data:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    fresh = path.with_name(f".{path.name}")
                    fresh.write_bytes(data)
                    fresh.rename(path)

    async def _refresh_volumes(self) -> None:
        while True:
            await asyncio.sleep(_FILES_SECONDS)
            with contextlib.suppress(podspec.Missing):
                await asyncio.to_thread(self._write_volumes)

    def _lookup(self, kind: str, name: str) -> Json | None:
        return self.world.lookup(kind, self.space, name)

    def _token(self, projection: Json) -> str:
        return self.world.token(self.space, self.manifest["spec"]["serviceAccountName"], projection)

    # --- containers ---------------------------------------------------------------------------------------------------

    async def _keep(self, state: State) -> None:
        """A container that is to run for as long as the pod does (or, in a Job's pod, until it has done its work)."""
        policy = "Always" if podspec.is_native_sidecar(state.spec) else self.manifest["spec"]["restartPolicy"]
        while True:
            state.exit_code = None
            try:
                await self._start(state)
                assert state.container is not None  # noqa: S101
                watch = self._spawn(self._watch(state, state.container))
                code = await state.container.wait()
                watch.cancel()
            except podspec.Missing as missing:
                self.message, code = str(missing), 1
                state.waiting = "CreateContainerConfigError"
            state.container, state.ready = None, False
            if self._stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                state.exit_code = code
                self.world.changed(self)
                return
            state.restarts += 1
            self.world.changed(self)
            await asyncio.sleep(_RESTART_SECONDS)

    async def _start(self, state: State) -> None:
        spec = state.spec
        environment = podspec.environment(self.manifest, spec, self._lookup)
        image = self.world.images(spec["image"])
        mounts = [self._mount(m) for m in spec.get("volumeMounts", ())]
        context = {**self.manifest["spec"].get("securityContext", {}), **spec.get("securityContext", {})}
        user = int(context.get("runAsUser", 0))
        groups = tuple(g for g in (context.get("fsGroup"),) if g is not None)
        process = Process(
            image=image,
            command=podspec.command(spec, list(image.entrypoint), environment),
            environment=environment,
            mounts=[Mount("/etc/hosts", self._hosts), Mount("/etc/resolv.conf", self._resolver), *mounts],
            identity=Identity(user, int(context.get("runAsGroup", 0)), groups),
            namespace=self.namespace.name if self.namespace else "",
            directory=self._directory / "roots" / f"{spec['name']}-{state.restarts}",
            log=self.log_of(spec["name"]),
            read_only=bool(context.get("readOnlyRootFilesystem")),
        )
        state.container = Container(process)
        await state.container.start()
        self.world.changed(self)

    def _mount(self, mount: Json) -> Mount:
        source = self._volumes[mount["name"]]
        if "subPath" in mount:
            source = source / mount["subPath"]
            source.mkdir(exist_ok=True)
        return Mount(mount["mountPath"], source, mount.get("readOnly", False))

    async def _watch(self, state: State, container: Container) -> None:
        """Startup, then readiness and liveness for as long as it runs."""
        spec = state.spec
        state.started = False
        if "startupProbe" in spec:
            probe = probes.Probe(spec["startupProbe"], spec, self.ip, container)
            while not await probe.turn():
                if probe.passing is False:
                    container.signal(signal.SIGKILL)
                    return
        state.started = True
        state.up.set()
        state.ready = "readinessProbe" not in spec
        self.world.changed(self)
        await asyncio.gather(self._readiness(state, container), self._liveness(state, container))

    async def _readiness(self, state: State, container: Container) -> None:
        if "readinessProbe" not in state.spec:
            return
        probe = probes.Probe(state.spec["readinessProbe"], state.spec, self.ip, container)
        while True:
            passing = await probe.turn()
            if passing is not None and passing != state.ready:
                state.ready = passing
                self.world.changed(self)

    async def _liveness(self, state: State, container: Container) -> None:
        if "livenessProbe" not in state.spec:
            return
        probe = probes.Probe(state.spec["livenessProbe"], state.spec, self.ip, container)
        while await probe.turn() is not False:
            pass
        container.signal(signal.SIGKILL)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def stop(self, grace_seconds: float) -> None:
        """preStop, SIGTERM, and after the grace period SIGKILL; then the native sidecars, last first."""
        self._stopping = True
        self.world.changed(self)
        if not self._run.done():
            self._run.cancel()
        deadline = time.monotonic() + grace_seconds
        await asyncio.gather(*(self._end(s, deadline) for s in self._mains))
        for state in reversed(self._inits):
            await self._end(state, max(deadline, time.monotonic() + 2))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self._run, return_exceptions=True)
        if self.namespace is not None:
            await self.world.network.leave(self.namespace)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _end(self, state: State, deadline: float) -> None:
        container = state.container
        if container is None:
            return
        hook = state.spec.get("lifecycle", {}).get("preStop")
        if hook:
            await probes.act(hook, state.spec, self.ip, container, max(0.1, deadline - time.monotonic()))
        container.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(container.wait(), max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            container.signal(signal.SIGKILL)
            await container.wait()

    def kill(self, container: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Do a container harm; it is started again, as anywhere."""
        for state in (*self._inits, *self._mains):
            if state.spec["name"] == container and state.container is not None:
                state.container.signal(number)
