"""Callers with a verified token, through the whole platform. A filter of the test's own stands in for the gateway's
RequestAuthentication: it takes `x-verified` for what a token said."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from stack_rig import NO_TLS, Platform, ask, error_of, eventually, running, unique, usage_rows, write_config

from extproc.local.stack import ROOT, Settings

_LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
_CODE = """
function envoy_on_request(h)
  local headers = h:headers()
  for _, name in ipairs({"tenant", "user"}) do
    local said = headers:get("x-verified-" .. name)
    if said then headers:replace("x-llm-" .. name, said) end
  end
  h:clearRouteCache()
end
"""


def _stand_in() -> dict[str, object]:
    value = {"name": "stand-in", "typed_config": {"@type": _LUA, "default_source_code": {"inline_string": _CODE}}}
    patch = {"applyTo": "HTTP_FILTER", "match": {}, "patch": {"operation": "INSERT_BEFORE", "value": value}}
    return {"metadata": {"name": "stand-in"}, "spec": {"priority": -1, "configPatches": [patch]}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("tokens")
    mesh = Path(shutil.copytree(ROOT / "mesh", folder / "mesh"))
    (mesh / "envoyfilter" / "stand-in.yaml").write_text(yaml.safe_dump(_stand_in()))
    config = write_config(folder / "llm-mesh.yaml", lambda text: text.update(jwt={"max_in_flight": 1}))
    with running(Settings(folder / "run", config=config, mesh=mesh)) as platform:
        yield platform


@pytest.fixture
def http(gateway: Platform) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.stack.base_url, verify=NO_TLS, timeout=30) as client:
        yield client


def verified(tenant: str, user: str, authorization: str = "Bearer eyJhbGciOi") -> dict[str, str]:
    return {"x-verified-tenant": tenant, "x-verified-user": user, "authorization": authorization}


def test_a_verified_token_is_answered_counted_and_settled(gateway: Platform, http: httpx.Client) -> None:
    headers = verified("tokens", "ann@acme.example")
    assert http.get("/models", headers=headers).status_code == 200
    for stream in (False, True):
        answer = http.post("/chat/completions", json=ask(max_tokens=3, stream=stream), headers=headers)
        assert (answer.status_code, answer.headers["x-llm-model"]) == (200, "llama2")
        eventually(lambda: gateway.redis.hlen("llm:{tokens}:reserved") == 0)  # one at a time
    rows = [row for row in usage_rows(gateway) if row["tenant"] == "tokens"]
    assert [(row["user"], row["key_id"], row["model"], row["requests"]) for row in rows] == [
        ("ann@acme.example", "jwt", "llama2", 2)
    ]
    assert not gateway.redis.keys("llm:{tokens}:flight:*")


def test_what_a_client_says_of_itself_is_no_token(http: httpx.Client) -> None:
    claims = {"x-llm-tenant": "tokens", "X-LLM-User": "ann"}
    for more in ({}, {"authorization": "Bearer eyJhbGciOi"}, {"connection": "x-llm-tenant"}):
        listed = http.get("/models", headers=claims | more)
        asked = http.post("/chat/completions", json=ask(), headers=claims | more)
        for answer in (listed, asked):
            assert answer.status_code == 401
            assert "API key" in error_of(answer)["message"]


def test_a_name_that_may_not_stand_in_our_books_is_refused(http: httpx.Client) -> None:
    answer = http.post("/chat/completions", json=ask(), headers=verified("{tokens}", "ann"))
    assert answer.status_code == 401
    assert error_of(answer)["message"].startswith("The tenant that the token names can not be used")


def test_a_key_goes_before_a_token(gateway: Platform, http: httpx.Client) -> None:
    tenant = unique("by-key").replace(" ", "-")
    key = gateway.key(tenant=tenant)
    answer = http.post("/chat/completions", json=ask(max_tokens=1), headers=verified("tokens", "eve", f"Bearer {key}"))
    assert answer.status_code == 200
    eventually(lambda: [r["key_id"] for r in usage_rows(gateway) if r["tenant"] == tenant])
    assert "eve" not in {row["user"] for row in usage_rows(gateway)}
