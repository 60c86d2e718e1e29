"""A canary behind the real istiod: usage, ledger, metrics, log and console name the arm that answered."""

import secrets
from collections import Counter
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from mesh_rig import CANARY, Json, Mesh, count
from stack_rig import NO_TLS, Caller, Metrics, cli, eventually, log_lines, unique, usage_rows

MODEL = "mistral"
REQUESTS = 120
SECRET = "llm-admin-token"


@pytest.fixture(scope="module")
def split(mesh: Mesh) -> Iterator[tuple[str, str]]:
    """Two thirds of the model's requests at the first arm, a third at the other; where each is looked into."""
    (stable,) = mesh.pods(MODEL)
    with mesh.arm(MODEL) as canary:
        mesh.weigh(MODEL, 67, 33)
        yield mesh.door(stable), mesh.door(canary)


def asked(caller: Caller, marker: str, requests: int = REQUESTS) -> None:
    for n in range(requests):
        assert caller.chat(f"{marker} {n}", model=MODEL, max_tokens=3).status_code == 200


def test_what_each_arm_served_is_counted_to_it_everywhere(mesh: Mesh, caller: Caller, split: tuple[str, str]) -> None:
    marker, platform = unique("arms"), mesh.platform
    before = Metrics(platform)
    asked(caller, marker)
    seen = {"stable": count(split[0], marker), CANARY: count(split[1], marker)}
    assert sum(seen.values()) == REQUESTS
    assert all(seen.values())

    account = caller.settled(REQUESTS)
    rows = [row for row in usage_rows(platform) if row["tenant"] == caller.tenant]
    assert {row["arm"]: row["requests"] for row in rows} == seen
    assert sum(row["cost_micros"] for row in rows) == account["cost_micros"]

    ledger = [entry for _, entry in platform.redis.xrange(f"llm:{{{caller.tenant}}}:ledger")]
    assert Counter(msgspec.json.decode(entry["line"])["arm"] for entry in ledger) == seen

    def moved() -> dict[str, float]:
        now = Metrics(platform)
        labels = [{"model": MODEL, "arm": arm, "status": "200"} for arm in seen]
        return {
            one["arm"]: now.value("llm_arm_requests_total", **one) - before.value("llm_arm_requests_total", **one)
            for one in labels
        }

    eventually(lambda: moved() == seen)
    eventually(lambda: Counter(line["arm"] for line in log_lines(platform, tenant=caller.tenant)) == seen)
    said = cli(platform, "usage", "--by", "tenant,model,arm", "--csv").stdout.splitlines()
    assert len([line for line in said if caller.tenant in line]) == len(seen)


# --- the console ------------------------------------------------------------------------------------------------------


@pytest.fixture
def token(mesh: Mesh) -> Iterator[str]:
    """The Secret as docs/deployment.md makes it, for as long as the test."""
    token = secrets.token_urlsafe(24)
    command = ("create", "secret", "generic", SECRET, "--from-file=token=/dev/stdin")
    mesh.kubectl(*command, text=token)
    yield token
    mesh.kubectl("delete", "secret", SECRET, "--ignore-not-found")


def console(mesh: Mesh, path: str, token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(verify=NO_TLS, base_url=mesh.stack.admin_url) as client:
        return client.get(f"/console/{path}", headers=headers)


def opened(mesh: Mesh, token: str) -> bool:
    return console(mesh, "api/live", token).status_code == 200


def test_the_console_opens_with_the_secret_and_closes_with_it(
    mesh: Mesh, caller: Caller, request: pytest.FixtureRequest
) -> None:
    assert caller.chat(max_tokens=1).status_code == 200
    pods = {pod.uid for pod in mesh.pods("llm-gateway")}
    assert console(mesh, "").status_code == 404
    token = request.getfixturevalue("token")
    eventually(lambda: opened(mesh, token))
    assert console(mesh, "api/live").status_code == 401
    assert console(mesh, "api/live", "another-" + token).status_code == 401
    assert console(mesh, "login").status_code == 200
    assert console(mesh, "").status_code == 303  # to the login page

    rotated = secrets.token_urlsafe(24)
    mesh.apply(secret(rotated))
    eventually(lambda: not opened(mesh, token))  # asked with the new one too early we would be locked out
    assert opened(mesh, rotated)
    mesh.kubectl("delete", "secret", SECRET)
    eventually(lambda: console(mesh, "api/live", rotated).status_code == 404)
    assert {pod.uid for pod in mesh.pods("llm-gateway")} == pods


def secret(token: str) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"token": token}}


def test_the_console_shows_the_arms(mesh: Mesh, caller: Caller, split: tuple[str, str], token: str) -> None:
    assert split
    eventually(lambda: opened(mesh, token))
    asked(caller, unique("shown"), 30)
    caller.settled(30)

    def live() -> bool:
        arms = console(mesh, "api/live", token).json()["arms"]
        return {(MODEL, "stable"), (MODEL, CANARY)} <= {(arm["model"], arm["arm"]) for arm in arms}

    eventually(live)

    used = console(mesh, "api/usage?by=arm&span=today", token).json()["lines"]
    assert {(MODEL, "stable"), (MODEL, CANARY)} <= {tuple(line["names"]) for line in used if line["requests"]}
