"""How many virtual users would have carried a run's arrivals without a wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis.measures import Floats, Mask, Measures, Window
from harness.record import Run


@dataclass(frozen=True)
class _Arrivals:
    """One element an arrival of an open model."""

    kind: NDArray[np.object_]
    worker: NDArray[np.int64]
    due_s: Floats
    busy_s: Floats
    """From its first start to its last end, a session's thinking included; NaN where it had none."""


def remedy(measures: Measures, window: Window, run: Run) -> str:
    """What to raise so that the arrivals of the window find idle users; empty if there are enough for them.

    The pool is shared out among the kinds by their weights, but for those whose `users` are fixed, and
    each kind's among the workers.
    """
    needed = users_needed(measures, window, run.workers)
    traffic = run.scenario.get("traffic") or [{"kind": kind} for kind in needed]
    fixed = _fixed(traffic)
    weights = {
        kind: sum(each.get("weight", 1.0) for each in traffic if each["kind"] == kind)
        for kind in {each["kind"] for each in traffic} - fixed.keys()
    }
    short = {kind: count for kind, count in needed.items() if kind in fixed and count > fixed[kind]}
    shared = max(
        (needed[kind] * sum(weights.values()) / weights[kind] for kind in needed.keys() & weights.keys()),
        default=0.0,
    )
    most = math.ceil(sum((fixed | short).values()) + shared)
    actions = [f"raise the `users` of kind {kind} to {count:,}" for kind, count in sorted(short.items())]
    if most > run.scenario.get("max_in_flight", 0):
        actions.append(f"raise max_in_flight to {most:,}")
    return " and ".join(actions)


def users_needed(measures: Measures, window: Window, workers: int) -> dict[str, int]:
    """For each kind, the users that carry its arrivals of the window, by their due and busy times.

    A worker needs as many as would be under way at once if every arrival started when it was due and kept
    its user as long as it did; one that was dropped, as long as the others did on average. The same
    schedule comes again, but other answers: four standard deviations of a Poisson count with the mean
    number in flight stand above that peak. Users are dealt out evenly, so the neediest worker decides.
    """
    arrivals = _arrivals(measures)
    needed: dict[str, int] = {}
    for kind in sorted(set(arrivals.kind)):
        of_kind = arrivals.kind == kind
        usual_s = np.nan if np.isnan(arrivals.busy_s[of_kind]).all() else np.nanmean(arrivals.busy_s[of_kind])
        if np.isnan(usual_s):
            continue  # none was served: nothing is known
        own = [
            _users_of_one(arrivals, of_kind & (arrivals.worker == each), window, float(usual_s))
            for each in set(arrivals.worker[of_kind])
        ]
        needed[kind] = max(workers, 1) * max(own)
    return needed


def _users_of_one(arrivals: _Arrivals, chosen: Mask, window: Window, usual_s: float) -> int:
    due_s = arrivals.due_s[chosen]
    busy_s = np.where(np.isnan(arrivals.busy_s[chosen]), usual_s, arrivals.busy_s[chosen])
    inside = (due_s >= window[0]) & (due_s < window[1])
    if not inside.any():
        return 0
    order = np.sort(due_s)
    # Whoever ends at the instant at which another is due has gone by then, whatever the last bit says.
    gone = np.searchsorted(np.sort(due_s + busy_s) - 1e-9, order, side="right")
    at_once = np.searchsorted(order, order, side="right") - gone
    peak: int = at_once[(order >= window[0]) & (order < window[1])].max()
    mean = busy_s[inside].sum() / (window[1] - window[0])
    return math.ceil(peak + 4 * math.sqrt(mean))


def _arrivals(measures: Measures) -> _Arrivals:
    rows = np.flatnonzero(measures.open_loop)
    _, first = np.unique(measures.seq[rows], return_index=True)
    ended = np.fmax.reduceat(measures.ended_s[rows], first)
    started = np.fmin.reduceat(measures.started_s[rows], first)
    opening = rows[first]
    return _Arrivals(
        kind=measures.kind[opening],
        worker=measures.requests.column("worker").to_numpy()[opening],
        due_s=measures.arrival_s[opening],
        busy_s=ended - started,
    )


def _fixed(traffic: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The kinds all of whose entries state their `users`, and how many."""
    stated: dict[str, list[int | None]] = {}
    for each in traffic:
        stated.setdefault(each["kind"], []).append(each.get("users"))
    return {kind: sum(each or 0 for each in users) for kind, users in stated.items() if None not in users}
