"""Claims about what answers consist of, without a server."""

from __future__ import annotations

import json
import math

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mock import logprobs
from harness.mock.generation import (
    VOCABULARY,
    Tool,
    Wish,
    escaped,
    example,
    fragments,
    length,
    say,
    unescaped,
)

WEATHER = Tool("weather", b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}')
NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"items": {"$ref": "#/$defs/node"}, "type": "array"},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def text(tokens: list[bytes]) -> str:
    return "".join(map(unescaped, tokens))


@given(st.integers(1, 200), st.integers(0, 1000), st.sampled_from([0.0, 0.125, 0.25, 0.5]))
def test_words_fill_the_limit_exactly_and_reasoning_has_its_share(limit: int, start: int, share: float):
    said = say(Wish(thinking=share), start=start, limit=limit, default=9)
    assert said.tokens == limit
    assert len(said.reasoning) == int(limit * share)
    assert said.content
    assert said.finish == "length"
    assert all((*said.reasoning, *said.content))


@given(st.integers(1, 80), st.integers(0, 1000))
def test_json_mode_is_json_unless_the_limit_leaves_no_room(limit: int, start: int):
    said = say(Wish(json=True), start=start, limit=limit, default=9)
    assert said.tokens == max(1, limit)
    if said.finish == "stop":
        assert isinstance(json.loads(text(said.content))["answer"], str)
    else:
        assert limit == 1


@given(st.text(min_size=1, max_size=4), st.integers(0, 100))
def test_no_answer_contains_its_stop_sequence(stop: str, start: int):
    free = text(say(Wish(), start=start, limit=60, default=9).content)
    said = say(Wish(stop=(stop,)), start=start, limit=60, default=9)
    assert text(said.content) == free.split(stop)[0]
    assert said.finish == ("stop" if stop in free else "length")
    assert said.stopped_by == (stop if stop in free else None)
    assert all(said.content)


def test_the_earliest_of_several_stop_sequences_counts_and_may_cut_a_token():
    said = say(Wish(stop=("leaves", "est l", "absent")), start=0, limit=None, default=20)
    assert text(said.content) == " every requ"
    assert said.stopped_by == "est l"


def test_a_stop_at_the_very_start_leaves_nothing_and_still_takes_the_time_of_a_token():
    said = say(Wish(stop=(" every",)), start=0, limit=5, default=20)
    assert said.tokens == 0
    assert length([said]) == 1


def test_a_call_has_a_token_for_its_name_and_arguments_that_fit():
    said = say(Wish(calls=(WEATHER,), thinking=0.25), start=0, limit=None, default=8)
    assert said.finish == "tool_calls"
    assert json.loads(text(said.calls[0].arguments)) == {"city": "text"}
    assert said.tokens == 2 + 1 + len(said.calls[0].arguments)
    assert not said.content


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_a_limit_cuts_calls_off(limit: int):
    whole = say(Wish(calls=(WEATHER, WEATHER)), start=0, limit=None, default=8)
    said = say(Wish(calls=(WEATHER, WEATHER)), start=0, limit=limit, default=8)
    assert said.tokens == limit < whole.tokens
    assert said.finish == "length"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "minLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": ["string", "null"]},
        {"enum": ["b", "c"]},
        {"const": None},
        {"type": "integer", "minimum": 3, "maximum": 3},
        {"type": "integer", "minimum": 1},
        {"type": "integer", "maximum": -5},
        {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 3},
        {"type": "integer", "multipleOf": 5, "minimum": 12},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3},
        {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        {"properties": {"a": {"type": "object", "properties": {"b": {}}, "required": ["b"]}}},
        NODE,
    ],
)
def test_arguments_fit_the_schema(schema: dict):
    jsonschema.validate(json.loads(text(list(fragments(json.dumps(schema).encode())))), schema)


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "$ref",
                    "properties",
                    "items",
                    "enum",
                    "anyOf",
                    "required",
                    "minItems",
                    "minimum",
                    "multipleOf",
                    "maxLength",
                    "maximum",
                ]
            ),
            inner
            | st.sampled_from(["object", "array", "integer", "#", "#/items", ["object"], {"$ref": "#"}]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(nonsense)
def test_no_schema_whatever_breaks_the_mock(schema: object):
    json.dumps(example(schema, schema))


@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=9), st.integers(0, 20))
def test_log_probabilities_are_ranked_and_add_up_to_no_more_than_one(tokens: list[bytes], top: int):
    for token, scored in zip(tokens, json.loads(logprobs.chat(tokens, top)), strict=True):
        ranked = scored["top_logprobs"]
        assert scored["token"] == unescaped(token) == bytes(scored["bytes"]).decode()
        assert len(ranked) == top
        assert len({each["token"] for each in ranked}) == top
        assert [each["logprob"] for each in ranked] == sorted((e["logprob"] for e in ranked), reverse=True)
        assert sum(math.exp(each["logprob"]) for each in ranked) <= 1


def test_a_completions_log_probabilities_say_where_each_token_starts():
    scores = json.loads(logprobs.legacy([escaped("ab"), escaped("\n"), escaped("\U0001f642")], 2, 10))
    assert scores["tokens"] == ["ab", "\n", "\U0001f642"]
    assert scores["text_offset"] == [10, 12, 13]
    assert [len(each) for each in scores["top_logprobs"]] == [2, 2, 2]
