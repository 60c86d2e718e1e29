"""Callers with a token that the gateway has verified, beside those with a key of ours."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from envoy_messages import error_of, headers, read, request, ticket_of, told
from hypothesis import given
from hypothesis import strategies as st
from test_processor import ASK, BEARER, Away, ask, settled, worker
from unit_rig import CATALOGUE, changed

from extproc import config, keys
from extproc.admission import Fill, Settlement
from extproc.callers import Callers
from extproc.errors import ApiError
from extproc.processor import Processor
from extproc.store import MemoryStore
from extproc.store.keyspace import tenant_prefix

ANN = {"x_llm_tenant": "acme-eu", "x_llm_user": "ann@acme.example"}
TAKEN = changed(jwt={})

Message = Callable[..., Any]


def listing(**fields: str) -> Any:
    return headers(method="GET", path="/v1/models", **fields)


def chat(**fields: str) -> Any:
    return request(ASK, **fields)


async def refusal(catalogue: config.Catalogue, message: Any) -> tuple[int, str]:
    """Status and words of a refusal."""
    reply = await ask(await worker(catalogue=catalogue), message)
    assert error_of(reply)[1] == "invalid_api_key"
    immediate = read(reply).immediate_response
    return immediate.status.code, json.loads(immediate.body)["error"]["message"]


async def test_a_verified_token_is_a_caller_of_its_tenant_and_user() -> None:
    reply = await ask(await worker(catalogue=TAKEN), chat(**ANN, authorization="Bearer eyJhbGciOi"))
    assert told(reply)["model"] == "llama2"
    ticket = ticket_of(reply)
    assert (ticket.tenant, ticket.user, ticket.key_id) == ("acme-eu", "ann@acme.example", "jwt")


@pytest.mark.parametrize("authorization", ["", "Bearer eyJhbGciOi", "Basic YTpi", "Bearer sk-proj-x", "sk-llm-x"])
@pytest.mark.parametrize("message", [chat, listing])
async def test_a_token_counts_wherever_the_gateway_found_it(message: Message, authorization: str) -> None:
    reply = await ask(await worker(catalogue=TAKEN), message(**ANN, authorization=authorization))
    assert ticket_of(reply).tenant == "acme-eu"
    assert ticket_of(reply).reason == ""


@pytest.mark.parametrize("message", [chat, listing])
async def test_without_the_section_jwt_no_token_is_taken(message: Message) -> None:
    status, words = await refusal(CATALOGUE, message(**ANN))
    assert status == 401
    assert words.startswith("Tokens are not accepted here.")


@pytest.mark.parametrize("message", [chat, listing])
async def test_a_key_of_ours_goes_before_a_token(message: Message) -> None:
    made = await worker(catalogue=TAKEN)
    assert ticket_of(await ask(made, message(**ANN, authorization=BEARER))).key_id == "key_1"
    for unknown in (BEARER + "x", "bearer sk-llm-", "Bearer sk-llm-" + "x" * 200):
        reply = await ask(made, message(**ANN, authorization=unknown))
        assert error_of(reply) == (401, "invalid_api_key")
        assert ticket_of(reply).tenant == ""


@pytest.mark.parametrize("authorization", ["", "Bearer eyJhbGciOi", "Basic YTpi"])
async def test_without_the_gateways_word_the_refusal_is_as_before(authorization: str) -> None:
    before = await refusal(CATALOGUE, chat(authorization=authorization))
    assert await refusal(TAKEN, chat(authorization=authorization)) == before
    assert before[0] == 401


@pytest.mark.parametrize("message", [chat, listing])
@pytest.mark.parametrize("field", ["x_llm_tenant", "x_llm_user"])
@pytest.mark.parametrize(
    "name",
    ["{acme}", "a}b", "a:b", "a b", "a/b", "a|b", "a%20b", "a,b", "a\nb", "ann\n", "é", "-a", ".", "@", "x" * 64, "*"],
)
async def test_a_name_that_may_not_stand_in_our_books_is_refused(message: Message, field: str, name: str) -> None:
    status, words = await refusal(TAKEN, message(**{**ANN, field: name}))
    assert status == 401
    assert words.startswith(f"The {field[6:]} that the token names can not be used: letters, digits")


@pytest.mark.parametrize("field", ["x_llm_tenant", "x_llm_user"])
async def test_a_token_that_names_only_one_of_the_two_is_refused(field: str) -> None:
    assert await refusal(TAKEN, chat(**{**ANN, field: ""})) == (401, f"The token names no {field[6:]}.")


@pytest.mark.parametrize("name", ["a", "x" * 63, "0", "a.b-c_d@e", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"])
async def test_a_name_that_a_key_may_have_a_token_may_have(name: str) -> None:
    reply = await ask(await worker(catalogue=TAKEN), chat(x_llm_tenant=name, x_llm_user=name))
    assert (ticket_of(reply).tenant, ticket_of(reply).user) == (name, name)


async def test_the_section_says_which_models_tokens_may_use() -> None:
    made = await worker(catalogue=changed(jwt={"models": ["mistral", "bge"]}))
    listed = json.loads(read(await ask(made, listing(**ANN))).immediate_response.body)
    assert [m["id"] for m in listed["data"]] == ["mistral", "bge"]
    assert error_of(await ask(made, chat(**ANN))) == (404, "model_not_found")


async def test_limits_are_those_of_the_tenant() -> None:
    tenants = [{"name": "acme-eu", "limits": {"requests_per_minute": 2, "max_in_flight": 9}}]
    made = await worker(catalogue=changed(jwt={}, tenants=tenants))
    replies = [await ask(made, chat(**ANN)) for _ in range(3)]
    assert ticket_of(replies[0]).limits == made.catalogue.tenant_limits["acme-eu"]
    assert error_of(replies[2]) == (429, "rate_limit_exceeded")
    other = await ask(made, chat(**{**ANN, "x_llm_tenant": "other"}))
    assert ticket_of(other).limits == made.catalogue.limits


async def test_requests_in_flight_are_capped_for_each_user_and_a_settled_one_makes_room() -> None:
    made = await worker(catalogue=changed(jwt={"max_in_flight": 1}))
    bob = {**ANN, "x_llm_user": "bob"}
    first = await ask(made, chat(**ANN))
    assert error_of(await ask(made, chat(**ANN))) == (429, "rate_limit_exceeded")
    assert told(await ask(made, chat(**bob)))["forward"] is True
    await made.store.settle([by_token(ticket_of(first).request_id)])
    assert told(await ask(made, chat(**ANN)))["forward"] is True


def by_token(request_id: str) -> Settlement:
    """What came of Ann's request."""
    usual = settled(request_id, Fill("f", b"{}", 0, 0))
    return msgspec.structs.replace(usual, tenant="acme-eu", user="ann@acme.example", key_id="jwt")


async def test_the_usage_report_shows_token_callers_by_user_under_one_key() -> None:
    made = await worker(catalogue=TAKEN)
    ticket = ticket_of(await ask(made, chat(**ANN)))
    await made.store.settle([by_token(ticket.request_id)])
    [row] = await made.store.usage("1970-01-01", "1970-01-01")
    assert (row.tenant, row.user, row.key_id, row.requests) == ("acme-eu", "ann@acme.example", "jwt", 1)


async def test_while_the_store_is_away_tokens_are_still_callers() -> None:
    made = await worker(Away(lambda: 0), catalogue=TAKEN)
    assert told(await ask(made, chat(**ANN)))["forward"] is True


async def test_a_changed_configuration_holds_for_the_next_request() -> None:
    made = await worker(MemoryStore(lambda: 0), catalogue=TAKEN)
    processor = Processor(made)
    assert ticket_of(await processor.process(listing(**ANN), None)).tenant == "acme-eu"
    made.adopt(CATALOGUE)
    assert error_of(await processor.process(listing(**ANN), None)) == (401, "invalid_api_key")


async def test_callers_are_made_once_and_not_remembered_without_end() -> None:
    made = Callers((await worker()).keys, max_callers=3)
    first = made._of_token("acme", "ann", TAKEN)
    assert made._of_token("acme", "ann", TAKEN) is first
    for number in range(5):
        made._of_token("acme", f"u{number}", TAKEN)
    assert list(made._of_tokens.items) == [("acme", "u2"), ("acme", "u3"), ("acme", "u4")]


NAMES = st.text(max_size=70) | st.from_regex(keys.NAME, fullmatch=True)


@given(NAMES, NAMES)
def test_any_names_are_a_caller_whose_data_lies_in_one_slot_or_a_401(tenant: str, user: str) -> None:
    callers = Callers(keys.KeyRing(MemoryStore(lambda: 0), 1))
    refused = None
    try:
        callers._of_token(tenant, user, TAKEN)
    except ApiError as error:
        refused = error
    if refused is None:
        assert tenant_prefix(tenant).decode() == f"llm:{{{quote(tenant)}}}:"
        assert not set("{}: \n") & set(tenant + user)
    else:
        assert refused.status == 401
        assert json.loads(refused.body())
