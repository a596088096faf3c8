"""Records become points that any back end can add up."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from telemetry_cases import MS, RUN, START_NS, dropped, record

from harness.record import Record
from harness.telemetry import semconv
from harness.telemetry.metrics import Bins, Tallies, count_points
from harness.telemetry.spans import resource_of


def tallied(*records: Record, thresholds_s: tuple[float, ...] = ()) -> Tallies:
    tallies = Tallies(RUN, resource_of(RUN, "x", {}), thresholds_s)
    for each in records:
        tallies.add(each)
    return tallies


def points_of(tallies: Tallies, metric: semconv.Metric) -> list[Any]:
    return [
        point
        for resource in tallies.points().resource_metrics
        for scope in resource.scope_metrics
        for series in scope.metrics
        if series.name == metric.name
        for point in series.data.data_points
    ]


@given(
    st.lists(st.lists(st.integers(0, 10**11), max_size=50), max_size=5),
    st.lists(st.floats(1e-4, 90), min_size=1, max_size=10, unique=True).map(sorted),
)
def test_bins_count_each_value_once_in_the_bucket_whose_upper_edge_it_does_not_exceed(
    parts: list[list[int]], edges_s: list[float]
) -> None:
    bins = Bins(edges_s)
    for part in parts:
        bins.add(part)
    values = [value for part in parts for value in part]
    edges_ns = [round(edge * 1e9) for edge in edges_s]
    lower = [-1, *edges_ns]
    upper = [*edges_ns, 10**12]
    assert bins.counts == [
        sum(low < value <= high for value in values) for low, high in zip(lower, upper, strict=True)
    ]
    assert bins.total_ns == sum(values)
    assert (bins.low_ns, bins.high_ns) == ((min(values), max(values)) if values else (0, 0))


def test_a_share_below_a_threshold_can_be_read_off_the_buckets() -> None:
    ends = [499 * MS, 500 * MS, 501 * MS]
    tallies = tallied(*(record(seq, ended_ns=end) for seq, end in enumerate(ends)), thresholds_s=(0.5,))
    (point,) = points_of(tallies, semconv.RESPONSE)
    edge = point.explicit_bounds.index(0.5)
    assert sum(point.bucket_counts[: edge + 1]) == 2
    assert (point.count, point.sum, point.min, point.max) == (3, 1.5, 0.499, 0.501)


def test_service_time_is_per_attempt_and_response_time_per_request() -> None:
    first = record(final=False, outcome="http_error", status=503, ended_ns=50 * MS, usage=None)
    second = record(attempt=1, started_ns=100 * MS, ended_ns=300 * MS)
    tallies = tallied(first, second)
    assert [point.sum for point in points_of(tallies, semconv.INFERENCE_DURATION)] == [0.048, 0.2]
    assert [point.sum for point in points_of(tallies, semconv.RESPONSE)] == [0.3]
    assert [point.count for point in points_of(tallies, semconv.LATENESS_HISTOGRAM)] == [1]
    assert [point.value for point in points_of(tallies, semconv.REQUESTS)] == [1]


def test_an_error_has_its_type_and_zero_tokens() -> None:
    tallies = tallied(record(outcome="http_error", status=503, usage=None))
    (point,) = points_of(tallies, semconv.INFERENCE_DURATION)
    assert point.attributes["error.type"] == "503"
    (tokens,) = points_of(tallies, semconv.USAGE_OUTPUT)
    assert tokens.value == 0
    assert tokens.attributes["gen_ai.token.modality"] == "unknown"


def test_gaps_are_all_those_within_a_stream() -> None:
    (point,) = points_of(tallied(record(), record(1)), semconv.INFERENCE_CHUNK_GAP)
    assert (point.count, point.sum, point.min, point.max) == (4, 0.12, 0.02, 0.04)


def test_chunk_metrics_are_for_streams_only() -> None:
    whole = record(kind="completion", first_event_ns=None, first_token_ns=None, chunk_ns=[])
    tallies = tallied(whole)
    assert not points_of(tallies, semconv.INFERENCE_CHUNK_GAP)
    assert not points_of(tallies, semconv.INFERENCE_FIRST_CHUNK)
    assert not points_of(tallies, semconv.TTFT)


def test_ttft_counts_from_due_and_time_to_first_chunk_from_start() -> None:
    tallies = tallied(record())
    assert points_of(tallies, semconv.TTFT)[0].sum == 0.1
    assert points_of(tallies, semconv.INFERENCE_FIRST_CHUNK)[0].sum == 0.088


def test_a_closed_loops_request_is_due_when_it_starts() -> None:
    tallies = tallied(record(due_ns=None))
    assert points_of(tallies, semconv.RESPONSE)[0].sum == 0.198
    assert not points_of(tallies, semconv.LATENESS_HISTOGRAM)


def test_a_dropped_arrival_is_counted_and_not_timed() -> None:
    batch = {"kind": "batch"}
    tallies = tallied(dropped(0), dropped(1, **batch), dropped(1, index=1, **batch))
    assert {
        point.attributes["harness.kind"]: point.value for point in points_of(tallies, semconv.REQUESTS)
    } == {
        "stream": 1,
        "batch": 2,
    }
    assert [point.value for point in points_of(tallies, semconv.DROPPED)] == [1, 1]
    assert not points_of(tallies, semconv.RESPONSE)


def test_points_bear_the_last_records_time_and_never_the_same_twice() -> None:
    tallies = tallied(record(ended_ns=200 * MS))
    times = [points_of(tallies, semconv.REQUESTS)[0].time_unix_nano - START_NS for _ in range(2)]
    assert times == [200 * MS, 201 * MS]
    assert points_of(tallies, semconv.REQUESTS)[0].start_time_unix_nano == START_NS


def test_no_records_make_no_points() -> None:
    assert count_points(tallied().points()) == 0
