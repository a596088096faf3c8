"""Everything a report prints about a run, computed once from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.analysis.goodness import Criterion, meets_all
from harness.analysis.measures import MEASURES, OWN, Floats, Mask, Measures, Window, judged, within
from harness.analysis.stats import Distribution as Distribution  # noqa: PLC0414 - part of this contract
from harness.analysis.stats import Figure as Figure  # noqa: PLC0414 - part of this contract
from harness.analysis.stats import distribution, mean_in_flight, per_second, share
from harness.record import Kind

Positions = NDArray[np.intp]

LISTED = 20
"""Most requests in `Summary.slowest`, and in `Summary.failed`."""


class Group(msgspec.Struct, frozen=True):
    """What is said of one kind of traffic, or of all (`kind` = "all")."""

    kind: str
    requests: int
    """Requests (final attempts) judged, dropped ones included."""
    outcomes: dict[str, int]
    statuses: dict[str, int]
    """HTTP status as text, `none` where no answer came."""
    errors: dict[str, int]
    """The error texts and how often, most frequent first."""
    rate: Figure
    """Requests that ended per second of the window."""
    goodput: Figure
    """Of those, the ones that meet every objective: never more than `rate`."""
    error_rate: Figure
    """Share of requests that are errors, after retries."""
    first_attempt_error_rate: Figure
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated_usage: int
    """Requests whose token counts are estimates."""
    tokens_per_s: Figure
    """Completion tokens per second of the window."""
    distributions: dict[str, Distribution]
    """By measure; only the measures that this kind has."""


class BatchSummary(msgspec.Struct, frozen=True):
    """Whole batches: from due to all done."""

    batches: int
    size: float
    """Mean requests a batch."""
    all_done: Distribution
    """Response time of a batch: its slowest request's."""
    slowest_ratio: Distribution
    """Slowest request's service time over the batch's median one."""


class Slow(msgspec.Struct, frozen=True):
    """One of the slowest or failed requests, for people to follow up."""

    seq: int
    request_id: str
    kind: str
    outcome: str
    error: str
    status: int | None
    due_s: float | None
    response_s: float | None
    service_s: float | None
    ttft_s: float | None
    trace_id: str


class Summary(msgspec.Struct, frozen=True):
    """One run in numbers."""

    window_s: tuple[float, float]
    """The judged part of the run: requests due in it, in seconds from the start."""
    planned_rate: float | None
    """Arrivals per second that the schedule held in the window; None in a closed loop."""
    arrivals: Figure
    """Arrivals per second really started in the window."""
    in_flight_mean: Figure
    total: Group
    kinds: list[Group]
    batch: BatchSummary | None
    slowest: list[Slow]
    failed: list[Slow]
    window_rule: str = ""
    """How the window was found, for people: see steady.judged_part."""


def summarise(
    measures: Measures,
    objectives: Iterable[Criterion],
    window: Window,
    *,
    planned: int | None = None,
    window_rule: str = "",
) -> Summary:
    """Describe the judged part of a run.

    Latency distributions are of good answers (outcome `ok`); the instrument's own of all that started. Failed
    requests stand in the error rate, and as infinitely late in the verdict's percentiles.

    Args:
        measures: of the run.
        objectives: what goodput has to meet.
        window: see `measures.judged_window`.
        planned: arrivals that the schedule holds in the window; None to count those that left a record,
            which is the same unless a worker was lost.
        window_rule: how the window was found.
    """
    chosen = judged(measures, window)
    meets = meets_all(measures, objectives)
    by_response = np.argsort(-np.where(measures.ok & chosen, measures.response, -np.inf), kind="stable")
    slowest = by_response[: min(LISTED, int((measures.ok & chosen).sum()))]
    failed = np.flatnonzero(measures.failed & chosen)[:LISTED]
    return Summary(
        window_s=window,
        planned_rate=_planned_rate(measures, window, planned),
        arrivals=per_second(arrivals_started(measures, window), window),
        in_flight_mean=mean_in_flight(measures.started_s, measures.ended_s, window),
        total=_group("all", measures, chosen, meets, window),
        kinds=[
            _group(kind, measures, chosen & (measures.kind == kind), meets, window)
            for kind in sorted(set(measures.kind[chosen]))
        ],
        batch=_batches(measures, chosen & (measures.kind == Kind.BATCH.value)),
        slowest=_listed(measures, slowest),
        failed=_listed(measures, failed),
        window_rule=window_rule,
    )


def arrivals_due(measures: Measures, window: Window) -> int:
    """Arrivals with a record that were due in the window; the requests of a batch are one arrival."""
    return len(np.unique(measures.seq[within(measures, window) & measures.open_loop & measures.opening]))


def arrivals_started(measures: Measures, window: Window) -> int:
    """Arrivals that really started in the window, whenever they were due."""
    started = (measures.started_s >= window[0]) & (measures.started_s < window[1]) & measures.opening
    return len(np.unique(measures.seq[started]))


def _planned_rate(measures: Measures, window: Window, planned: int | None) -> float | None:
    if not measures.open_loop.any():
        return None
    return per_second(arrivals_due(measures, window) if planned is None else planned, window).value


def _group(kind: str, measures: Measures, chosen: Mask, meets: Mask, window: Window) -> Group:
    rows = measures.requests.filter(pa.array(chosen))
    n = int(chosen.sum())
    of_kind = np.ones(len(measures), dtype=bool) if kind == "all" else measures.kind == kind
    ended = of_kind & (measures.ended_s >= window[0]) & (measures.ended_s < window[1])
    ended &= ~measures.dropped & ~measures.cancelled
    tokens = _tokens(measures.requests.filter(pa.array(ended)), "completion_tokens")
    cancelled = int((of_kind & within(measures, window) & measures.cancelled).sum())
    outcomes = _tally(rows.column("outcome").to_pylist())
    return Group(
        kind=kind,
        requests=n,
        outcomes=outcomes | ({"cancelled": cancelled} if cancelled else {}),
        statuses=_tally("none" if each is None else str(each) for each in rows.column("status").to_pylist()),
        errors=_tally(each for each in rows.column("error").to_pylist() if each),
        rate=per_second(int(ended.sum()), window),
        goodput=per_second(int((ended & meets).sum()), window),
        error_rate=share(int((chosen & measures.failed).sum()), n),
        first_attempt_error_rate=share(int((chosen & measures.first_failed).sum()), n),
        prompt_tokens=_tokens(rows, "prompt_tokens"),
        completion_tokens=_tokens(rows, "completion_tokens"),
        cached_tokens=_tokens(rows, "cached_tokens"),
        reasoning_tokens=_tokens(rows, "reasoning_tokens"),
        estimated_usage=rows.column("usage_source").to_pylist().count("estimate"),
        tokens_per_s=per_second(tokens, window, "tokens/s", n=int(ended.sum())),
        distributions=_distributions(measures, chosen),
    )


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _tokens(rows: pa.Table, column: str) -> int:
    return int(np.nansum(rows.column(column).to_numpy().astype(np.float64)))


def _distributions(measures: Measures, chosen: Mask) -> dict[str, Distribution]:
    answered = chosen & measures.ok
    found = {
        name: distribution(measures.of(name)[chosen if name in OWN else answered], name, each.unit)
        for name, each in MEASURES.items()
    }
    gaps = measures.itl[answered[measures.itl_owner]]
    found["itl"] = distribution(gaps, "itl", "s", independent=False)
    return {name: each for name, each in found.items() if each.n}


def _batches(measures: Measures, chosen: Mask) -> BatchSummary | None:
    """The batches whose requests were all answered have the times; `size` is of all batches."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return None
    seqs, first, sizes = np.unique(measures.seq[rows], return_index=True, return_counts=True)
    whole = np.logical_and.reduceat(measures.ok[rows], first)
    response = np.maximum.reduceat(measures.response[rows], first)[whole]
    return BatchSummary(
        batches=len(seqs),
        size=float(sizes.mean()),
        all_done=distribution(response, "batch_response", "s"),
        slowest_ratio=distribution(
            _slowest_ratio(measures.service[rows], first, sizes)[whole], "batch_slowest_ratio", "1"
        ),
    )


def _slowest_ratio(service: Floats, first: Positions, sizes: Positions) -> Floats:
    owner = np.repeat(np.arange(len(first)), sizes)
    ordered = service[np.lexsort((service, owner))]
    median = (ordered[first + (sizes - 1) // 2] + ordered[first + sizes // 2]) / 2
    ratio: Floats = ordered[first + sizes - 1] / median
    return ratio


def _listed(measures: Measures, positions: Positions) -> list[Slow]:
    rows = measures.requests.take(pa.array(positions, pa.int64()))
    columns = ["seq", "request_id", "kind", "outcome", "error", "status", "due_ns", "trace_id"]
    return [
        Slow(
            due_s=None if row.pop("due_ns") is None else float(measures.arrival_s[at]),
            response_s=_number(measures.response[at]),
            service_s=_number(measures.service[at]),
            ttft_s=_number(measures.ttft[at]),
            **row,
        )
        for at, row in zip(positions, rows.select(columns).to_pylist(), strict=True)
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
