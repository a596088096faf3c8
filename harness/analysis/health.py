"""Checks of the workers by their own samples: was there enough of the machine, and was it steady?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.analysis.budgets import (
    Budgets,
    Check,
    cores,
    lateness_budget,
    more_files,
    relief,
    shown,
    tightest,
)
from harness.analysis.goodness import Criterion
from harness.analysis.measures import Measures, Window
from harness.record import Manifest, Run, Sample


def check_health(
    measures: Measures,
    samples: Sequence[Sample],
    window: Window,
    *,
    run: Run,
    manifest: Manifest,
    objectives: Sequence[Criterion],
    budgets: Budgets,
) -> Iterator[Check]:
    """Judge the workers in the window; for the arguments see `validity.validate`."""
    chosen = [
        each for each in samples if window[0] < each.t_ns / 1e9 and each.t_ns / 1e9 - each.wall_s < window[1]
    ]
    yield from _sampled(chosen, window, run, budgets)
    if not chosen:
        return
    workers = _by_worker(chosen)
    yield _cpu(workers, run, budgets)
    yield _hub_lag(chosen, run, objectives, budgets)
    yield _hub_lag_p99(workers, run, budgets)
    yield from _read_lag(chosen, run, objectives, budgets)
    yield _collections(chosen, budgets)
    yield from _files(chosen, budgets)
    # Of a worker that left no books, what was in flight has no record: the ledger says so.
    kept_books = {ledger.worker for ledger in manifest.workers}
    whole = {worker: mine for worker, mine in workers.items() if worker in kept_books}
    yield from _littles_law(measures, whole, window, objectives, budgets)
    yield from _clock(_by_worker(samples), run, budgets)


def _sampled(samples: Sequence[Sample], window: Window, run: Run, budgets: Budgets) -> Iterator[Check]:
    """Silence is no proof of health: in a window long enough to sample, each worker must have done so."""
    if window[1] - window[0] < budgets.cpu_span_s:
        return
    seen = len(_by_worker(samples))
    passed = seen >= run.workers
    yield Check(
        "sampled",
        passed=passed,
        observed=seen,
        budget=run.workers,
        unit="workers",
        n=len(samples),
        cause=f"{seen} of {run.workers} workers left samples of their own health",
        remedy="" if passed else "run it again: a worker died or was stopped",
    )


def _by_worker(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    grouped: dict[int, list[Sample]] = defaultdict(list)
    for each in sorted(samples, key=lambda sample: sample.t_ns):
        grouped[each.worker].append(each)
    return grouped


def _cpu(workers: dict[int, list[Sample]], run: Run, budgets: Budgets) -> Check:
    worst = max(_busiest(mine, budgets.cpu_span_s) for mine in workers.values())
    passed = worst <= budgets.cpu_share
    return Check(
        "cpu",
        passed=passed,
        observed=worst,
        budget=budgets.cpu_share,
        unit="cores",
        n=sum(map(len, workers.values())),
        cause=f"the busiest worker used {worst:.0%} of a core over {budgets.cpu_span_s:g} s",
        remedy="" if passed else _more_workers(run, worst, budgets.cpu_share),
    )


def _more_workers(run: Run, share: float, allowed: float) -> str:
    """Each needs a core of its own."""
    needed = max(run.workers + 1, math.ceil(run.workers * share / allowed) if allowed else 0)
    if needed <= cores(run):
        return f"raise --workers to {needed}"
    rest = "lower the load, or spread it over more machines (--remote)"
    if run.workers >= cores(run):
        return f"{rest}: this one has no core for another worker"
    return f"raise --workers to {cores(run)}, and {rest}: this one has no more cores"


def _busiest(samples: Sequence[Sample], span_s: float) -> float:
    """The highest CPU share over any run of samples that spans `span_s`, or over all if none does."""
    wall = np.cumsum([0.0, *(each.wall_s for each in samples)])
    cpu = np.cumsum([0.0, *(each.cpu_s for each in samples)])
    ends = np.searchsorted(wall, wall + span_s - 1e-9)
    starts = np.flatnonzero(ends < len(wall))
    if not len(starts):
        return float(cpu[-1] / wall[-1]) if wall[-1] > 0 else 0.0
    stops = ends[starts]
    return float(((cpu[stops] - cpu[starts]) / (wall[stops] - wall[starts])).max())


def _hub_lag(samples: Sequence[Sample], run: Run, objectives: Sequence[Criterion], budgets: Budgets) -> Check:
    budget = _bounded(budgets.hub_lag_s, objectives, budgets)
    lag = max(each.hub_lag_max_ns for each in samples) / 1e9
    passed = lag <= budget
    return Check(
        "hub_lag",
        passed=passed,
        observed=lag,
        budget=budget,
        unit="s",
        n=len(samples),
        cause=f"the event loop was away for up to {shown(lag)}, {shown(budget)} are allowed",
        remedy="" if passed else relief(run),
    )


def _bounded(budget_s: float, objectives: Sequence[Criterion], budgets: Budgets) -> float:
    """The budget, or the share of the tightest judged time that is lower, but never below the floor."""
    limit = tightest(objectives)
    if limit is None:
        return budget_s
    return max(budgets.hub_lag_floor_s, min(budget_s, budgets.hub_lag_of_threshold * limit.seconds))


def _read_lag(
    samples: Sequence[Sample], run: Run, objectives: Sequence[Criterion], budgets: Budgets
) -> Iterator[Check]:
    """Did the reader keep up with the kernel? Its stamps are only as exact as that."""
    lag = max(each.read_lag_max_ns for each in samples) / 1e9
    if run.stamps != "kernel" or not lag:
        return
    budget = _bounded(budgets.read_lag_s, objectives, budgets)
    passed = lag <= budget
    yield Check(
        "read_lag",
        passed=passed,
        observed=lag,
        budget=budget,
        unit="s",
        n=len(samples),
        cause=f"bytes lay in the kernel for up to {shown(lag)} before they were read, "
        f"{shown(budget)} are allowed",
        remedy="" if passed else relief(run),
    )


def _hub_lag_p99(workers: dict[int, list[Sample]], run: Run, budgets: Budgets) -> Check:
    wait = max(waited(mine, 0.99) for mine in workers.values())
    passed = wait <= budgets.hub_lag_p99_s
    return Check(
        "hub_lag_p99",
        passed=passed,
        observed=wait,
        budget=budgets.hub_lag_p99_s,
        unit="s",
        n=sum(map(len, workers.values())),
        cause=f"an event waited {shown(wait)} for the event loop at P99, "
        f"{shown(budgets.hub_lag_p99_s)} are allowed",
        remedy="" if passed else relief(run),
    )


def waited(samples: Sequence[Sample], p: float) -> float:
    """The p-quantile of how long an event at a random moment waits for one worker's event loop, in seconds.

    Counting probes would hide a stall, during which none is taken; so moments are counted. In a stall of
    length L, an event waits longer than x if it comes more than x before the stall's end: the share of
    such moments is the sum of max(0, L - x) over all stalls, by the time. The quantile is the x at which
    it is 1 - p: the highest of (L_1 + ... + L_k - (1 - p) time) / k, with L in descending order.
    """
    stalls = np.sort(np.array([stall for each in samples for stall in each.hub_stalls_ns]) / 1e9)[::-1]
    if not len(stalls):
        return 0.0
    allowed = (1 - p) * sum(each.wall_s for each in samples)
    return max(0.0, float(((np.cumsum(stalls) - allowed) / np.arange(1, len(stalls) + 1)).max()))


def _collections(samples: Sequence[Sample], budgets: Budgets) -> Check:
    pause = max(each.gc_pause_max_ns for each in samples) / 1e9
    passed = pause <= budgets.gc_pause_s
    return Check(
        "gc_pause",
        passed=passed,
        observed=pause,
        budget=budgets.gc_pause_s,
        unit="s",
        n=len(samples),
        cause=f"the longest garbage collection took {shown(pause)}, {shown(budgets.gc_pause_s)} are allowed",
        remedy=""
        if passed
        else "raise --workers, so that each holds fewer objects, or free this machine's CPU",
    )


def _files(samples: Sequence[Sample], budgets: Budgets) -> Iterator[Check]:
    limited = [each for each in samples if each.file_limit > 0]
    if not limited:
        return
    worst = max(limited, key=lambda each: each.open_files / each.file_limit)
    share = worst.open_files / worst.file_limit
    passed = share <= budgets.files_share
    yield Check(
        "files",
        passed=passed,
        observed=share,
        budget=budgets.files_share,
        unit="1",
        n=len(limited),
        cause=f"a worker had {worst.open_files:,} of the {worst.file_limit:,} files open that the system "
        "allows it",
        remedy="" if passed else more_files(worst.file_limit),
    )


def _littles_law(
    measures: Measures,
    workers: dict[int, list[Sample]],
    window: Window,
    objectives: Sequence[Criterion],
    budgets: Budgets,
) -> Iterator[Check]:
    """Mean in flight = rate x mean time: do the workers' counts and the records' stamps agree?

    The records' side is taken at the very instants of the samples, as the number of arrivals that had
    started and not ended: its mean over all instants is rate x mean time (Little 1961), and what chance
    does to the one side it does to the other. The worker counts an arrival from its dispatch to the end
    of its bookkeeping, so as many as arrive within the budget of lateness are no contradiction.
    """
    started, ended, owner = _spans(measures)
    if not len(started) or not workers or window[1] <= window[0]:
        return
    counted = recorded = 0.0
    for worker, samples in workers.items():
        at = np.array([each.t_ns for each in samples]) / 1e9
        mine = owner == worker
        under_way = np.searchsorted(np.sort(started[mine]), at, side="right") - np.searchsorted(
            np.sort(ended[mine]), at, side="right"
        )
        counted += float(np.mean([each.in_flight for each in samples]))
        recorded += float(under_way.mean())
    rate = ((started >= window[0]) & (started < window[1])).sum() / (window[1] - window[0])
    slack = max(1.0, float(rate) * lateness_budget(objectives, budgets))
    budget = budgets.in_flight_share * recorded + slack
    passed = abs(counted - recorded) <= budget
    yield Check(
        "littles_law",
        passed=passed,
        observed=abs(counted - recorded),
        budget=budget,
        unit="arrivals",
        n=sum(map(len, workers.values())),
        cause=f"{counted:,.1f} arrivals were in flight on average by the workers' count, {recorded:,.1f} by "
        "the records' rate x mean time",
        remedy=""
        if passed
        else "records were lost or their stamps are wrong: run it again, report it as a bug",
    )


_Spans = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def _spans(measures: Measures) -> _Spans:
    """For each arrival that was sent: its first start, its last end (infinite if it has none), its worker."""
    if not len(measures):
        return np.empty(0), np.empty(0), np.empty(0, np.int64)
    _, first = np.unique(measures.seq, return_index=True)
    started = np.fmin.reduceat(measures.started_s, first)
    ended = np.fmax.reduceat(measures.ended_s, first)
    owner = measures.requests.column("worker").to_numpy()[first]
    sent = ~np.isnan(started)
    return started[sent], np.where(np.isnan(ended), np.inf, ended)[sent], owner[sent]


def _clock(workers: dict[int, list[Sample]], run: Run, budgets: Budgets) -> Iterator[Check]:
    """Of the whole run: a step in the warm-up shifts all that comes after it."""
    steps = [0.0]
    n = 0
    for samples in workers.values():
        before_ns = run.start.wall_ns
        for each in samples:
            if each.wall_clock_ns:
                steps.append((each.wall_clock_ns - each.t_ns - before_ns) / 1e9)
                before_ns = each.wall_clock_ns - each.t_ns
                n += 1
    if not n:
        return
    worst = max(steps, key=abs)
    passed = abs(worst) <= budgets.clock_step_s
    yield Check(
        "clock",
        passed=passed,
        observed=abs(worst),
        budget=budgets.clock_step_s,
        unit="s",
        n=n,
        cause=f"the wall clock jumped by up to {shown(abs(worst))}, "
        f"{shown(budgets.clock_step_s)} are allowed",
        remedy=""
        if passed
        else "let time synchronisation slew the clock instead of stepping it, and do not suspend the machine",
    )
