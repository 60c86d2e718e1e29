"""The official client gets what it expects of every endpoint."""

import base64
import json
from array import array
from typing import Any

import openai
import pytest
from sim_rig import Api, Start

PROMPT = [{"role": "user", "content": "What is a token?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


async def test_a_plain_chat_counts_its_tokens(start: Start, official: Api) -> None:
    answer = await official(await start()).chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == 7 + answer.usage.prompt_tokens
    assert answer.choices[0].message.role == "assistant"


async def test_a_streamed_chat_says_the_same_as_a_plain_one_at_temperature_0(start: Start, official: Api) -> None:
    api = official(await start("--decode-ms-per-token", "1"))
    plain = await api.chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=60, temperature=0)
    stream = await api.chat.completions.create(
        model="org/tiny",
        messages=PROMPT,
        max_tokens=60,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert len(chunks) == 62  # the role, 60 tokens, the usage
    assert chunks[-1].usage.completion_tokens == 60
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "length"]


async def test_answers_differ_without_a_seed_and_agree_with_one(start: Start, official: Api) -> None:
    api = official(await start())

    async def say(**more: Any) -> str | None:
        answer = await api.chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=60, **more)
        return answer.choices[0].message.content

    assert await say() != await say()
    assert await say(seed=3) == await say(seed=3)
    assert await say(seed=3) != await say(seed=4)


async def test_two_processes_of_one_model_say_the_same_at_temperature_0(start: Start, official: Api) -> None:
    texts = {
        (await official(await start()).chat.completions.create(model="org/tiny", messages=PROMPT, temperature=0))
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(texts) == 1


async def test_n_choices_are_n_answers_plain_and_streamed(start: Start, official: Api) -> None:
    api = official(await start())
    plain = await api.chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=40, n=3)
    assert len({choice.message.content for choice in plain.choices}) == 3
    assert plain.usage.completion_tokens == 120
    stream = await api.chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=5, n=3, stream=True)
    ends = [c.choices[0].index async for c in stream if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]


async def test_stop_strings_cut_the_answer(start: Start, official: Api) -> None:
    api = official(await start())
    whole = await api.chat.completions.create(model="org/tiny", messages=PROMPT, max_tokens=60, temperature=0)
    text = whole.choices[0].message.content
    stop = text[30:34]
    cut = await api.chat.completions.create(
        model="org/tiny", messages=PROMPT, max_tokens=60, temperature=0, stop=["\0never", stop]
    )
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].stop_reason == stop
    assert cut.usage.completion_tokens < 60


async def test_logprobs_stand_beside_every_token(start: Start, official: Api) -> None:
    api = official(await start())
    more = {"model": "org/tiny", "messages": PROMPT, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    plain = await api.chat.completions.create(**more)
    found = plain.choices[0].logprobs.content
    assert "".join(each.token for each in found) == plain.choices[0].message.content
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in found)
    stream = await api.chat.completions.create(**more, stream=True)
    counts = [len(c.choices[0].logprobs.content) async for c in stream if c.choices[0].logprobs]
    assert counts == [1, 1, 1, 1]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_demanded_tool_is_called_with_valid_arguments(
    start: Start, official: Api, choice: str | dict[str, Any]
) -> None:
    api = official(await start())
    more = {"model": "org/tiny", "messages": PROMPT, "tools": [TOOL], "tool_choice": choice, "temperature": 0}
    plain = await api.chat.completions.create(**more)
    call = plain.choices[0].message.tool_calls[0]
    assert plain.choices[0].finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)
    deltas = [
        call.function
        async for chunk in await api.chat.completions.create(**more, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert deltas[0].name == "weather"
    assert json.loads("".join(delta.arguments or "" for delta in deltas)) == arguments


async def test_a_tool_that_may_be_called_is_called_on_demand(start: Start, official: Api) -> None:
    api = official(await start())
    more = {"model": "org/tiny", "messages": PROMPT, "tools": [TOOL]}
    assert not (await api.chat.completions.create(**more)).choices[0].message.tool_calls
    called = (await api.chat.completions.create(**more, extra_headers={"x-sim-tool": "weather"})).choices[0]
    assert called.finish_reason == "tool_calls"
    assert json.loads(called.message.tool_calls[0].function.arguments).keys() == {"city", "days"}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
async def test_without_a_parser_for_tool_calls_tools_are_refused(start: Start, official: Api, choice: Any) -> None:
    api = official(await start("--tool-call-parser", ""))
    with pytest.raises(openai.BadRequestError, match="--tool-call-parser to be set"):
        await api.chat.completions.create(model="org/tiny", messages=PROMPT, tools=[TOOL], tool_choice=choice)


async def test_an_answer_that_ends_by_itself_spends_a_token_on_its_end(start: Start, official: Api) -> None:
    header = {"x-sim-text": base64.b64encode(b"one two").decode()}
    api = official(await start())
    more = {"model": "org/tiny", "messages": PROMPT, "logprobs": True, "extra_headers": header}
    plain = await api.chat.completions.create(**more)
    assert (plain.choices[0].finish_reason, plain.usage.completion_tokens) == ("stop", 3)
    assert [each.token for each in plain.choices[0].logprobs.content] == ["one", " two", "</s>"]
    cut = await api.chat.completions.create(**more, max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "one two")


async def test_a_json_schema_is_answered_with_what_it_allows(start: Start, official: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
        "$defs": {"item": {"type": "object", "properties": {"size": {"type": "number", "minimum": 3, "maximum": 4}}}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await official(await start()).chat.completions.create(
        model="org/tiny", messages=PROMPT, response_format=form
    )
    value = json.loads(answer.choices[0].message.content)
    assert value["kind"] in ("a", "b")
    assert 3 <= value["items"][0]["size"] <= 4
    assert answer.choices[0].finish_reason == "stop"


async def test_completions_answer_every_prompt_and_echo_on_demand(start: Start, official: Api) -> None:
    api = official(await start())
    answer = await api.completions.create(model="org/tiny", prompt=["one two", "three"], echo=True, logprobs=1)
    assert [choice.text[:5] for choice in answer.choices] == ["one t", "three"]
    assert answer.usage.completion_tokens == 32  # vLLM's default of 16 each
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == "<s>" + answer.choices[0].text
    assert len(found.tokens) == 3 + 16
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    stream = await api.completions.create(
        model="org/tiny", prompt="hello", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:3]] == [None, None, "length"]
    assert chunks[3].usage.completion_tokens == 3
    only = await api.completions.create(model="org/tiny", prompt="hello", max_tokens=0, echo=True)
    assert (only.choices[0].text, only.usage.completion_tokens) == ("hello", 1)


async def test_offsets_of_streamed_tokens_go_on_where_the_last_event_ended(start: Start, official: Api) -> None:
    api = official(await start("--decode-ms-per-token", "1"))
    stream = await api.completions.create(model="org/tiny", prompt="hello", max_tokens=5, logprobs=1, stream=True)
    found = [chunk.choices[0].logprobs async for chunk in stream]
    lengths = [len(each.tokens[0]) for each in found]
    assert [each.text_offset[0] for each in found] == [sum(lengths[:at]) for at in range(5)]


async def test_responses_plain_and_streamed_agree(start: Start, official: Api) -> None:
    api = official(await start())
    more = {"model": "org/tiny", "input": "What is a token?", "instructions": "Be short.", "temperature": 0}
    plain = await api.responses.create(**more)
    assert plain.status == "completed"
    assert plain.usage.total_tokens == plain.usage.input_tokens + plain.usage.output_tokens
    events = [event async for event in await api.responses.create(**more, stream=True)]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == plain.output_text
    assert events[-1].response.usage.output_tokens == plain.usage.output_tokens
    assert events[-1].response.output_text == plain.output_text


async def test_a_response_cut_by_max_output_tokens_is_incomplete(start: Start, official: Api) -> None:
    answer = await official(await start()).responses.create(
        model="org/tiny", input=[{"role": "user", "content": "Hi"}], max_output_tokens=3
    )
    assert (answer.status, answer.usage.output_tokens) == ("incomplete", 3)


async def test_a_response_calls_the_tool_that_it_must(start: Start, official: Api) -> None:
    api = official(await start())
    tool = {"type": "function", **TOOL["function"], "strict": None}
    more = {"model": "org/tiny", "input": "Hi", "tools": [tool], "tool_choice": "required"}
    plain = await api.responses.create(**more)
    assert json.loads(plain.output[0].arguments).keys() == {"city", "days"}
    events = [event async for event in await api.responses.create(**more, stream=True)]
    assert events[-1].response.output[0].name == "weather"


async def test_embeddings_are_unit_vectors_and_equal_in_both_encodings(start: Start, official: Api) -> None:
    api = official(await start("--runner", "pooling"))
    coded = await api.embeddings.create(model="org/tiny", input=["a cat", "a dog"])
    plain = await api.embeddings.create(model="org/tiny", input="a cat", encoding_format="float", dimensions=16)
    assert len(coded.data) == 2
    assert len(coded.data[0].embedding) == 384
    assert coded.data[0].embedding != coded.data[1].embedding
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1.0, abs=1e-6)
    again = await api.embeddings.create(model="org/tiny", input="a cat", dimensions=16)
    assert array("f", again.data[0].embedding) == array("f", plain.data[0].embedding)
    assert coded.usage.prompt_tokens == coded.usage.total_tokens == 6


async def test_each_runner_serves_its_own_routes_only(start: Start, official: Api) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        await official(await start("--runner", "pooling")).chat.completions.create(model="org/tiny", messages=PROMPT)
    assert error.value.response.json() == {"detail": "Not Found"}
    with pytest.raises(openai.NotFoundError):
        await official(await start()).embeddings.create(model="org/tiny", input="x")


async def test_served_names_replace_the_model_name(start: Start, official: Api) -> None:
    api = official(await start("--served-model-name", "a", "b"))
    listed = await api.models.list()
    assert [(card.id, card.root) for card in listed.data] == [("a", "org/tiny"), ("b", "org/tiny")]
    assert (await api.chat.completions.create(model="b", messages=PROMPT)).model == "a"
    with pytest.raises(openai.NotFoundError) as error:
        await api.chat.completions.create(model="org/tiny", messages=PROMPT)
    assert error.value.body == {
        "message": "The model `org/tiny` does not exist. Valid aliases: a, b.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


async def test_a_forced_text_comes_back_whole(start: Start, official: Api) -> None:
    text = 'Grüße "quoted" \\ 東京 🙂\n\tend'
    header = {"x-sim-text": base64.b64encode(text.encode()).decode()}
    api = official(await start())
    plain = await api.chat.completions.create(model="org/tiny", messages=PROMPT, extra_headers=header)
    assert plain.choices[0].message.content == text
    stream = await api.chat.completions.create(model="org/tiny", messages=PROMPT, extra_headers=header, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


async def test_cached_prompt_tokens_are_shown_when_details_are_on(start: Start, official: Api) -> None:
    api = official(await start("--enable-prompt-tokens-details"))
    prompt = [{"role": "user", "content": "word " * 100}]
    seen = [
        (await api.chat.completions.create(model="org/tiny", messages=prompt)).usage.prompt_tokens_details
        for _ in range(2)
    ]
    assert [(details.cached_tokens, details.created_cache_tokens) for details in seen] == [(0, 96), (96, 0)]
