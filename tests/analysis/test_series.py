"""series.py: bins and curves that neither lose nor invent anything."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import fake_run

from harness.analysis import series
from harness.analysis.measures import Measures, measure
from harness.record import Sample

WINDOW = (0.0, fake_run.DURATION_S)


@pytest.fixture(scope="module")
def measures() -> Measures:
    return measure(fake_run.table(fake_run.records(faults=2.5)))


@pytest.fixture(scope="module")
def intervals(measures: Measures) -> list[series.Interval]:
    return series.timeline(measures)


def total(intervals: list[series.Interval], name: str) -> float:
    return sum(getattr(each, name) * (each.end_s - each.start_s) for each in intervals)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=700))
def test_a_curve_rises_from_the_fastest_to_the_slowest_within_its_points(values):
    curve = series.curve("stream", np.array(values), points=50)
    assert len(curve.slower) == len(curve.seconds) == min(50, len(values))
    assert curve.slower == sorted(curve.slower, reverse=True)
    assert curve.seconds == sorted(curve.seconds)
    assert set(curve.seconds) <= set(values)
    assert curve.seconds[-1] == max(values)
    assert curve.n == len(values)


def test_a_point_of_a_curve_is_the_nearest_rank():
    curve = series.curve("stream", np.arange(1.0, 1001.0), points=4)
    assert curve.slower == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert curve.seconds == [1.0, 900.0, 990.0, 1000.0]


def test_each_kind_that_has_the_measure_gets_a_curve(measures):
    assert [each.kind for each in series.curves(measures, "response", WINDOW)] == [
        "batch",
        "completion",
        "stream",
    ]
    assert [each.kind for each in series.curves(measures, "ttft", WINDOW)] == ["stream"]
    assert [each.kind for each in series.curves(measures, "itl", WINDOW)] == ["stream"]


def test_a_curve_counts_the_good_answers_of_the_window_only(measures):
    first_half = (measures.arrival_s < 15) & measures.ok
    curves = series.curves(measures, "response", (0.0, 15.0))
    assert sum(each.n for each in curves) == first_half.sum()


def test_lateness_has_requests_that_failed_too(measures):
    started = ~np.isnan(measures.lateness) & (measures.arrival_s < WINDOW[1])
    assert sum(each.n for each in series.curves(measures, "lateness", WINDOW)) == started.sum()
    assert started.sum() > measures.ok.sum()


def test_the_timeline_covers_the_run_without_gap_or_overlap(measures, intervals):
    assert intervals[0].start_s == 0
    assert intervals[-1].end_s == pytest.approx(np.nanmax(measures.ended_s))
    assert all(a.end_s == b.start_s for a, b in pairwise(intervals))
    assert len(intervals) <= 120


def test_the_timeline_loses_no_request(measures, intervals):
    assert total(intervals, "due") == pytest.approx(len(measures))
    assert total(intervals, "started") == pytest.approx((~np.isnan(measures.started_s)).sum())
    assert total(intervals, "ended") == pytest.approx((~np.isnan(measures.ended_s)).sum())


def test_the_area_under_in_flight_is_the_time_spent(measures, intervals):
    assert total(intervals, "in_flight") == pytest.approx(np.nansum(measures.ended_s - measures.started_s))


def test_the_timeline_counts_every_error_under_its_outcome(measures, intervals):
    outcomes = intervals[0].errors.keys()
    for outcome in outcomes:
        counted = sum(each.errors[outcome] * (each.end_s - each.start_s) for each in intervals)
        assert counted == pytest.approx(measures.requests["outcome"].to_pylist().count(outcome))
    assert sum(measures.failed) > 0
    assert set(outcomes) == set(measures.requests["outcome"].to_pylist()) - {"ok"}


def test_tokens_come_with_their_chunks_and_where_usage_is_missing_a_chunk_is_a_token(measures, intervals):
    rows = measures.requests.to_pylist()
    known = sum(row["completion_tokens"] or 0 for row in rows)
    guessed = sum(len(row["chunk_ns"]) for row in rows if row["completion_tokens"] is None)
    assert guessed > 0
    assert total(intervals, "tokens") == pytest.approx(known + guessed)


def test_a_closed_loop_has_nothing_due():
    rows = [msgspec.structs.replace(row, due_ns=None) for row in fake_run.records(rate=20, duration_s=4)]
    assert all(each.due == 0 for each in series.timeline(measure(fake_run.table(rows))))


def test_spreads_count_each_good_answer_once(measures):
    spreads = series.spreads(measures, "response")
    assert sum(each.n for each in spreads) == measures.ok.sum()
    assert all(each.p50_s <= each.p99_s for each in spreads)


def test_an_interval_of_too_few_has_no_p99(measures):
    spreads = series.spreads(measures, "ttft", per_interval=1)
    assert max(each.n for each in spreads) < 100
    assert {each.p99_s for each in spreads} == {None}
    assert all(each.p50_s is not None for each in spreads)


def test_a_longer_run_makes_no_longer_series():
    long = measure(fake_run.table(fake_run.records(rate=4, duration_s=900)))
    assert len(series.timeline(long)) <= 120
    assert len(series.spreads(long, "response")) <= 60
    assert all(len(each.slower) <= 240 for each in series.curves(long, "itl", (0, 900)))


def test_a_run_without_records_has_no_series():
    empty = measure(fake_run.table([]))
    assert series.timeline(empty) == []
    assert series.spreads(empty, "response") == []
    assert series.curves(empty, "response", WINDOW) == []
    assert series.health([]) == []


def sample(t_s: float, worker: int, **changes: float) -> Sample:
    made = Sample(
        t_ns=int(t_s * 1e9),
        worker=worker,
        due=0,
        started=0,
        dropped=0,
        finished=0,
        in_flight=0,
        cpu_s=0.1,
        wall_s=1.0,
        hub_lag_max_ns=0,
        gc_pause_max_ns=0,
        rss_bytes=1,
        open_files=1,
    )
    return msgspec.structs.replace(made, **changes)


def test_health_keeps_the_worst_of_each_interval():
    samples = [sample(t, 0, hub_lag_max_ns=9_000_000 if t == 7 else 1, cpu_s=t / 100) for t in range(1, 11)]
    worst = series.health(samples, most=2)
    assert [each.t_s for each in worst] == [5, 10]
    assert [each.hub_lag_s for each in worst] == pytest.approx([1e-9, 0.009])
    assert [each.cpu for each in worst] == pytest.approx([0.05, 0.10])


def test_health_shows_each_of_a_few_workers_and_the_worst_of_many():
    few = series.health([sample(1, worker) for worker in range(3)])
    assert {each.worker for each in few} == {"worker 0", "worker 1", "worker 2"}
    many = series.health([sample(1, worker, rss_bytes=worker) for worker in range(200)])
    assert [(each.worker, each.rss_bytes) for each in many] == [("worst of 200", 199)]
