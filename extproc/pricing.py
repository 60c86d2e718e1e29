"""Usage × price = cost, in integer micro-dollars.

A price of N dollars per million tokens is N × 10⁶ micro-dollars per 10⁶ tokens. Sums are exact in integers and rounded
half up once per request, so a request is at most half a micro-dollar off.
"""

from typing import Protocol

from extproc.chat import Usage


class Priced(Protocol):
    """Micro-dollars per million tokens."""

    @property
    def input_price(self) -> int: ...
    @property
    def output_price(self) -> int: ...
    @property
    def cached_input_price(self) -> int: ...


def cost_micros(usage: Usage, price: Priced) -> int:
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    total = (
        (usage.prompt_tokens - cached) * price.input_price
        + cached * price.cached_input_price
        + usage.completion_tokens * price.output_price
    )
    return (total + 500_000) // 1_000_000
