"""What is charged for a request, from what the access log says."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import chat_plain, chat_stream, receipt, ticket

from extproc import pricing
from extproc.chat import Usage
from extproc.config import CacheConfig
from extproc.receipt import Charge, Receipt, arm_of, charge, settlement, time_per_output_token

COUNTED = b'{"prompt_tokens":13,"total_tokens":17,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}'
NOTHING = Charge(Usage(), exact=False, estimated=False)
STREAM = ticket(stream=True)
WORD = {"content": ["Hi"], "reasoning": [], "calls": [], "logprobs": [], "finish": "stop", "stop_reason": None}


def test_what_the_backend_counted_is_charged() -> None:
    assert charge(receipt(ticket(), usage=COUNTED)) == Charge(Usage(13, 4, 8), exact=True, estimated=False)


def test_counted_tokens_are_charged_even_if_the_client_left_then() -> None:
    assert charge(receipt(STREAM, usage=COUNTED, client_left=True)).exact


@pytest.mark.parametrize(
    "fields",
    [
        {"upstream": ""},
        {"status": 500},
        {"status": 400},
        {"status": 429},
        {"status": 500, "client_left": True},
        {"status": 503, "unreachable": True, "upstream": ""},
        {"status": 0, "unreachable": True, "client_left": True},
        {"status": 0},
        {"status": 302},
        {"body_bytes": 0},
    ],
)
def test_nothing_is_charged_where_the_upstream_gave_nothing(fields: dict[str, Any]) -> None:
    assert charge(receipt(ticket(), **fields)) == NOTHING


def test_a_hit_costs_nothing() -> None:
    assert charge(receipt(ticket(cache="hit"), usage=COUNTED)) == NOTHING


def test_a_client_that_leaves_before_the_answer_pays_for_its_prompt() -> None:
    left = receipt(ticket(), status=0, body_bytes=0, client_left=True)
    assert charge(left) == Charge(Usage(100, 0), exact=False, estimated=True)


def test_a_cut_stream_is_charged_one_token_an_event_scaled_to_its_bytes() -> None:
    cut = receipt(STREAM, client_left=True, events=17, marked_bytes=1700, body_bytes=2500)
    assert charge(cut) == Charge(Usage(100, 24), exact=False, estimated=True)


def test_a_stream_cut_before_its_first_mark_is_charged_its_prompt() -> None:
    assert charge(receipt(STREAM, client_left=True, body_bytes=90)).usage == Usage(100, 0)


def test_a_cut_plain_answer_is_charged_by_its_bytes() -> None:
    assert charge(receipt(ticket(), client_left=True, body_bytes=401)).usage == Usage(100, 100)


@pytest.mark.parametrize("usage", [b"{", b"[]", b'{"prompt_tokens":"many"}', b'{"prompt_tokens":-5}'])
def test_usage_that_is_none_is_estimated(usage: bytes) -> None:
    assert charge(receipt(ticket(), usage=usage)).estimated


RECEIPTS = st.builds(
    receipt,
    st.builds(ticket, stream=st.booleans(), cache=st.sampled_from(["hit", "miss", "bypass"]),
              prompt_tokens=st.integers(0, 9000), max_completion_tokens=st.integers(0, 9000)),
    status=st.sampled_from([0, 200, 201, 302, 400, 404, 429, 500, 503, 504]),
    body_bytes=st.integers(0, 10**7),
    upstream=st.sampled_from(["", "model-mistral"]),
    unreachable=st.booleans(),
    client_left=st.booleans(),
    usage=st.sampled_from([b"", COUNTED, b"{", b'{"prompt_tokens":5}']),
    events=st.integers(0, 100_000),
    marked_bytes=st.integers(0, 10**7),
    done=st.booleans(),
)  # fmt: skip


@given(RECEIPTS)
def test_a_charge_is_never_negative_and_an_estimate_never_above_its_reservation(made: Receipt) -> None:
    charged = charge(made)
    usage = charged.usage
    assert min(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) >= 0
    assert not (charged.exact and charged.estimated)
    if charged.estimated:
        assert usage.prompt_tokens <= made.ticket.prompt_tokens
        assert usage.completion_tokens <= made.ticket.max_completion_tokens
        reserved = Usage(made.ticket.prompt_tokens, made.ticket.max_completion_tokens)
        assert pricing.cost_micros(usage, made.ticket) <= pricing.cost_micros(reserved, made.ticket)
    if not charged.exact and not charged.estimated:
        assert usage == Usage()


@given(RECEIPTS)
def test_a_settlement_says_what_was_charged_and_to_whom(made: Receipt) -> None:
    charged = charge(made)
    settled = settlement(made, charged, CacheConfig())
    assert (settled.request_id, settled.tenant, settled.user, settled.key_id) == ("r-1", "acme", "ann", "key_1")
    assert (settled.prompt_tokens, settled.completion_tokens) == (
        charged.usage.prompt_tokens,
        charged.usage.completion_tokens,
    )
    assert settled.cost_micros == pricing.cost_micros(charged.usage, made.ticket)
    assert settled.hit == (made.ticket.cache == "hit")
    assert settled.fill is None


@pytest.mark.parametrize(
    ("cluster", "arm"),
    [
        ("outbound|8000|canary|mistral.llm.svc.cluster.local", "canary"),
        ("outbound|8000|stable|mistral.llm.svc.cluster.local", "stable"),
        ("outbound|8000||mistral.llm.svc.cluster.local", ""),
        ("model-mistral", "stable"),
        ("llm-receipts", ""),
        ("", ""),
    ],
)
def test_the_arm_is_the_subset_that_was_asked(cluster: str, arm: str) -> None:
    made = receipt(ticket(), upstream=cluster)
    assert (arm_of(cluster), made.arm, settlement(made, NOTHING, CacheConfig()).arm) == (arm, arm, arm)


# --- what is stored ---------------------------------------------------------------------------------------------------


def filled(answer: bytes, limit: int = 262_144, **fields: Any) -> Any:
    made = ticket(fingerprint="f" * 64, ttl_ms=1000, stream=answer.startswith(b"data"))
    usual = {"usage": COUNTED, "done": True, "body": base64.b64encode(answer).decode()}
    whole = receipt(made, **{**usual, **fields})
    return settlement(whole, charge(whole), CacheConfig(max_entry_bytes=limit, max_tenant_bytes=5)).fill


def test_a_whole_answer_is_stored() -> None:
    fill = filled(chat_plain([WORD]))
    assert (fill.fingerprint, fill.entry, fill.ttl_ms, fill.max_tenant_bytes) == (
        "f" * 64,
        chat_plain([WORD]),
        1000,
        5,
    )


def test_a_stream_is_stored_as_the_plain_answer() -> None:
    entry = json.loads(filled(chat_stream([WORD])).entry)
    assert entry["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize(
    "fields",
    [{"done": False}, {"status": 206}, {"status": 500}, {"usage": b""}, {"body": ""}, {"body": "not base64!"},
     {"body": "é"}, {"body": "QQ="}],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_not_stored(fields: dict[str, Any]) -> None:
    assert filled(chat_plain([WORD]), **fields) is None


def test_an_entry_may_be_as_large_as_its_limit_and_no_larger() -> None:
    size = len(chat_plain([WORD]))
    assert filled(chat_plain([WORD]), limit=size) is not None
    assert filled(chat_plain([WORD]), limit=size - 1) is None


# --- times ------------------------------------------------------------------------------------------------------------


def test_the_time_per_token_counts_those_after_the_first() -> None:
    made = receipt(STREAM, first_byte=0.5, duration=2.5)
    assert time_per_output_token(made, Usage(1, 5)) == 0.5
    assert time_per_output_token(made, Usage(1, 1)) is None
    assert time_per_output_token(receipt(ticket()), Usage(1, 5)) is None
    assert time_per_output_token(receipt(STREAM, first_byte=0.0), Usage(1, 5)) is None
    assert time_per_output_token(receipt(STREAM, first_byte=3.0, duration=2.0), Usage(1, 5)) == 0.0
