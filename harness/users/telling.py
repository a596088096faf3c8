"""Locust is told of records, some at a time.

    records ─► Teller ─► Audience ─┬► its statistics, by blocks
                                   └► its `request` event, fired for each record to everybody else who listens

Locust's own listener takes longer for a record than any other part of a request does. Its statistics
can also be extended by an entry that sums up many requests: it is how a master takes in its workers.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent.event import Event
from locust import stats
from locust.env import Environment
from locust.event import EventHook
from locust.exception import InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser

from harness.record import Outcome, Record

_OK = Outcome.OK  # looking up a member costs more than a call in Python 3.11

_TELL_AT = 64
"""Records are told so many at a time: in the time that takes, some 40 µs where only Locust listens, no socket
is read. No listener finds more of them in the statistics that it has not heard of."""
_TELL_S = 10.0
"""How long the end of a run waits for listeners."""

_STEERING = (StopUser, StopTest, RescheduleTask, RescheduleTaskImmediately, InterruptTaskSet)
"""What a listener may raise to steer the user in which it runs; here it runs in none."""


class RemoteFault(Exception):  # noqa: N818 - shown in Locust's failure table; nobody raises it
    """A failed request, as Locust's statistics want it."""


class Teller:
    """Tells of records in a greenlet of its own, so that no listener delays a request.

    Args:
        tell: is given final records, in their order.
        on_failure: is given what `tell` raised, which ends the telling.
    """

    def __init__(
        self, tell: Callable[[Sequence[Record]], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._tell = tell
        self._untold: list[Record] = []
        self._came = Event()
        self._stopping = False
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.link_exception(lambda broken: on_failure(broken.exception))

    def add(self, records: Sequence[Record]) -> None:
        """Have final records told."""
        self._untold += records
        self._came.set()

    def stop(self) -> None:
        """Tell what is left; a listener that waits for ever is left behind."""
        self._stopping = True
        self._came.set()
        self._greenlet.join(_TELL_S)

    def _run(self) -> None:
        while self._untold or not self._stopping:
            self._came.wait()
            self._came.clear()
            while self._untold:
                block = self._untold[:_TELL_AT]
                del self._untold[:_TELL_AT]
                self._tell(block)


class Audience:
    """Who listens to an environment's `request` event: Locust's statistics, and anybody else.

    The statistics are extended as Locust's own listener would have done, but by blocks. Then everybody
    else who listens is told of each record, as the event itself would.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def tell(self, records: Sequence[Record]) -> None:
        """Tell of final records, in their order."""
        event: Any = self._environment.events.request
        listening: list[Any] = getattr(event, "_handlers", [])  # no other way to ask who listens
        if not any(map(_is_locusts_own, listening)):
            for record in records:
                _fire([event.fire], record)
            return
        _count(self._environment.stats, records)
        if len(listening) == 1:
            return
        known: list[Any] = []
        for record in records:
            if listening != known:  # anybody may come or go at any time
                known = listening.copy()
                others = [each for each in known if not _is_locusts_own(each)]
            _fire(others, record)


def _is_locusts_own(listener: Any) -> bool:
    return getattr(listener, "__module__", "") == "locust.runners"


def _fire(listeners: Iterable[Callable[..., object]], record: Record) -> None:
    """Tell of one record as `EventHook.fire` does, in two thirds of the time.

    The response time counts from when the request was due, as in our report; it is None for an arrival that
    was dropped.
    """
    ended_ns, since_ns = record.ended_ns, record.due_ns
    if since_ns is None:
        since_ns = record.started_ns
    told = {
        "request_type": record.kind,
        "name": record.dialect,
        "response_time": None if ended_ns is None or since_ns is None else (ended_ns - since_ns) / 1e6,
        "response_length": record.bytes_in,
        "response": None,  # as Locust documents it
        "exception": None if record.outcome == _OK else _fault(record),
        "context": {"seq": record.seq, "request_id": record.request_id, "trace_id": record.trace_id},
    }
    for listener in listeners:
        try:
            listener(**told)
        except _STEERING:
            break
        except Exception as error:  # noqa: BLE001 - any listener's bug is reported, and ends no run
            _report(error)


def _report(bug: Exception) -> None:
    """Have Locust say that a listener raised, and remember it for its exit code."""

    def raises(**_: object) -> None:
        raise bug

    hook = EventHook()  # type: ignore[no-untyped-call]
    hook.add_listener(raises)  # type: ignore[no-untyped-call]
    hook.fire()  # type: ignore[no-untyped-call]


def _count(held: stats.RequestStats, records: Sequence[Record]) -> None:
    """As `RequestStats.log_request` and `log_error` for each record."""
    moment_s = time.time()
    blocks: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        blocks[record.dialect, record.kind].append(record)
    for (name, method), block in blocks.items():
        summed = _sum(held, name, method, block, moment_s)
        _extend(held.total, summed, moment_s)
        _extend(held.get(name, method), summed, moment_s)
    for record in records:
        if record.outcome != _OK:
            held.log_error(record.kind, record.dialect, _fault(record))


def _extend(entry: stats.StatsEntry, summed: stats.StatsEntry, moment_s: float) -> None:
    """Add to an entry; before a new second's first, keep what it held at the end of the last."""
    last_s = entry.last_request_timestamp
    if entry.use_response_times_cache and last_s and int(moment_s) > int(last_s):
        entry._cache_response_times(int(moment_s) - 1)  # noqa: SLF001 - as in StatsEntry.log
    entry.last_request_timestamp = moment_s  # else `extend` would keep it too, with the new ones
    entry.extend(summed)


def _sum(
    held: stats.RequestStats, name: str, method: str, records: Sequence[Record], moment_s: float
) -> stats.StatsEntry:
    """One entry for all these records; but it does not say how many of them have failed."""
    entry = stats.StatsEntry(held, name, method)
    # As in _tell_of: what has ended had begun.
    times_ms: list[Any] = [
        (each.ended_ns - (each.started_ns if each.due_ns is None else each.due_ns)) / 1e6  # type: ignore[operator]
        for each in records
        if each.ended_ns is not None
    ]
    entry.num_requests = len(records)
    entry.num_none_requests = len(records) - len(times_ms)
    entry.num_reqs_per_sec[int(moment_s)] = len(records)
    entry.last_request_timestamp = moment_s
    entry.total_content_length = sum([record.bytes_in for record in records])
    if times_ms:
        entry.total_response_time = sum(times_ms)
        entry.min_response_time, entry.max_response_time = min(times_ms), max(times_ms)
        entry.response_times = Counter(map(stats.bucket_response_time, times_ms))
    return entry


def _fault(record: Record) -> RemoteFault:
    return RemoteFault(f"{record.outcome}: {record.error}")
