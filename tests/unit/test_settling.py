"""From access-log entries to settlements, over a store in memory."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import grpc.aio
import pytest
from envoy_messages import entry, logs
from prometheus_client import REGISTRY
from test_processor import worker
from unit_rig import CATALOGUE, chat_plain, ticket

from extproc.admission import Settlement
from extproc.errors import StoreUnavailable, StoreUnsureError
from extproc.request_log import RequestLog
from extproc.settling import Settler
from extproc.store import MemoryStore

USAGE = {"prompt_tokens": 300, "total_tokens": 304, "completion_tokens": 4}
WORD = {"content": ["Hi"], "reasoning": [], "calls": [], "logprobs": [], "finish": "stop", "stop_reason": None}


class Store(MemoryStore):
    """A store that can be away."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.away: type[StoreUnavailable] | None = None

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        if self.away:
            raise self.away
        return await super().settle(settlements)


class Call:
    """Envoy's end of the access log: it sends messages and gets nothing."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)

    async def read(self) -> Any:
        return self.messages.pop(0) if self.messages else grpc.aio.EOF


class Silent:
    """Envoy's end with nothing to say."""

    async def read(self) -> Any:
        await asyncio.Event().wait()


async def deliver(settler: Settler, *messages: Any) -> None:
    await settler.stream_access_logs(iter(()), Call(*messages))  # type: ignore[arg-type]


async def test_a_receipt_is_settled_with_what_the_backend_counted() -> None:
    store = Store()
    await deliver(Settler(await worker(store)), logs(entry(ticket(), usage=USAGE, done=True)))
    [settled] = store.ledger
    assert (settled.request_id, settled.prompt_tokens, settled.completion_tokens) == ("r-1", 300, 4)
    assert settled.cost_micros == 31
    assert not settled.estimated


async def test_a_receipt_that_comes_twice_counts_once() -> None:
    store = Store()
    message = logs(entry(ticket(), usage=USAGE))
    await deliver(Settler(await worker(store)), message, message)
    assert len(store.ledger) == 1


async def test_a_whole_answer_fills_the_cache() -> None:
    store = Store()
    made = ticket(fingerprint="f", ttl_ms=1000)
    body = chat_plain([WORD])
    await deliver(Settler(await worker(store)), logs(entry(made, usage=USAGE, done=True, body=body)))
    entry_found = store._caches.items["acme"].find("f", 0)
    assert entry_found is not None
    assert entry_found.body == body


@pytest.mark.parametrize("fields", [{"key_id": ""}, {"endpoint": "models"}, {"endpoint": ""}])
async def test_what_uses_nothing_is_not_settled(fields: dict[str, str]) -> None:
    store = Store()
    await deliver(Settler(await worker(store)), logs(entry(ticket(**fields), upstream="")))
    assert not store.ledger


async def test_a_refusal_is_counted_costs_nothing_and_leaves_no_ledger_line() -> None:
    store = Store()
    refused = ticket(reason="rate_limit_exceeded")
    await deliver(Settler(await worker(store)), logs(entry(refused, status=429, upstream="")))
    [row] = await store.usage("1970-01-01", "1970-01-01")
    assert (row.requests, row.errors, row.prompt_tokens, row.cost_micros) == (1, 1, 0, 0)
    assert not store.ledger


async def test_an_unreachable_model_is_marked_and_an_answer_puts_it_back() -> None:
    made = await worker(Store())
    settler = Settler(made)
    failed = entry(ticket(), status=503, upstream="model-mistral")
    failed.common_properties.response_flags.no_healthy_upstream = True
    await deliver(settler, logs(failed))
    assert made.health.down() == ["mistral"]
    await deliver(settler, logs(entry(ticket(request_id="r-2"), status=500)))
    assert made.health.down() == []


async def test_what_envoy_ended_before_the_decision_says_nothing_of_a_model_and_is_not_settled() -> None:
    store = Store()
    made = await worker(store)
    ended = entry(ticket(), status=503, upstream="")
    ended.common_properties.metadata.filter_metadata.clear()
    ended.common_properties.response_flags.no_healthy_upstream = True
    await deliver(Settler(made), logs(ended))
    assert made.health.down() == []
    assert not store.ledger
    assert await store.usage("1970-01-01", "1970-01-01") == []


async def test_a_client_that_left_says_nothing_of_the_model() -> None:
    made = await worker(Store())
    made.health.observe("mistral", False, 0)
    left = entry(ticket(), status=0)
    left.common_properties.response_flags.downstream_connection_termination = True
    await deliver(Settler(made), logs(left))
    assert made.health.down() == ["mistral"]


async def test_the_ratio_of_tokens_to_bytes_is_learned_from_long_prompts() -> None:
    made = await worker(Store())
    settler = Settler(made)
    mistral = CATALOGUE.models["mistral"]
    await deliver(settler, logs(entry(ticket(prompt_bytes=900), usage=USAGE)))
    assert made.tokens_per_byte(mistral) == 0.3
    await deliver(
        settler, *[logs(entry(ticket(prompt_bytes=3000, request_id=f"r{n}"), usage=USAGE)) for n in range(99)]
    )
    assert made.tokens_per_byte(mistral) == pytest.approx(0.15, abs=0.01)  # 0.1 was told: half is the least


async def test_what_may_have_been_applied_is_not_sent_again_once_the_store_would_not_know_it() -> None:
    store = Store()
    settler = Settler(await worker(store))
    for error, settled in ((StoreUnsureError, 0), (StoreUnavailable, 1)):
        store.away = error
        await deliver(settler, logs(entry(ticket(request_id=error.__name__), usage=USAGE)))
        store.away = None
        for waiting in settler.backlog:
            waiting.unsure_since = waiting.unsure_since and waiting.unsure_since - 541
        await settler.retry_backlog()
        assert len(store.ledger) == settled
        assert not settler.backlog


async def test_what_waits_does_not_keep_what_it_would_have_cached() -> None:
    store = Store()
    settler = Settler(await worker(store))
    store.away = StoreUnavailable
    made = ticket(fingerprint="f", ttl_ms=1000)
    await deliver(settler, logs(entry(made, usage=USAGE, done=True, body=chat_plain([WORD]))))
    [waiting] = settler.backlog
    assert waiting.settlement.fill is None


async def test_the_streams_end_when_the_worker_stops_so_that_envoy_goes_to_another() -> None:
    settler = Settler(await worker(Store()))
    call = asyncio.ensure_future(settler.stream_access_logs(iter(()), Silent()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    settler.stop()
    assert await asyncio.wait_for(call, 5) == b""


async def test_settlements_wait_while_the_store_is_away_and_are_settled_oldest_first() -> None:
    store = Store()
    settler = Settler(await worker(store))
    store.away = StoreUnavailable
    await deliver(settler, *[logs(entry(ticket(request_id=f"r-{n}"), usage=USAGE)) for n in range(300)])
    await settler.retry_backlog()
    assert len(settler.backlog) == 300
    store.away = None
    await settler.retry_backlog()
    assert not settler.backlog
    assert len(store.ledger) == 300


async def test_a_message_of_many_receipts_is_settled_whole_and_counted_once() -> None:
    store = Store()
    entries = [entry(ticket(request_id=f"r-{n}"), usage=USAGE) for n in range(600)]
    await deliver(Settler(await worker(store)), logs(*entries))
    assert len({settled.request_id for settled in store.ledger}) == len(store.ledger) == 600


async def test_what_is_read_when_the_worker_must_end_is_kept_for_its_last_settling() -> None:
    store = Store()
    settler = Settler(await worker(store))
    taking = asyncio.ensure_future(
        settler._take(logs(*[entry(ticket(request_id=f"r-{n}"), usage=USAGE) for n in range(20)]))
    )
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait({taking})
    assert len(settler.backlog) == 16
    await settler.retry_backlog()
    assert len(store.ledger) == 16


async def test_each_request_leaves_a_line_in_the_log_settled_or_not() -> None:
    reader, writer = os.pipe()
    settler = Settler(await worker(Store()), RequestLog(writer))
    undecided = entry("no ticket", status=413, upstream="")
    refused = entry(ticket(request_id="r-2", reason="rate_limit_exceeded"), status=429, upstream="")
    await deliver(settler, logs(entry(ticket(), usage=USAGE), refused, undecided))
    os.close(writer)
    with os.fdopen(reader) as log:
        lines = [json.loads(text) for text in log]
    assert [(each["status"], each["reason"], each["prompt_tokens"], each["arm"]) for each in lines] == [
        (200, "", 300, "stable"),
        (429, "rate_limit_exceeded", 0, ""),
        (413, "", 0, ""),
    ]


async def test_lines_that_nobody_took_are_counted_and_the_requests_settled() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    store = Store()
    before = REGISTRY.get_sample_value("llm_request_log_dropped_total") or 0
    await deliver(Settler(await worker(store), RequestLog(writer)), logs(entry(ticket(), usage=USAGE)))
    os.close(writer)
    assert REGISTRY.get_sample_value("llm_request_log_dropped_total") == before + 1
    assert len(store.ledger) == 1


async def test_entries_that_are_not_ours_do_not_hinder_the_others() -> None:
    store = Store()
    strangers = entry("not json"), entry("[]")
    await deliver(Settler(await worker(store)), logs(*strangers, entry(ticket(), usage=USAGE)), logs())
    assert len(store.ledger) == 1
