"""Locust is told of records, some at a time: its `request` event for listeners, and its statistics.

    records ─► Teller ─► Audience ─┬► each listener of `request`, one record at a time
                                   └► Locust's statistics, a block at a time

Locust's own listener takes longer for a record than any other part of a request does. Its statistics
can also be extended by an entry that sums up many requests: it is how a master takes in its workers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import gevent
from gevent.event import Event
from locust import stats
from locust.env import Environment
from locust.event import EventHook

from harness.record import Outcome, Record

_OK = Outcome.OK  # looking up a member costs more than a call in Python 3.11

_sort_of = attrgetter("dialect", "kind")

_TELL_AT = 64
"""As many records are told in one go: in the time that takes, some 50 µs, no socket is read."""
_TELL_EVERY_S = 0.05
_TELL_S = 10.0
"""How long the end of a run waits for listeners."""


class RemoteFault(Exception):  # noqa: N818 - shown in Locust's failure table; nobody raises it
    """A failed request, as Locust's statistics want it."""


class Teller:
    """Tells of records in a greenlet of its own, some at a time, which takes half the time.

    So no listener delays a request, and none is told later than `_TELL_EVERY_S`.
    """

    def __init__(self, tell: Callable[[Sequence[Record]], None]) -> None:
        self._tell = tell
        self._untold: list[Record] = []
        self._came = Event()
        self._stopping = False
        self._greenlet = gevent.spawn(self._run)

    def add(self, records: Sequence[Record]) -> None:
        """Have final records told."""
        self._untold += records
        if len(self._untold) >= _TELL_AT:
            self._came.set()

    def stop(self) -> None:
        """Tell what is left; a listener that waits for ever is left behind. A bug of ours is raised."""
        self._stopping = True
        self._came.set()
        self._greenlet.join(_TELL_S)
        if self._greenlet.exception is not None:
            raise self._greenlet.exception

    def _run(self) -> None:
        while self._untold or not self._stopping:
            self._came.wait(_TELL_EVERY_S)
            self._came.clear()
            while self._untold:
                block, self._untold = self._untold, []
                self._tell(block)


class Audience:
    """Who listens to an environment's `request` event: Locust's statistics, and anybody else.

    Each listener but Locust's own is called as if the event were fired for each record; the statistics
    say the same as if Locust's own had been. Where that is not found, the event is fired as it is.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def tell(self, records: Sequence[Record]) -> None:
        """Tell of final records, in their order."""
        event: Any = self._environment.events.request
        handlers = list(getattr(event, "_handlers", ()))  # no other way to ask who listens
        own = [each for each in handlers if getattr(each, "__module__", "") == "locust.runners"]
        if len(own) == 1:
            _count(self._environment.stats, records)
            handlers.remove(own[0])
            if not handlers:
                return
            event = EventHook()  # type: ignore[no-untyped-call]
            for handler in handlers:
                event.add_listener(handler)
        for record in records:
            event.fire(**_as_event(record))


def _count(held: stats.RequestStats, records: Sequence[Record]) -> None:
    """As `RequestStats.log_request` and `log_error` for each record."""
    for (name, method), block in _sorts(records):
        entry = _entry(held, name, method, block)
        held.total.extend(entry)
        held.get(name, method).extend(entry)
    for record in records:
        if record.outcome != _OK:
            held.log_error(record.kind, record.dialect, _fault(record))


def _sorts(records: Iterable[Record]) -> Iterator[tuple[tuple[str, str], list[Record]]]:
    """Records by Locust's name and method, as long as these stay the same."""
    for sort, block in groupby(records, _sort_of):
        yield sort, list(block)


def _entry(held: stats.RequestStats, name: str, method: str, records: Sequence[Record]) -> stats.StatsEntry:
    """What records sum up to, failures left out."""
    entry, moment_s = stats.StatsEntry(held, name, method), time.time()
    times_ms = [each for each in map(_response_ms, records) if each is not None]
    entry.num_requests = len(records)
    entry.num_none_requests = len(records) - len(times_ms)
    entry.num_reqs_per_sec[int(moment_s)] = len(records)
    entry.last_request_timestamp = moment_s
    entry.total_content_length = sum([record.bytes_in for record in records])
    if times_ms:
        # Locust calls them int, and is given floats.
        entry.total_response_time = sum(times_ms)  # type: ignore[arg-type]
        entry.min_response_time = min(times_ms)  # type: ignore[assignment]
        entry.max_response_time = max(times_ms)  # type: ignore[assignment]
        entry.response_times = Counter(map(stats.bucket_response_time, times_ms))
    return entry


def _as_event(record: Record) -> dict[str, Any]:
    """What the listeners of `request` are given."""
    return {
        "request_type": record.kind,
        "name": record.dialect,
        "response_time": _response_ms(record),
        "response_length": record.bytes_in,
        "exception": None if record.outcome == _OK else _fault(record),
        "context": {"seq": record.seq, "request_id": record.request_id, "trace_id": record.trace_id},
    }


def _fault(record: Record) -> RemoteFault:
    return RemoteFault(f"{record.outcome}: {record.error}")


def _response_ms(record: Record) -> float | None:
    """What Locust's own tables show: from due, as the report's. None for an arrival that was dropped."""
    since_ns = record.started_ns if record.due_ns is None else record.due_ns
    return None if record.ended_ns is None or since_ns is None else (record.ended_ns - since_ns) / 1e6
