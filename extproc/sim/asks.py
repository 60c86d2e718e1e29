"""Request bodies -> one `Ask`, whatever the dialect: the chat template, the limits, the constraints on the answer.

Pure. It owns what vLLM checks after a body was read; it must not know how an answer is made.
"""

from typing import Any

import msgspec

from extproc.sim.bodies import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Refusal,
    ResponsesRequest,
    Sampling,
    invalid,
    value_error,
)
from extproc.sim.text import instance, key_of, mix, tokenize

MAX_LOGPROBS = 20  # vLLM's --max-logprobs
_COMPLETIONS_MAX_TOKENS = 16


class Ask(msgspec.Struct):
    """What is asked, without the dialect it was asked in."""

    prompts: list[list[str]]
    max_tokens: int | None
    n: int = 1
    stops: list[str] = []
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    key: int | None = None  # of the text: the same key, the same answer; None = a new one each time
    logprobs: int | None = None  # how many alternatives to each token
    json_text: str | None = None  # the answer must be this JSON
    tool: str | None = None  # json_text is this tool's arguments
    named_tool: bool = False  # the tool was named, not only required: the answer then ends with "stop"
    echo: bool = False
    token_ids: bool = False


def from_chat(request: ChatRequest, max_model_len: int) -> Ask:
    if not request.messages:
        raise value_error("Conversation must contain at least one message.", "messages")
    top = request.top_logprobs or 0
    if top < 0 or (top and not request.logprobs):
        words = "must be a positive value or -1." if top < 0 else "requires `logprobs` to be set to true."
        raise value_error(f"`top_logprobs` {words}", "top_logprobs")
    prompt = chat_prompt(request.messages, request.tools)
    if request.max_completion_tokens is not None:
        ask = _common(request, [prompt], request.max_completion_tokens, max_model_len, "max_completion_tokens")
    else:
        ask = _common(request, [prompt], request.max_tokens, max_model_len)
    ask.logprobs = _at_most(top, "top_logprobs") if request.logprobs else None
    ask.json_text, ask.tool = _constrained(request.response_format, request.tools, request.tool_choice, prompt)
    ask.named_tool = isinstance(request.tool_choice, dict)
    return ask


def from_completion(request: CompletionRequest, max_model_len: int, detokenize: Any) -> Ask:
    if request.prompt is None or request.prompt == "":
        raise value_error("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    prompts = _inputs(request.prompt, detokenize)
    limit = _COMPLETIONS_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    ask = _common(request, prompts, limit, max_model_len)
    ask.logprobs, ask.echo = _at_most(request.logprobs, "logprobs"), bool(request.echo)
    ask.json_text, _ = _constrained(request.response_format, None, None, prompts[0])
    return ask


def _at_most(logprobs: int | None, param: str) -> int | None:
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        words = f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise Refusal(400, words, "BadRequestError", param)
    return logprobs


def from_responses(request: ResponsesRequest, max_model_len: int) -> Ask:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        messages += [_response_item(item) for item in request.input]
    if not messages:
        raise value_error("Conversation must contain at least one message.", "input")
    prompt = chat_prompt(messages, request.tools)
    sampling = Sampling(stream=request.stream, temperature=request.temperature, seed=request.seed)
    ask = _common(sampling, [prompt], request.max_output_tokens, max_model_len, "max_output_tokens")
    form = (request.text or {}).get("format")
    form = {"type": form.get("type"), "json_schema": form} if isinstance(form, dict) else None
    tools = [{"function": tool} for tool in request.tools or [] if tool.get("type") == "function"]
    choice = request.tool_choice
    choice = {"function": choice} if isinstance(choice, dict) else choice
    ask.json_text, ask.tool = _constrained(form, tools, choice, prompt)
    return ask


def _response_item(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") in ("function_call", "function_call_output"):
        role = "tool" if item["type"] == "function_call_output" else "assistant"
        return {"role": role, "content": str(item.get("output") or item.get("arguments") or "")}
    return item


def embedding_inputs(request: EmbeddingRequest, max_model_len: int, detokenize: Any) -> list[list[str]]:
    inputs = _inputs(request.input, detokenize)
    for tokens in inputs:
        _fit(len(tokens), max_model_len)
    if request.encoding_format not in ("float", "base64", None):
        raise invalid("Input should be 'float' or 'base64' - at `$.encoding_format`")
    return inputs


def _inputs(given: str | list[str | int | list[int]], detokenize: Any) -> list[list[str]]:
    """Read a text, texts, a token array or token arrays."""
    if isinstance(given, str):
        return [["<s>", *tokenize(given)]]
    if not given:
        raise value_error("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if all(isinstance(each, int) for each in given):
        return [[detokenize(number) for number in given]]
    return [
        ["<s>", *tokenize(each)] if isinstance(each, str) else [detokenize(number) for number in each]  # type: ignore[union-attr]
        for each in given
    ]


def chat_prompt(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[str]:
    """Apply the simulator's chat template: three tokens around each message, two around the whole."""
    prompt = ["<s>"]
    if tools:
        prompt += tokenize(msgspec.json.encode(tools).decode())
    for at, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str):
            raise invalid(f"Object missing required field `role` - at `$.messages[{at}]`")
        prompt += ("<|", role, "|>", *tokenize(_content(message.get("content"), at)), "</s>")
    prompt.append("<|assistant|>")
    return prompt


def _content(content: Any, at: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(f"Expected `str`, got `object` - at `$.messages[{at}].content`")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise Refusal(400, f"At most 0 {str(kind).partition('_')[0]}(s) may be provided in one prompt.")
        texts.append(part.get("text", "") if isinstance(part, dict) else str(part))
    return "\n".join(texts)


def _common(
    request: Sampling, prompts: list[list[str]], limit: int | None, max_model_len: int, name: str = "max_tokens"
) -> Ask:
    if request.stream_options and not request.stream:
        raise value_error("Stream options can only be defined when `stream=True`.", "stream_options")
    _check_range(request, limit, max_model_len, name)
    for prompt in prompts:
        _fit(len(prompt), max_model_len)
        if len(prompt) == max_model_len:
            raise _out_of_range("max_tokens must be at least 1, got 0.", "max_tokens", 0)
    options = request.stream_options or {}
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Ask(
        prompts,
        limit,
        n=1 if request.n is None else request.n,
        stops=[stop for stop in stops if stop],
        stream=bool(request.stream),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        key=_key(request, prompts),
        token_ids=bool(request.return_token_ids),
    )


def _check_range(request: Sampling, limit: int | None, max_model_len: int, name: str) -> None:
    if limit is not None and limit > max_model_len:
        words = (
            f"{name}={limit} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens."
        )
        raise _out_of_range(words, name, limit)
    if limit is not None and limit < 1:
        raise _out_of_range(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    if request.n is not None and request.n < 1:
        raise Refusal(400, f"n must be at least 1, got {request.n}.")
    heat = request.temperature
    if heat is not None and heat < 0:
        raise _out_of_range(f"temperature must be non-negative, got {heat}.", "temperature", heat)
    if heat is not None and heat > 2:
        raise _out_of_range(f"temperature must be in [0, 2], got {heat}.", "temperature", heat)
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise _out_of_range(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if heat == 0 and (request.n or 1) > 1:
        raise Refusal(400, f"n must be 1 when using greedy sampling, got {request.n}.")


def _out_of_range(words: str, name: str, value: float) -> Refusal:
    return Refusal(400, f"{words} (parameter={name}, value={value})", param=name)


def _fit(prompt_tokens: int, max_model_len: int) -> None:
    """Refuse a prompt that is longer than the context. vLLM stops counting one token past it.

    Prompt and max_tokens together may exceed it: vLLM then shortens the answer.
    """
    if prompt_tokens > max_model_len:
        least = max_model_len + 1
        raise Refusal(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
            f"{least} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            f"length of the input prompt. (parameter=input_tokens, value={least})",
            param="input_tokens",
        )


def _key(request: Sampling, prompts: list[list[str]]) -> int | None:
    if request.seed is None and request.temperature != 0:
        return None
    return mix(key_of(*("".join(prompt) for prompt in prompts)) ^ (request.seed or 0))


def _constrained(
    form: dict[str, Any] | None, tools: list[dict[str, Any]] | None, choice: Any, prompt: list[str]
) -> tuple[str | None, str | None]:
    """Return the JSON that the answer must be, and the tool whose arguments it is."""
    key = key_of("".join(prompt))
    if choice not in (None, "none", "auto"):
        function = _chosen(tools, choice)
        return _json(instance(function.get("parameters") or {}, key)), str(function["name"])
    kind = form.get("type") if form else None
    if kind == "json_object":
        return _json({"answer": instance({"type": "string"}, key), "confidence": 0.5}), None
    if kind == "json_schema":
        schema = form.get("json_schema") if form else None
        if not isinstance(schema, dict):
            raise value_error(
                "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                "response_format",
            )
        return _json(instance(schema.get("schema") or {}, key)), None
    return None, None


def _chosen(tools: list[dict[str, Any]] | None, choice: Any) -> dict[str, Any]:
    functions = [tool.get("function") or {} for tool in tools or []]
    functions = [function for function in functions if function.get("name")]
    if not functions:
        raise value_error("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice == "required":
        return functions[0]
    name = (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    for function in functions:
        if function["name"] == name:
            return function
    raise value_error("The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
