"""Claims about the latency profiles."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.mock.latency import (
    Fixed,
    LogNormal,
    Profile,
    Seconds,
    Uniform,
    built_in_profiles,
    draw_s,
    load_profile,
    token_offsets_ns,
)

MS = 1_000_000


def offsets(profile: Profile, *, seed: int = 1, request_id: str = "r", tokens: int = 4) -> list[int]:
    return token_offsets_ns(profile, seed=seed, request_id=request_id, tokens=tokens)


def profile(ttft: Fixed | Uniform | LogNormal, itl: Fixed | Uniform | LogNormal) -> Profile:
    return Profile(ttft=ttft, itl=itl)


def test_fixed_gaps_are_counted_from_the_first_token():
    steady = profile(Fixed(Seconds(0.1)), Fixed(Seconds(0.02)))
    assert offsets(steady) == [100 * MS, 120 * MS, 140 * MS, 160 * MS]


def test_the_fast_profile_adds_nothing():
    assert offsets(load_profile("fast"), tokens=3) == [0, 0, 0]


@given(st.integers(), st.text(), st.integers(1, 50))
def test_draws_repeat_for_the_same_seed_and_request(seed: int, request_id: str, tokens: int):
    demo = load_profile("demo")
    first = offsets(demo, seed=seed, request_id=request_id, tokens=tokens)
    assert first == offsets(demo, seed=seed, request_id=request_id, tokens=tokens)
    assert first == sorted(first)
    assert len(first) == tokens


def test_draws_differ_between_requests_and_between_seeds():
    demo = load_profile("demo")
    drawn = {offsets(demo, seed=s, request_id=r)[0] for s in range(5) for r in "abcde"}
    assert len(drawn) == 25


def test_a_longer_answer_begins_like_a_shorter_one():
    demo = load_profile("demo")
    assert offsets(demo, tokens=40)[:10] == offsets(demo, tokens=10)


def test_lognormal_draws_have_the_stated_median_and_spread():
    rng = random.Random(1)
    logs = [math.log(draw_s(LogNormal(Seconds(0.03), 0.3), rng)) for _ in range(20_000)]
    assert statistics.median(logs) == pytest.approx(math.log(0.03), abs=0.01)
    assert statistics.stdev(logs) == pytest.approx(0.3, abs=0.01)


def test_uniform_draws_fill_their_range_evenly():
    rng = random.Random(1)
    drawn = [draw_s(Uniform(Seconds(0.01), Seconds(0.03)), rng) for _ in range(20_000)]
    assert min(drawn) >= 0.01
    assert max(drawn) <= 0.03
    assert statistics.fmean(drawn) == pytest.approx(0.02, abs=0.0002)
    assert statistics.pstdev(drawn) == pytest.approx(0.02 / math.sqrt(12), rel=0.02)


def test_demo_answers_of_32_tokens_stay_below_300_ms_at_p99():
    demo = load_profile("demo")
    ends = sorted(offsets(demo, request_id=str(i), tokens=32)[-1] for i in range(2000))
    assert ends[1980] < 300 * MS


@pytest.mark.parametrize("name", built_in_profiles())
def test_built_in_profiles_load_and_say_what_they_are(name: str):
    loaded = load_profile(name)
    assert loaded.name == name
    assert loaded.description


@pytest.mark.parametrize(
    ("text", "key", "value", "hint"),
    [
        ("ttft: {distribution: fixed, value: 3}\nitl: 1", "ttft.value", 3, "with its unit"),
        ("ttft: {distribution: fixed, value: 3 parsecs}\nitl: 1", "ttft.value", "3 parsecs", "with its unit"),
        ("ttft: {distribution: gamma}\nitl: 1", "ttft.distribution", "gamma", "gamma"),
        (
            "ttft: {distribution: lognormal, median: 1s, sigma: -1}\nitl: 1",
            "ttft.sigma",
            -1,
            ">= 0",
        ),
        ("ttft: {distribution: fixd, value: 3s}", "ttft.distribution", "fixd", "did you mean `fixed`"),
        ("ttft: {distribution: uniform, median: 3s}", "ttft.median", "3s", "known here: `low`, `high`"),
        ("ttft: 3s", "ttft", "3s", "a mapping, got text"),
        ("ttft: {distribution: quantiles, points: [[0, 1s], [1, 2]]}", "ttft.points[1][1]", 2, "its unit"),
        ("itl: {distribution: fixed, value: 1s}", "ttft", None, "missing"),
        ("speed: fast", "speed", "fast", "known here"),
        (
            "ttft: {distribution: uniform, low: 2s, high: 1s}\nitl: {distribution: fixed, value: 0s}",
            "ttft.low",
            2.0,
            "ttft.high",
        ),
        (
            "{itl: &x {distribution: quantiles, points: [[0, 1s], [0.5, 2s], [0.9, 1s], [1, 3s]]}, ttft: *x}",
            "ttft.points",
            None,
            "rising",
        ),
        (
            "{itl: &x {distribution: quantiles, points: [[0, 1s], [0.5, 2s]]}, ttft: *x}",
            "ttft.points",
            None,
            "from 0 to 1",
        ),
        ("ttft: [", "", None, "YAML: .* in line 1"),
    ],
)
def test_mistakes_in_a_profile_are_named_with_file_key_and_value(
    tmp_path: Path, text: str, key: str, value: object, hint: str
):
    path = tmp_path / "slow.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=hint) as caught:
        load_profile(str(path))
    assert caught.value.source == str(path)
    assert caught.value.key == key
    if key:
        assert caught.value.value == value


def test_an_unknown_profile_lists_those_that_there_are():
    with pytest.raises(ConfigError, match="deepseek-flash, deepseek-v4-pro, demo, fast"):
        load_profile("quick")


def test_a_missing_profile_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_profile("./nowhere.yaml")
