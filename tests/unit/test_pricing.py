"""Usage × price, in integers."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from unit_rig import MISTRAL, ticket

from extproc.chat import Usage
from extproc.pricing import cost_micros

TOKENS = st.integers(0, 10_000_000)
PRICES = st.integers(0, 1_000_000_000)
USAGES = st.builds(Usage, TOKENS, TOKENS, TOKENS)


def test_a_million_tokens_cost_their_price() -> None:
    assert cost_micros(Usage(1_000_000), MISTRAL) == 100_000
    assert cost_micros(Usage(0, 1_000_000), MISTRAL) == 300_000


def test_prompt_tokens_out_of_the_prefix_cache_cost_less() -> None:
    assert cost_micros(Usage(1_000_000, 0, 400_000), MISTRAL) == 60_000 + 20_000


def test_half_a_micro_dollar_is_rounded_up() -> None:
    prices = ticket(input_price=500_000)
    assert [cost_micros(Usage(n), prices) for n in range(4)] == [0, 1, 1, 2]


@given(USAGES, PRICES, PRICES, PRICES)
def test_a_cost_is_at_most_half_a_micro_dollar_off(usage: Usage, prompt: int, completion: int, cached: int) -> None:
    price = ticket(input_price=prompt, output_price=completion, cached_input_price=cached)
    from_cache = min(usage.cached_tokens, usage.prompt_tokens)
    full = (usage.prompt_tokens - from_cache) * prompt + from_cache * cached + usage.completion_tokens * completion
    assert abs(cost_micros(usage, price) - Fraction(full, 1_000_000)) <= Fraction(1, 2)


@given(USAGES, TOKENS)
def test_more_tokens_never_cost_less(usage: Usage, more: int) -> None:
    longer = Usage(usage.prompt_tokens + more, usage.completion_tokens, usage.cached_tokens)
    assert 0 <= cost_micros(usage, MISTRAL) <= cost_micros(longer, ticket()) + cost_micros(Usage(usage.cached_tokens),
                                                                                           MISTRAL)  # fmt: skip
    said_more = Usage(usage.prompt_tokens, usage.completion_tokens + more, usage.cached_tokens)
    assert cost_micros(usage, MISTRAL) <= cost_micros(said_more, MISTRAL)
