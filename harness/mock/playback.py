"""Plays a plan into a response, on time, and writes down what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial

from granian._granian import RSGIHTTPProtocol as HTTPProtocol

from harness.mock.below import Line, below
from harness.mock.drive import Drive
from harness.mock.mangle import render
from harness.mock.pacer import Pacer, now_ns
from harness.mock.plan import Ending, Framing, Kind, Plan
from harness.mock.truth import Entry, Log
from harness.mock.wire import Taken, break_connection

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
        drive: generates the tokens that the plan awaits; None where it awaits none.
    """

    def __init__(
        self,
        plan: Plan,
        entry: Entry,
        proto: HTTPProtocol,
        *,
        client: str,
        pacer: Pacer,
        log: Log,
        drive: Drive | None = None,
    ) -> None:
        self.ended = False
        self.done: asyncio.Future[None] | None = None
        self._taken: Taken | Line | None = None
        if plan.mangling is not None:
            mangling, loop = plan.mangling, asyncio.get_running_loop()
            if mangling.below:
                plan, self._taken = below(plan, mangling, proto, client, loop)
            else:
                plan, self._taken = render(plan, mangling), Taken(client, loop)
        self._plan = plan
        self._entry = entry
        self._pacer = pacer
        self._proto = proto
        self._client = client
        self._log = log
        self._drive = drive
        self._generated_ns: list[int] = []
        self._starved = False
        self._send: Callable[[bytes], object] = self._respond
        whole = len(plan.steps) == 1 and plan.framing is Framing.WHOLE and plan.ending is Ending.COMPLETE
        if self._taken is not None:
            self._send = self._taken.send
        elif plan.status is not None and not whole:
            entry.status, entry.headers_ns = plan.status, now_ns()
            self._send = proto.response_stream(plan.status, plan.headers).send_bytes
        if drive is not None:
            drive.expect(entry.number, self._generate)
        sending = self._sent()
        self._sending: Generator[int | None, None, None] | None = sending
        self._advance: Callable[[], int | None] = partial(next, sending, None)
        self._go_on()

    def stop(self, end: str) -> None:
        """Send nothing more."""
        if self.ended:
            return
        self.ended = True
        if end == "client_gone" and self._plan.ending is Ending.COMPLETE and self._sending is None:
            end = Ending.COMPLETE  # It has had everything, and closed before the mock did.
        # The body ends when the library's stream is let go, and its disconnect watch still holds `self`.
        if self._sending is not None:
            self._sending.close()
        self._send = _nowhere
        entry = self._entry
        if entry.ended_ns is None or end != Ending.COMPLETE:
            entry.ended_ns = now_ns()
        entry.end = end
        if entry.prefill_end_ns is not None and entry.prefill_end_ns > entry.ended_ns:
            entry.prefill_end_ns = None  # It never came so far.
        if self._plan.framing is not Framing.WHOLE:
            entry.completion_tokens = len(entry.chunk_ns)
        elif end == Ending.COMPLETE:
            entry.completion_tokens = self._plan.completion_tokens
        self._log.append(entry)
        if self._drive is not None:
            self._drive.leave(entry.number)
        if self._taken is not None:
            self._taken.release()
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def break_off(self) -> None:
        """Reset the connection now, whatever was planned."""
        self._plan = self._plan._replace(ending=Ending.RESET)
        self._break()

    def _respond(self, body: bytes) -> None:
        assert self._plan.status is not None
        self._entry.status, self._entry.headers_ns = self._plan.status, self._entry.ended_ns
        self._proto.response_bytes(self._plan.status, self._plan.headers, body)

    def _generate(self, at_ns: int, admitted_ns: int) -> None:
        """Take note of one more token of the engine's, and send what it was awaited for."""
        entry = self._entry
        if not self._generated_ns:
            entry.dequeued_ns, entry.prefill_end_ns = admitted_ns, at_ns
        late_ns = at_ns - entry.arrived_ns
        self._generated_ns.append(entry.arrived_ns + round(late_ns * self._plan.stretch))
        if self._starved:
            self._starved = False
            self._go_on()

    def _go_on(self) -> None:
        due_ns = self._advance()
        if due_ns is not None:
            self._pacer.at(due_ns, self._advance)

    def _sent(self) -> Generator[int | None, None, None]:
        """Send all that is due; yields when to go on, or None to wait for tokens.

        Due times are absolute, so that delays never add up. What each chunk needs is local: with thousands of
        streams, fetching the objects around it costs more than the work.
        """
        entry, generated_ns = self._entry, self._generated_ns
        arrived_ns, send, note = entry.arrived_ns, self._send, entry.chunk_ns.append
        worst_ns = entry.lateness_max_ns
        for at_ns, payload, kind, tokens, awaits in self._plan.steps:
            while awaits > len(generated_ns):
                self._starved = True
                yield None
            due_ns = at_ns + (generated_ns[awaits - 1] if awaits else arrived_ns)
            while (stamp := now_ns()) < due_ns:
                yield due_ns
            if stamp - due_ns > worst_ns:
                worst_ns = entry.lateness_max_ns = stamp - due_ns
            if kind is Kind.TOKEN:
                note(stamp)
                for _ in range(tokens - 1):
                    note(stamp)
            elif kind is Kind.HEAD:
                entry.status, entry.headers_ns = self._plan.status, stamp
            entry.ended_ns = stamp
            send(payload)
        self._sending = None
        self._end()

    def _end(self) -> None:
        plan = self._plan
        self._entry.finish_reason = plan.finish_reason
        match plan.ending:
            case Ending.COMPLETE if self._taken is None:
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
        found = (
            self._taken.end(self._plan.ending)
            if isinstance(self._taken, Line)
            else break_connection(self._client, reset=reset)
        )
        if found:
            self.stop(Ending.CLOSE if self._plan.ending is Ending.HANG else self._plan.ending)
        else:
            self.stop("client_gone")


def answered_at_once(
    plan: Plan, headers: list[tuple[str, str]], entry: Entry, proto: HTTPProtocol, log: Log
) -> bool:
    """Send a whole answer that is due by now and log it, if it is one; all others take a `Playback`.

    Args:
        plan: the answer.
        headers: those of the plan, and what else there is.
        entry: its truth.
        proto: where the response goes.
        log: takes the entry.
    """
    status, _, steps = plan[:3]
    if plan.framing is not Framing.WHOLE or plan.ending is not Ending.COMPLETE or len(steps) != 1:
        return False
    at_ns, payload, _, _, awaits = steps[0]
    stamp = now_ns()
    late_ns = stamp - entry.arrived_ns - at_ns
    if late_ns < 0 or awaits or status is None or plan.mangling is not None:
        return False
    entry.status, entry.headers_ns, entry.ended_ns, entry.lateness_max_ns = status, stamp, stamp, late_ns
    proto.response_bytes(status, headers, payload)
    if entry.prefill_end_ns is not None and entry.prefill_end_ns > stamp:
        entry.prefill_end_ns = None  # It never came so far.
    entry.end, entry.finish_reason = Ending.COMPLETE, plan.finish_reason
    entry.completion_tokens = plan.completion_tokens
    log.append(entry)
    return True


def _nowhere(_payload: bytes) -> None:
    """Where an ended answer sends."""
