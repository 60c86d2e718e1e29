"""Streams: nothing is held back, nothing is lost, and the usage event is for those who asked for it."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from stack_rig import (
    Caller,
    Json,
    Platform,
    ask,
    events_of,
    said,
    text_of,
    unique,
    usage_events,
)

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
# What an answer may say without being taken for something else.
TRAP = (
    'He said "usage":{"prompt_tokens":1}\n\ndata: [DONE]\n\n"choices":[] {"usage": {"total_tokens": 5}} ü 東京 🙂 \\ "'
)


def stream_text(caller: Caller, headers: dict[str, str] | None = None, **fields: Any) -> str:
    answer = caller.chat(headers=headers, **{"stream": True, **fields})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


def test_a_chat_stream_says_the_same_as_the_plain_answer(caller: Caller) -> None:
    """Through the official client, sync: a seed makes the backend say the same again."""
    fresh = {"cache-control": "no-store"}
    plain = caller.openai.chat.completions.create(model="llama2", messages=HELLO, seed=7, extra_headers=fresh)
    with caller.openai.chat.completions.create(
        model="llama2", messages=HELLO, seed=7, stream=True, extra_headers=fresh
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason
    assert len(chunks) > 10
    assert all(c.usage is None for c in chunks)


def test_a_completion_stream_says_the_same_as_the_plain_answer(caller: Caller) -> None:
    fresh = {"cache-control": "no-store"}
    same = {"model": "llama2", "prompt": "Once", "seed": 7, "max_tokens": 40, "extra_headers": fresh}
    plain = caller.openai.completions.create(**same)
    with caller.openai.completions.create(**same, stream=True) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks) == plain.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks)


@pytest.mark.simulated("says exact words")
def test_a_response_stream_ends_with_its_whole_answer_and_usage(caller: Caller) -> None:
    with caller.openai.responses.create(
        model="llama2", input="Hello", stream=True, extra_headers=said("Good day to you.")
    ) as stream:
        events = list(stream)
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events][:2] == ["response.created", "response.in_progress"]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert text == last.response.output_text == "Good day to you."
    assert last.response.usage.output_tokens > 0


@pytest.mark.simulated("says exact words")
async def test_the_async_client_reads_many_streams_at_once_each_its_own(platform: Platform) -> None:
    async with openai.AsyncOpenAI(base_url=platform.stack.base_url, api_key=platform.key(), max_retries=0) as client:

        async def one(number: int) -> str:
            stream = await client.chat.completions.create(
                model="llama2", messages=HELLO, stream=True, extra_headers=said(f"this is answer {number}")
            )
            async with stream:
                return "".join([c.choices[0].delta.content or "" async for c in stream])

        assert await asyncio.gather(*map(one, range(40))) == [f"this is answer {n}" for n in range(40)]
        responses = await client.responses.create(model="llama2", input="x", stream=True)
        async with responses:
            assert [e async for e in responses][-1].type == "response.completed"


@pytest.mark.simulated("calls a tool once")
def test_a_streamed_tool_call_arrives_in_parts_that_make_its_arguments(caller: Caller) -> None:
    with caller.openai.chat.completions.create(
        model="llama2", messages=HELLO, tools=[TOOL], tool_choice="required", stream=True
    ) as stream:
        chunks = list(stream)
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "weather"
    assert json.loads("".join(call.function.arguments or "" for call in calls)).keys() == {"city"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_two_choices_are_streamed_beside_each_other(caller: Caller) -> None:
    events = events_of(stream_text(caller, n=2, max_tokens=6, **WITH_USAGE))
    ends = [c for e in events if isinstance(e, dict) for c in e["choices"] if c["finish_reason"]]
    assert sorted(c["index"] for c in ends) == [0, 1]
    assert usage_events(events)[0]["completion_tokens"] == 12


# --- the usage event --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}])
def test_usage_is_not_seen_by_a_client_that_did_not_ask_for_it(caller: Caller, fields: Json) -> None:
    events = events_of(stream_text(caller, max_tokens=9, **fields))
    assert usage_events(events) == []
    assert all(e["choices"] for e in events if isinstance(e, dict))
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    account = caller.settled(1)
    assert account["completion_tokens"] == 9
    assert account["estimated"] == 0


def test_usage_is_seen_once_by_a_client_that_asked_for_it(caller: Caller) -> None:
    events = events_of(stream_text(caller, max_tokens=9, **WITH_USAGE))
    (usage,) = usage_events(events)
    assert usage["completion_tokens"] == 9
    assert events[-2]["choices"] == []
    assert events[-1] == "[DONE]"
    account = caller.settled(1)
    assert (account["prompt_tokens"], account["completion_tokens"]) == (usage["prompt_tokens"], 9)


def test_usage_in_every_event_passes_to_a_client_that_asked_for_it(caller: Caller) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(stream_text(caller, max_tokens=5, stream_options=options))
    assert len(usage_events(events)) >= 5
    assert caller.settled(1)["completion_tokens"] == 5


@pytest.mark.parametrize("fields", [{}, WITH_USAGE])
def test_completions_keep_the_same_rule(caller: Caller, fields: Json) -> None:
    body = {"model": "llama2", "prompt": unique(), "max_tokens": 7, "stream": True, **fields}
    events = events_of(caller.http.post("/completions", json=body).text)
    assert [u["completion_tokens"] for u in usage_events(events)] == ([7] if fields else [])
    assert events[-1] == "[DONE]"
    assert caller.settled(1)["completion_tokens"] == 7


def test_the_usage_of_a_response_stream_stays_where_it_is(caller: Caller) -> None:
    body = {"model": "llama2", "input": unique(), "max_output_tokens": 7, "stream": True}
    events = events_of(caller.http.post("/responses", json=body).text)
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens"] == 7
    account = caller.settled(1)
    assert (account["prompt_tokens"], account["completion_tokens"]) == (usage["input_tokens"], 7)


# --- content is never harmed ------------------------------------------------------------------------------------------


@pytest.mark.simulated("a fault on demand")
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("fault", [{}, *({"x-sim-split": str(n)} for n in (1, 7, 100)), {"x-sim-join": "3"},
                                   {"x-sim-join": "1000"}, {"x-sim-split": "50", "x-sim-join": "5"}])  # fmt: skip
def test_however_the_backend_cuts_its_stream_the_words_and_the_account_are_whole(
    caller: Caller, fault: dict[str, str], asked: bool
) -> None:
    fields = WITH_USAGE if asked else {}
    text = stream_text(caller, headers={**said(TRAP), **fault}, **fields)
    events = events_of(text)
    assert text_of(events) == TRAP
    assert len(usage_events(events)) == asked
    assert events[-1] == "[DONE]"
    account = caller.settled(1)
    words = sum(bool(c["delta"].get("content")) for e in events if isinstance(e, dict) for c in e["choices"])
    assert account["completion_tokens"] == words + 1  # the token that ends an answer says nothing
    assert account["estimated"] == 0


def test_a_stream_from_which_nothing_is_taken_passes_byte_by_byte(caller: Caller) -> None:
    """With the usage event asked for, nothing is taken out: cut or not, the same bytes."""

    def bytes_of(**fault: str) -> str:
        headers = {**said(TRAP), "cache-control": "no-store", **fault}
        text = stream_text(caller, headers, content="Hello", seed=1, **WITH_USAGE)
        first = events_of(text)[0]
        assert isinstance(first, dict)
        return text.replace(first["id"], "ID").replace(str(first["created"]), "NOW")

    whole = bytes_of()
    assert bytes_of(**{"x-sim-split": "3"}) == whole
    assert bytes_of(**{"x-sim-join": "4"}) == whole


@pytest.mark.simulated("says exact words")
def test_an_answer_without_a_stream_is_never_searched_for_events(caller: Caller) -> None:
    answer = caller.chat(headers=said(TRAP))
    assert answer.json()["choices"][0]["message"]["content"] == TRAP
    assert caller.settled(1)["completion_tokens"] == answer.json()["usage"]["completion_tokens"]


# --- nothing is held back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, WITH_USAGE])
def test_each_event_is_passed_on_before_the_next_one_exists(caller: Caller, fields: Json) -> None:
    """The backend stops talking after five events; they must be here although the stream never ends."""
    body = ask(**{"stream": True, **fields})
    with caller.http.stream("POST", "/chat/completions", json=body, headers={"x-sim-stall-after": "5"}) as answer:
        events: list[Json | str] = []
        for line in answer.iter_lines():
            events += events_of(line)
            if len(events) == 5:
                break
    assert all(e["choices"] for e in events if isinstance(e, dict))
    assert len(text_of(events)) > 0


@pytest.mark.simulated("a fault on demand")
def test_an_error_in_the_middle_of_a_stream_reaches_the_client_and_ends_it(caller: Caller) -> None:
    with (
        pytest.raises(openai.APIError, match="EngineCore"),
        caller.openai.chat.completions.create(
            model="llama2", messages=HELLO, stream=True, extra_headers={"x-sim-error-after": "3"}
        ) as stream,
    ):
        list(stream)


@pytest.mark.simulated("a fault on demand")
def test_a_stream_that_the_backend_cuts_ends_in_an_error_not_in_silence(caller: Caller) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        caller.chat(stream=True, headers={"x-sim-cut-after": "4"})


def test_headers_of_a_stream_tell_model_and_cache(caller: Caller) -> None:
    with caller.openai.chat.completions.with_streaming_response.create(
        model="gpt-4o", messages=HELLO, stream=True
    ) as raw:
        assert raw.headers["x-llm-model"] == "llama2"
        assert raw.headers["x-llm-cache"] == "bypass"
        assert raw.headers["x-request-id"]
        assert "content-length" not in raw.headers
        raw.read()
