"""Arrival processes -> Iterator[Arrival]; shard(worker, workers).

Each process is a textbook transform of one `random.Random(seed)`, of which only `random()` is used: the
one method whose sequence Python promises to keep from version to version. The schedule depends on
nothing but the scenario, and the union of any number of shards is the schedule.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from statistics import NormalDist

import msgspec

from harness.errors import ConfigError
from harness.workload import trace
from harness.workload.scenario import (
    Burst,
    Closed,
    Constant,
    Gamma,
    Poisson,
    Ramp,
    Replay,
    Scenario,
    Sine,
    Steps,
)

_LONGEST_S = 1e9
"""Thirty years; nanoseconds up to there fit into 64 bits."""
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples' fractions are spread evenly, in every arithmetic progression too (Weyl 1916)."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One planned arrival."""

    seq: int
    """Position in the whole schedule, from 0."""
    due_ns: int
    """When it is due, in nanoseconds from the run's start."""


def arrivals(scenario: Scenario) -> Iterator[Arrival]:
    """The whole schedule of an open model, in order, up to the scenario's duration and count.

    Raises:
        ConfigError: a trace that cannot be used, with file and line.
        ValueError: the scenario is a closed model, which has claims instead of a schedule.
    """
    for seq, due_s in enumerate(_due_s(scenario)):
        yield Arrival(seq, int(due_s * 1e9 + 0.5))


def shard(schedule: Iterable[Arrival], worker: int, workers: int) -> Iterator[Arrival]:
    """The share of `worker` (from 0 to workers - 1): every workers-th arrival."""
    return (arrival for arrival in schedule if arrival.seq % workers == worker)


def claims(worker: int, workers: int, kind: int, kinds: int) -> Iterator[int]:
    """What a worker's users of one kind start in a closed model, one after the other, without end.

    By their `seq`: none is due at any time. How many of each kind are started is up to the server; which
    those are is not: a worker has every workers-th block of `kinds` numbers, and of each a kind has one. Not
    always that of the same place, or of a data set with an even number of rows it would see only half.

    Args:
        worker: from 0 to workers - 1.
        workers: how many there are.
        kind: which of the kinds, from 0 to kinds - 1.
        kinds: how many of them the scenario has.
    """
    if kinds == 1:
        return itertools.count(worker, workers)
    blocks = itertools.count(worker, workers)
    return (block * kinds + (kind + int(block * _GOLDEN % 1 * kinds)) % kinds for block in blocks)


def planned(scenario: Scenario) -> int | None:
    """How many arrivals the run will have; None in a closed model that has no `count`.

    Raises:
        ConfigError: as `arrivals`.
    """
    if isinstance(scenario.arrivals, Closed):
        return scenario.count
    return sum(1 for _ in _due_s(scenario))


def expected(scenario: Scenario) -> float | None:
    """About how many arrivals the schedule has, without computing it: the mean over all seeds.

    None where only a trace, or the server, knows.
    """
    process = scenario.arrivals
    end_s = math.inf if scenario.duration_s is None else float(scenario.duration_s)
    match process:
        case Constant(rate=rate) | Poisson(rate=rate) | Gamma(rate=rate) | Sine(rate=rate):
            mean = rate * end_s
        case Ramp(start=start, end=end):
            mean = (start + end) / 2 * end_s
        case Steps(steps=steps):
            begins_s = itertools.accumulate((step.for_s for step in steps), initial=0.0)
            mean = sum(
                step.rate * max(0.0, min(step.for_s, end_s - begin_s))
                for step, begin_s in zip(steps, begins_s, strict=False)
            )
        case Replay() | Closed():
            return None
    mean += sum(burst.count for burst in scenario.bursts)
    return mean if scenario.count is None else min(mean, scenario.count)


def lengths(scenario: Scenario) -> Callable[[int], trace.Lengths | None] | None:
    """What the replayed trace says of each arrival, by its `seq`; None for the arrivals of bursts.

    None where no trace is replayed.

    Raises:
        ConfigError: as `arrivals`.
    """
    if not isinstance(scenario.arrivals, Replay):
        return None
    found = trace.read(scenario.arrivals)
    # Where the process and a burst are due at once, the process's arrival goes first: see _due_s.
    bursts = [
        place + bisect_right(found.at_s, due_s) for place, due_s in enumerate(_bursts_s(scenario.bursts))
    ]

    def of(seq: int) -> trace.Lengths | None:
        before = bisect_left(bursts, seq)
        is_burst = before < len(bursts) and bursts[before] == seq
        return None if is_burst else found.lengths(seq - before)

    return of


def _due_s(scenario: Scenario) -> Iterator[float]:
    """When arrivals are due, in seconds from the run's start: never decreasing, and bounded."""
    random, process = Random(scenario.seed).random, scenario.arrivals
    end_s = math.inf if scenario.duration_s is None else float(scenario.duration_s)
    times: Iterator[float]
    match process:
        case Constant(rate=rate):
            times = (seq / rate for seq in itertools.count())
        case Poisson(rate=rate):
            times = _poisson_s(random, rate)
        case Gamma(rate=rate, cv=cv):
            times = itertools.accumulate(_gamma_gaps_s(random, rate, cv))
        case Ramp(start=start, end=end):
            times = _ramp_s(random, start, end, end_s)
        case Steps(steps=steps):
            times = _steps_s(random, [(step.rate, float(step.for_s)) for step in steps])
        case Sine(rate=rate, amplitude=amplitude, period_s=period_s):
            times = _sine_s(random, rate, amplitude, period_s)
        case Replay():
            times = iter(trace.read(process).at_s)
        case Closed():
            raise ValueError("a closed model has no schedule: see claims()")
    merged = heapq.merge(times, _bursts_s(scenario.bursts)) if scenario.bursts else times
    until_end = itertools.takewhile(lambda due_s: due_s < end_s, merged)
    return itertools.islice(until_end if end_s < _LONGEST_S else _bounded(until_end), scenario.count)


def _bounded(times: Iterator[float]) -> Iterator[float]:
    for due_s in times:
        if due_s > _LONGEST_S:
            remedy = f"an arrival would be due after {_LONGEST_S:.0e} s: raise the rate, or set a `duration`"
            raise ConfigError("the scenario", "arrivals", None, remedy)
        yield due_s


# -- the processes --------------------------------------------------------------------------------------

Draw = Callable[[], float]
"""A number from 0 (included) to 1 (excluded)."""


def _poisson_s(random: Draw, rate: float) -> Iterator[float]:
    """Exponential gaps by inversion: -ln(1 - U) / rate."""
    log, due_s = math.log, 0.0
    while True:
        due_s -= log(1.0 - random()) / rate
        yield due_s


def _gamma_gaps_s(random: Draw, rate: float, cv: float) -> Iterator[float]:
    """Gamma-distributed gaps with mean 1 / rate and coefficient of variation `cv`.

    Marsaglia, Tsang: A simple method for generating gamma variables (ACM TOMS 26, 2000), with the
    normal number by inversion; a shape below 1 is raised by one and corrected by U ** (1 / shape).
    """
    shape = 1 / cv**2
    scale_s = 1 / (shape * rate)
    d = (shape if shape >= 1 else shape + 1) - 1 / 3
    c = 1 / math.sqrt(9 * d)
    normal = NormalDist().inv_cdf
    while True:
        x = normal(random() or 2.0**-54)
        v = (1 + c * x) ** 3
        u = 1.0 - random()
        if v <= 0 or math.log(u) >= x * x / 2 + d * (1 - v + math.log(v)):
            continue
        below_one = 1.0 if shape >= 1 else (1.0 - random()) ** (1 / shape)
        yield d * v * below_one * scale_s


def _ramp_s(random: Draw, start: float, end: float, duration_s: float) -> Iterator[float]:
    """Poisson arrivals whose rate goes from `start` to `end`, by the inverse cumulative intensity.

    The intensity's integral is L(t) = start t + (end - start) t^2 / (2 duration); the points of a
    Poisson process of rate 1, put through L's inverse, are the arrivals (Cinlar 1975).
    """
    slope = (end - start) / duration_s
    most = (start + end) / 2 * duration_s
    for level in itertools.takewhile(lambda level: level < most, _poisson_s(random, 1.0)):
        # The root of L(t) = level in the form that does not cancel, and needs no case for slope 0.
        yield 2 * level / (start + math.sqrt(max(0.0, start * start + 2 * slope * level)))


def _steps_s(random: Draw, steps: Iterable[tuple[float, float]]) -> Iterator[float]:
    """Poisson arrivals at (rate, seconds), one after the other: as `_ramp_s`, where L is a polyline."""
    levels = _poisson_s(random, 1.0)
    level, begin_s, begin_level = next(levels), 0.0, 0.0
    for rate, for_s in steps:
        end_level = begin_level + rate * for_s
        while level < end_level:
            yield begin_s + (level - begin_level) / rate
            level = next(levels)
        begin_s, begin_level = begin_s + for_s, end_level


def _sine_s(random: Draw, rate: float, amplitude: float, period_s: float) -> Iterator[float]:
    """Poisson arrivals of rate (1 + amplitude sin(2 pi t / period)) times `rate`, by thinning.

    Each point of a Poisson process at the highest rate is kept with the chance that the rate of its
    moment is of the highest (Lewis, Shedler: Simulation of nonhomogeneous Poisson processes by
    thinning, 1979).
    """
    most, turn = 1 + amplitude, 2 * math.pi / period_s
    for due_s in _poisson_s(random, rate * most):
        if random() * most < 1 + amplitude * math.sin(turn * due_s):
            yield due_s


def _bursts_s(bursts: Sequence[Burst]) -> list[float]:
    """The arrivals of all bursts, in order, each burst's evenly spaced from its start."""
    return sorted(
        burst.at_s + place * burst.over_s / burst.count for burst in bursts for place in range(burst.count)
    )
