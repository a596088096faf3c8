"""Claims about the noise floor: added times, errors of gaps, and what they make unresolvable."""

from __future__ import annotations

import math

import msgspec
import pytest
from factories import dropped, failure, ms, record, stream, table

from harness.analysis.floor import LEAST, Floor, Truth, floor, floor_s, resolvable, unmeasured
from harness.analysis.measures import MEASURES
from harness.record import Sample

WINDOW = (0.0, 10.0)
BOOT_NS = ms(86_400_000)
"""The server's stamps are absolute, ours count from the run's start."""


def truth(seq: int, *, late_ms: float = 0.5, chunks_ms=(30, 40, 50, 60, 70), ended_ms: float = 75) -> Truth:
    """What a server would log that got request `seq` late, and then kept the times of the factories."""
    arrived = BOOT_NS + ms(10 * seq + late_ms)
    chunk_ns = tuple(arrived + ms(each) for each in chunks_ms)
    return Truth(f"r{seq}-0", arrived, chunk_ns, arrived + ms(ended_ms), lateness_max_ns=ms(0.2))


def measured(records, truths, samples=(), window=WINDOW) -> Floor:
    return floor(table(records), truths, samples, window, run="run", profile="demo")


def many(n: int = LEAST, *, late_ms: float = 0) -> Floor:
    """The floor of so many streams, all started late by as much."""
    records = [stream(seq=seq, started_ns=ms(10 * seq + late_ms)) for seq in range(n)]
    return measured(records, [truth(seq) for seq in range(n)])


def sample(t_ms: float, **values: float) -> Sample:
    plain = {field.name: 0 for field in msgspec.structs.fields(Sample) if field.required}
    return Sample(**(plain | {"t_ns": ms(t_ms), "wall_s": 1.0} | values))


def test_what_the_client_adds_is_its_time_from_due_less_the_servers_own() -> None:
    late = stream(seq=0, started_ns=ms(2))  # 2 ms late, and all its stamps with it
    found = measured([late], [truth(0)])
    assert found.added["ttft"].maximum == pytest.approx(0.002)
    assert found.added["response"].maximum == pytest.approx(0.002)
    assert found.lateness.maximum == pytest.approx(0.002)
    assert found.mock_lateness_max_s == pytest.approx(0.0002)


def test_a_clock_offset_between_both_sides_does_not_matter() -> None:
    far = msgspec.structs.replace(
        truth(0),
        arrived_ns=5,
        chunk_ns=tuple(5 + ms(each) for each in (30, 40, 50, 60, 70)),
        ended_ns=5 + ms(75),
    )
    assert measured([stream(seq=0)], [far]).added == measured([stream(seq=0)], [truth(0)]).added


def test_a_gap_that_is_seen_too_long_or_too_short_is_an_error_alike() -> None:
    found = measured([stream(seq=0)], [truth(0, chunks_ms=(30, 41, 50, 60, 70))])
    assert found.added["itl"].n == 4
    assert found.added["itl"].maximum == pytest.approx(0.001)
    assert sorted([found.added["itl"].minimum, found.added["itl"].mean]) == pytest.approx([0, 0.0005])


def test_in_a_closed_loop_it_counts_from_the_start() -> None:
    found = measured([stream(seq=0, due_ns=None, started_ns=ms(7))], [truth(0)])
    assert found.added["ttft"].maximum == pytest.approx(0.0)
    assert found.lateness.n == 0


def test_the_longest_gap_and_the_mean_gap_of_a_stream_have_errors_of_their_own() -> None:
    """Seen 10 ms apart, sent with gaps of 4, 16, 10 and 14 ms: the longest is 6 ms off, the mean 1 ms."""
    found = measured([stream(seq=0)], [truth(0, chunks_ms=(30, 34, 50, 60, 74))])
    assert found.added["itl"].maximum == pytest.approx(0.006)
    assert found.added["itl_longest"].maximum == pytest.approx(0.006)
    assert found.added["itl_longest"].n == found.added["tpot"].n == 1
    assert found.added["tpot"].maximum == pytest.approx(0.001)
    equal = measured([stream(seq=0)], [truth(0, chunks_ms=(30, 40, 49, 58, 67))])
    assert equal.added["itl"].maximum == pytest.approx(0.001)
    assert equal.added["itl_longest"].maximum == pytest.approx(0.0)


def test_from_the_start_no_lateness_is_added() -> None:
    found = measured([stream(seq=0, started_ns=ms(7))], [truth(0, late_ms=7)])
    assert found.added["ttft"].maximum == found.added["response"].maximum == pytest.approx(0.007)
    assert found.added["ttft_from_start"].maximum == found.added["service"].maximum == pytest.approx(0.0)


def test_a_request_that_failed_is_not_compared_though_the_server_answered_it() -> None:
    late = failure(seq=1, ended_ns=ms(9_000))
    found = measured([record(seq=0), late], [truth(0, ended_ms=100), truth(1, ended_ms=100)])
    assert (found.requests, found.unmatched) == (1, 1)
    assert found.added["response"].n == 1
    assert found.added["response"].maximum == pytest.approx(0.0)


def test_what_cannot_be_compared_is_counted() -> None:
    records = [stream(seq=0), failure(seq=1), dropped(seq=2), record(seq=3)]
    found = measured(records, [truth(0, chunks_ms=(30, 40))])
    assert (found.requests, found.unmatched, found.miscounted) == (1, 3, 1)
    assert found.added["itl"].n == 0
    assert found.added["ttft"].n == 1


def test_only_the_window_is_compared() -> None:
    found = measured([stream(seq=0), stream(seq=200)], [truth(0), truth(200)], window=(1.0, 3.0))
    assert found.requests == 1
    assert found.rate_per_s == 0.5


def test_health_is_that_of_the_window_without_locusts_own_stop() -> None:
    samples = [
        sample(500, hub_lag_max_ns=ms(9), cpu_s=0.9),
        sample(2500, hub_lag_max_ns=ms(2), cpu_s=0.2),
        sample(3050, hub_lag_max_ns=ms(60), cpu_s=0.9),
    ]
    found = measured([stream(seq=200)], [truth(200)], samples, window=(1.0, 3.0))
    assert found.hub_lag_max_s == pytest.approx(0.002)
    assert found.cpu_share == pytest.approx(0.2)


def test_the_wait_for_the_event_loop_is_that_of_the_worst_worker() -> None:
    samples = [
        sample(2000, hub_stalls_ns=(ms(500),), read_lag_max_ns=ms(7)),
        sample(2000, worker=1, hub_stalls_ns=(ms(100),), read_lag_max_ns=ms(9)),
    ]
    found = measured([record(seq=0)], [], samples)
    assert found.hub_wait_p50_s == 0.0
    assert found.hub_wait_p99_s == pytest.approx(0.49)
    assert found.read_lag_max_s == pytest.approx(0.009)
    assert found.workers == 2


def test_the_mock_s_lateness_at_p99_is_of_its_writes_and_not_its_worst() -> None:
    """200 streams of five writes: ten of the thousand are above the P99."""
    truths = [msgspec.structs.replace(truth(seq), lateness_max_ns=ms(seq)) for seq in range(200)]
    found = measured([stream(seq=seq) for seq in range(200)], truths)
    assert found.mock_lateness_p99_s == pytest.approx(0.189)
    assert found.mock_lateness_max_s == pytest.approx(0.199)


def test_a_mock_that_stalls_once_is_not_late_at_p99() -> None:
    truths = [
        msgspec.structs.replace(truth(seq), lateness_max_ns=ms(50 if seq < 9 else 1)) for seq in range(200)
    ]
    found = measured([stream(seq=seq) for seq in range(200)], truths)
    assert found.mock_lateness_p99_s == pytest.approx(0.001)


def test_the_floor_is_the_p99_or_the_maximum_where_n_is_small() -> None:
    assert floor_s(many(late_ms=1), "ttft") == pytest.approx(0.001)
    records = [stream(seq=seq, started_ns=ms(10 * seq + (50 if seq == 0 else 1))) for seq in range(400)]
    found = measured(records, [truth(seq) for seq in range(400)])
    assert found.added["ttft"].maximum == pytest.approx(0.050)
    assert floor_s(found, "ttft") == pytest.approx(0.001)


def test_from_69_values_on_the_largest_is_more_likely_above_the_p99_than_below() -> None:
    assert 0.99**LEAST < 0.5 < 0.99 ** (LEAST - 1)


def test_a_handful_of_values_is_no_floor_and_resolves_nothing() -> None:
    assert floor_s(many(LEAST - 1), "response") is None
    assert resolvable(1e9, many(LEAST - 1)) is None
    assert resolvable(1e9, many(LEAST)) is True


@pytest.mark.parametrize(("figure_ms", "expected"), [(2.99, False), (3.01, True)])
def test_a_figure_below_three_floors_is_not_resolvable(figure_ms: float, expected: bool) -> None:
    assert resolvable(figure_ms / 1000, many(late_ms=1), "ttft") is expected


FLOORS_MS = {
    "response": 4,
    "service": 0,
    "ttft": 4,
    "first_event": 4,
    "first_content": 4,
    "ttft_from_start": 0,
    "first_event_from_start": 0,
    "first_content_from_start": 0,
    "itl": 3,
    "itl_longest": 2,
    "tpot": 0.25,
    "lateness": None,
    "queued": None,
    "connect": None,
    "held": None,
}


@pytest.mark.parametrize(("measure", "expected_ms"), FLOORS_MS.items())
def test_each_time_has_the_floor_of_its_kind_or_none(measure: str, expected_ms: float | None) -> None:
    """Started 4 ms late, and heard as late; sent with gaps of 8, 12, 7 and 12 ms instead of 10."""
    found = measured(
        [stream(seq=seq, started_ns=ms(10 * seq + 4)) for seq in range(LEAST)],
        [truth(seq, late_ms=4, chunks_ms=(30, 38, 50, 57, 69)) for seq in range(LEAST)],
    )
    least_s = floor_s(found, measure)
    assert least_s == (None if expected_ms is None else pytest.approx(expected_ms / 1000, abs=1e-12))


def test_no_time_that_can_be_judged_is_forgotten() -> None:
    times = {name for name, measure in MEASURES.items() if measure.unit == "s"}
    assert FLOORS_MS.keys() == times | {"itl"}


def test_without_streams_the_floor_of_a_first_token_is_that_of_the_whole_answer() -> None:
    found = measured(
        [record(seq=seq, started_ns=ms(10 * seq + 3)) for seq in range(LEAST)],
        [truth(seq, late_ms=2, chunks_ms=(), ended_ms=100) for seq in range(LEAST)],
    )
    assert floor_s(found, "ttft") == pytest.approx(0.003)
    assert floor_s(found, "ttft_from_start") == pytest.approx(0.0)
    assert floor_s(found, "itl") is None


def test_a_calibration_without_an_answer_resolves_nothing() -> None:
    found = measured([failure(seq=0)], [])
    assert floor_s(found, "response") is None
    assert resolvable(1e9, found) is None


def test_what_was_not_measured_says_why_and_resolves_nothing() -> None:
    found = msgspec.json.decode(msgspec.json.encode(unmeasured("the mock died")), type=Floor)
    assert found.why_not == "the mock died"
    assert resolvable(math.inf, found) is None


def test_an_older_calibration_still_says_what_it_knows() -> None:
    found = many(late_ms=1)
    old = msgspec.structs.replace(
        found, added={name: found.added[name] for name in ("ttft", "response", "itl")}
    )
    assert floor_s(old, "ttft") == pytest.approx(0.001)
    assert floor_s(old, "service") is None
