"""What every check of the instrument shares: budgets, how its answer is told, and what helps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from harness.analysis.goodness import ERRORS, Criterion
from harness.analysis.measures import MEASURES
from harness.record import Run


@dataclass(frozen=True)
class Budgets:
    """How far the instrument may stray before its run is INVALID; each with the reason for its size.

    A scenario sets them by these names (workload.scenario.Budgets, whose defaults are the same).
    """

    lateness_s: float = 0.025
    """P99 of lateness, and so long may an arrival wait for an idle user (`dropped_share`). It is part of
    what is judged from due, so it never flatters the server: the budget need only keep a late client from
    failing a good one. 25 ms leaves room for a busy CI machine, whose scheduler holds a process up for 10 to
    20 ms at P99 ..."""
    lateness_of_threshold: float = 0.05
    """... unless the tightest limit on a time from due is below 500 ms: then a twentieth of it, the
    margin within which the run could blame the server for what the client added."""
    dropped_share: float = 0.01
    """Of the arrivals, dropped or kept waiting for a user for longer than `lateness_s` allows: as much as a
    P99 objective lets go."""
    achieved_share: float = 0.99
    """Arrivals dispatched in the window, of those planned in it."""
    client_error_share: float = 0.0
    """Attempts that failed for want of the client's own files, ports or buffers. Each would count as the
    server's error, or cost a retry's time, and an error objective may turn on one in a thousand: none is
    allowed."""
    cpu_share: float = 0.9
    """Of one core, over any `cpu_span_s`: a worker is one thread, and near saturation its stamps queue."""
    cpu_span_s: float = 5.0
    """Shorter peaks are what a start or a collection does."""
    hub_lag_s: float = 0.100
    """Longest time the event loop was away. One such stall touches every request under way ..."""
    hub_lag_of_threshold: float = 0.2
    """... so it is also bounded as a share of the tightest judged latency ..."""
    hub_lag_floor_s: float = 0.020
    """... but not below what a busy machine's scheduler does to anybody."""
    hub_lag_p99_s: float = 0.025
    """What an event at a random moment waits for the loop, at P99: as much as an arrival may be late."""
    read_lag_s: float = 0.100
    """Longest time that bytes lay in the kernel before they were read. A read bears the stamp of its last
    segment, so that what came before it may bear one that is too late by as much. Bounded by the tightest
    judged latency as `hub_lag_s` is: the two see one fault from both sides."""
    gc_pause_s: float = 0.050
    """Longest garbage collection: half of what the event loop may be away in all."""
    files_share: float = 0.9
    """Of the open files that the system allows: beyond, the next connections may fail."""
    in_flight_share: float = 0.1
    """How far the workers' count of arrivals in flight may differ from the records'; besides, by as many
    as arrive within the budget of lateness, and by one."""
    clock_step_s: float = 0.050
    """How far the wall clock may jump between two samples. Slewing (0.5 ms/s) stays far below; a jump
    shifts the kernel's stamps and the spans against the truth of other machines."""
    lump_share: float = 0.5
    """Of the streams with so many chunks."""
    lump_chunks: int = 8
    """A stream of at least so many chunks came in lumps if there were so many to a read, on average. A
    proxy's block of 4 KB holds twelve; of servers that write each step's tokens apart, hardly one writes
    as many."""
    lump_reads: int = 2
    """Or if all were in so few reads: the head may come before what was held back ..."""
    lump_spread: float = 0.05
    """... or if all came within this share of the service time, be it in many reads, ..."""
    lump_gap_s: float = 0.0005
    """... and closer together than this, on average: an answer that is short for its prompt is also told
    in a small share of its time, but no faster than a server speaks."""
    lump_service_s: float = 0.100
    """And if it took this long: a server that is done sooner may well send all in one piece."""


BUDGETS = Budgets()


def budgets(stated: Mapping[str, Any]) -> Budgets:
    """The budgets that a scenario states, by the names of `Budgets`; as plain numbers, fit for JSON."""
    plain: dict[str, Any] = {
        name: value if isinstance(value, int) else float(value) for name, value in stated.items()
    }
    return Budgets(**plain)


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


class Limit(NamedTuple):
    """A time that is judged."""

    seconds: float
    measure: str


def tightest(objectives: Iterable[Criterion], *, from_due: bool = False) -> Limit | None:
    """The lowest time that is judged (from due only, if asked so); None if none is."""
    limits = []
    for each in objectives:
        if each.measure == ERRORS or each.threshold is None:
            continue
        definition = MEASURES[each.measure]
        if definition.unit == "s" and (definition.origin == "due" or not from_due):
            limits.append(Limit(each.threshold, each.measure))
    return min(limits, default=None)


def lateness_budget(objectives: Sequence[Criterion], budgets: Budgets) -> float:
    """How late a request may start at P99, in seconds."""
    limit = tightest(objectives, from_due=True)
    if limit is None:
        return budgets.lateness_s
    return min(budgets.lateness_s, budgets.lateness_of_threshold * limit.seconds)


def relief(run: Run) -> str:
    """What helps a worker that gets too little of the machine; more workers than cores do not."""
    if run.workers < cores(run):
        return "raise --workers, lower the load, or free this machine's CPU"
    return "lower the load, free this machine's CPU, or spread the load over more machines (--remote)"


def cores(run: Run) -> float:
    """Of the machine that began the run; infinite where the header does not say."""
    return run.host.get("cpus") or math.inf


def more_files(limit: int = 0) -> str:
    """What helps a worker that is short of files, at so low a limit."""
    return f"raise the limit of open files: ulimit -n {max(65_536, 2 * limit)}"


def shown(seconds: float) -> str:
    """A duration as people read it in a cause: three digits, and none below a microsecond."""
    if seconds < 0.9995:
        return f"{round(1000 * seconds, 3):.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
