"""steady.py: where the judged part of a run begins and ends."""

from __future__ import annotations

import numpy as np
import pytest
from factories import dropped, failure, ms, record, table
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.measures import measure
from harness.analysis.steady import emptiness, judged_part, truncation


def part(records, *, warm_up_s=0.0, duration_s=10.0, **options):
    return judged_part(measure(table(records)), warm_up_s=warm_up_s, duration_s=duration_s, **options)


def answers(times_ms):
    return [
        record(seq=seq, started_ns=ms(10 * seq), ended_ns=ms(10 * seq + each))
        for seq, each in enumerate(times_ms)
    ]


def settling(n=1000, transient=200):
    """A server whose cache is cold at first: 500 ms falling to 100 ms, and noise."""
    noise = np.random.default_rng(1).normal(0, 5, n)
    return 100 + 400 * np.maximum(0, 1 - np.arange(n) / transient) + noise


def test_a_window_says_who_fixed_it():
    steady = answers(np.full(1000, 50.0))
    assert part(steady, fixed=(2.0, 4.0)).rule == "fixed by the scenario: 2 s to 4 s"
    by_hand = part(steady, fixed=(2.0, 99.0), fixed_by="hand")
    assert by_hand.rule == "fixed by hand: 2 s to 99 s"
    assert by_hand.window == (2.0, 10.0)


def test_mser_is_the_least_standard_error_of_what_is_left():
    values = settling()
    means = values.reshape(-1, 5).mean(axis=1)
    errors = [np.var(means[cut:]) / len(means[cut:]) for cut in range(len(means) - 5)]
    assert truncation(values) == 5 * int(np.argmin(errors))


def test_a_transient_is_cut_and_what_follows_is_kept():
    assert 180 <= truncation(settling()) <= 230


@given(st.floats(min_value=-1e6, max_value=1e6), st.floats(min_value=1e-3, max_value=1e3))
def test_the_cut_does_not_depend_on_unit_or_origin(origin, unit):
    assert truncation(settling() * unit + origin) == truncation(settling())


@settings(max_examples=50)
@given(st.lists(st.floats(min_value=0, max_value=1e3), min_size=100, max_size=300))
def test_a_cut_is_whole_batches_of_at_most_half(values):
    cut = truncation(np.array(values))
    assert cut is None or (cut % 5 == 0 and 2 * cut <= len(values))


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_run_is_hardly_cut(seed):
    assert truncation(np.random.default_rng(seed).exponential(1, 3000)) <= 300


def test_a_queue_that_only_grows_has_no_steady_state():
    assert truncation(np.arange(1000.0)) is None


def test_too_few_values_have_none_either():
    assert truncation(np.ones(99)) is None
    assert truncation(np.ones(100)) == 0


def test_without_a_wish_the_run_is_judged_from_the_warm_up_to_the_arrivals_end():
    found = part(answers(settling()), warm_up_s=2.0)
    assert found.window == (2.0, 10.0)
    assert found.rule == "from the warm-up of 2 s to the end of the arrivals"
    assert part(answers([100] * 10)).rule == "from the start to the end of the arrivals"


def test_the_scenario_can_fix_the_window():
    found = part(answers(settling()), warm_up_s=1.0, fixed=(3.0, 5.0))
    assert found.window == (3.0, 5.0)
    assert found.rule == "fixed by the scenario: 3 s to 5 s"


def test_of_a_fixed_window_only_what_the_run_reached_is_judged():
    assert part(answers([100] * 401), duration_s=None, fixed=(3.0, 8.0)).window == pytest.approx((3.0, 4.0))
    assert part(answers([100] * 10), duration_s=None, fixed=(3.0, 8.0)).window == pytest.approx((0.09, 0.09))


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"duration_s": None, "warm_up_s": 10.0}, (10.0, 10.0)),
        ({"duration_s": None, "fixed": (3.0, 5.0)}, (1.49, 1.49)),
        ({"duration_s": 9.0, "fixed": (3.0, 5.0), "fixed_by": "hand"}, (3.0, 5.0)),
        ({"duration_s": 9.0, "warm_up_s": 2.0, "mser5": True}, (2.0, 9.0)),
    ],
)
def test_a_window_in_which_nothing_came_is_named(options, window):
    found = part(answers([100] * 150), **options)
    assert found.window == pytest.approx(window)
    assert found.rule.endswith("; no request was due in the judged window, but from 0 s to 1.49 s")


def test_a_window_in_which_something_came_is_not_called_empty():
    assert emptiness(measure(table(answers([100] * 150))), (1.0, 2.0)) == ""
    closed = measure(table([record(due_ns=None, started_ns=ms(500))]))
    assert emptiness(closed, (1.0, 2.0)).startswith("no request was started in")
    assert emptiness(measure(table([])), (0.0, 1.0)) == ""


def test_mser_moves_the_start_to_the_first_request_that_it_keeps():
    found = part(answers(settling()), mser5=True)
    cut = truncation(settling())
    assert found.window == pytest.approx((cut / 100, 10.0))
    assert found.rule == (
        f"from MSER-5's cut, {cut} of 1,000 requests after the start, to the end of the arrivals; "
        "the slowest in what was cut took 0.502 s, in the rest 0.119 s"
    )


def test_mser_looks_at_answers_after_the_warm_up_alone():
    rows = [
        dropped(seq=seq) if seq % 7 == 0 else each for seq, each in enumerate(answers(settling(2000, 900)))
    ]
    found = part(rows, warm_up_s=8.0, duration_s=20.0, mser5=True)
    assert 8.0 <= found.window[0] <= 10.0
    assert "after the warm-up of 8 s" in found.rule


def test_an_early_stall_that_is_cut_is_told_and_so_is_what_failed_in_it():
    times = np.random.default_rng(1).normal(100, 5, 1000)
    times[300] = 60_000
    rows = answers(times)
    for seq in (50, 60):
        rows[seq] = failure(seq=seq)
    found = part(rows, mser5=True)
    assert 3.0 < found.window[0] < 3.5
    assert "; 2 failed in what was cut; the slowest in what was cut took 60 s, in the rest 0.1" in found.rule


def test_a_cut_that_hides_nothing_has_nothing_to_tell():
    found = part(answers([*[100] * 200, *[500, 510] * 400]), mser5=True)
    assert (
        found.rule == "from MSER-5's cut, 200 of 1,000 requests after the start, to the end of the arrivals"
    )


def test_mser_does_not_take_quick_failures_for_answers():
    rows = answers(np.random.default_rng(1).normal(100, 5, 1000))
    rows[:300] = [failure(seq=seq, ended_ns=ms(10 * seq + 1)) for seq in range(300)]
    found = part(rows, mser5=True)
    assert found.rule.startswith("from MSER-5's cut, 0 of 700 requests")
    assert found.window == (0.0, 10.0)


def test_an_overloaded_server_is_judged_in_full_and_the_rule_says_why():
    found = part(answers(np.arange(1000.0) + 100), mser5=True)
    assert found.window == (0.0, 10.0)
    assert "found no steady state in 1,000 requests" in found.rule


def test_what_sessions_ask_after_the_last_arrival_is_cool_down():
    rows = [*answers([100] * 100), record(seq=99, turn=1, due_ns=ms(9000), started_ns=ms(9000))]
    assert part(rows, duration_s=None).window == pytest.approx((0.0, 0.99))
