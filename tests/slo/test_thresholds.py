"""thresholds.py and objectives.py: the grammar, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.slo.objectives import Objective, load, parse
from harness.slo.thresholds import JUDGEABLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("response: p(99) < 500ms", ("response p(99)", "response", "<", 0.5, 0.99, None)),
        ("ttft: p(99.9) <= 1s", ("ttft p(99.9)", "ttft", "<=", 1.0, 0.999, None)),
        ("service:p(50)<2min", ("service p(50)", "service", "<", 120.0, 0.5, None)),
        ("itl: p(99) < 50ms", ("itl_longest p(99)", "itl_longest", "<", 0.05, 0.99, None)),
        ("tpot: p( 95 ) < 250us", ("tpot p(95)", "tpot", "<", 0.00025, 0.95, None)),
        ("tokens_per_s: p(5) > 20", ("tokens_per_s p(5)", "tokens_per_s", ">", 20.0, 0.95, None)),
        ("tokens_per_s: p(1) >= 20 tokens/s", ("tokens_per_s p(1)", "tokens_per_s", ">=", 20.0, 0.99, None)),
        ("stream.ttft: p(99) < 300ms", ("stream.ttft p(99)", "ttft", "<", 0.3, 0.99, "stream")),
        ("ttft{kind=stream}: p(99) < 300ms", ("stream.ttft p(99)", "ttft", "<", 0.3, 0.99, "stream")),
        ("errors: rate < 0.1%", ("errors rate", "errors", "<", None, 0.999, None)),
        ("errors: rate <= 0.07", ("errors rate", "errors", "<=", None, 0.93, None)),
        ("batch.errors: rate < 1%", ("batch.errors rate", "errors", "<", None, 0.99, "batch")),
    ],
)
def test_a_threshold_string_is_a_proportion(text, expected):
    name, *rest = expected
    assert parse(text) == Objective(name, text, *rest)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "write it like"),
        ("p(99) < 500ms", "write it like"),
        ("response p(99) < 500ms", "write it like"),
        ("response: p(99) = 500ms", "write it like"),
        ("response: p(99) < -5ms", "write it like"),
        ("respones: p(99) < 500ms", "did you mean response?"),
        ("lateness: p(99) < 5ms", "unknown measure lateness"),
        ("queued: p(99) < 5ms", "unknown measure queued"),
        ("streams.ttft: p(99) < 1s", "did you mean stream?"),
        ("stream.ttft{kind=batch}: p(99) < 1s", "name the kind once"),
        ("completion.ttft: p(99) < 1s", "do not stream"),
        ("response: p(99) < 500", "give the time its unit"),
        ("response: p(99) < 500msec", "give the time its unit"),
        ("response: p(99) > 500ms", "use < or <="),
        ("tokens_per_s: p(5) < 20", "use > or >="),
        ("tokens_per_s: p(5) > 20ms", "leave the unit out"),
        ("response: p(100) < 1s", "between 0 and 100"),
        ("response: p(0) < 1s", "between 0 and 100"),
        ("response: p() < 1s", "is not a number"),
        ("response: p(99) < 1.2.3s", "is not a number"),
        ("response: p(99) < 0s", "above 0"),
        ("response: avg < 1s", "ask for a percentile"),
        ("response: rate < 1s", "ask for a percentile"),
        ("errors: p(99) < 1%", "errors have a rate"),
        ("errors: rate > 1%", "use < or <="),
        ("errors: rate < 0%", "no sample proves 0"),
        ("errors: rate < 100%", "between 0 and 1"),
        ("errors: rate < 5ms", "is a share"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(text, remedy):
    with pytest.raises(ConfigError) as caught:
        parse(text, source="scenario.yaml", key="objectives[0]")
    assert caught.value.source == "scenario.yaml"
    assert caught.value.key == "objectives[0]"
    assert caught.value.value == text
    assert remedy in caught.value.remedy


@given(
    st.text(max_size=40)
    | st.from_regex(r"[a-z_.]+: ?(p\([0-9.]*\)|rate) ?[<>]=? ?[0-9.]+[a-z%]*", fullmatch=True)
)
def test_any_text_is_an_objective_or_a_config_error(text):
    try:
        objective = parse(text)
    except ConfigError:
        return
    assert 0 < objective.target < 1


@given(
    st.sampled_from(sorted(set(JUDGEABLE) - {"tokens_per_s"})), st.integers(1, 10**6), st.integers(1, 9999)
)
def test_what_is_read_is_what_was_written(measure, milliseconds, hundredths):
    objective = parse(f"{measure}: p({hundredths / 100:.2f}) < {milliseconds}ms")
    assert objective.threshold == milliseconds * 1_000_000 / 1e9
    assert objective.target == hundredths / 10_000


def test_objectives_of_the_same_name_are_told_apart(tmp_path):
    items = ["ttft: p(99) < 1s", "ttft: p(99) < 2s", "errors: rate < 1%"]
    names = [each.name for each in load(items, source="s.yaml", base=tmp_path)]
    assert names == ["ttft p(99)", "ttft p(99) (2)", "errors rate"]


def test_a_mistake_in_a_list_names_its_place(tmp_path):
    with pytest.raises(ConfigError, match=r"s\.yaml: objectives\[1\] is 'nonsense'"):
        load(["ttft: p(99) < 1s", "nonsense"], source="s.yaml", base=tmp_path)


def test_a_yaml_item_is_an_openslo_file_beside_the_scenario(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load(["missing.yaml"], source="s.yaml", base=tmp_path)


def test_the_manuals_examples_can_be_read():
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    examples = page.split("```")[1].strip().splitlines()
    assert [parse(re.split(r"  +", line)[0]).expression for line in examples]
