"""kubectl, the one way in which these commands speak to a cluster: credentials, contexts and proxies are people's own.

KUBECONFIG is kubectl's; CONTEXT, if it is set, chooses one of its contexts.
"""

import json
import subprocess
from collections.abc import Iterable
from typing import Any

import yaml

from extproc.errors import LlmMeshError
from tools.overlays.build import KUBECTL
from tools.overlays.objects import Json

MANAGER = "llm-mesh"  # owner of the fields that we apply


class ClusterError(LlmMeshError):
    """The cluster can not be reached or says no; the message is kubectl's."""


class Kubectl:
    def __init__(self, context: str = "") -> None:
        self._command = [str(KUBECTL), *([f"--context={context}"] if context else [])]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl printed. Raises ClusterError."""
        done = subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(done.stderr.strip().removeprefix("error: ") or f"kubectl {arguments[0]} failed")
        return done.stdout

    def get(self, kinds: str, namespace: str, *options: str) -> list[Json]:
        """`namespace` is "" for kinds that have none."""
        where = [f"--namespace={namespace}"] if namespace else []
        text = self.run("get", kinds, *where, "--output=json", "--request-timeout=20s", *options)
        items: list[Json] = json.loads(text)["items"]
        return items

    def raw(self, path: str) -> Any:
        return json.loads(self.run("get", "--raw", path, "--request-timeout=10s"))

    def exists(self, kind: str, name: str, namespace: str = "") -> bool:
        where = [f"--namespace={namespace}"] if namespace else []
        return bool(self.run("get", kind, name, *where, "--ignore-not-found", "--output=name").strip())

    def apply(self, objects: Iterable[Json], *, force: bool = False) -> list[str]:
        """Server-side, under our own name; the lines that kubectl says of it."""
        options = ["--server-side", f"--field-manager={MANAGER}", *(["--force-conflicts"] if force else [])]
        text = yaml.dump_all(objects, Dumper=yaml.CSafeDumper, sort_keys=False)
        return self.run("apply", *options, "--filename=-", stdin=text).splitlines()

    def where(self) -> str:
        """Context and address, for people: a deploy to the wrong cluster is seen before it begins."""
        view = ("config", "view", "--minify", "--output=jsonpath={.current-context} ({.clusters[0].cluster.server})")
        return self.run(*view)

    def contexts(self) -> list[str]:
        return self.run("config", "get-contexts", "--output=name").split()
