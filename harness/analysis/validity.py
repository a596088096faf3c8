"""Did the instrument do its job? Judged before the numbers are.

A failed check makes the run INVALID, whatever the numbers say, so a check blames the instrument and
never the server: where both may have caused what was seen, it says how it tells them apart. A check
that does not apply (lateness in a closed loop, telemetry that was off) is left out, not passed.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from harness.analysis import pool
from harness.analysis.budgets import BUDGETS, lateness_budget, more_files, relief, shown, tightest
from harness.analysis.budgets import Budgets as Budgets  # noqa: PLC0414 - part of this contract
from harness.analysis.budgets import Check as Check  # noqa: PLC0414 - part of this contract
from harness.analysis.goodness import Criterion, concerned, good
from harness.analysis.health import check_health
from harness.analysis.measures import FROM_START, Mask, Measures, Window, judged, within
from harness.analysis.stats import allowed_share, nearest_rank, per_second, samples_needed
from harness.record import Manifest, Run, Sample, TelemetryLedger

_AWAY = {"hub_lag", "hub_lag_p99", "read_lag"}


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
    health = list(
        check_health(
            measures, samples, window, run=run, manifest=manifest, objectives=objectives, budgets=budgets
        )
    )
    # An event loop that was away reads a stream in one piece itself, and gives overdue arrivals out all at
    # once: no proxy is to blame then, and no pool.
    starved = any(not check.passed and check.name in _AWAY for check in health)
    checks = [
        _recorded(measures),
        _completed(manifest),
        _ledger(measures, manifest),
        *_lateness(measures, objectives, window, run, budgets),
        *_dropped(measures, objectives, window, run=run, budgets=budgets, starved=starved),
        *_achieved(
            measures,
            window,
            planned,
            run=run,
            late_s=lateness_budget(objectives, budgets),
            budgets=budgets,
        ),
        *_client_errors(measures, window, budgets),
        *health,
        *(() if starved else _lumps(measures, window, budgets)),
    ]
    if telemetry is not None:
        checks.append(_telemetry(telemetry, measures.attempts))
    return Validity(checks)


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


def _lateness(
    measures: Measures, objectives: Sequence[Criterion], window: Window, run: Run, budgets: Budgets
) -> Iterator[Check]:
    """How late was the dispatcher? What an arrival then waited for an idle user is the pool's: `_dropped`.

    One in a hundred may be late. Of fewer, none may: what is judged are these requests, not others that
    they stand for, so it needs no least number as a P99 of the server's does, but is not called one.
    """
    late = (measures.dispatched_s - measures.arrival_s)[within(measures, window) & measures.open_loop]
    late = np.sort(late[~np.isnan(late)])
    n = len(late)
    if not n:
        return
    budget = lateness_budget(objectives, budgets)
    rank = nearest_rank(n, 0.99)
    p99 = float(late[rank - 1])
    passed = p99 <= budget
    if n >= samples_needed(0.99):
        cause = f"requests started {shown(p99)} after they were due at P99"
    elif rank < n:
        cause = f"all but {n - rank} of {n} requests started within {shown(p99)} of when they were due"
    else:
        cause = f"the latest of {n} requests started {shown(p99)} after it was due"
    yield Check(
        "lateness",
        passed=passed,
        observed=p99,
        budget=budget,
        unit="s",
        n=n,
        cause=f"{cause}, {shown(budget)} are allowed",
        remedy="" if passed else _punctuality(p99, objectives, run, budgets),
    )


def _punctuality(late_s: float, objectives: Sequence[Criterion], run: Run, budgets: Budgets) -> str:
    """What helps against lateness. Below what a scheduler does to anybody, no CPU is short: the limit is."""
    if late_s > budgets.hub_lag_floor_s:
        return relief(run)
    limit = tightest(objectives, from_due=True)
    if limit is None or lateness_budget(objectives, budgets) == budgets.lateness_s:
        return f"budgets.lateness is finer than this machine is punctual: raise it above {shown(late_s)}"
    return (
        f"a limit of {shown(limit.seconds)} for {limit.measure} is finer than this machine is punctual: "
        f"judge {FROM_START[limit.measure]} instead, or set budgets.lateness_of_threshold"
    )


def _dropped(
    measures: Measures,
    objectives: Sequence[Criterion],
    window: Window,
    *,
    run: Run,
    budgets: Budgets,
    starved: bool,
) -> Iterator[Check]:
    """Dropped arrivals count against the objectives; too many of them also against the instrument.

    So do those that a patient pool kept waiting: what they waited is part of what is judged from due, as
    lateness is, and is bounded by the same budget.

    Not so where the server explains them: if, counted from start, the requests that were sent already
    miss a latency objective or the error objective, then the server's slowness filled the pool, and
    INVALID would let it off. Otherwise a server within its objectives could not be offered the load
    because the pool is too small, and the run says nothing about that load.
    """
    due = within(measures, window) & measures.open_loop & measures.opening
    n = len(np.unique(measures.seq[due]))
    if not n:
        return
    patience_s = lateness_budget(objectives, budgets)
    lost = len(np.unique(measures.seq[due & measures.dropped]))
    kept = len(np.unique(measures.seq[due & (measures.queued > patience_s)]))  # of NaN, it is False
    observed = (lost + kept) / n
    excused = observed > budgets.dropped_share and _server_misses(measures, objectives, due)
    passed = observed <= budgets.dropped_share or excused
    cause = f"{lost:,} of {n:,} arrivals were dropped for want of an idle virtual user"
    if kept:
        cause += f", {kept:,} waited for one for over {shown(patience_s)}"
    if excused:
        cause += ": the server's answers alone miss the objectives, so it is to blame"
    remedy = ""
    if not passed:
        remedy = relief(run) if starved else _larger_pool(measures, window, run)
    yield Check(
        "dropped",
        passed=passed,
        observed=observed,
        budget=budgets.dropped_share,
        unit="1",
        n=n,
        cause=cause,
        remedy=remedy,
    )


def _server_misses(measures: Measures, objectives: Iterable[Criterion], chosen: Mask) -> bool:
    for objective in objectives:
        name = FROM_START.get(objective.measure, objective.measure)
        sent = chosen & ~measures.dropped & concerned(measures, objective, name)
        bad = sent & ~good(measures, objective, name)
        if sent.any() and bad.sum() / sent.sum() > allowed_share(objective.target):
            return True
    return False


def _larger_pool(measures: Measures, window: Window, run: Run) -> str:
    more = pool.remedy(measures, window, run)
    return more or f"raise max_in_flight to {2 * run.scenario.get('max_in_flight', 1):,}"


def _achieved(
    measures: Measures,
    window: Window,
    planned: int | None,
    *,
    run: Run,
    late_s: float,
    budgets: Budgets,
) -> Iterator[Check]:
    """Were the planned arrivals dispatched in their time? Those that found no idle user were: see above."""
    if not planned:
        return
    due = within(measures, window) & measures.opening
    in_time = measures.dropped | (measures.dispatched_s < window[1] + late_s)
    dispatched = len(np.unique(measures.seq[due & in_time]))
    lost = len(np.unique(measures.seq[due & measures.dropped]))
    observed = dispatched / planned
    passed = observed >= budgets.achieved_share
    rate, wanted, unsent = (per_second(each, window).value or 0 for each in (dispatched, planned, lost))
    cause = f"{rate:,.1f} arrivals/s were dispatched"
    if lost:
        cause += f" ({unsent:,.1f}/s of them dropped, {rate - unsent:,.1f}/s sent)"
    yield Check(
        "achieved_rate",
        passed=passed,
        observed=observed,
        budget=budgets.achieved_share,
        unit="1",
        n=planned,
        cause=f"{cause}, {wanted:,.1f} were planned",
        remedy="" if passed else relief(run),
    )


_NO_FILES = more_files()
_NO_PORTS = "widen net.ipv4.ip_local_port_range, or spread the load over more machines"
_NO_MEMORY = "give this machine more memory, or lower max_in_flight"
_CLIENT_ERRORS = {
    f"connect: {os.strerror(code).lower()}": remedy
    for code, remedy in {
        errno.EMFILE: _NO_FILES,
        errno.ENFILE: _NO_FILES,
        errno.EADDRINUSE: _NO_PORTS,
        errno.EADDRNOTAVAIL: _NO_PORTS,
        errno.ENOBUFS: _NO_MEMORY,
        errno.ENOMEM: _NO_MEMORY,
    }.items()
}
"""Error texts (client.transport.cause) of connections that this machine, not the server, refused."""


def _client_errors(measures: Measures, window: Window, budgets: Budgets) -> Iterator[Check]:
    """Each attempt counts: what was well at the second try has failed here all the same."""
    chosen = judged(measures, window) & ~measures.dropped
    retried = chosen[measures.retried_owner]
    n = int(chosen.sum() + retried.sum())
    if not n:
        return
    errors = measures.requests.column("error").filter(pa.array(chosen & measures.failed)).to_pylist()
    errors += measures.retried_error[retried].tolist()
    own = Counter(error for error in errors if error in _CLIENT_ERRORS)
    (worst, _), *_ = own.most_common(1) or [("", 0)]
    observed = own.total() / n
    passed = observed <= budgets.client_error_share
    yield Check(
        "client_errors",
        passed=passed,
        observed=observed,
        budget=budgets.client_error_share,
        unit="1",
        n=n,
        cause=f"{own.total():,} of {n:,} attempts failed on this machine" + (f": {worst}" if worst else ""),
        remedy="" if passed else _CLIENT_ERRORS[worst],
    )


def _lumps(measures: Measures, window: Window, budgets: Budgets) -> Iterator[Check]:
    """Did streams arrive in one piece at their end, or block by block, as through a proxy that buffers?

    The records cannot tell that from a server that thinks for long and then says all at once; the
    remedy names the other possibility.
    """
    chosen = judged(measures, window) & measures.ok & measures.streaming
    owner, count = measures.itl_owner, len(measures)
    gaps = np.bincount(owner, minlength=count)
    reads = np.bincount(owner, weights=measures.itl > 0, minlength=count) + 1
    spread = np.bincount(owner, weights=measures.itl, minlength=count)
    long_enough = chosen & (gaps + 1 >= budgets.lump_chunks)
    n = int(long_enough.sum())
    if not n:
        return
    slow = long_enough & (measures.service >= budgets.lump_service_s)
    at_once = (spread <= budgets.lump_spread * measures.service) & (spread <= budgets.lump_gap_s * gaps)
    whole = slow & ((reads <= budgets.lump_reads) | at_once)
    blocks = slow & ~whole & (gaps + 1 >= budgets.lump_chunks * reads)
    observed = float((whole | blocks).sum()) / n
    passed = observed <= budgets.lump_share
    cause = f"{int(whole.sum()):,} of {n:,} streams arrived in one lump"
    if blocks.any():
        size = float(((gaps + 1) / reads)[blocks].mean())
        of_blocks = f"{int(blocks.sum()):,} of {n:,} streams arrived in blocks of {size:.0f} chunks"
        cause = f"{cause}, {of_blocks}" if whole.any() else of_blocks
    yield Check(
        "lumps",
        passed=passed,
        observed=observed,
        budget=budgets.lump_share,
        unit="1",
        n=n,
        cause=cause,
        remedy=""
        if passed
        else "look for a proxy or compression that buffers; if the server really sends "
        + (
            "all at once, its traffic is no stream: use kind: completion"
            if whole.sum() >= blocks.sum()
            else "so many chunks at a time: budgets.lump_share: 1"
        ),
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
