"""The load of a calibration: a scenario's own, made short enough to wait for and rich enough to measure.

    the scenario has                  the calibration
    constant, Poisson, gamma, closed  the same
    ramp, steps, sine, bursts         Poisson arrivals at the rate of the busiest seconds
    a trace                           the same, with the lengths that the trace has from those seconds on
    too few requests for a floor      the same for up to eight seconds; where these are too few, quicker
    few streams among the others      more of them, up to half, before anything is quicker
    answers that take long            shorter ones
    sessions                          their turns without the pauses between them: as many requests a second
                                      as once all pauses are filled by others' turns

What is not as in the run is said in a few words, which the noise floor keeps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import msgspec
from msgspec.structs import replace

from harness.mock.latency import Profile, load_profile, token_offsets_ns
from harness.report.numbers import count, quantity, share
from harness.workload import schedule, trace
from harness.workload.prompts import quantile
from harness.workload.scenario import (
    Closed,
    Constant,
    Fixed,
    Gamma,
    Length,
    Mock,
    Poisson,
    Replay,
    Scenario,
    Seconds,
    Timeouts,
    Traffic,
)

WARM_UP_S = 1.0
"""Not compared: connections are made, caches warmed."""
LONGEST_S = 8.0
"""Nobody waits longer than this for arrivals that are worth a floor."""
ENOUGH = 90
"""So many comparisons must be expected, for a floor needs 69 (`floor.LEAST`): a Poisson number of mean 90 is
below that in less than 1 % of cases."""
ANSWER_S = 3.0
"""Answers take about as long as this at most, all turns of a session together."""
QUICK_ANSWER_S = 0.5
"""Where requests come more quickly than in the run, answers are as much shorter, so that as many are open at
once; but not shorter than this."""
FEWEST_TOKENS = 16
TURNS = 8
PATIENCE_S = 10.0
"""An answer that takes longer after all is given up."""
_SAMPLE = 200
_ROUNDING_S = 1e-6
_CHUNK_S = 20e-6
"""What a chunk costs client and mock, though the profile have no delay."""

Steady = Closed | Constant | Poisson | Gamma


class Rehearsal(msgspec.Struct, frozen=True):
    """What the mock is sent instead of the run."""

    scenario: Scenario
    unlike: tuple[str, ...]
    """In what it is not as the run, a few words each."""


class _Pace(msgspec.Struct, frozen=True):
    """Roughly how quickly a mock answers when it is not busy."""

    first_s: float
    gap_s: float

    def answer_s(self, tokens: float) -> float:
        return self.first_s + self.gap_s * tokens

    def tokens(self, within_s: float) -> int:
        """As many as come within a time, but enough for a stream."""
        return max(FEWEST_TOKENS, int((within_s - self.first_s) / self.gap_s))


def rehearse(scenario: Scenario, seconds: float, place: Path, *, share_of: int = 1) -> Rehearsal:
    """The scenario's busiest load, held for some seconds against the bundled mock without faults.

    Args:
        scenario: whose load is taken.
        seconds: how long at least.
        place: an existing folder for the part of a trace that is replayed.
        share_of: one part of the load is taken, of so many.

    Raises:
        ConfigError: the mock's profile or the trace cannot be used.
    """
    scenario = replace(scenario, traffic=tuple(entry for entry in scenario.traffic if entry.weight))
    pace = _pace(load_profile(scenario.mock.profile))
    arrivals, start_s = _busiest(scenario, seconds)
    planned = _part(arrivals, share_of)
    turns = min(TURNS, max(_most(entry.turns) for entry in scenario.traffic))
    tokens = pace.tokens(ANSWER_S / turns)
    sent = planned
    traffic = tuple(_shared(entry, share_of) for entry in scenario.traffic)
    users = math.ceil(scenario.max_in_flight / share_of)
    longest_s = max(seconds, LONGEST_S)
    needed_s = _needed_s(traffic, planned, pace, tokens)
    if needed_s > longest_s:
        compared_s = longest_s - WARM_UP_S
        traffic = _richer(traffic, (needed_s - WARM_UP_S) / compared_s)
        if _needed_s(traffic, planned, pace, tokens) > longest_s + _ROUNDING_S:
            sent, tokens = _quicker(traffic, planned, pace, turns, compared_s)
        traffic = tuple(replace(entry, users=None) for entry in traffic)
        users = max(users, _needed_users(traffic, sent, pace, tokens))
    seconds = max(seconds, min(needed_s, longest_s))
    traffic = tuple(_bounded(entry, tokens) for entry in traffic)
    rehearsal = Scenario(
        name="calibration",
        description=f"The planned load of scenario {scenario.name}, against the bundled mock",
        dialect=scenario.dialect,
        models=scenario.models,
        traffic=traffic,
        arrivals=sent,
        duration_s=Seconds(seconds),
        max_in_flight=users,
        patience_s=scenario.patience_s,
        drain_s=scenario.drain_s,
        timeouts=Timeouts(idle_s=Seconds(PATIENCE_S), total_s=Seconds(PATIENCE_S)),
        seed=scenario.seed,
        budgets=scenario.budgets,
        mock=Mock(profile=scenario.mock.profile),
        telemetry=False,
    )
    stated = 0
    if isinstance(scenario.arrivals, Replay) and isinstance(sent, Poisson):
        found = trace.read(scenario.arrivals)
        stated = max(found.output_tokens)
        rehearsal = _replayed(rehearsal, found, start_s, tokens, place / "trace.jsonl")
    unlike = [
        *_fewer_streams(scenario.traffic, traffic),
        *_differences(scenario, planned, sent, tokens, stated),
    ]
    return Rehearsal(rehearsal, tuple(unlike))


def _differences(
    scenario: Scenario, planned: Steady, sent: Steady, tokens: int, stated_tokens: int
) -> Sequence[str]:
    found = []
    if scenario.target.startswith("https:"):
        found.append("over plain HTTP, the run over TLS")
    if sent != planned:
        found.append(f"with {_told(sent)} instead of {_told(planned)}, too few for a floor")
    longest = max(_most(entry.output) for entry in scenario.traffic)
    if max(longest, stated_tokens) > tokens:
        found.append(f"answers of {count(tokens)} tokens at most")
    if any(entry.think_time_s for entry in scenario.traffic):
        found.append("sessions without pauses")
    if any(_most(entry.turns) > TURNS for entry in scenario.traffic):
        found.append(f"sessions of {TURNS} turns at most")
    return found


def _fewer_streams(planned: Sequence[Traffic], sent: Sequence[Traffic]) -> Iterator[str]:
    before, after = _streams_share(planned), _streams_share(sent)
    if after > before:
        yield f"with {share(after)} streams instead of {share(before)}, too few for a floor"


def _told(arrivals: Steady) -> str:
    if not isinstance(arrivals, Closed):
        return quantity(arrivals.rate, "arrivals/s")
    pauses = f" with pauses of {quantity(arrivals.think_time_s, 's')}" if arrivals.think_time_s else ""
    return f"{count(arrivals.users)} users{pauses}"


# -- when -----------------------------------------------------------------------------------------------


def _busiest(scenario: Scenario, seconds: float) -> tuple[Steady, float]:
    """Arrivals as at the busiest time, and when that begins."""
    if isinstance(scenario.arrivals, Steady) and not scenario.bursts:
        return scenario.arrivals, 0.0
    due_s = [arrival.due_ns / 1e9 for arrival in schedule.arrivals(scenario)]
    start_s, most = busiest(due_s, seconds)
    return Poisson(rate=most / seconds), start_s


def busiest(due_s: Sequence[float], seconds: float) -> tuple[float, int]:
    """The window of this length with the most arrivals: its start and their number, at least 1.

    Args:
        due_s: in order.
        seconds: the window's length.
    """
    windows = ((bisect_left(due_s, first + seconds) - place, first) for place, first in enumerate(due_s))
    most, start_s = max(windows, key=lambda window: window[0], default=(1, 0.0))
    return start_s, most


def _part(arrivals: Steady, share_of: int) -> Steady:
    if share_of == 1:
        return arrivals
    if isinstance(arrivals, Closed):
        return replace(arrivals, users=math.ceil(arrivals.users / share_of))
    return replace(arrivals, rate=arrivals.rate / share_of)


def _needed_s(traffic: Sequence[Traffic], arrivals: Steady, pace: _Pace, tokens: int) -> float:
    """For how long so many must arrive that there is a floor of each measure."""
    rate = arrivals.rate if not isinstance(arrivals, Closed) else _throughput(traffic, arrivals, pace, tokens)
    return WARM_UP_S + ENOUGH / (rate * _compared(traffic))


def _streams_share(traffic: Sequence[Traffic]) -> float:
    """Of the arrivals."""
    of_streams = sum(entry.weight for entry in traffic if entry.kind == "stream")
    return of_streams / sum(entry.weight for entry in traffic)


def _richer(traffic: Sequence[Traffic], times: float) -> tuple[Traffic, ...]:
    """The same with so many times the streams, of as many arrivals, but no more than half of these."""
    before = _streams_share(traffic)
    after = min(times * before, 0.5)
    if not 0 < before < after:
        return tuple(traffic)
    odds = after / (1 - after) / (before / (1 - before))
    return tuple(
        replace(entry, weight=entry.weight * odds) if entry.kind == "stream" else entry for entry in traffic
    )


def _quicker(
    traffic: Sequence[Traffic], arrivals: Steady, pace: _Pace, turns: int, compared_s: float
) -> tuple[Steady, int]:
    """The same, so quick that the time is long enough, and the most tokens of an answer then."""
    rate = ENOUGH / _compared(traffic) / compared_s
    fewest = pace.tokens(QUICK_ANSWER_S / turns)
    if isinstance(arrivals, Closed):
        needed = math.ceil(rate / _throughput(traffic, Closed(users=1), pace, fewest))
        return Closed(users=max(arrivals.users, needed)), fewest
    as_many_open_s = ANSWER_S * arrivals.rate / rate
    return replace(arrivals, rate=rate), max(fewest, pace.tokens(as_many_open_s / turns))


def _throughput(traffic: Sequence[Traffic], closed: Closed, pace: _Pace, tokens: int) -> float:
    """Arrivals that a closed loop starts a second."""
    weight = sum(entry.weight for entry in traffic)
    each_s = sum(entry.weight * _arrival_s(entry, pace, tokens) for entry in traffic) / weight
    return closed.users / (each_s + closed.think_time_s)


def _arrival_s(entry: Traffic, pace: _Pace, tokens: int) -> float:
    return min(TURNS, middle(entry.turns)) * pace.answer_s(min(tokens, middle(entry.output)))


def _compared(traffic: Sequence[Traffic]) -> float:
    """How many comparisons an arrival brings: of streams if there are any, which are floors of their own."""

    def each(kinds: Sequence[str]) -> float:
        requests = (entry.weight * _requests(entry) for entry in traffic if entry.kind in kinds)
        return sum(requests) / sum(entry.weight for entry in traffic)

    return each(["stream"]) or each(["completion", "batch"])


def _requests(entry: Traffic) -> int:
    return entry.size if entry.kind == "batch" else min(TURNS, middle(entry.turns))


def _needed_users(traffic: Sequence[Traffic], sent: Steady, pace: _Pace, tokens: int) -> int:
    """Virtual users, twice as many as Little's law asks for; a closed loop says itself."""
    if isinstance(sent, Closed):
        return 0
    longest_s = max(_arrival_s(entry, pace, tokens) for entry in traffic)
    return math.ceil(2 * sent.rate * longest_s) + len(traffic)


# -- what -----------------------------------------------------------------------------------------------


def _pace(profile: Profile) -> _Pace:
    """What the profile's two distributions give, and an engine's step where there is one."""
    first_s, gaps_s = [], []
    for number in range(_SAMPLE):
        before_ns, after_ns = token_offsets_ns(profile, seed=0, request_id=f"{number}", tokens=2)
        first_s.append(before_ns / 1e9)
        gaps_s.append((after_ns - before_ns) / 1e9)
    step = profile.engine.step if profile.engine else None
    step_s = step.base_s + step.sequence_s if step else 0.0
    return _Pace(first_s=median(first_s) + step_s, gap_s=sum(gaps_s) / _SAMPLE + step_s + _CHUNK_S)


def _shared(entry: Traffic, share_of: int) -> Traffic:
    """With as many users of its own as one worker of so many has, if that is one at least."""
    return entry if entry.users is None else replace(entry, users=entry.users // share_of or None)


def _bounded(entry: Traffic, tokens: int) -> Traffic:
    turns = entry.turns
    return replace(
        entry,
        output=shortened(entry.output, tokens),
        turns=min(TURNS, turns) if isinstance(turns, int) else shortened(turns, TURNS),
        think_time_s=Seconds(0),
    )


def shortened(length: Length, most: int) -> Length:
    """The same distribution, of which whatever is longer is as long as this."""
    if isinstance(length, Fixed):
        return Fixed(tokens=min(length.tokens, most))
    return replace(length, low=min(length.low, most), high=min(length.high, most))


def middle(length: Length | int) -> int:
    """Its median."""
    return length if isinstance(length, int) else quantile(length)(0.5)


def _most(length: Length | int) -> int:
    if isinstance(length, int):
        return length
    return length.tokens if isinstance(length, Fixed) else quantile(length)(0.999)


def _replayed(scenario: Scenario, found: trace.Trace, start_s: float, tokens: int, path: Path) -> Scenario:
    """The arrivals of a scenario as a trace of their own, with what another trace says from a time on.

    A trace that says nothing of lengths is left at that.
    """
    prompts, outputs, blocks = any(found.prompt_tokens), any(found.output_tokens), any(found.blocks)
    if not prompts and not outputs:
        return scenario
    place = bisect_left(found.at_s, start_s)
    rows = islice(cycle(range(len(found.at_s))), place, None)
    lines = []
    for arrival, row in zip(schedule.arrivals(scenario), rows, strict=False):
        said = found.lengths(row)
        lines.append(
            msgspec.json.encode(
                {
                    "timestamp": arrival.due_ns / 1e6,
                    "input_length": said.prompt_tokens,
                    "output_length": min(said.output_tokens, tokens),
                    "hash_ids": said.blocks,
                }
            )
        )
    path.write_bytes(b"\n".join(lines) + b"\n")
    columns = Replay(
        path=str(path),
        unit="ms",
        prompt_column="input_length" if prompts else None,
        output_column="output_length" if outputs else None,
    )
    return replace(scenario, arrivals=Replay(path=str(path), format="mooncake") if blocks else columns)
