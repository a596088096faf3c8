"""Plays a plan into a response, on time, and writes down what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from granian._granian import RSGIHTTPProtocol as HTTPProtocol

from harness.mock.pacer import Pacer, now_ns
from harness.mock.plan import Ending, Framing, Kind, Plan
from harness.mock.truth import Entry, Log
from harness.mock.wire import break_connection

_NS = 1_000_000_000
_FLUSH_NS = 20_000_000
"""Between the last bytes of an answer and the breaking of its connection: they pass through the library's
own thread, and must be on the wire before."""


class Playback:
    """One plan on its way into one response. It starts at once, and may have ended when this returns.

    Args:
        plan: what is sent when.
        entry: its truth, filled in on the way and put into the log at the end.
        proto: where the response goes.
        client: the peer's address.
        pacer: keeps the time.
        log: takes the entry.
    """

    def __init__(
        self, plan: Plan, entry: Entry, proto: HTTPProtocol, *, client: str, pacer: Pacer, log: Log
    ) -> None:
        self.ended = False
        self.done: asyncio.Future[None] | None = None
        self._plan = plan
        self._entry = entry
        self._pacer = pacer
        self._proto = proto
        self._client = client
        self._log = log
        self._next = 0
        self._send: Callable[[bytes], object] = self._respond
        whole = len(plan.steps) == 1 and plan.framing is Framing.WHOLE and plan.ending is Ending.COMPLETE
        if plan.status is not None and not whole:
            entry.status, entry.headers_ns = plan.status, now_ns()
            self._send = proto.response_stream(plan.status, plan.headers).send_bytes
        self._advance()

    def stop(self, end: str) -> None:
        """Send nothing more."""
        if self.ended:
            return
        self.ended = True
        # The body ends when the library's stream is let go, and its disconnect watch still holds `self`.
        self._send = _nowhere
        entry = self._entry
        if entry.ended_ns is None or end != Ending.COMPLETE:
            entry.ended_ns = now_ns()
        entry.end = end
        if self._plan.framing is not Framing.WHOLE:
            entry.completion_tokens = len(entry.chunk_ns)
        elif end == Ending.COMPLETE:
            entry.completion_tokens = self._plan.completion_tokens
        self._log.append(entry)
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _respond(self, body: bytes) -> None:
        assert self._plan.status is not None
        self._entry.status, self._entry.headers_ns = self._plan.status, self._entry.ended_ns
        self._proto.response_bytes(self._plan.status, self._plan.headers, body)

    def _advance(self) -> None:
        """Send all that is due; due times are absolute, so that delays never add up."""
        if self.ended:
            return
        entry, steps = self._entry, self._plan.steps
        while self._next < len(steps):
            at_ns, payload, kind = steps[self._next]
            due_ns = entry.arrived_ns + at_ns
            stamp = now_ns()
            if stamp < due_ns:
                self._pacer.at(due_ns, self._advance)
                return
            self._next += 1
            entry.lateness_max_ns = max(entry.lateness_max_ns, stamp - due_ns)
            if kind is Kind.TOKEN:
                entry.chunk_ns.append(stamp)
            entry.ended_ns = stamp
            self._send(payload)
        self._end()

    def _end(self) -> None:
        plan = self._plan
        self._entry.finish_reason = plan.finish_reason
        match plan.ending:
            case Ending.COMPLETE:
                self.stop(Ending.COMPLETE)
            case Ending.HANG:
                if plan.hang_s is not None:
                    self._pacer.at(now_ns() + round(plan.hang_s * _NS), self._break)
            case _:
                self._pacer.at(now_ns() + _FLUSH_NS, self._break)

    def _break(self) -> None:
        if self.ended:
            return
        reset = self._plan.ending is Ending.RESET
        found = break_connection(self._client, reset=reset)
        if found:
            self.stop(Ending.RESET if reset else Ending.CLOSE)
        else:
            self.stop("client_gone")


def _nowhere(_payload: bytes) -> None:
    """Where an ended answer sends."""
