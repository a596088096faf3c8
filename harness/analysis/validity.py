"""Did the instrument do its job? Judged before the numbers are.

A failed check makes the run INVALID, whatever the numbers say, so a check blames the instrument and
never the server: where both may have caused what was seen, it says how it tells them apart. A check
that does not apply (lateness in a closed loop, telemetry that was off) is left out, not passed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from harness.analysis.goodness import ERRORS, Criterion, concerned, good
from harness.analysis.measures import FROM_START, MEASURES, Floats, Mask, Measures, Window, judged, within
from harness.analysis.stats import allowed_share, nearest_rank, per_second
from harness.record import Manifest, Run, Sample, TelemetryLedger


@dataclass(frozen=True)
class Budgets:
    """How far the instrument may stray before its run is INVALID; each with the reason for its size."""

    lateness_s: float = 0.025
    """P99 of lateness. It is part of what is judged from due, so it never flatters the server: the budget
    need only keep a late client from failing a good one. 25 ms leaves room for a busy CI machine, whose
    scheduler holds a process up for 10 to 20 ms at P99 ..."""
    lateness_of_threshold: float = 0.05
    """... unless the tightest limit on a time from due is below 500 ms: then a twentieth of it, the
    margin within which the run could blame the server for what the client added."""
    dropped_share: float = 0.01
    """Of the arrivals: as much as a P99 objective lets go."""
    achieved_share: float = 0.99
    """Arrivals dispatched in the window, of those planned in it."""
    cpu_share: float = 0.9
    """Of one core, over any 5 s: a worker is one thread, and near saturation its stamps queue."""
    cpu_span_s: float = 5.0
    hub_lag_s: float = 0.100
    """Longest time the event loop was away. One such stall touches every request under way ..."""
    hub_lag_of_threshold: float = 0.2
    """... so it is also bounded as a share of the tightest judged latency ..."""
    hub_lag_floor_s: float = 0.020
    """... but not below what a busy machine's scheduler does to anybody."""
    lump_chunks: int = 8
    """A stream of at least so many chunks in at most `lump_reads` reads came in one lump ..."""
    lump_reads: int = 2
    lump_service_s: float = 0.100
    """... if it took this long: a server that is done sooner may well send all in one piece."""
    lump_share: float = 0.5
    """Of the streams with so many chunks."""


BUDGETS = Budgets()


class Check(msgspec.Struct, frozen=True):
    """One question about the instrument, and its answer."""

    name: str
    """Stable identifier: `lateness`, `ledger`, `hub_lag`, ..."""
    passed: bool
    observed: float | None
    budget: float | None
    unit: str
    n: int
    cause: str
    """One sentence for people, passed or not."""
    remedy: str = ""
    """What to do, where it failed: `raise max_in_flight to 400`."""


class Validity(msgspec.Struct, frozen=True):
    """The instrument's judgement of itself."""

    checks: list[Check]

    @property
    def valid(self) -> bool:
        """No check failed."""
        return all(check.passed for check in self.checks)


def validate(
    measures: Measures,
    objectives: Sequence[Criterion],
    window: Window,
    *,
    run: Run,
    manifest: Manifest,
    samples: Sequence[Sample],
    planned: int | None = None,
    telemetry: TelemetryLedger | None = None,
    budgets: Budgets = BUDGETS,
) -> Validity:
    """Judge the instrument.

    Args:
        measures: of the run.
        objectives: what the server is judged by: they say how exact the instrument must be.
        window: see `measures.judged_window`.
        run: the header.
        manifest: the books.
        samples: the workers' health.
        planned: arrivals that the schedule holds in the window; None in a closed loop, or to do without
            the check of the rate.
        telemetry: what became of the spans; None if telemetry was off.
        budgets: how much is too much.
    """
    checks = [
        _recorded(measures),
        _completed(manifest),
        _ledger(measures, manifest),
        *_lateness(measures, objectives, window, budgets),
        *_dropped(measures, objectives, window, run, budgets),
        *_achieved(measures, window, planned, objectives, budgets),
        *_health(samples, window, run, objectives, budgets),
        *_lumps(measures, window, budgets),
    ]
    if telemetry is not None:
        checks.append(_telemetry(telemetry, measures.attempts))
    return Validity(checks)


def tightest_threshold(objectives: Iterable[Criterion], *, from_due: bool = False) -> float | None:
    """The lowest time that is judged (from due only, if asked so), in seconds; None if none is."""
    limits = []
    for each in objectives:
        if each.measure == ERRORS or each.threshold is None:
            continue
        definition = MEASURES[each.measure]
        if definition.unit == "s" and (definition.origin == "due" or not from_due):
            limits.append(each.threshold)
    return min(limits, default=None)


def _recorded(measures: Measures) -> Check:
    n = len(measures)
    return Check(
        "recorded",
        passed=n > 0,
        observed=n,
        budget=1,
        unit="requests",
        n=n,
        cause=f"{n:,} requests were recorded" if n else "nothing was recorded",
        remedy="" if n else "see the run's log on stderr: the load generator never sent a request",
    )


def _completed(manifest: Manifest) -> Check:
    """An interrupted run is judged on what it recorded; a killed one left no books to trust."""
    passed = manifest.stop_reason != "killed"
    return Check(
        "completed",
        passed=passed,
        observed=None,
        budget=None,
        unit="",
        n=1,
        cause=f"the run was {manifest.stop_reason.replace('_', ' ')}" if passed else "the run was killed",
        remedy="" if passed else "run it again; the report shows what was recorded until then",
    )


def _ledger(measures: Measures, manifest: Manifest) -> Check:
    faults = list(manifest.imbalances)
    if manifest.records != measures.attempts:
        faults.append(f"the books hold {manifest.records:,} records, the log {measures.attempts:,}")
    if measures.duplicates:
        faults.append(f"{measures.duplicates:,} records stand in the log twice")
    if measures.unfinished:
        faults.append(f"{measures.unfinished:,} requests have no final attempt")
    return Check(
        "ledger",
        passed=not faults,
        observed=len(faults),
        budget=0,
        unit="imbalances",
        n=manifest.planned,
        cause="; ".join(faults) or f"all {manifest.planned:,} planned arrivals are accounted for",
        remedy="run it again; if every worker stayed alive, report it as a bug" if faults else "",
    )


def _lateness_budget(objectives: Sequence[Criterion], budgets: Budgets) -> float:
    tightest = tightest_threshold(objectives, from_due=True)
    if tightest is None:
        return budgets.lateness_s
    return min(budgets.lateness_s, budgets.lateness_of_threshold * tightest)


def _lateness(
    measures: Measures, objectives: Sequence[Criterion], window: Window, budgets: Budgets
) -> Iterator[Check]:
    late = np.sort(measures.lateness[within(measures, window) & ~np.isnan(measures.lateness)])
    if not len(late):
        return
    budget = _lateness_budget(objectives, budgets)
    p99 = float(late[nearest_rank(len(late), 0.99) - 1])
    passed = p99 <= budget
    yield Check(
        "lateness",
        passed=passed,
        observed=p99,
        budget=budget,
        unit="s",
        n=len(late),
        cause=f"requests started {_ms(p99)} after they were due at P99, {_ms(budget)} are allowed",
        remedy="" if passed else "raise --workers, lower the rate, or free this machine's CPU",
    )


def _dropped(
    measures: Measures, objectives: Sequence[Criterion], window: Window, run: Run, budgets: Budgets
) -> Iterator[Check]:
    """Dropped arrivals count against the objectives; too many of them also against the instrument.

    Not so where the server explains them: if, counted from start, the requests that were sent already
    miss a latency objective or the error objective, then the server's slowness filled the pool, and
    INVALID would let it off. Otherwise a server within its objectives could not be offered the load
    because the pool is too small, and the run says nothing about that load.
    """
    due = within(measures, window) & measures.open_loop
    n = len(np.unique(measures.seq[due]))
    if not n:
        return
    lost = len(np.unique(measures.seq[due & measures.dropped]))
    observed = lost / n
    excused = observed > budgets.dropped_share and _server_misses(measures, objectives, due)
    passed = observed <= budgets.dropped_share or excused
    cause = f"{lost:,} of {n:,} arrivals were dropped for want of an idle virtual user"
    if excused:
        cause += ": the server's answers alone miss the objectives, so they count as its errors"
    yield Check(
        "dropped",
        passed=passed,
        observed=observed,
        budget=budgets.dropped_share,
        unit="1",
        n=n,
        cause=cause,
        remedy="" if passed else f"raise max_in_flight to {users_needed(measures, window, run):,}",
    )


def _server_misses(measures: Measures, objectives: Iterable[Criterion], chosen: Mask) -> bool:
    for objective in objectives:
        name = FROM_START.get(objective.measure, objective.measure)
        sent = chosen & ~measures.dropped & concerned(measures, objective, name)
        bad = sent & ~good(measures, objective, name)
        if sent.any() and bad.sum() / sent.sum() > allowed_share(objective.target):
            return True
    return False


def users_needed(measures: Measures, window: Window, run: Run) -> int:
    """Virtual users that would carry the arrivals of the window, by Little's law.

    The mean in flight is rate x time; four standard deviations of a Poisson count stand above it. The
    pool is shared out among the kinds by their share of the arrivals, so the neediest kind decides.
    """
    due = np.flatnonzero(within(measures, window))
    seqs, first = np.unique(measures.seq[due], return_index=True)
    dropped = measures.dropped[due][first]
    held = _busy_s(measures, due, first)
    kinds = measures.kind[due][first]
    length = window[1] - window[0]
    needed = 0.0
    for kind in set(kinds):
        of_kind = kinds == kind
        busy = held[of_kind & ~dropped]
        if not len(busy):
            continue
        mean = of_kind.sum() / length * busy.mean()
        needed = max(needed, (mean + 4 * math.sqrt(mean)) * len(seqs) / of_kind.sum())
    configured = run.scenario.get("max_in_flight", 0)
    return max(math.ceil(needed), 2 * configured if needed <= configured else 0, 1)


def _busy_s(measures: Measures, rows: np.ndarray, first: np.ndarray) -> Floats:
    """How long each arrival kept its virtual user: from its first start to its last end."""
    ended = np.fmax.reduceat(measures.ended_s[rows], first)
    started = np.fmin.reduceat(measures.started_s[rows], first)
    busy: Floats = np.nan_to_num(ended - started)
    return busy


def _achieved(
    measures: Measures,
    window: Window,
    planned: int | None,
    objectives: Sequence[Criterion],
    budgets: Budgets,
) -> Iterator[Check]:
    """Were the planned arrivals dispatched in their time? Dropped ones were: they are judged above."""
    if not planned:
        return
    in_time = measures.dropped | (measures.started_s < window[1] + _lateness_budget(objectives, budgets))
    dispatched = len(np.unique(measures.seq[within(measures, window) & in_time]))
    observed = dispatched / planned
    passed = observed >= budgets.achieved_share
    rate, wanted = per_second(dispatched, window).value, per_second(planned, window).value
    yield Check(
        "achieved_rate",
        passed=passed,
        observed=observed,
        budget=budgets.achieved_share,
        unit="1",
        n=planned,
        cause=f"{rate or 0:,.1f} arrivals/s were dispatched, {wanted or 0:,.1f} were planned",
        remedy="" if passed else "raise --workers or lower the rate",
    )


def _health(
    samples: Sequence[Sample], window: Window, run: Run, objectives: Sequence[Criterion], budgets: Budgets
) -> Iterator[Check]:
    chosen = [
        each for each in samples if window[0] < each.t_ns / 1e9 and each.t_ns / 1e9 - each.wall_s < window[1]
    ]
    yield from _sampled(chosen, window, run, budgets)
    if not chosen:
        return
    worst = max(_busiest(mine, budgets.cpu_span_s) for mine in _by_worker(chosen).values())
    passed = worst <= budgets.cpu_share
    yield Check(
        "cpu",
        passed=passed,
        observed=worst,
        budget=budgets.cpu_share,
        unit="cores",
        n=len(chosen),
        cause=f"the busiest worker used {worst:.0%} of a core over {budgets.cpu_span_s:g} s",
        remedy="" if passed else f"raise --workers to {math.ceil(run.workers * worst / 0.6)}",
    )
    tightest = tightest_threshold(objectives)
    budget = budgets.hub_lag_s
    if tightest is not None:
        budget = max(budgets.hub_lag_floor_s, min(budget, budgets.hub_lag_of_threshold * tightest))
    lag = max(each.hub_lag_max_ns for each in chosen) / 1e9
    passed = lag <= budget
    yield Check(
        "hub_lag",
        passed=passed,
        observed=lag,
        budget=budget,
        unit="s",
        n=len(chosen),
        cause=f"the event loop was away for up to {_ms(lag)}, {_ms(budget)} are allowed",
        remedy="" if passed else "free this machine's CPU, or raise --workers",
    )


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


def _lumps(measures: Measures, window: Window, budgets: Budgets) -> Iterator[Check]:
    """Did streams arrive in one piece at their end, as through a proxy, gzip or a client that buffers?

    The records cannot tell that from a server that thinks for long and then says all at once; the
    remedy names the other possibility.
    """
    chosen = judged(measures, window) & measures.ok & measures.streaming
    gaps = np.bincount(measures.itl_owner, minlength=len(measures))
    moved = np.bincount(measures.itl_owner, weights=measures.itl > 0, minlength=len(measures))
    long_enough = chosen & (gaps + 1 >= budgets.lump_chunks)
    n = int(long_enough.sum())
    if not n:
        return
    lumped = long_enough & (moved + 1 <= budgets.lump_reads) & (measures.service >= budgets.lump_service_s)
    observed = float(lumped.sum()) / n
    passed = observed <= budgets.lump_share
    yield Check(
        "lumps",
        passed=passed,
        observed=observed,
        budget=budgets.lump_share,
        unit="1",
        n=n,
        cause=f"{int(lumped.sum()):,} of {n:,} streams arrived in one lump",
        remedy=""
        if passed
        else "look for a proxy or compression that buffers; if the server really sends all at once, "
        "its traffic is no stream: use kind: completion",
    )


def _telemetry(ledger: TelemetryLedger, attempts: int) -> Check:
    """What was told to the machines must be what happened; what was sampled out on purpose is fine."""
    faults = []
    if ledger.records != attempts:
        faults.append(f"it read {ledger.records:,} of {attempts:,} records")
    if ledger.spans != ledger.exported + ledger.dropped + ledger.failed:
        faults.append(
            f"{ledger.spans:,} spans ≠ {ledger.exported:,} exported + {ledger.dropped:,} dropped + "
            f"{ledger.failed:,} failed"
        )
    if ledger.failed:
        faults.append(f"{ledger.failed:,} of {ledger.spans:,} spans were not exported")
    if ledger.metric_points_failed:
        faults.append(f"{ledger.metric_points_failed:,} metric points were not exported")
    return Check(
        "telemetry",
        passed=not faults,
        observed=len(faults),
        budget=0,
        unit="imbalances",
        n=ledger.records,
        cause="telemetry: "
        + ("; ".join([*faults, *ledger.errors[:1]]) or f"all went to {ledger.destination}"),
        remedy=f"check {ledger.destination}, or set telemetry: false" if faults else "",
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
