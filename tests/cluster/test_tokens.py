"""The component jwt: tokens of an identity provider beside API keys, checked by the gateway's Envoy."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from mesh_rig import Json, Mesh
from stack_rig import NO_TLS, Caller, ask, error_of, eventually

OVERLAY = Path(__file__).parent / "tokens"
ISSUER, AUDIENCE = "https://issuer.example.com/", "llm"
Token = Callable[..., str]


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """An identity provider: one key pair, and tokens signed with it."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwks(self) -> str:
        numbers = self._key.public_key().public_numbers()
        n, e = (encoded(v.to_bytes((v.bit_length() + 7) // 8, "big")) for v in (numbers.n, numbers.e))
        return json.dumps({"keys": [{"kty": "RSA", "kid": "one", "alg": "RS256", "use": "sig", "n": n, "e": e}]})

    def token(self, **claims: Any) -> str:
        usual = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "tenant": "acme", "sub": "ann"}
        head = {"alg": "RS256", "kid": "one", "typ": "JWT"}
        parts = [encoded(json.dumps(part).encode()) for part in (head, {**usual, **claims})]
        signature = self._key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, encoded(signature)])


@pytest.fixture(scope="module")
def issuer(mesh: Mesh) -> Iterator[Issuer]:
    issuer = Issuer()
    mesh.kustomize(OVERLAY)
    keys: list[Json] = [
        {"op": "remove", "path": "/spec/jwtRules/0/jwksUri"},
        {"op": "add", "path": "/spec/jwtRules/0/jwks", "value": issuer.jwks()},
    ]
    mesh.patch("requestauthentication", "jwt", keys)
    configuration = mesh.get("configmap", "llm-mesh")["data"]["llm-mesh.yaml"]
    with_tokens = [
        {"op": "replace", "path": "/data/llm-mesh.yaml", "value": configuration + '\njwt: {models: ["*"]}\n'}
    ]
    mesh.patch("configmap", "llm-mesh", with_tokens)
    eventually(lambda: chat(mesh, issuer.token()).status_code == 200)
    yield issuer
    mesh.kubectl("delete", "requestauthentication/jwt", "envoyfilter/llm-token")
    mesh.kustomize(mesh.stack.settings.overlay)


def chat(mesh: Mesh, token: str, scheme: str = "Bearer", **headers: str) -> httpx.Response:
    with httpx.Client(base_url=mesh.stack.base_url, verify=NO_TLS) as client:
        credentials = {"authorization": f"{scheme} {token}"}
        return client.post("/chat/completions", json=ask(max_tokens=1), headers={**credentials, **headers})


def test_a_good_token_is_served_and_charged_to_its_tenant(mesh: Mesh, issuer: Issuer) -> None:
    with Caller(mesh.platform, tenant="token-tenant") as account:
        assert chat(mesh, issuer.token(tenant="token-tenant", sub="zoe")).status_code == 200
        account.settled(1)


def test_the_model_list_is_for_tokens_too(mesh: Mesh, issuer: Issuer) -> None:
    with httpx.Client(base_url=mesh.stack.base_url, verify=NO_TLS) as client:
        answer = client.get("/models", headers={"authorization": f"Bearer {issuer.token()}"})
    assert [card["id"] for card in answer.json()["data"]]


def test_keys_go_on_to_work(issuer: Issuer, caller: Caller) -> None:
    assert issuer
    assert caller.chat(max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"exp": 1_000_000_000}, 401),
        ({"iss": "https://elsewhere.example.com/"}, 401),
        ({"aud": "other"}, 403),
        ({"tenant": "{a}"}, 401),
        ({"sub": ""}, 401),
    ],
    ids=["expired", "another issuer", "another audience", "no name", "no user"],
)
def test_a_token_that_does_not_hold_is_refused(mesh: Mesh, issuer: Issuer, claims: Json, status: int) -> None:
    answer = chat(mesh, issuer.token(**claims))
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"


def test_another_signature_is_401(mesh: Mesh, issuer: Issuer) -> None:
    assert issuer
    assert chat(mesh, Issuer().token()).status_code == 401


def test_a_client_that_names_itself_is_not_believed(mesh: Mesh, issuer: Issuer, caller: Caller) -> None:
    names = {"x-llm-tenant": "acme", "x-llm-user": "root", "x-llm-token": "Bearer " + issuer.token()}
    assert chat(mesh, "nothing", **names).status_code == 401
    answer = caller.chat(max_tokens=1, headers=names)
    assert answer.status_code == 200
    caller.settled(1)


def test_no_token_and_no_claim_reaches_a_backend(mesh: Mesh, issuer: Issuer) -> None:
    token = issuer.token()
    assert chat(mesh, token).status_code == 200
    with httpx.Client(verify=NO_TLS) as client:
        seen = [client.get(f"http://{address}/sim/requests").text for address in mesh.stack.models.values()]
    assert not any(token in text or "x-llm-token" in text or "x-llm-tenant" in text for text in seen)
