"""verdict.py: what a run proves."""

from __future__ import annotations

import re

import pytest
from factories import dropped, failure, ms, record, stream, table
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from harness.analysis.measures import measure
from harness.analysis.summary import summarise
from harness.analysis.validity import Check, Validity
from harness.slo.objectives import parse
from harness.slo.verdict import EXIT_CODES, State, judge

VALID = Validity([])
BROKEN = Validity([Check("lateness", False, 0.2, 0.01, "s", 10, "requests started late", "raise --workers")])
WINDOW = (0.0, 10_000.0)


def took(milliseconds, **overrides):
    due = ms(10 * overrides.get("seq", 0))
    return record(ended_ns=due + ms(milliseconds), **overrides)


def verdict(records, *objectives, validity=VALID, window=WINDOW):
    return judge(measure(table(records)), [parse(each) for each in objectives], validity, window)


def one(records, objective, **options):
    return verdict(records, objective, **options).objectives[0]


def mixed(good, bad):
    return [took(700 if seq < bad else 100, seq=seq) for seq in range(good + bad)]


P99 = "response: p(99) < 500ms"


@pytest.mark.parametrize(
    ("good", "bad", "state", "more"),
    [
        (298, 0, State.INCONCLUSIVE, 1),
        (299, 0, State.PASS, None),
        (472 - 1, 1, State.INCONCLUSIVE, 1),
        (473 - 1, 1, State.PASS, None),
        (96, 4, State.FAIL, None),
        (97, 3, State.INCONCLUSIVE, 673),
        (0, 1, State.FAIL, None),
        (990, 10, State.INCONCLUSIVE, 693),
    ],
)
def test_p99_is_proven_refuted_or_open(good, bad, state, more):
    found = one(mixed(good, bad), P99)
    assert (found.state, found.more_needed) == (state, more)
    assert (found.n, found.bad) == (good + bad, bad)


def test_an_error_rate_below_a_thousandth_takes_2995_requests_without_one():
    def errors(n):
        return one([record(seq=seq) for seq in range(n)], "errors: rate < 0.1%")

    assert errors(2995).state is State.PASS
    assert errors(2994).state is State.INCONCLUSIVE
    assert errors(2994).more_needed == 1
    assert errors(2994).reason.endswith("1 more good ones would prove it")


@given(st.integers(0, 60), st.integers(0, 12), st.sampled_from(["90", "95", "99"]))
def test_the_verdict_is_that_of_two_exact_binomial_tests(good, bad, percent):
    n = good + bad
    found = one(mixed(good, bad), f"response: p({percent}) < 500ms")
    if not n:
        assert found.state is State.INCONCLUSIVE
        return
    allowed = 1 - int(percent) / 100
    better, worse = (binomtest(bad, n, allowed, side).pvalue for side in ("less", "greater"))
    assume(min(abs(better - 0.05), abs(worse - 0.05)) > 1e-9)  # 1 bad of 1 at 95 %: rounding decides
    if better < 0.05:
        expected = State.PASS
    elif worse < 0.05:
        expected = State.FAIL
    else:
        expected = State.INCONCLUSIVE
    assert found.state is expected


@pytest.mark.parametrize(("operator", "bad"), [("<", 5), ("<=", 0)])
def test_a_value_at_the_threshold_meets_only_the_wider_operator(operator, bad):
    assert one([took(300, seq=seq) for seq in range(5)], f"response: p(90) {operator} 300ms").bad == bad


def test_late_starts_count_against_the_response_time_and_not_the_service_time():
    late = [record(seq=seq, started_ns=ms(10 * seq + 450), ended_ns=ms(10 * seq + 550)) for seq in range(300)]
    assert one(late, P99).bad == 300
    assert one(late, "service: p(99) < 500ms").bad == 0


def test_a_failed_request_is_bad_however_quick():
    assert one([failure(seq=seq, ended_ns=ms(10 * seq + 1)) for seq in range(10)], P99).bad == 10


def test_a_dropped_arrival_is_bad():
    rows = [dropped(seq=0), *(record(seq=seq) for seq in range(1, 300))]
    assert one(rows, P99).bad == 1
    assert one(rows, "errors: rate < 0.1%").bad == 1


def test_a_failed_stream_is_bad_by_what_streams_have_and_a_failed_completion_is_not():
    rows = [stream(seq=0), failure(seq=1, kind="stream"), failure(seq=2), record(seq=3)]
    found = one(rows, "ttft: p(99) < 500ms")
    assert (found.n, found.bad) == (2, 1)
    assert one(rows, "tpot: p(99) < 500ms").n == 2


def test_a_stream_without_a_token_never_met_its_ttft():
    assert one([stream(first_token_ns=None, chunk_ns=())], "ttft: p(99) < 500ms").bad == 1


def test_a_stream_of_one_token_has_no_gap_to_judge():
    assert one([stream(chunk_ns=(ms(30),))], "itl: p(99) < 50ms").n == 0


def test_a_retried_request_is_judged_once_and_from_its_due_time():
    rows = [failure(final=False), took(600, attempt=1, started_ns=ms(500))]
    assert (one(rows, P99).n, one(rows, P99).bad) == (1, 1)
    assert one(rows, "errors: rate < 0.1%").bad == 0


def test_an_objective_of_a_kind_judges_that_kind():
    rows = [took(900, seq=0), stream(seq=1)]
    assert one(rows, "stream.response: p(99) < 500ms").bad == 0
    assert one(rows, "completion.response: p(99) < 500ms").bad == 1


def test_where_higher_is_better_slow_requests_are_bad():
    rows = [record(seq=seq, ended_ns=ms(10 * seq + (100 if seq else 1000))) for seq in range(100)]
    found = one(rows, "tokens_per_s: p(5) > 20")
    assert (found.bad, found.state) == (1, State.PASS)
    assert found.observed.value == pytest.approx(50)


def test_the_warm_up_and_the_cancelled_are_not_judged():
    rows = [took(900, seq=0), took(900, seq=200, outcome="cancelled"), took(100, seq=201)]
    found = one(rows, P99, window=(1.0, 10.0))
    assert (found.n, found.bad) == (1, 0)


def test_the_observed_percentile_compares_as_the_share_of_bad_requests_does():
    for bad in (9, 10, 11):
        found = one(mixed(1000 - bad, bad), P99)
        assert (found.observed.value < 0.5) is (bad <= 10)
    assert found.bad_share.value == 0.011
    assert found.budget_used == pytest.approx(1.1)


def test_a_percentile_that_falls_on_failures_is_not_a_number():
    rows = [failure(seq=seq) if seq < 20 else record(seq=seq) for seq in range(400)]
    found = one(rows, P99)
    assert found.observed.value is None
    assert "failed" in found.observed.note
    assert found.state is State.FAIL


def test_no_sample_is_inconclusive_and_says_what_is_wanted():
    found = one([record()], "stream.ttft: p(99) < 500ms")
    assert found.state is State.INCONCLUSIVE
    assert found.more_needed == 299
    said = "no request of kind stream was judged that has a value of ttft; 299 good ones would prove it"
    assert found.reason == said
    assert one([], "errors: rate < 0.1%").reason.startswith("no request was judged; 2,995 good ones")


def test_percentages_are_spelt_in_one_way():
    for bad in (0, 5, 400):
        assert re.findall(r"\d+\S?%", one(mixed(400, bad), P99).reason) == []


def test_no_objective_is_inconclusive():
    found = verdict([record()])
    assert (found.state, found.exit_code) == (State.INCONCLUSIVE, 3)
    assert "no objective" in found.reason


PASSED, FAILED, OPEN = "response: p(50) < 500ms", "response: p(50) < 1ms", "response: p(99.9) < 500ms"


@pytest.mark.parametrize(
    ("objectives", "validity", "state", "code"),
    [
        ([PASSED], VALID, State.PASS, 0),
        ([PASSED, OPEN], VALID, State.INCONCLUSIVE, 3),
        ([PASSED, OPEN, FAILED], VALID, State.FAIL, 1),
        ([PASSED], BROKEN, State.INVALID, 4),
        ([FAILED], BROKEN, State.INVALID, 4),
    ],
)
def test_a_run_proves_no_more_than_its_weakest_part(objectives, validity, state, code):
    found = verdict([record(seq=seq) for seq in range(20)], *objectives, validity=validity)
    assert (found.state, found.exit_code) == (state, code)
    assert found.reason
    assert EXIT_CODES[state] == code


def test_an_invalid_run_says_what_the_instrument_did():
    assert "requests started late" in verdict([record()], PASSED, validity=BROKEN).reason


def test_goodput_and_verdict_count_the_same_requests():
    rows = [*mixed(50, 7), failure(seq=60), dropped(seq=61)]
    m, objectives = measure(table(rows)), [parse(P99)]
    found = judge(m, objectives, VALID, (0.0, 10.0)).objectives[0]
    assert summarise(m, objectives, (0.0, 10.0)).total.goodput.n == found.n - found.bad


def test_an_empty_window_is_named_and_no_samples_are_asked_for():
    found = verdict([took(100, seq=seq) for seq in range(50)], P99, window=(3.0, 5.0))
    assert found.state is State.INCONCLUSIVE
    assert found.reason == "no request was due in the judged window, but from 0 s to 0.49 s"
    assert found.objectives[0].reason == found.reason
