"""Throw-away certificates for one control plane: a CA, the servers' certificate, one per client, and the key that signs
service-account tokens. Who a client is stands in its certificate: common name = user, organisation = group.
"""

import base64
from pathlib import Path

import trustme
import yaml

_SERVER_NAMES = "127.0.0.1", "localhost", "kubernetes.default.svc"
_CONTEXT = "llm-mesh"
MASTERS = "system:masters"  # the group that RBAC lets do everything


class Pki:
    """Everything is written into `directory` as PEM files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))
        self.server_certificate, self.server_key = self._write("server", self._authority.issue_cert(*_SERVER_NAMES))
        # Any key pair will do: the certificate that comes with this one is not used.
        self.token_key = self._write("tokens", self._authority.issue_cert("tokens"))[1]

    def kubeconfig(self, user: str, server: str, group: str | None = None) -> Path:
        """A file that lets its holder speak to the API server as this user."""
        # A name besides the user's: Go refuses trustme's certificates without one.
        issued = self._authority.issue_cert("client", common_name=user, organization_name=group)
        cluster = {"server": server, "certificate-authority-data": _base64(self._authority.cert_pem)}
        credentials = {
            "client-certificate-data": _base64(issued.cert_chain_pems[0]),
            "client-key-data": _base64(issued.private_key_pem),
        }
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": _CONTEXT, "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": _CONTEXT, "context": {"cluster": _CONTEXT, "user": user}}],
            "current-context": _CONTEXT,
        }
        path = self.directory / f"{user.rpartition(':')[2]}.kubeconfig"
        path.write_text(yaml.safe_dump(text, sort_keys=False))
        path.chmod(0o600)
        return path

    def _write(self, name: str, issued: trustme.LeafCert) -> tuple[Path, Path]:
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key


def _base64(pem: trustme.Blob) -> str:
    return base64.b64encode(pem.bytes()).decode()
