"""Claims about arrival processes: what they promise in distribution, and that they repeat exactly."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.workload import schedule
from harness.workload.prompts import workload
from harness.workload.scenario import (
    Burst,
    Closed,
    Constant,
    Gamma,
    Poisson,
    Ramp,
    Replay,
    Scenario,
    Seconds,
    Sine,
    Step,
    Steps,
    load,
    shipped,
)
from harness.workload.schedule import arrivals, claims, lengths, planned, shard


def plan(process, *, duration=None, count=None, seed=1, bursts=()) -> Scenario:
    duration_s = None if duration is None else Seconds(duration)
    return Scenario(arrivals=process, duration_s=duration_s, count=count, seed=seed, bursts=tuple(bursts))


def burst(at, count, over=0.0) -> Burst:
    return Burst(at_s=Seconds(at), count=count, over_s=Seconds(over))


def due_s(process, **limits) -> list[float]:
    return [arrival.due_ns / 1e9 for arrival in arrivals(plan(process, **limits))]


def gaps_s(process, **limits) -> list[float]:
    return [after - before for before, after in itertools.pairwise([0.0, *due_s(process, **limits)])]


RATES = st.floats(min_value=0.5, max_value=200)
STEPS = st.lists(
    st.builds(
        Step,
        rate=st.floats(min_value=0, max_value=100),
        for_s=st.floats(min_value=0.1, max_value=5).map(Seconds),
    ),
    min_size=1,
    max_size=4,
).map(lambda steps: Steps(steps=tuple(steps)))
PROCESSES = st.one_of(
    st.builds(Constant, rate=RATES),
    st.builds(Poisson, rate=RATES),
    st.builds(Gamma, rate=RATES, cv=st.floats(min_value=0.05, max_value=8)),
    st.builds(Ramp, start=RATES, end=st.floats(min_value=0, max_value=200)),
    st.builds(
        Sine,
        rate=RATES,
        amplitude=st.floats(min_value=0, max_value=1),
        period_s=st.floats(min_value=0.1, max_value=9).map(Seconds),
    ),
    STEPS,
)
SPANS = st.floats(min_value=0, max_value=4)
BURSTS = st.lists(st.builds(burst, SPANS, st.integers(min_value=1, max_value=40), SPANS), max_size=3)
PLANS = st.builds(
    plan,
    PROCESSES,
    duration=st.floats(min_value=0.1, max_value=8),
    count=st.none() | st.integers(min_value=1, max_value=500),
    seed=st.integers(min_value=0, max_value=2**64),
    bursts=BURSTS,
)


# -- any schedule ---------------------------------------------------------------------------------------


@given(PLANS)
def test_a_schedule_is_numbered_ordered_and_bounded(scenario):
    schedule = list(arrivals(scenario))
    assert [arrival.seq for arrival in schedule] == list(range(len(schedule)))
    assert all(a.due_ns <= b.due_ns for a, b in itertools.pairwise(schedule))
    assert all(0 <= arrival.due_ns <= scenario.duration_s * 1e9 + 1 for arrival in schedule)
    assert scenario.count is None or len(schedule) <= scenario.count


@given(PLANS, st.integers(min_value=1, max_value=9))
def test_shards_are_a_partition_of_the_schedule_for_any_number_of_workers(scenario, workers):
    shares = [list(shard(arrivals(scenario), worker, workers)) for worker in range(workers)]
    merged = sorted(itertools.chain(*shares), key=lambda arrival: arrival.seq)
    assert merged == list(arrivals(scenario))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(PLANS)
def test_the_same_seed_gives_the_same_schedule(scenario):
    assert list(arrivals(scenario)) == list(arrivals(scenario))


@given(PLANS)
def test_planned_counts_the_schedule(scenario):
    assert planned(scenario) == len(list(arrivals(scenario)))


def expected_of(path: Path) -> tuple[float | None, int | None]:
    return schedule.expected(load(path)), planned(load(path))


def test_about_as_many_are_expected_as_are_then_planned_and_nothing_is_computed_for_it():
    for path in READY:
        about, exactly = expected_of(path)
        if about is not None:
            assert abs(about - exactly) <= 5 * math.sqrt(exactly)
    assert {path.stem for path in READY if expected_of(path)[0] is None} == {"closed", "mooncake"}
    assert schedule.expected(Scenario(arrivals=Poisson(rate=1e12), duration_s=Seconds(1e6))) == 1e18


@pytest.mark.parametrize(("duration_s", "expected"), [(None, 400), (15, 250), (10, 200), (4, 80), (60, 400)])
def test_of_steps_as_many_are_expected_as_the_duration_leaves(duration_s, expected):
    steps = Steps(steps=(Step(rate=20, for_s=Seconds(10)), Step(rate=10, for_s=Seconds(20))))
    ends = None if duration_s is None else Seconds(duration_s)
    assert schedule.expected(Scenario(arrivals=steps, duration_s=ends)) == expected


READY = sorted(shipped("default").parent.glob("*.yaml"))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_scenario_has_the_same_schedule_and_requests_for_any_number_of_workers(path, workers):
    shares = [carried(load(path), worker, workers) for worker in range(workers)]
    assert sorted(itertools.chain(*shares), key=lambda each: each[0]) == whole(path)


@lru_cache
def whole(path):
    return carried(load(path), 0, 1)


def carried(scenario, worker, workers):
    """What one of the workers sends: when, and (of every 50th arrival) what."""
    ask = workload(scenario)
    if isinstance(scenario.arrivals, Closed):
        own = [
            (seq, None) for seq in itertools.takewhile(lambda seq: seq < 1000, claims(worker, workers, 0, 1))
        ]
    else:
        own = [(each.seq, each.due_ns) for each in shard(arrivals(scenario), worker, workers)]
    return [(seq, due_ns, ask(seq) if seq % 50 == 0 else None) for seq, due_ns in own]


@pytest.mark.parametrize("process", [Poisson(rate=9), Gamma(rate=9, cv=2), Ramp(start=1, end=9)], ids=repr)
def test_another_seed_gives_another_schedule(process):
    assert due_s(process, duration=10, seed=1) != due_s(process, duration=10, seed=2)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (Poisson(rate=10), [14_429_106, 202_444_733, 346_741_625]),
        (Gamma(rate=10, cv=2), [265_509, 15_681_801, 377_747_062]),
        (Ramp(start=0, end=10), [1_315_861_987, 4_928_830_283, 6_450_503_473]),
        (Sine(rate=10, amplitude=0.5, period_s=Seconds(10)), [105_817_333, 151_421_251, 228_284_242]),
    ],
    ids=repr,
)
def test_schedules_are_the_same_on_every_machine_and_python(process, expected):
    first = [arrival.due_ns for arrival in itertools.islice(arrivals(plan(process, duration=60)), 3)]
    assert first == pytest.approx(expected, abs=1)  # the last digit of log() is the platform's


def test_a_longer_run_begins_with_the_shorter_one():
    short, long = (due_s(Poisson(rate=50), duration=d) for d in (5, 20))
    assert long[: len(short)] == short


def test_a_count_ends_the_schedule_before_the_duration_does():
    assert len(due_s(Poisson(rate=100), duration=60, count=7)) == 7


# -- each process ---------------------------------------------------------------------------------------


def test_a_constant_schedule_is_constant():
    assert due_s(Constant(rate=4), duration=1) == [0, 0.25, 0.5, 0.75]


def test_a_constant_schedule_does_not_drift():
    schedule = list(arrivals(plan(Constant(rate=3), count=300_001)))
    assert schedule[-1].due_ns == 100_000_000_000_000


@pytest.mark.parametrize("seed", range(3))
def test_poisson_gaps_are_exponential(seed):
    gaps = gaps_s(Poisson(rate=50), count=5000, seed=seed)
    assert stats.kstest(gaps, stats.expon(scale=1 / 50).cdf).pvalue > 0.001


@pytest.mark.parametrize("cv", [0.2, 0.5, 1, 2, 4])
def test_gamma_gaps_are_gamma_distributed(cv):
    gaps = gaps_s(Gamma(rate=50, cv=cv), count=5000)
    stated = stats.gamma(a=1 / cv**2, scale=cv**2 / 50)
    # Stamps are whole nanoseconds, which at cv = 4 lumps one gap in three at nearly nothing.
    assert stats.kstest([gap for gap in gaps if gap > 1e-6], truncated_cdf(stated, 1e-6)).pvalue > 0.001
    nearly_nothing = sum(gap <= 1e-6 for gap in gaps)
    assert stats.binomtest(nearly_nothing, len(gaps), stated.cdf(1e-6)).pvalue > 0.001


def truncated_cdf(stated, low):
    return lambda x: (stated.cdf(x) - stated.cdf(low)) / stated.sf(low)


@pytest.mark.parametrize(
    "process", [Constant(rate=40), Poisson(rate=40), Gamma(rate=40, cv=0.5), Gamma(rate=40, cv=2)], ids=repr
)
def test_the_rate_is_the_stated_one(process):
    cv = {"constant": 0.0, "poisson": 1.0}.get(process.__struct_config__.tag) or getattr(process, "cv", 0.0)
    observed = len(due_s(process, duration=500))
    # The count of a renewal process is nearly normal with variance rate * time * cv^2.
    assert abs(observed - 20_000) <= 1 + 4 * cv * math.sqrt(20_000)


def test_poisson_counts_have_the_variance_of_their_mean():
    counts = counts_a_second(due_s(Poisson(rate=50), duration=1000), 1000)
    dispersion = sum((count - 50) ** 2 for count in counts) / 50
    # The index of dispersion times n is chi-squared with n degrees of freedom.
    assert 0.0005 < stats.chi2(1000).cdf(dispersion) < 0.9995


def counts_a_second(due, duration):
    counts = [0] * duration
    for each in due:
        counts[int(each)] += 1
    return counts


@pytest.mark.parametrize(("cv", "low", "high"), [(0.5, 0.15, 0.4), (1, 0.8, 1.25), (2, 2.8, 5)])
def test_counts_are_dispersed_as_the_coefficient_of_variation_says(cv, low, high):
    counts = counts_a_second(due_s(Gamma(rate=100, cv=cv), duration=500), 500)
    mean = sum(counts) / len(counts)
    dispersion = sum((count - mean) ** 2 for count in counts) / len(counts) / mean
    assert low < dispersion < high  # tends to cv^2


@pytest.mark.parametrize(("start", "end"), [(0, 40), (10, 30), (30, 10), (40, 0), (20, 20)])
def test_a_ramp_s_arrivals_follow_its_intensity(start, end):
    due = due_s(Ramp(start=start, end=end), duration=200)
    expected = (start + end) / 2 * 200
    assert abs(len(due) - expected) < 4 * math.sqrt(expected)

    def cdf(t):
        return (start * t + (end - start) * t**2 / 400) / expected

    assert stats.kstest(due, cdf).pvalue > 0.001


@pytest.mark.parametrize(("amplitude", "period"), [(0, 20), (0.5, 20), (1, 20), (1, 7)])
def test_a_sine_s_arrivals_follow_its_rate(amplitude, period):
    due = due_s(Sine(rate=40, amplitude=amplitude, period_s=Seconds(period)), duration=210)

    def arrived(t):
        turn = 2 * math.pi / period
        return 40 * (t + amplitude / turn * (1 - np.cos(turn * t)))

    assert abs(len(due) - arrived(210)) < 4 * math.sqrt(arrived(210))
    assert stats.kstest(due, lambda t: arrived(np.asarray(t)) / arrived(210)).pvalue > 0.001
    # By the inverse of its own intensity, any Poisson process becomes one of rate 1.
    gaps = np.diff([0, *arrived(np.asarray(due))])
    assert stats.kstest(gaps, stats.expon().cdf).pvalue > 0.001


STAIRCASE = Steps(
    steps=(
        Step(rate=10, for_s=Seconds(60)),
        Step(rate=80, for_s=Seconds(40)),
        Step(rate=0, for_s=Seconds(20)),
        Step(rate=30, for_s=Seconds(80)),
    )
)
TURN = 2 * math.pi / 25
EXPECTED = [
    (Poisson(rate=30), lambda t: 30 * t),
    (Ramp(start=0, end=60), lambda t: 60 * t**2 / 400),
    (Ramp(start=50, end=10), lambda t: 50 * t - 40 * t**2 / 400),
    (STAIRCASE, lambda t: np.interp(t, [0, 60, 100, 120, 200], [0, 600, 3800, 3800, 6200])),
    (
        Sine(rate=30, amplitude=0.8, period_s=Seconds(25)),
        lambda t: 30 * (t + 0.8 / TURN * (1 - np.cos(TURN * t))),
    ),
]
"""A process, and how many arrivals it should have had by t seconds."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("process", "expected_by"), EXPECTED, ids=[repr(row[0]) for row in EXPECTED])
def test_in_the_time_of_its_own_rate_each_poisson_process_is_one_of_rate_1(process, expected_by, seed):
    whole = float(expected_by(np.float64(200)))
    levels = expected_by(np.asarray(due_s(process, duration=200, seed=seed)))
    assert abs(len(levels) - whole) < 4 * math.sqrt(whole)
    assert stats.kstest(np.diff([0, *levels]), stats.expon().cdf).pvalue > 0.001
    assert stats.kstest(levels, stats.uniform(0, whole).cdf).pvalue > 0.001
    counts, _ = np.histogram(levels, bins=int(whole // 20), range=(0, whole // 20 * 20))
    # The index of dispersion times n is chi-squared with n degrees of freedom: the mean is known.
    assert 0.0005 < stats.chi2(len(counts)).cdf(sum((counts - 20) ** 2) / 20) < 0.9995


def test_a_burst_comes_on_top_and_changes_nothing_else():
    plain = due_s(Poisson(rate=20), duration=60)
    both = due_s(Poisson(rate=20), duration=60, bursts=[burst(10, 100), burst(30, 4, over=2)])
    extra = list(both)
    for due in plain:
        extra.remove(due)
    assert extra == [10.0] * 100 + [30.0, 30.5, 31.0, 31.5]


def test_a_burst_is_cut_by_duration_and_count():
    assert due_s(Constant(rate=1), duration=3, bursts=[burst(2, 4, over=4)]) == [0, 1, 2, 2]
    assert due_s(Constant(rate=1), count=3, bursts=[burst(0, 5)]) == [0, 0, 0]


def test_steps_have_each_their_rate_and_a_pause_is_a_pause():
    steps = Steps(
        steps=(
            Step(rate=20, for_s=Seconds(100)),
            Step(rate=0, for_s=Seconds(100)),
            Step(rate=50, for_s=Seconds(100)),
        )
    )
    due = due_s(steps)
    counts = [sum(low <= each < low + 100 for each in due) for low in (0, 100, 200)]
    assert counts[1] == 0
    for count, expected in ((counts[0], 2000), (counts[2], 5000)):
        assert abs(count - expected) < 4 * math.sqrt(expected)
    assert stats.kstest([d for d in due if d >= 200], stats.uniform(200, 100).cdf).pvalue > 0.001
    assert sum(counts) == len(due)


def test_steps_are_cut_by_the_duration():
    steps = Steps(steps=(Step(rate=100, for_s=Seconds(10)),))
    assert due_s(steps, duration=3) == [due for due in due_s(steps) if due < 3]


# -- traces ---------------------------------------------------------------------------------------------


def trace(folder: Path, name: str, text: str, **settings) -> Replay:
    (folder / name).write_text(text, encoding="utf-8")
    return Replay(path=str(folder / name), **settings)


def test_a_trace_is_replayed_from_its_first_time_on(tmp_path):
    assert due_s(trace(tmp_path, "t.csv", "timestamp\n10\n10.5\n12\n")) == [0, 0.5, 2]


def test_a_trace_is_cut_by_duration_and_count(tmp_path):
    replay = trace(tmp_path, "t.csv", "timestamp\n" + "\n".join(map(str, range(100))))
    assert due_s(replay, duration=3) == [0, 1, 2]
    assert due_s(replay, count=2) == [0, 1]


def test_each_arrival_has_the_lengths_of_its_row_and_a_burst_has_none(tmp_path):
    rows = "".join(f"{row},{100 + row}\n" for row in range(5))
    replay = trace(tmp_path, "t.csv", "timestamp,n\n" + rows, prompt_column="n")
    scenario = plan(replay, bursts=[burst(1, 2), burst(2.5, 1), burst(9, 1)])
    due = [arrival.due_ns / 1e9 for arrival in arrivals(scenario)]
    of = lengths(scenario)
    found = [each and each.prompt_tokens for each in map(of, range(len(due)))]
    assert due == [0, 1, 1, 1, 2, 2.5, 3, 4, 9]
    assert found == [100, 101, None, None, 102, None, 103, 104, None]


def test_no_other_process_knows_lengths():
    assert lengths(plan(Poisson(rate=1), duration=1)) is None


# -- the closed model -----------------------------------------------------------------------------------


@given(st.integers(min_value=1, max_value=8), st.integers(min_value=1, max_value=3))
def test_all_workers_and_kinds_together_claim_each_number_once(workers, kinds):
    claimed = [
        seq
        for worker in range(workers)
        for kind in range(kinds)
        for seq in itertools.islice(claims(worker, workers, kind, kinds), 20)
    ]
    assert sorted(claimed) == list(range(20 * workers * kinds))


def test_claims_of_the_only_kind_are_every_workers_th():
    assert list(itertools.islice(claims(1, 3, 0, 1), 4)) == [1, 4, 7, 10]


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("rows", [2, 4, 6, 9, 10])
def test_each_kind_sees_all_rows_of_a_data_set(kinds, rows):
    for kind in range(kinds):
        seen = Counter(seq % rows for seq in itertools.islice(claims(0, 1, kind, kinds), 100 * rows))
        assert len(seen) == rows
        assert max(seen.values()) < 2 * min(seen.values())


def test_a_closed_model_has_no_schedule():
    closed = plan(Closed(users=2), duration=5, count=9)
    assert planned(closed) == 9
    assert planned(plan(Closed(users=2), duration=5)) is None
    with pytest.raises(ValueError, match="claims"):
        next(arrivals(closed))
