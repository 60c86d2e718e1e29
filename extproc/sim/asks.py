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
    StreamOptions,
    invalid,
    refuse,
)
from extproc.sim.text import VOCABULARY, instance, key_of, mix, tokenize

MAX_LOGPROBS = 20  # vLLM's --max-logprobs
_COMPLETIONS_MAX_TOKENS = 16
_MAX_N = 16_384
_MAX_STOPS = 4


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
    offered: list[dict[str, Any]] = []  # tools that the model may call or not
    echo: bool = False
    echo_only: bool = False  # max_tokens=0: one token is made and not shown
    token_ids: bool = False


def from_chat(request: ChatRequest, max_model_len: int, *, tools: bool = True) -> Ask:
    """Read a chat request; `tools` says whether the server has a parser for tool calls."""
    if not request.messages:
        raise _no_messages()
    top = request.top_logprobs or 0
    if top < -1:
        raise refuse("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
    if top and not request.logprobs:
        raise refuse("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    _check_tools(request, parser=tools)
    prompt = chat_prompt(request.messages, request.tools, request.model)
    if request.max_completion_tokens is not None:
        ask = _common(request, [prompt], request.max_completion_tokens, max_model_len, "max_completion_tokens")
    else:
        ask = _common(request, [prompt], request.max_tokens, max_model_len)
    ask.logprobs = _at_most(top) if request.logprobs else None
    functions = [tool["function"] for tool in request.tools or []]
    ask.json_text, ask.tool = _constrained(request.response_format, functions, request.tool_choice, prompt)
    ask.named_tool = isinstance(request.tool_choice, dict)
    ask.offered = functions if request.tool_choice in (None, "auto") else []
    return ask


def _no_messages() -> Refusal:
    return Refusal(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")


def _check_tools(request: ChatRequest, *, parser: bool) -> None:
    tools, choice = request.tools, request.tool_choice
    if tools is not None and not tools:
        words = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise refuse(words, "tools")
    if choice == "none" or (choice is None and not tools):
        return
    if not tools:
        raise refuse("When using `tool_choice`, `tools` must be set.", "tool_choice")
    for at, tool in enumerate(tools):
        if "name" not in (tool.get("function") or {}):
            raise invalid(f"Object missing required field `name` - at `$.tools[{at}].function`", {"tools": tools})
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        if name not in [tool["function"]["name"] for tool in tools]:
            words = "The tool specified in `tool_choice` does not match any of the specified `tools`"
            raise refuse(words, "tool_choice")
    elif choice not in (None, "auto", "required"):
        words = f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" '
        raise refuse(words + "are supported.", "tool_choice")
    if not parser:
        raise refuse(_without_parser(choice))


def _without_parser(choice: str | dict[str, Any] | None) -> str:
    if choice in (None, "auto"):
        return '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    what = f'function "{choice["function"]["name"]}"' if isinstance(choice, dict) else '"required"'
    return f"tool_choice={what} requires --tool-call-parser to be set"


def from_completion(request: CompletionRequest, max_model_len: int, detokenize: Any) -> Ask:
    if request.prompt is None or request.prompt == "":
        raise refuse("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if request.suffix:
        raise Refusal(400, "suffix is only supported for models with FIM completion rendering", param="suffix")
    if request.logprobs is not None and request.logprobs < -1:
        raise refuse("`logprobs` must be a positive value or -1.", "logprobs", request.logprobs)
    prompts = _inputs(request.prompt, detokenize, "prompt")
    limit = _COMPLETIONS_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    echo_only = bool(request.echo) and limit == 0
    ask = _common(request, prompts, 1 if echo_only else limit, max_model_len)
    ask.logprobs, ask.echo, ask.echo_only = _at_most(request.logprobs), bool(request.echo), echo_only
    ask.json_text, _ = _constrained(request.response_format, [], None, prompts[0])
    return ask


def _at_most(logprobs: int | None) -> int | None:
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        many = VOCABULARY if logprobs < 0 else logprobs
        words = f"Requested sample logprobs of {many}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise refuse(words, "logprobs", many)
    return logprobs


def from_responses(request: ResponsesRequest, max_model_len: int) -> Ask:
    _check_stored(request)
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        messages += [_response_item(item, at) for at, item in enumerate(request.input)]
    if not messages:
        raise _no_messages()
    prompt = chat_prompt(messages, request.tools, request.model)
    sampling = Sampling(stream=request.stream, temperature=request.temperature, seed=request.seed, stop=request.stop)
    ask = _common(sampling, [prompt], request.max_output_tokens, max_model_len, "max_output_tokens")
    form = (request.text or {}).get("format")
    form = {"type": form.get("type"), "json_schema": form} if isinstance(form, dict) else None
    tools = [tool for tool in request.tools or [] if tool.get("type") == "function"]
    choice = request.tool_choice
    if choice == "required" and not tools:
        raise refuse("Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")
    if isinstance(choice, dict):
        if choice.get("name") not in [tool.get("name") for tool in tools]:
            raise refuse("Tool choice 'function' not found in 'tools' parameter.", "tool_choice")
        choice = {"function": choice}
    ask.json_text, ask.tool = _constrained(form, tools, choice, prompt)
    ask.offered = tools if choice in (None, "auto") else []
    return ask


def _check_stored(request: ResponsesRequest) -> None:
    """Refuse what needs earlier responses: vLLM keeps none unless it is told to."""
    if request.background:
        words = (
            "This vLLM engine does not support `store=True` and therefore does not support the background mode. "
            "To enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when "
            "launching the vLLM server."
        )
        raise Refusal(400, words, "invalid_request_error", "background")
    if request.previous_response_id is not None:
        words = f"Response with id '{request.previous_response_id}' not found."
        raise Refusal(404, words, "invalid_request_error", "response_id")


def _response_item(item: dict[str, Any], at: int) -> dict[str, Any]:
    if "role" not in item and item.get("type") not in ("function_call", "function_call_output"):
        raise invalid("Expected `str`, got `array` - at `$.input`", {"input": [None] * (at + 1)})
    if item.get("type") in ("function_call", "function_call_output"):
        role = "tool" if item["type"] == "function_call_output" else "assistant"
        return {"role": role, "content": str(item.get("output") or item.get("arguments") or "")}
    return item


def embedding_inputs(request: EmbeddingRequest, max_model_len: int, detokenize: Any) -> list[list[str]]:
    inputs = _inputs(request.input, detokenize, "input")
    for tokens in inputs:
        _fit(len(tokens), max_model_len)
    if request.encoding_format not in ("float", "base64", None):
        words = "Input should be 'float', 'base64', 'bytes' or 'bytes_only'"
        raise invalid(f"{words} - at `$.encoding_format`", {"encoding_format": request.encoding_format})
    return inputs


def _inputs(given: str | list[str | int | list[int]], detokenize: Any, name: str) -> list[list[str]]:
    """Read a text, texts, a token array or token arrays."""
    if isinstance(given, str):
        return [["<s>", *tokenize(given)]]
    if not given:
        raise Refusal(400, "You must pass at least one prompt")
    if all(isinstance(each, int) for each in given):
        return [_tokens(given, detokenize, name)]  # type: ignore[arg-type]
    if any(isinstance(each, int) for each in given) or len({type(each) for each in given}) > 1:
        at = next(at for at, each in enumerate(given) if not isinstance(each, int))
        raise invalid(f"Expected `int`, got `array` - at `$.{name}[{at}]`", {name: given})
    return [
        ["<s>", *tokenize(each)] if isinstance(each, str) else _tokens(each, detokenize, f"{name}[{at}]")  # type: ignore[arg-type]
        for at, each in enumerate(given)
    ]


def _tokens(numbers: list[int], detokenize: Any, name: str) -> list[str]:
    for at, number in enumerate(numbers):
        if number < 0 and name.startswith("prompt"):
            raise invalid(f"Expected `int` >= 0 - at `$.{name}[{at}]`", {name: numbers})
        if not 0 <= number < VOCABULARY:
            raise Refusal(400, f"Token id {number} is out of vocabulary")
    return [detokenize(number) for number in numbers]


def chat_prompt(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, model: str | None = None
) -> list[str]:
    """Apply the simulator's chat template: three tokens around each message, two around the whole."""
    prompt = ["<s>"]
    if tools:
        prompt += tokenize(msgspec.json.encode(tools).decode())
    for at, message in enumerate(messages):
        role = message.get("role")
        if role is None:
            raise invalid(f"Object missing required field `role` - at `$.messages[{at}]`", {"messages": messages})
        if not isinstance(role, str):
            raise invalid(f"Input should be 'developer' - at `$.messages[{at}].role`", {"messages": messages})
        prompt += ("<|", role, "|>", *tokenize(_content(message, at, model)), "</s>")
    prompt.append("<|assistant|>")
    return prompt


def _content(message: dict[str, Any], at: int, model: str | None) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        words = f"Expected `str`, got `object` - at `$.messages[{at}].content`"
        raise invalid(words, {"messages": {str(at): message}})
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            if kind == "image_url" and not isinstance(part.get("image_url"), dict):
                words = "1 validation error for ChatCompletionContentPartImageParam\nimage_url\n"
                raise Refusal(400, words + "  Input should be a valid dictionary")
            raise Refusal(400, f"{model} is not a multimodal model")
        texts.append(part.get("text", "") if isinstance(part, dict) else str(part))
    return "\n".join(texts)


def _common(
    request: Sampling, prompts: list[list[str]], limit: int | None, max_model_len: int, name: str = "max_tokens"
) -> Ask:
    if request.stream_options and not request.stream:
        raise refuse("Stream options can only be defined when `stream=True`.", "stream_options")
    stops = _stops(request.stop)
    _check_range(request, limit, max_model_len, name)
    _check_penalties(request, limit)
    _check_bias(request.logit_bias)
    for prompt in prompts:
        _fit(len(prompt), max_model_len)
        if len(prompt) == max_model_len:
            raise _out_of_range("max_tokens must be at least 1, got 0.", "max_tokens", 0)
    options = request.stream_options or StreamOptions()
    return Ask(
        prompts,
        limit,
        n=1 if request.n is None else request.n,
        stops=stops,
        stream=bool(request.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        key=_key(request, prompts),
        token_ids=bool(request.return_token_ids),
    )


def _stops(given: str | list[str] | None) -> list[str]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > _MAX_STOPS:
        raise invalid("Expected `str`, got `array` - at `$.stop`", {"stop": stops})
    if "" in stops:
        raise Refusal(400, "stop cannot contain an empty string.")
    return stops


def _check_penalties(request: Sampling, limit: int | None) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(request, name)
        if penalty is not None and not -2 <= penalty <= 2:
            raise Refusal(400, f"{name} must be in [-2, 2], got {penalty}.")
    if request.repetition_penalty is not None and request.repetition_penalty <= 0:
        raise Refusal(400, f"repetition_penalty must be greater than zero, got {request.repetition_penalty}.")
    if request.top_k is not None and request.top_k < -1:
        raise Refusal(400, f"top_k must be 0 (disable), or at least 1, got {request.top_k}.")
    if request.min_p is not None and not 0 <= request.min_p <= 1:
        raise Refusal(400, f"min_p must be in [0, 1], got {request.min_p}.")
    if limit is not None and request.min_tokens is not None and request.min_tokens > limit:
        raise Refusal(400, f"min_tokens must be less than or equal to max_tokens={limit}, got {request.min_tokens}.")


def _check_bias(bias: dict[str, float] | None) -> None:
    words = [key for key in bias or {} if not key.lstrip("-").isdigit()]
    if words:
        text = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {words}"
        raise refuse(text, "logit_bias", words)
    beyond = [number for number in map(int, bias or {}) if not 0 <= number < VOCABULARY]
    if beyond:
        text = f"token_id(s) {beyond} in logit_bias contain out-of-vocab token ids. Vocabulary size: {VOCABULARY}"
        raise refuse(text, "logit_bias", beyond)


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
    if request.n is not None and request.n > _MAX_N:
        words = f"n must be at most {_MAX_N}, got {request.n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
        raise Refusal(400, words + "environment variable.")
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
    form: dict[str, Any] | None, functions: list[dict[str, Any]], choice: Any, prompt: list[str]
) -> tuple[str | None, str | None]:
    """Return the JSON that the answer must be, and the tool whose arguments it is."""
    key = key_of("".join(prompt))
    if choice not in (None, "none", "auto"):
        name = functions[0]["name"] if choice == "required" else choice["function"]["name"]
        function = next(function for function in functions if function["name"] == name)
        return arguments(function, key), str(name)
    kind = form.get("type") if form else None
    if kind == "json_object":
        return _json({"answer": instance({"type": "string"}, key), "confidence": 0.5}), None
    if kind == "json_schema":
        schema = form.get("json_schema") if form else None
        if not isinstance(schema, dict):
            words = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
            raise refuse(words, "response_format")
        return _json(instance(schema.get("schema") or {}, key)), None
    if kind not in (None, "text", "structural_tag"):
        words = "Input should be 'text', 'json_object' or 'json_schema'"
        raise invalid(f"{words} - at `$.response_format.type`", {"response_format": form})
    return None, None


def arguments(function: dict[str, Any], key: int) -> str:
    """Return arguments that the function's schema allows, as JSON."""
    return _json(instance(function.get("parameters") or {}, key))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
