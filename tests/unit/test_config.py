"""The configuration file: what it is compiled into, and how each mistake is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import CATALOGUE, CONFIG, changed

from extproc import config
from extproc.admission import Limits
from extproc.errors import ConfigError

GOOD = CONFIG.decode()


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as error:
        config.load(text.encode() if isinstance(text, str) else text, "f.yaml")
    return str(error.value)


def test_models_keep_the_order_of_the_file_and_go_by_both_names() -> None:
    assert list(CATALOGUE.models) == ["llama2", "mistral", "bge"]
    assert CATALOGUE.names["meta/llama"] is CATALOGUE.names["llama2"] is CATALOGUE.models["llama2"]
    assert CATALOGUE.default is CATALOGUE.models["mistral"]
    assert CATALOGUE.models["mistral"].served_name == "mistral"


def test_prices_are_micro_dollars_and_cached_tokens_cost_the_same_unless_said() -> None:
    llama, mistral = CATALOGUE.models["llama2"], CATALOGUE.models["mistral"]
    assert (llama.input_price, llama.output_price, llama.cached_input_price) == (200_000, 600_000, 200_000)
    assert mistral.cached_input_price == 50_000


def test_the_revision_is_that_of_the_bytes() -> None:
    assert config.load(CONFIG, "a").revision == config.load(CONFIG, "b").revision
    assert config.load(CONFIG + b"\n", "a").revision != CATALOGUE.revision


def test_bursts_default_to_one_minutes_worth() -> None:
    limits = changed(limits={"requests_per_minute": 7, "tokens_per_minute": 9, "budget_usd_per_month": 1.5}).limits
    assert limits == Limits(7, 7, 9, 9, 1_500_000, 0)
    assert changed(limits={"requests_per_minute": 7, "burst_requests": 3}).limits.burst_requests == 3


def test_a_tenants_limits_replace_the_general_ones_and_a_keys_own_change_those() -> None:
    catalogue = changed(tenants=[{"name": "acme", "limits": {"requests_per_minute": 5, "max_in_flight": 2}}])
    assert catalogue.limits_of("other", {}) == catalogue.limits
    assert catalogue.limits_of("acme", {}) == Limits(5, 5, 0, 0, 0, 2)
    assert catalogue.limits_of("acme", {"requests_per_minute": 9}) == Limits(9, 9, 0, 0, 0, 2)
    assert catalogue.limits_of("acme", {"requests_per_minute": 9, "burst_requests": 1}).burst_requests == 1


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("name: llama2", "nam: llama2", "f.yaml:2: Object contains unknown field `nam` (in models[0])"),
        (
            "name: llama2\n    served_name",
            "served_name",
            "f.yaml:2: Object missing required field `name` (in models[0])",
        ),
        ("name: llama2", "name: -x", "f.yaml:2: Expected `str` matching regex"),
        ("context_tokens: 8192", "context_tokens: 0", "f.yaml:8: Expected `int` >= 1 (in models[1].context_tokens)"),
        ("context_tokens: 512", "context_tokens: many", "f.yaml:12: Expected `int`, got `str`"),
        ("input: 0.01", "input: -1", "f.yaml:14: Expected `float` >= 0.0 (in models[2].price.input)"),
        ("input: 0.01", "input: .inf", "f.yaml:14: Expected `float` <= 1000000000.0"),
        ("input: 0.01", "input: .nan", "f.yaml:14: Expected `float`"),
        ("{input: 0.01}", "{input: 0.01, inputs: 2}", "f.yaml:14: Object contains unknown field `inputs`"),
        ("[embeddings]", "[embedding]", "f.yaml:13: Invalid enum value 'embedding' (in models[2].endpoints"),
        ("[mistral]", "[mistrl]", "f.yaml:6: fallback `mistrl` is no other model of this file"),
        ("[mistral]", "[llama2]", "f.yaml:6: fallback `llama2` is no other model of this file"),
        ("default_model: mistral", "default_model: gpt", "f.yaml:15: `gpt` is no model of this file"),
        ("default_model: mistral", "", "f.yaml:1: Object missing required field `default_model`"),
        ("model: mistral}", "model: x}", "f.yaml:17: alias points to `x`, which is no model of this file"),
        ("code: mistral}", "code: x}", "f.yaml:19: task `code` points to `x`, which is no model of this file"),
        ("{chat: llama2", "{1: llama2", "f.yaml:19: Expected `str`, got `int`"),
        ("default_model: mistral", "default_model: mistral\ndefault_modl: x", "f.yaml:16: Object contains unknown"),
        ("default_model: mistral", "default_model: bge\ndefault_model: bge", "f.yaml:16: `default_model` is given"),
        ("name: bge", "name: llama2", "f.yaml:2: two models are called `llama2`"),
        ("name: bge", "name: bge\n    served_name: mistral", "two models are called `mistral`"),
        ("tasks: {", "tasks: {}\nlimits: {requests_per_minute: -1}\n#", "f.yaml:20: Expected `int` >= 0"),
        ("tasks: {", "tasks: {}\ncache: {max_entry_byte: 1}\n#", "f.yaml:20: Object contains unknown field"),
        ("tasks: {", "tasks: {}\ncache: ~\n#", "f.yaml:20: Expected `object`, got `null` (in cache)"),
        ("tasks: {", "jwt: {models: [none]}\ntasks: {", "f.yaml:19: `none` is no model of this file"),
        ("tasks: {", "jwt: {models: [meta/llama]}\ntasks: {", "f.yaml:19: `meta/llama` is no model of this file"),
        ("tasks: {", "jwt: {models: []}\ntasks: {", "f.yaml:19: Expected `array` of length >= 1 (in jwt.models)"),
        ("tasks: {", "jwt: {model: x}\ntasks: {", "f.yaml:19: Object contains unknown field `model` (in jwt)"),
        ("tasks: {", "jwt: {max_in_flight: -1}\ntasks: {", "f.yaml:19: Expected `int` >= 0 (in jwt.max_in_flight)"),
        ("tasks: {", "jwt:\ntasks: {", "f.yaml:19: Expected `object`, got `null` (in jwt)"),
        ("tasks: {", "tasks: [", "f.yaml:19: "),
        ("tasks: {", "\ttasks: {", "f.yaml:19: found character that cannot start any token"),
        ("tasks: {", "? [a]\n: b\ntasks: {", "f.yaml:19: a field's name must be plain text"),
    ],
)
def test_a_mistake_is_told_with_its_line(good: str, bad: str, told: str) -> None:
    assert good in GOOD
    words = refusal(GOOD.replace(good, bad, 1))
    assert told in words
    assert words.startswith("f.yaml:")


@pytest.mark.parametrize("text", ["", "3", "[]", "a: b", "~", "--- {}\n--- {}", "&a [*a]", "a: &a {b: *a}"])
def test_what_is_no_configuration_at_all_is_refused(text: str) -> None:
    assert refusal(text).startswith("f.yaml:")


def test_bytes_that_are_no_text_are_refused() -> None:
    assert refusal(b"\xff\xfe\x00").startswith("f.yaml:1: ")
    assert refusal(b"a: \x00").startswith("f.yaml:1: ")


def test_two_tenants_of_one_name_are_refused() -> None:
    tenant = "  - name: acme\n    limits: {requests_per_minute: 1}\n"
    assert refusal(GOOD + "tenants:\n" + tenant * 2) == "f.yaml:23: tenant `acme` is given twice"


def test_a_typical_answer_larger_than_the_context_is_refused() -> None:
    text = GOOD.replace("4096", "4096\n    typical_completion_tokens: 4097")
    assert refusal(text) == "f.yaml:5: typical_completion_tokens (4097) is larger than context_tokens"


def test_a_small_embedding_model_needs_no_figure_for_completions() -> None:
    assert config.load(GOOD.replace("512", "128").encode(), "f").models["bge"].context_tokens == 128


def test_the_file_that_is_delivered_is_valid() -> None:
    from extproc.local.stack import ROOT

    path = ROOT / "overlays" / "base" / "llm-mesh.yaml"
    catalogue = config.load(path.read_bytes(), str(path))
    assert catalogue.default.name == "mistral"
    assert catalogue.limits.requests_per_minute == 100


@given(st.text(max_size=60))
def test_any_other_text_is_refused_and_never_breaks_the_loader(text: str) -> None:
    assert refusal(text).startswith("f.yaml:")


@given(st.integers(0, len(CONFIG) - 1), st.characters(codec="ascii"))
def test_one_wrong_letter_is_taken_or_told(at: int, letter: str) -> None:
    text = CONFIG[:at] + letter.encode() + CONFIG[at + 1 :]
    try:
        assert config.load(text, "f.yaml").models
    except ConfigError as error:
        line = str(error).removeprefix("f.yaml:").partition(":")[0]
        assert 1 <= int(line) <= CONFIG.count(b"\n") + 2
