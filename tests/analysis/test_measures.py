"""measures.py: what each name means, by table and against a slow oracle."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from factories import dropped, failure, ms, record, stream, table
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.measures import FROM_START, MEASURES, Measures, judged, judged_window, measure
from harness.record import Record, Usage


def one(*records: Record) -> Measures:
    return measure(table(records))


def test_late_arrivals_are_measured_from_due():
    m = one(stream(due_ns=ms(100), started_ns=ms(130)))
    assert m.lateness[0] == 0.03
    assert m.response[0] == 0.105
    assert m.service[0] == 0.075
    assert m.ttft[0] == 0.06
    assert m.ttft_from_start[0] == 0.03
    assert m.first_event[0] == 0.055
    assert m.first_event_from_start[0] == 0.025
    assert m.first_content[0] == 0.06


def test_each_turn_of_a_session_is_a_request_of_its_own():
    m = one(
        record(seq=0, turn=1, due_ns=ms(500), started_ns=ms(510)),
        record(seq=1),
        failure(seq=0, turn=2, due_ns=ms(900), started_ns=ms(900), final=False),
        record(seq=0, turn=2, attempt=1, due_ns=ms(900), started_ns=ms(950)),
        record(seq=0),
    )
    assert m.seq.tolist() == [0, 0, 0, 1]
    assert m.opening.tolist() == [True, False, False, True]
    assert m.lateness.tolist() == [0.0, 0.01, 0.0, 0.0]
    assert (m.attempts, m.duplicates, m.unfinished) == (5, 0, 0)


def test_a_closed_loop_is_measured_from_start():
    m = one(record(due_ns=None, started_ns=ms(40), ended_ns=ms(140)))
    assert m.response[0] == m.service[0] == 0.1
    assert math.isnan(m.lateness[0])
    assert m.arrival_s[0] == 0.04


def test_response_time_spans_all_attempts_and_service_time_the_last():
    m = one(
        failure(attempt=0, final=False, due_ns=0, started_ns=ms(5), ended_ns=ms(50)),
        failure(attempt=1, final=False, due_ns=0, started_ns=ms(150), ended_ns=ms(200)),
        record(attempt=2, due_ns=0, started_ns=ms(400), ended_ns=ms(460)),
    )
    assert len(m) == 1
    assert m.attempts == 3
    assert m.response[0] == 0.46
    assert m.service[0] == 0.06
    assert m.lateness[0] == 0.005
    assert m.ok[0]
    assert m.first_failed[0]


def test_a_retried_request_of_a_closed_loop_counts_from_its_first_start():
    m = one(
        failure(final=False, due_ns=None, started_ns=ms(10), ended_ns=ms(20)),
        record(attempt=1, due_ns=None, started_ns=ms(60), ended_ns=ms(90)),
    )
    assert m.response[0] == 0.08


def test_the_order_of_the_rows_does_not_matter():
    rows = [
        record(seq=1),
        record(seq=0, attempt=1, started_ns=ms(300), ended_ns=ms(350)),
        failure(seq=0, final=False),
    ]
    m = one(*rows)
    assert m.seq.tolist() == [0, 1]
    assert m.first_failed.tolist() == [True, False]
    assert m.response[0] == 0.35


def test_a_dropped_arrival_is_a_failure_without_times():
    m = one(dropped(ended_ns=ms(3)))
    assert m.failed[0]
    assert m.dropped[0]
    for name in MEASURES:
        assert math.isnan(m.of(name)[0]), name


def test_cancelled_requests_are_no_errors_and_are_not_judged():
    m = one(record(), record(seq=1, outcome="cancelled"))
    assert m.failed.tolist() == [False, False]
    assert judged(m, (0.0, 1.0)).tolist() == [True, False]


def test_gaps_are_taken_within_a_stream_and_never_across_two():
    m = one(
        stream(seq=0, chunk_ns=(0, ms(10), ms(40))),
        record(seq=1),
        stream(seq=2, chunk_ns=(ms(90),)),
        stream(seq=3, chunk_ns=(ms(100), ms(105))),
    )
    np.testing.assert_allclose(m.itl, [0.01, 0.03, 0.005])
    assert m.itl_owner.tolist() == [0, 0, 3]
    np.testing.assert_allclose(m.itl_longest, [0.03, np.nan, np.nan, 0.005])


def test_gaps_survive_a_sliced_table():
    rows = table([stream(seq=seq, chunk_ns=(0, ms(seq + 1))) for seq in range(4)])
    np.testing.assert_allclose(measure(rows.slice(2)).itl, [0.003, 0.004])


def test_tpot_is_the_mean_time_of_the_tokens_after_the_first():
    m = one(stream(usage=Usage(prompt=1, completion=5)), stream(seq=1, usage=Usage(prompt=1, completion=1)))
    assert m.tpot[0] == pytest.approx(0.01)
    assert math.isnan(m.tpot[1])


def test_tokens_per_second_count_from_start():
    m = one(record(due_ns=0, started_ns=ms(900), ended_ns=ms(1000), usage=Usage(prompt=1, completion=20)))
    assert m.tokens_per_s[0] == pytest.approx(200)
    assert math.isnan(one(record(usage=None)).tokens_per_s[0])


def test_connecting_has_a_time_only_on_a_new_connection():
    m = one(record(connected_ns=ms(7), reused_connection=False), record(seq=1))
    assert m.connect[0] == 0.007
    assert math.isnan(m.connect[1])


def test_a_threshold_in_milliseconds_equals_its_nanoseconds_exactly():
    for milliseconds in (1, 3, 30, 300, 700, 1100, 123_457):
        m = one(record(due_ns=ms(7), started_ns=ms(7), ended_ns=ms(7 + milliseconds)))
        assert m.response[0] == float(f"{milliseconds}e-3")


def test_nothing_recorded_measures_as_nothing():
    m = measure(table([]))
    assert len(m) == m.attempts == len(m.itl) == 0
    assert judged_window(m, warm_up_s=2, duration_s=None) == (2, 2)


def test_books_that_do_not_add_up_are_counted():
    m = one(record(seq=0), record(seq=0), failure(seq=1, final=False))
    assert m.duplicates == 1
    assert m.unfinished == 1


def test_the_window_ends_with_the_schedule_or_just_past_the_last_arrival():
    m = one(record(seq=0), record(seq=1, due_ns=ms(500)))
    assert judged_window(m, warm_up_s=0.1, duration_s=30.0) == (0.1, 30.0)
    window = judged_window(m, warm_up_s=0.1, duration_s=None)
    assert judged(m, window).tolist() == [False, True]
    assert window[1] == pytest.approx(0.5)


def test_an_arrival_is_dispatched_when_it_starts_or_begins_to_wait_for_a_user():
    m = one(
        record(seq=0, due_ns=0, started_ns=ms(3)),
        record(seq=1, due_ns=0, queued_ns=ms(4), started_ns=ms(900)),
        dropped(seq=2, due_ns=0, queued_ns=ms(5)),
        dropped(seq=3, due_ns=0),
    )
    np.testing.assert_array_equal(m.dispatched_s, [0.003, 0.004, 0.005, np.nan])
    np.testing.assert_array_equal(m.queued, [np.nan, 0.896, np.nan, np.nan])
    assert m.lateness[1] == 0.9


def test_every_measure_judged_from_due_has_a_twin_from_start():
    from_due = {name for name, each in MEASURES.items() if each.origin == "due"}
    assert from_due - {"lateness"} == set(FROM_START)
    assert all(MEASURES[twin].origin == "start" for twin in FROM_START.values())


# -- against an oracle that reads like the definitions ----------------------------------------------------

stamps = st.one_of(st.none(), st.integers(0, 10**12))


@st.composite
def requests(draw, seq):
    attempts = draw(st.integers(1, 3))
    due, queued = draw(stamps), draw(stamps)
    rows = []
    for attempt in range(attempts):
        chunks = tuple(sorted(draw(st.lists(st.integers(0, 10**12), max_size=4))))
        completion = draw(st.integers(0, 5))
        rows.append(
            record(
                seq=seq,
                kind=draw(st.sampled_from(["completion", "stream", "batch"])),
                attempt=attempt,
                error=draw(st.sampled_from(["", "connect: refused"])),
                final=attempt == attempts - 1,
                due_ns=due,
                started_ns=draw(stamps),
                queued_ns=queued,
                connected_ns=draw(stamps),
                headers_ns=draw(stamps),
                first_event_ns=draw(stamps),
                first_token_ns=draw(stamps),
                first_content_ns=draw(stamps),
                chunk_ns=chunks,
                ended_ns=draw(stamps),
                held_ns=draw(st.integers(0, 10**9)),
                outcome=draw(st.sampled_from(["ok", "timeout", "dropped", "cancelled"])),
                usage=draw(st.sampled_from([None, Usage(prompt=1, completion=completion)])),
            )
        )
    return rows


def minus(later, earlier):
    return math.nan if later is None or earlier is None else (later - earlier) / 1e9


def oracle(attempts: list[Record]) -> dict[str, float]:
    first, last = attempts[0], attempts[-1]
    origin = first.due_ns if first.due_ns is not None else first.started_ns
    gaps = [b - a for a, b in zip(last.chunk_ns, last.chunk_ns[1:], strict=False)]
    tokens = last.usage.completion if last.usage else 0
    service = minus(last.ended_ns, last.started_ns)
    span = minus(last.chunk_ns[-1], last.first_token_ns) if last.chunk_ns else math.nan
    return {
        "lateness": minus(first.started_ns, first.due_ns),
        "queued": minus(first.started_ns, first.queued_ns),
        "response": math.nan if first.started_ns is None else minus(last.ended_ns, origin),
        "service": service,
        "connect": minus(last.connected_ns, last.started_ns),
        "held": math.nan if last.headers_ns is None else last.held_ns / 1e9,
        "ttft": minus(last.first_token_ns, origin),
        "ttft_from_start": minus(last.first_token_ns, last.started_ns),
        "first_event": minus(last.first_event_ns, origin),
        "first_event_from_start": minus(last.first_event_ns, last.started_ns),
        "first_content": minus(last.first_content_ns, origin),
        "first_content_from_start": minus(last.first_content_ns, last.started_ns),
        "itl_longest": max(gaps, default=math.nan) / 1e9,
        "tpot": span / (tokens - 1) if tokens > 1 else math.nan,
        "tokens_per_s": tokens / service if last.usage and service > 0 else math.nan,
    }


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(*(requests(seq) for seq in range(n)))))
def test_measures_agree_with_a_plain_reading_of_the_definitions(groups):
    m = measure(table([row for group in groups for row in group]))
    expected = [oracle(group) for group in groups]
    for name in MEASURES:
        np.testing.assert_allclose(m.of(name), [each[name] for each in expected], rtol=1e-12, err_msg=name)
    errors = [[each.error for each in group[:-1]] for group in groups]
    found = zip(m.retried_owner.tolist(), m.retried_error.tolist(), strict=True)
    assert list(found) == [(at, error) for at, group in enumerate(errors) for error in group]
    assert m.failed.tolist() == [group[-1].outcome not in {"ok", "cancelled"} for group in groups]
    assert m.first_failed.tolist() == [group[0].outcome not in {"ok", "cancelled"} for group in groups]


def test_every_measure_is_defined_for_people():
    page = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (due|start|-) \|", page, flags=re.MULTILINE))
    origins = {name: each.origin.replace("none", "-") for name, each in MEASURES.items()}
    assert rows == origins | {"itl": "-"}
