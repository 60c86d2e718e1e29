"""Tokens and made-up text."""

import json
import subprocess
import sys
from typing import Any

import pytest

from extproc.sim import text


@pytest.mark.parametrize("given", ["", "one two", "  a\n\n\tb ", 'Grüße 東京 🙂 "x" \\ 1234567', "a" * 5000, "x_y-z/é"])
def test_joining_the_tokens_gives_the_text_back(given: str) -> None:
    assert "".join(text.tokenize(given)) == given


def test_english_has_about_four_characters_a_token() -> None:
    words = "The quick brown fox jumps over the lazy dog, and nobody is particularly surprised about it. " * 20
    assert 3.5 < len(words) / len(text.tokenize(words)) < 5.5


def test_the_same_key_writes_the_same_text_in_every_process() -> None:
    code = "from extproc.sim import text; print(ascii(text.written(50, text.key_of('a', 'b'), 'stop').text))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
    assert other == ascii(text.written(50, text.key_of("a", "b"), "stop").text)


def test_pieces_are_the_tokens_inside_a_json_string() -> None:
    answer = text.written(3000, 1, "stop")
    said = json.loads(b'"' + b"".join(answer.pieces) + b'"')
    assert said == answer.text
    assert len(answer.texts) == len(answer.pieces) == 3000
    assert not answer.text.isascii()
    assert "\n" in answer.text
    assert '"' in answer.text
    assert "\\" in answer.text


def test_a_quoted_text_is_cut_at_the_limit() -> None:
    assert text.quoted("one two three", 2).text == "one two"
    assert text.quoted("one two three", 2).finish_reason == "length"
    assert text.quoted("one two three", 3).finish_reason == "length"
    assert text.quoted("one two three", 4).finish_reason == "stop"


def test_the_earliest_stop_string_wins_and_cuts_inside_a_token() -> None:
    cut = text.stopped(text.quoted("one two three", 9), ["three", "wo"])
    assert (cut.text, cut.finish_reason, cut.stop_reason) == ("one t", "stop", "wo")
    assert len(cut.texts) == 2


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, str),
        ({"type": "integer", "minimum": 2, "maximum": 2}, int),
        ({"type": ["boolean", "null"]}, bool),
        ({"type": "null"}, type(None)),
        ({"anyOf": [{"type": "array", "items": {"const": 1}}, {"type": "null"}]}, list),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}}, dict),
        ({}, dict),
    ],
)
def test_an_instance_is_of_its_schemas_type(schema: dict[str, Any], kind: type) -> None:
    assert isinstance(text.instance(schema), kind)


def test_a_vocabulary_numbers_every_token_once() -> None:
    vocabulary = text.Vocabulary()
    tokens = [f"t{at}" for at in range(3000)]
    ids = vocabulary.ids(tokens)
    assert len(set(ids)) == 3000
    assert vocabulary.ids(tokens) == ids
    assert vocabulary.text(ids[:3]) == "t0t1t2"
    assert vocabulary.text([1]) == "\ufffd"
