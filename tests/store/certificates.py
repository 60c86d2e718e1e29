"""Workload certificates as a mesh makes them: no name in the subject, a SPIFFE identity in a critical URI SAN, good for
both ends of a connection; and the three files in which a proxy hands them to a neighbour."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

STORE = "spiffe://cluster.local/ns/llm/sa/valkey"
GATEWAY = "spiffe://cluster.local/ns/llm/sa/llm-gateway"


class Pair(msgspec.Struct, frozen=True):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
        made = _builder(self._name, self._name, self._key.public_key(), timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = made.add_extension(usage, critical=True)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, identity: str, lives: timedelta = timedelta(hours=1)) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = _builder(x509.Name([]), self._name, key.public_key(), lives)
        name = x509.UniformResourceIdentifier(identity)
        made = made.add_extension(x509.SubjectAlternativeName([name]), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Pair(certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lives: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    return made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + lives)


class Files:
    """A folder as a proxy's OUTPUT_CERTS fills it: three files, each replaced by a rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)

    def write(self, pair: Pair, authority: Authority) -> None:
        self.put("key.pem", pair.key)
        self.put("cert-chain.pem", pair.certificate)
        self.put("root-cert.pem", authority.pem)

    def put(self, name: str, content: bytes) -> None:
        part = self.folder / f".{name}"
        part.write_bytes(content)
        part.replace(self.folder / name)

    def url(self, port: int, *, identity: str = STORE, shown: bool = True) -> str:
        ours = f"&ssl_certfile={self.folder}/cert-chain.pem&ssl_keyfile={self.folder}/key.pem" if shown else ""
        return f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={self.folder}/root-cert.pem{ours}&ssl_uri_san={identity}"


def server_side(pair: Pair, authority: Authority, folder: Path) -> ssl.SSLContext:
    """As the store's own proxy: whoever shows no certificate of the authority is refused."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=authority.pem.decode())
    file = folder / "server.pem"
    file.write_bytes(pair.certificate + pair.key)
    made.load_cert_chain(file)
    return made
