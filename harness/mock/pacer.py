"""Calls things when they are due, by one event-loop timer for all of them.

A timer for each chunk, and a task woken by it, cost more than the chunk. Nothing is called early; uvloop's
timers count whole milliseconds, so that a call comes up to about one millisecond late.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

now_ns = time.monotonic_ns
_MS = 1_000_000


class Pacer:
    """A heap of what is due, and one timer for its top."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[int, int, Callable[[], int | None]]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ns = 0

    def at(self, due_ns: int, call: Callable[[], int | None]) -> None:
        """Call this at a time on `time.monotonic_ns()`, and again at the time that it gives, if it gives one.

        What is due at once is called in order of asking.
        """
        self._order += 1
        heapq.heappush(self._heap, (due_ns, self._order, call))
        if self._timer is None or due_ns < self._timer_due_ns:
            self._arm(due_ns)

    def _arm(self, due_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_ns = due_ns
        whole_ms = max(0, -((now_ns() - due_ns) // _MS))
        self._timer = self._loop.call_later(whole_ms / 1000, self._tick)

    def _tick(self) -> None:
        # While this runs, the timer counts as armed for the past, so that `at` does not arm it for each call.
        self._timer_due_ns = 0
        heap = self._heap
        try:
            while heap and heap[0][0] <= now_ns():
                call = heapq.heappop(heap)[2]
                due_ns = call()
                if due_ns is not None:
                    self._order += 1
                    heapq.heappush(heap, (due_ns, self._order, call))
        finally:
            self._timer = None
            if heap:
                self._arm(heap[0][0])
