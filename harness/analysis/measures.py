"""Records -> durations and rates: each definition of docs/definitions.md once, vectorised.

A row of the run log is an attempt; a request is a (seq, turn, index), and its final attempt stands for it.
Whatever is judged from due spans all its attempts. Times are float64 seconds, NaN where undefined:
nanoseconds below 2**53 (104 days) are exact in float64, and the division by 1e9 rounds once, so that
a threshold of 300 ms equals a measured 300,000,000 ns exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.analysis.names import FROM_START as FROM_START  # noqa: PLC0414 - part of this contract
from harness.analysis.names import KINDS as KINDS  # noqa: PLC0414 - part of this contract
from harness.analysis.names import MEASURES as MEASURES  # noqa: PLC0414 - part of this contract
from harness.analysis.names import OWN as OWN  # noqa: PLC0414 - part of this contract
from harness.analysis.names import STREAMING_KINDS as STREAMING_KINDS  # noqa: PLC0414 - part of this contract
from harness.record import Kind, Outcome

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Window = tuple[float, float]
"""Seconds from the run's start: [from, to)."""


@dataclass(frozen=True)
class Measures:
    """One element a request, in order of (seq, turn, index).

    But for `itl` and `itl_owner`: one a gap; and `retried_error` and `retried_owner`: one an attempt that
    was not the last.
    """

    requests: pa.Table
    """The final attempts' rows of the run log."""
    attempts: int
    """Rows of the run log."""
    duplicates: int
    """Attempts that stand in the log more than once: a bug of ours if not 0."""
    unfinished: int
    """Requests without a final attempt: their worker died between two attempts."""
    seq: NDArray[np.int64]
    kind: NDArray[np.object_]
    ok: Mask
    failed: Mask
    """Any outcome but ok and cancelled."""
    dropped: Mask
    cancelled: Mask
    first_failed: Mask
    """The first attempt failed, whatever became of the request."""
    streaming: Mask
    """Of a kind that streams: `stream`, or one of which some request had an event."""
    open_loop: Mask
    """It had a due time."""
    opening: Mask
    """It came with its arrival: no later turn of a session, which the schedule does not know."""
    arrival_s: Floats
    """When it was due; in a closed loop, when its first attempt started."""
    dispatched_s: Floats
    """When the load generator came to it: its first attempt started, or it began to wait for an idle user."""
    started_s: Floats
    """Start of the first attempt."""
    ended_s: Floats
    """End of the final attempt."""
    response: Floats
    service: Floats
    lateness: Floats
    queued: Floats
    connect: Floats
    held: Floats
    ttft: Floats
    ttft_from_start: Floats
    first_event: Floats
    first_event_from_start: Floats
    first_content: Floats
    first_content_from_start: Floats
    itl_longest: Floats
    tpot: Floats
    tokens_per_s: Floats
    itl: Floats
    itl_owner: NDArray[np.int64]
    """For each gap, the position of its request."""
    retried_error: NDArray[np.object_]
    retried_owner: NDArray[np.int64]
    """As `itl_owner`. Of a request without a final attempt there is none."""

    def __len__(self) -> int:
        return len(self.seq)

    def of(self, name: str) -> Floats:
        """The values of a measure of `MEASURES`, one a request."""
        values: Floats = getattr(self, name)
        return values


def measure(table: pa.Table) -> Measures:
    """Derive everything from the records, in about a second a million.

    Args:
        table: of `runlog.MERGED_SCHEMA` (or a part of it that has these columns), in any order.
    """
    table = _in_order(table)
    seq, turn, index, attempt = (_numbers(table, name) for name in _ORDER)
    opens = np.ones(len(seq), dtype=bool)
    opens[1:] = (seq[1:] != seq[:-1]) | (turn[1:] != turn[:-1]) | (index[1:] != index[:-1])
    first_row = np.maximum.accumulate(np.where(opens, np.arange(len(seq)), 0)) if len(seq) else np.arange(0)
    final = _numbers(table, "final").astype(bool)
    rows = np.flatnonzero(final)
    first = first_row[rows]
    requests = table if final.all() else table.take(pa.array(rows))

    first_outcome = table.column("outcome").take(pa.array(first)) if len(rows) < len(seq) else None
    started_first = _stamps(table, "started_ns")[first]
    queued = _stamps(requests, "queued_ns")
    due, started, ended = (_stamps(requests, name) for name in ("due_ns", "started_ns", "ended_ns"))
    open_loop = ~np.isnan(due)
    arrival = np.where(open_loop, due, started_first)
    held = np.where(
        np.isnan(_stamps(requests, "headers_ns")), np.nan, _numbers(requests, "held_ns").astype(np.float64)
    )
    first_token = _stamps(requests, "first_token_ns")
    first_event = _stamps(requests, "first_event_ns")
    first_content = _stamps(requests, "first_content_ns")
    itl, owner, longest, last_chunk = _gaps(requests)
    retried = np.flatnonzero(~final)
    retried_owner = np.searchsorted(rows, retried)
    finished = retried_owner < len(rows)
    finished[finished] = first[retried_owner[finished]] <= retried[finished]
    completion = _stamps(requests, "completion_tokens")
    service = ended - started
    failed = _failed(requests.column("outcome"))
    kind = requests.column("kind").to_numpy()

    return Measures(
        requests=requests,
        attempts=len(table),
        duplicates=int(np.count_nonzero(~opens[1:] & (attempt[1:] == attempt[:-1]))),
        unfinished=int(np.count_nonzero(opens)) - len(np.unique(first)),
        seq=seq[rows],
        kind=kind,
        ok=_equals(requests.column("outcome"), Outcome.OK),
        failed=failed,
        dropped=_equals(requests.column("outcome"), Outcome.DROPPED),
        cancelled=_equals(requests.column("outcome"), Outcome.CANCELLED),
        first_failed=failed if first_outcome is None else _failed(first_outcome),
        streaming=np.isin(kind, [Kind.STREAM.value, *set(kind[~np.isnan(first_event)])]),
        open_loop=open_loop,
        opening=turn[rows] == 0,
        arrival_s=arrival / 1e9,
        dispatched_s=np.fmin(queued, started_first) / 1e9,
        started_s=started_first / 1e9,
        ended_s=ended / 1e9,
        response=np.where(np.isnan(started_first), np.nan, ended - arrival) / 1e9,
        service=service / 1e9,
        lateness=(started_first - due) / 1e9,
        queued=(started_first - queued) / 1e9,
        connect=(_stamps(requests, "connected_ns") - started) / 1e9,
        held=held / 1e9,
        ttft=(first_token - arrival) / 1e9,
        ttft_from_start=(first_token - started) / 1e9,
        first_event=(first_event - arrival) / 1e9,
        first_event_from_start=(first_event - started) / 1e9,
        first_content=(first_content - arrival) / 1e9,
        first_content_from_start=(first_content - started) / 1e9,
        itl_longest=longest / 1e9,
        tpot=_ratio(last_chunk - first_token, completion - 1) / 1e9,
        tokens_per_s=_ratio(completion, service / 1e9),
        itl=itl / 1e9,
        itl_owner=owner,
        retried_error=table.column("error").take(pa.array(retried[finished])).to_numpy(),
        retried_owner=retried_owner[finished],
    )


def within(measures: Measures, window: Window) -> Mask:
    """The requests that arrived in the window: were due in it or, in a closed loop, started in it."""
    mask: Mask = (measures.arrival_s >= window[0]) & (measures.arrival_s < window[1])
    return mask


def judged(measures: Measures, window: Window) -> Mask:
    """The requests that are judged: arrived in the window, and not given up on purpose."""
    return within(measures, window) & ~measures.cancelled


def judged_window(measures: Measures, *, warm_up_s: float, duration_s: float | None) -> Window:
    """From the end of the warm-up to the end of the arrivals.

    Args:
        measures: of the run.
        warm_up_s: arrivals before this are not judged.
        duration_s: when the arrivals were to end, if they did so by the clock; None where a count, a
            trace or somebody's Ctrl-C ended them: then the window ends just past the last arrival.
    """
    if duration_s is not None:
        return warm_up_s, max(warm_up_s, duration_s)
    if not measures.opening.any():
        return warm_up_s, warm_up_s
    last_s = measures.arrival_s[measures.opening].max()
    return warm_up_s, max(warm_up_s, float(np.nextafter(last_s, np.inf)))


_ORDER = ("seq", "turn", "index", "attempt")


def _in_order(table: pa.Table) -> pa.Table:
    # A merged log is in order already; sorting a table with list columns costs more than all the rest.
    seq, turn, index, attempt = (_numbers(table, name) for name in _ORDER)
    order = np.lexsort((attempt, index, turn, seq))
    return table if (order == np.arange(len(order))).all() else table.take(pa.array(order))


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table.column(name).to_numpy()
    return values


def _stamps(table: pa.Table, name: str) -> Floats:
    """A nullable column as floats, NaN where null."""
    return _numbers(table, name).astype(np.float64)


def _equals(column: pa.ChunkedArray, value: str) -> Mask:
    mask: Mask = pc.equal(column, str(value)).to_numpy().astype(bool)
    return mask


def _failed(outcomes: pa.ChunkedArray) -> Mask:
    return ~_equals(outcomes, Outcome.OK) & ~_equals(outcomes, Outcome.CANCELLED)


def _ratio(over: Floats, under: Floats) -> Floats:
    ratio = np.full(len(over), np.nan)
    np.divide(over, under, out=ratio, where=under > 0)
    return ratio


def _gaps(requests: pa.Table) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """All gaps between chunks, whose they are, each request's longest, and its last chunk's stamp (ns)."""
    column = requests.column("chunk_ns")
    stamps = pc.list_flatten(column).to_numpy().astype(np.float64)
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    inside = owner[1:] == owner[:-1]
    gaps = np.diff(stamps)[inside]
    owners = owner[1:][inside]

    longest = np.full(len(lengths), np.nan)
    several = np.flatnonzero(lengths > 1)
    if len(several):
        counts = lengths[several] - 1
        longest[several] = np.maximum.reduceat(gaps, np.cumsum(counts) - counts)
    last = np.full(len(lengths), np.nan)
    some = lengths > 0
    last[some] = stamps[ends[some] - 1]
    return gaps, owners, longest, last
