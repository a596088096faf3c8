"""summary.py: what a report prints."""

from __future__ import annotations

import pytest
from factories import dropped, failure, ms, record, stream, table

from harness.analysis.measures import measure
from harness.analysis.summary import Figure, summarise
from harness.record import Usage
from harness.slo.objectives import parse

WINDOW = (0.0, 10.0)


def summary(records, objectives=(), window=WINDOW, **options):
    return summarise(measure(table(records)), [parse(each) for each in objectives], window, **options)


def test_the_warm_up_is_sent_but_not_judged():
    found = summary([record(seq=seq, due_ns=ms(1000 * seq)) for seq in range(10)], window=(3.0, 10.0))
    assert found.total.requests == 7
    assert found.window_s == (3.0, 10.0)


def test_a_window_holds_its_start_and_not_its_end():
    found = summary([record(due_ns=0), record(seq=1, due_ns=ms(10_000))])
    assert found.total.requests == 1


def test_rates_use_the_windows_length():
    found = summary([record(seq=seq) for seq in range(20)])
    assert found.arrivals == Figure(2.0, "1/s", 20)
    assert found.total.rate.value == found.total.goodput.value == 2.0
    assert found.total.tokens_per_s == Figure(10.0, "tokens/s", 20)
    assert found.planned_rate == 2.0
    assert found.in_flight_mean.value == pytest.approx(20 * 0.1 / 10)


def test_later_turns_are_requests_and_no_arrivals():
    found = summary([record(), record(turn=1, due_ns=ms(300)), record(seq=1)])
    assert found.total.requests == 3
    assert found.arrivals.value == found.planned_rate == 0.2


def test_the_rule_of_the_window_is_kept():
    assert summary([record()], window_rule="fixed by the scenario").window_rule == "fixed by the scenario"


def test_a_closed_loop_has_no_planned_rate():
    assert summary([record(due_ns=None, started_ns=0)]).planned_rate is None


def test_the_plan_counts_where_a_workers_arrivals_were_lost():
    assert summary([record()], planned=30).planned_rate == 3.0


def test_outcomes_statuses_and_errors_are_counted_most_frequent_first():
    found = summary(
        [failure(seq=1, error="HTTP 500"), dropped(seq=2), *(record(seq=seq) for seq in (3, 4, 5))]
    ).total
    assert found.outcomes == {"ok": 3, "http_error": 1, "dropped": 1}
    assert found.statuses == {"200": 3, "500": 1, "none": 1}
    assert found.errors == {"HTTP 500": 1, "no idle user": 1}
    assert found.error_rate.value == 0.4


def test_cancelled_requests_are_shown_and_not_judged():
    found = summary([record(), record(seq=1, outcome="cancelled")]).total
    assert found.requests == 1
    assert found.outcomes == {"ok": 1, "cancelled": 1}
    assert found.error_rate.value == 0.0


def test_first_attempts_and_requests_have_error_rates_of_their_own():
    found = summary([failure(final=False), record(attempt=1, started_ns=ms(500)), record(seq=1)]).total
    assert found.error_rate.value == 0.0
    assert found.first_attempt_error_rate.value == 0.5
    assert found.requests == 2


def test_goodput_wants_every_objective_met():
    records = [
        record(seq=0),
        record(seq=1, ended_ns=ms(10 + 800)),
        stream(seq=2),
        stream(seq=3, first_token_ns=ms(30 + 60)),
        failure(seq=4),
        dropped(seq=5),
    ]
    found = summary(records, ["response: p(99) < 500ms", "ttft: p(99) < 50ms", "errors: rate < 0.1%"])
    assert found.total.goodput.value == 0.2
    assert {group.kind: group.goodput.value for group in found.kinds} == {"completion": 0.1, "stream": 0.1}


def test_goodput_is_of_what_ended_in_the_window_and_so_never_exceeds_the_rate():
    rows = [
        record(seq=0, ended_ns=ms(950)),  # due before the window
        record(seq=1, due_ns=ms(1000)),
        record(seq=2, due_ns=ms(1900), ended_ns=ms(2050)),  # ends after it
        record(seq=3, due_ns=ms(1100), ended_ns=ms(1990)),  # not good
        record(seq=4, due_ns=ms(800), ended_ns=ms(1010)),
        record(seq=5, due_ns=ms(900), ended_ns=ms(1020)),
    ]
    found = summary(rows, ["response: p(99) < 500ms"], window=(1.0, 2.0)).total
    assert (found.rate.n, found.goodput.n) == (4, 3)


def test_an_objective_of_one_kind_leaves_the_others_alone():
    records = [record(seq=0), stream(seq=1)]
    assert summary(records, ["stream.response: p(99) < 1ms"]).total.goodput.value == 0.1


def test_distributions_are_of_good_answers_and_lateness_of_all_that_started():
    found = summary([record(seq=0), failure(seq=1), dropped(seq=2)]).total.distributions
    assert found["response"].n == 1
    assert found["lateness"].n == 2


def test_a_kind_shows_only_the_measures_it_has():
    completion, streamed = summary([record(seq=0), stream(seq=1)]).kinds
    assert "ttft" not in completion.distributions
    assert {"ttft", "ttft_from_start", "first_event", "itl", "itl_longest", "tpot"} <= set(
        streamed.distributions
    )
    assert streamed.distributions["itl"].n == 4
    assert streamed.distributions["itl_longest"].n == 1


def test_tokens_are_summed_and_estimates_counted():
    found = summary(
        [
            record(seq=0, usage=Usage(prompt=10, completion=5, cached=4, reasoning=2)),
            record(seq=1, usage=Usage(prompt=7, completion=1, source="estimate")),
            record(seq=2, usage=None),
        ]
    ).total
    assert (found.prompt_tokens, found.completion_tokens) == (17, 6)
    assert (found.cached_tokens, found.reasoning_tokens) == (4, 2)
    assert found.estimated_usage == 1


def test_a_batch_is_done_when_its_slowest_request_is():
    def part(seq, index, took, **overrides):
        return record(
            seq=seq,
            index=index,
            kind="batch",
            due_ns=0,
            started_ns=ms(10),
            ended_ns=ms(10 + took),
            **overrides,
        )

    rows = [part(0, index, took) for index, took in enumerate([100, 300, 200, 200])]
    rows += [part(1, 0, 50), failure(seq=1, index=1, kind="batch", due_ns=0)]
    found = summary(rows).batch
    assert found.batches == 2
    assert found.size == 3.0
    assert found.all_done.n == found.slowest_ratio.n == 1  # a batch with a failure was never done
    assert found.all_done.maximum == pytest.approx(0.31)
    assert found.slowest_ratio.maximum == pytest.approx(1.5)


def test_a_batch_is_one_arrival():
    found = summary([record(seq=0, index=index, kind="batch") for index in range(8)])
    assert found.arrivals.n == 1
    assert found.total.requests == 8


def test_the_slowest_and_the_failed_are_listed_up_to_twenty():
    rows = [record(seq=seq, ended_ns=ms(10 * seq + 100 + seq)) for seq in range(30)]
    rows += [failure(seq=30 + seq) for seq in range(25)]
    found = summary(rows)
    assert [each.seq for each in found.slowest] == list(range(29, 9, -1))
    assert [each.seq for each in found.failed] == list(range(30, 50))
    assert found.slowest[0].response_s == pytest.approx(0.129)
    assert found.failed[0].error == "HTTP 500"
    assert found.slowest[0].ttft_s is None


def test_an_empty_run_has_a_summary():
    found = summary([], window=(0.0, 0.0))
    assert found.total.requests == 0
    assert found.total.error_rate.value is None
    assert found.kinds == found.slowest == found.failed == []
    assert found.batch is None


def test_the_rate_counts_what_ended_in_the_window():
    rows = [
        record(seq=0),
        record(seq=1, ended_ns=ms(10_500)),
        record(seq=2, outcome="cancelled"),
        dropped(seq=3, ended_ns=ms(40)),
    ]
    found = summary(rows).total
    assert found.rate == Figure(0.1, "1/s", 1)
    assert found.requests == 3
