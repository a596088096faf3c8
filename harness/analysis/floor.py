"""The instrument's own error: what the client measured, less what the server's truth log says it did.

    added TTFT       (first token at client - due) - (first token at server - request's arrival there)
    added response   the same to the end of the answer
    ... from start   both again, from when the client started: without its lateness
    error of ITL     | gap at client - gap at server |, gap by gap
    longest gap      | longest gap at client - longest gap at server |, stream by stream
    error of TPOT    | first to last chunk at client - the same at server | / gaps, stream by stream

Both sides stamp with CLOCK_MONOTONIC, which all processes of one boot share, but each difference is taken
within one side first: no offset between clocks could enter. What is added holds the client's lateness,
its writing and reading, and the loopback both ways; in a closed loop it counts from the start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.analysis.health import waited
from harness.analysis.measures import Window
from harness.analysis.stats import Distribution, distribution, nearest_rank
from harness.record import Outcome, Sample

FACTOR = 3.0
"""A figure must be this many times the floor to be resolved: then the floor is at most a third of it."""

LEAST = 69
"""A floor of fewer values is none. It stands for the P99 of what is added, and 0.99 ** 69 is just below one
half: from here on, the largest of the values is more likely above that P99 than below. The maximum of fewer
would more often than not make the instrument look finer than it is."""

_NOT_TOLD_APART_S = 0.001
"""Shorter stalls of the event loop are not in the samples."""

_FLOOR_OF = {
    "response": "response",
    "service": "service",
    "ttft": "ttft",
    "first_event": "ttft",
    "first_content": "ttft",
    "ttft_from_start": "ttft_from_start",
    "first_event_from_start": "ttft_from_start",
    "first_content_from_start": "ttft_from_start",
    "itl": "itl",
    "itl_longest": "itl_longest",
    "tpot": "tpot",
}
"""By measure, which error is its floor. `lateness` and `queued` have none, for they are the instrument's own;
nor have `connect` and `held`, of which the mock's log knows nothing."""
_WITHOUT_STREAMS = {"ttft": "response", "ttft_from_start": "service"}


class Truth(msgspec.Struct, frozen=True):
    """What the mock's truth log says of a request; stamps in nanoseconds of its monotonic clock."""

    request_id: str
    arrived_ns: int
    chunk_ns: tuple[int, ...] = ()
    ended_ns: int | None = None
    lateness_max_ns: int = 0


class Floor(msgspec.Struct, frozen=True):
    """The noise floor at one load on one machine; written as calibration.json. Times are seconds."""

    run: str
    """Name of the run folder that it was measured in."""
    profile: str
    """Latency profile of the mock that was driven."""
    window_s: Window
    rate_per_s: float
    """Requests compared a second."""
    requests: int
    """Those compared: answered, and found in the truth log."""
    unmatched: int
    """Requests of the window that failed, or that the truth log does not know."""
    miscounted: int
    """Streams of which the client saw more or fewer chunks than were sent."""
    added: dict[str, Distribution]
    """`ttft` and `response`, the same from start (`ttft_from_start`, `service`), and the errors of `itl`,
    `itl_longest` and `tpot`. An older calibration.json has `ttft`, `response` and `itl` only."""
    lateness: Distribution
    """Of the client's timer: start less due. Empty in a closed loop."""
    hub_lag_max_s: float
    cpu_share: float
    """Of one core, mean over the workers."""
    mock_lateness_max_s: float
    """By how much the mock missed its own due times: it is in neither side's figures."""
    mock_lateness_p99_s: float = 0.0
    """Of all its writes, at least: only the latest of each request is known, and the rest count as in time.
    So one stall, which every open stream meets once, is not taken for a mock that cannot keep up."""
    hub_wait_p50_s: float = 0.0
    """What an event at a random moment waits for the event loop (`health.waited`) of the worst worker;
    anything up to a millisecond is not told apart and stands as 0."""
    hub_wait_p99_s: float = 0.0
    read_lag_max_s: float = 0.0
    """Longest time that bytes lay in the kernel unread; 0: not known."""
    workers: int = 1
    """Processes that carried the load, all on this machine."""
    share_of: int = 1
    """The load was one in so many parts of the plan: one worker's, where they are on other machines."""
    unlike: tuple[str, ...] = ()
    """In what else the calibration differed from the run that it is for, a few words each."""
    why_not: str = ""
    """Why nothing was measured; empty where something was."""


def unmeasured(why: str) -> Floor:
    """What stands for the floor of a run whose calibration failed: it says why, and resolves nothing."""
    return Floor(
        run="",
        profile="",
        window_s=(0.0, 0.0),
        rate_per_s=0.0,
        requests=0,
        unmatched=0,
        miscounted=0,
        added={},
        lateness=_distribution([], "lateness"),
        hub_lag_max_s=0.0,
        cpu_share=0.0,
        mock_lateness_max_s=0.0,
        why_not=why,
    )


def floor(
    requests: pa.Table,
    truths: Iterable[Truth],
    samples: Sequence[Sample],
    window: Window,
    *,
    run: str,
    profile: str,
    share_of: int = 1,
    unlike: tuple[str, ...] = (),
) -> Floor:
    """Compare a run's records with the truth.

    Args:
        requests: of `runlog.MERGED_SCHEMA`, one attempt a request.
        truths: the mock's log.
        samples: the workers' health.
        window: seconds from the run's start; requests that were due (or began) in it are compared.
        run: the run folder's name.
        profile: of the mock.
        share_of: see `Floor.share_of`.
        unlike: see `Floor.unlike`.
    """
    by_id = {truth.request_id: truth for truth in truths}
    judged = [row for row in _rows(requests) if window[0] <= _origin_ns(row) / 1e9 < window[1]]
    pairs = [
        (row, by_id[row["request_id"]])
        for row in judged
        if row["outcome"] == Outcome.OK and row["request_id"] in by_id
    ]
    equal = [(row, truth) for row, truth in pairs if len(row["chunk_ns"]) == len(truth.chunk_ns)]
    first = [
        (row, row["first_token_ns"], truth.chunk_ns[0] - truth.arrived_ns)
        for row, truth in pairs
        if row["first_token_ns"] is not None and truth.chunk_ns
    ]
    last = [
        (row, row["ended_ns"], truth.ended_ns - truth.arrived_ns)
        for row, truth in pairs
        if truth.ended_ns is not None
    ]
    gaps_ns = [
        (np.diff(row["chunk_ns"]), np.diff(truth.chunk_ns)) for row, truth in equal if len(truth.chunk_ns) > 1
    ]
    itl_ns = [np.abs(ours - theirs) for ours, theirs in gaps_ns]
    # What a sample sums up must lie in the window, as what is compared does.
    healthy = [each for each in samples if _middle_s(each) >= window[0] and each.t_ns / 1e9 <= window[1]]
    by_worker: dict[int, list[Sample]] = defaultdict(list)
    for each in healthy:
        by_worker[each.worker].append(each)
    late_ns = [row["started_ns"] - row["due_ns"] for row, _ in pairs if row["due_ns"] is not None]
    return Floor(
        run=run,
        profile=profile,
        window_s=window,
        rate_per_s=len(pairs) / (window[1] - window[0]),
        requests=len(pairs),
        unmatched=len(judged) - len(pairs),
        miscounted=len(pairs) - len(equal),
        added={
            "ttft": _distribution([at - _origin_ns(row) - own for row, at, own in first], "ttft"),
            "ttft_from_start": _distribution(
                [at - row["started_ns"] - own for row, at, own in first], "ttft_from_start"
            ),
            "response": _distribution([at - _origin_ns(row) - own for row, at, own in last], "response"),
            "service": _distribution([at - row["started_ns"] - own for row, at, own in last], "service"),
            "itl": _distribution(np.concatenate(itl_ns) if itl_ns else [], "itl", independent=False),
            "itl_longest": _distribution(
                [abs(ours.max() - theirs.max()) for ours, theirs in gaps_ns], "itl_longest"
            ),
            "tpot": _distribution(
                [abs(ours.sum() - theirs.sum()) / len(ours) for ours, theirs in gaps_ns], "tpot"
            ),
        },
        lateness=_distribution(late_ns, "lateness"),
        hub_lag_max_s=max((sample.hub_lag_max_ns for sample in healthy), default=0) / 1e9,
        cpu_share=_cpu_share(healthy),
        mock_lateness_max_s=max((truth.lateness_max_ns for _, truth in pairs), default=0) / 1e9,
        mock_lateness_p99_s=_mock_lateness_p99_s([truth for _, truth in pairs]),
        hub_wait_p50_s=_waited(by_worker.values(), 0.5),
        hub_wait_p99_s=_waited(by_worker.values(), 0.99),
        read_lag_max_s=max((sample.read_lag_max_ns for sample in healthy), default=0) / 1e9,
        workers=max(1, len({sample.worker for sample in samples})),
        share_of=share_of,
        unlike=unlike,
    )


def floor_s(measured: Floor, measure: str) -> float | None:
    """The floor of a measure in seconds: the P99 of what is added, or the maximum where n is small.

    Measures to a first token or event take that of TTFT, or, where nothing was streamed, of the whole answer.
    None for a measure that has no floor, and where fewer than `LEAST` values were compared.
    """
    name = _FLOOR_OF.get(measure, "")
    spread = measured.added.get(name)
    if spread is None or not spread.n:
        spread = measured.added.get(_WITHOUT_STREAMS.get(name, ""))
    if spread is None or spread.n < LEAST:
        return None
    p99 = spread.quantiles["p99"].value
    return spread.maximum if p99 is None else p99


def resolvable(figure_s: float, measured: Floor, measure: str = "response") -> bool | None:
    """Whether a judged time stands far enough above the instrument's own error to mean anything.

    None where that is not known: the measure has no floor, or too little was compared.

    Args:
        figure_s: what was measured, in seconds.
        measured: the noise floor at this load.
        measure: name of `measures.MEASURES`, or `itl`.
    """
    least_s = floor_s(measured, measure)
    return None if least_s is None else figure_s >= FACTOR * least_s


_COLUMNS = ("request_id", "outcome", "due_ns", "started_ns", "first_token_ns", "ended_ns", "chunk_ns")


def _rows(requests: pa.Table) -> Iterator[Mapping[str, Any]]:
    return iter(requests.select(_COLUMNS).to_pylist())


def _origin_ns(row: Mapping[str, Any]) -> int:
    """Due or, in a closed loop, started."""
    stamp: int = row["started_ns"] if row["due_ns"] is None else row["due_ns"]
    return stamp


def _distribution(
    values_ns: Sequence[float] | NDArray[np.int64], measure: str, *, independent: bool = True
) -> Distribution:
    seconds = np.asarray(values_ns, dtype=np.float64) / 1e9
    return distribution(seconds, measure, "s", independent=independent)


def _middle_s(sample: Sample) -> float:
    """The middle of the second that a sample sums up."""
    return sample.t_ns / 1e9 - sample.wall_s / 2


def _mock_lateness_p99_s(truths: Sequence[Truth]) -> float:
    latest_ns = sorted((truth.lateness_max_ns for truth in truths), reverse=True)
    writes = sum(max(1, len(truth.chunk_ns)) for truth in truths)
    above = writes - nearest_rank(writes, 0.99) if writes else 0
    return latest_ns[above] / 1e9 if above < len(latest_ns) else 0.0


def _waited(workers: Iterable[Sequence[Sample]], p: float) -> float:
    wait_s = max((waited(mine, p) for mine in workers), default=0.0)
    return wait_s if wait_s > _NOT_TOLD_APART_S else 0.0


def _cpu_share(samples: Sequence[Sample]) -> float:
    wall_s = sum(sample.wall_s for sample in samples)
    return sum(sample.cpu_s for sample in samples) / wall_s if wall_s else 0.0
