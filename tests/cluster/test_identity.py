"""Who may speak to whom: the gateway alone asks models, its processor alone reaches the store, nobody in plaintext."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_rig import Json, Mesh
from stack_rig import Platform

QUESTION = json.dumps(
    {"model": "meta-llama/Llama-2-7b-chat-hf", "messages": [{"role": "user", "content": "Hi"}]}
).encode()
HEAD = b"host: llama2\r\nconnection: close\r\n"
ASK = b"POST /v1/chat/completions HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
ASK %= HEAD, len(QUESTION), QUESTION
SCRAPE = b"GET /metrics HTTP/1.1\r\n%s\r\n" % HEAD
PING = b"PING\r\n"


@pytest.fixture(scope="module")
def intruder(mesh: Mesh) -> Iterator[Path]:
    """The certificates of another workload of the same namespace, given to it by istiod as to any."""
    mesh.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "intruder"}})
    mesh.apply(_workload("intruder"))
    mesh.settled()
    (pod,) = mesh.pods("intruder")
    yield pod.volume("certificates")
    mesh.kubectl("delete", "deployment,serviceaccount", "intruder")


def _workload(name: str) -> Json:
    """A proxy without a service: a pod that has an identity and nothing else."""
    annotations = {
        "inject.istio.io/templates": "gateway",
        "proxy.istio.io/config": "proxyMetadata: {OUTPUT_CERTS: /var/run/llm-certs}",
    }
    closed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    proxy = {
        "name": "istio-proxy",
        "image": "auto",
        "securityContext": {**closed, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumeMounts": [{"name": "certificates", "mountPath": "/var/run/llm-certs"}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
    }
    pod = {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {
            "serviceAccountName": name,
            "containers": [proxy],
            "volumes": [{"name": "certificates", "emptyDir": {}}],
        },
    }
    spec = {"selector": {"matchLabels": {"app": name}}, "template": pod}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def gateway(mesh: Mesh) -> Path:
    """The gateway's own certificates."""
    return mesh.pods("llm-gateway")[0].volume("certificates")


def say(mesh: Mesh, app: str, port: int, message: bytes, certificates: Path | None = None) -> bytes:
    """What a workload answers first to these bytes; nothing if it closes the connection instead."""
    sock = socket.create_connection((mesh.pods(app)[0].ip, port), timeout=5)
    try:
        if certificates is not None:
            sock = _context(certificates).wrap_socket(sock)
        sock.sendall(message)
        return sock.recv(65536)
    except OSError:
        return b""
    finally:
        sock.close()


def _context(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "root-cert.pem"))
    context.check_hostname = False  # workload certificates name an identity, no host
    context.load_cert_chain(str(certificates / "cert-chain.pem"), str(certificates / "key.pem"))
    return context


def status(answer: bytes) -> str:
    return answer.split(b" ", 2)[1].decode() if answer else "closed"


def test_the_gateway_gets_answers_of_a_model_and_not_its_metrics(mesh: Mesh, gateway: Path) -> None:
    assert status(say(mesh, "llama2", 8000, ASK, gateway)) == "200"
    assert status(say(mesh, "llama2", 8000, SCRAPE, gateway)) == "403"


def test_another_identity_is_refused_by_a_model(mesh: Mesh, intruder: Path) -> None:
    assert status(say(mesh, "llama2", 8000, ASK, intruder)) == "403"
    assert status(say(mesh, "llama2", 8000, SCRAPE, intruder)) == "403"


def test_plaintext_is_refused_by_a_model(mesh: Mesh) -> None:
    assert status(say(mesh, "llama2", 8000, ASK)) == "closed"


def test_the_store_answers_the_gateway_alone(mesh: Mesh, gateway: Path, intruder: Path) -> None:
    assert say(mesh, "valkey", 6379, PING, gateway) == b"+PONG\r\n"
    assert say(mesh, "valkey", 6379, PING, intruder) == b""
    assert say(mesh, "valkey", 6379, PING) == b""


def test_a_certificate_of_nobody_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("llama2")
    (tmp_path / "cert-chain.pem").write_bytes(b"".join(c.bytes() for c in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (gateway, *_) = mesh.pods("llm-gateway")
    (tmp_path / "root-cert.pem").write_bytes((gateway.volume("certificates") / "root-cert.pem").read_bytes())
    assert status(say(mesh, "llama2", 8000, ASK, tmp_path)) == "closed"


def test_the_certificate_that_clients_see_is_the_secrets(platform: Platform) -> None:
    port = platform.stack.https_port
    context = ssl.create_default_context(cafile=str(platform.stack.ca_file))
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    with context.wrap_socket(sock, server_hostname="localhost") as link:
        assert link.version() in {"TLSv1.2", "TLSv1.3"}
