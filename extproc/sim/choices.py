"""What the model says to an `Ask`: all choices of all prompts, as long and as constrained as asked. Pure."""

import msgspec

from extproc.sim import text
from extproc.sim.asks import Ask, arguments
from extproc.sim.faults import Faults


class Length(msgspec.Struct, frozen=True):
    max_model_len: int
    typical: int  # completion tokens where max_tokens is not given: half of it to 1.5 times


def answers(ask: Ask, forced: Faults, length: Length, key: int) -> list[text.Answer]:
    """Return n answers to each prompt, those of the first prompt first."""
    found: list[text.Answer] = []
    for at, prompt in enumerate(ask.prompts):
        room = length.max_model_len - len(prompt)
        limit = room if ask.max_tokens is None else min(ask.max_tokens, room)
        keys = (text.mix(key + at * 1009 + choice) for choice in range(ask.n))
        found += [_one(ask, forced, limit, length.typical, each) for each in keys]
    return found


def _one(ask: Ask, forced: Faults, limit: int, typical: int, key: int) -> text.Answer:
    if forced.text is not None:
        answer = text.quoted(forced.text, limit)
    elif forced.tool in [function.get("name") for function in ask.offered]:
        function = next(function for function in ask.offered if function.get("name") == forced.tool)
        answer = text.quoted(arguments(function, key), limit, forced.tool)
    elif ask.json_text is not None:
        answer = text.quoted(ask.json_text, limit, ask.tool)
    else:
        natural = limit
        if forced.tokens:
            natural = forced.tokens
        elif ask.max_tokens is None:
            natural = max(1, typical // 2 + key % (typical + 1))
        answer = text.written(min(natural, limit), key, "stop" if natural < limit else "length")
    return text.stopped(answer, ask.stops) if ask.stops and answer.tool is None else answer
