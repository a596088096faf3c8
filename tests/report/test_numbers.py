"""numbers.py: three digits, a unit, an interval."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.summary import Figure
from harness.report import numbers


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4123, "s", "412 ms"),
        (0.9996, "s", "1.00 s"),
        (0.9994, "s", "999 ms"),
        (12.345, "s", "12.3 s"),
        (0.0000123, "s", "12.3 µs"),
        (3e-9, "s", "3.00 ns"),
        (0, "s", "0 s"),
        (0.000828, "1", "0.0828 %"),
        (1, "1", "100 %"),
        (120.04, "1/s", "120 /s"),
        (7, "1/s", "7 /s"),
        (1432.6, "tokens/s", "1,430 tokens/s"),
        (4196, "requests", "4,196 requests"),
        (92_300_000, "B", "92.3 MB"),
        (2, "", "2"),
        (None, "s", numbers.NONE),
    ],
)
def test_quantities_have_three_digits_and_a_unit(value, unit, text):
    assert numbers.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("low", "high", "unit", "text"),
    [
        (0.398, 0.431, "s", f"398{numbers.NONE}431 ms"),
        (0.967, 1.02, "s", f"0.967{numbers.NONE}1.02 s"),
        (0.0002, 0.0068, "1", f"0.0200{numbers.NONE}0.680 %"),
        (118.0, 124.0, "1/s", f"118{numbers.NONE}124 /s"),
        (0.398, None, "s", "≥ 398 ms"),
        (None, 0.431, "s", "≤ 431 ms"),
        (None, None, "s", ""),
    ],
)
def test_an_interval_stands_on_one_scale(low, high, unit, text):
    assert numbers.interval(Figure(0.4, unit, 10, low, high)) == text


def test_a_figure_carries_its_interval():
    assert numbers.figure_text(Figure(0.4123, "s", 9, 0.398, None)) == "412 ms [≥ 398]"
    assert numbers.figure_text(Figure(0.98, "s", 9, 0.967, 1.02)) == f"980 ms [0.967{numbers.NONE}1.02 s]"
    assert numbers.figure_text(Figure(None, "s", 9, 0.398, None)) == numbers.NONE


@given(st.floats(1e-9, 1e9))
def test_digits_are_within_half_a_percent_and_never_an_exponent(value):
    text = numbers.digits(value)
    assert "e" not in text
    assert math.isclose(float(text.replace(",", "")), value, rel_tol=0.00501)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.9, "0:07"), (750, "12:30"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_a_clock_reads_like_a_stopwatch(seconds, text):
    assert numbers.clock(seconds) == text


def test_a_chosen_share_is_printed_as_chosen():
    assert numbers.target_share(0.001) == "0.1 %"
    assert numbers.target_share(0.9995) == "99.95 %"
