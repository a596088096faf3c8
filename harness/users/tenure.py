"""Which arrivals of its lease a worker may send by now: those due before what the master has granted.

    master: a heartbeat came ── Grant(until_ns) ──► worker: sends what is due before, and waits there
            none came for long: a spare gets what is due from the highest `until_ns` ever granted

The fence is the schedule itself. What a worker sends, be it seconds late, was due before its grant; what
its spare sends is due after it. So nothing is sent by both, whatever hangs, heals, is cut off or comes
late, and no two clocks are compared. A worker without a master stops within `TERM_S`.
"""

from __future__ import annotations

import msgspec

TERM_S = 10.0
"""How far ahead of the present arrivals are granted: twice what Locust's master waits for a heartbeat.

Less would stop the workers whenever the master is slow; more would cost a lost worker's load for longer.
"""
TAKE_OVER_S = 1.0
"""A spare takes over from this far ahead at the least: it has its share to build."""
_TERM_NS, _TAKE_OVER_NS = int(TERM_S * 1e9), int(TAKE_OVER_S * 1e9)


class Grant(msgspec.Struct, frozen=True):
    """What the master lets a worker send. Nanoseconds from the run's start, as all here."""

    until_ns: int
    """Arrivals due before this."""
    last: bool = False
    """A spare has what is due from there on: no other grant will follow."""


class Tenure:
    """The worker's side.

    Args:
        until_ns: what is granted from the start; None: all of the lease, for good.
    """

    def __init__(self, until_ns: int | None) -> None:
        self._until_ns = until_ns
        self.over = False
        """No other grant will follow."""

    def take(self, grant: Grant) -> None:
        """Hear of a grant; one that is older than the last has no effect."""
        if not self.over and (self._until_ns is None or self._until_ns <= grant.until_ns):
            self._until_ns, self.over = grant.until_ns, grant.last

    def covers(self, due_ns: int) -> bool:
        """Whether an arrival may be sent by now."""
        return self._until_ns is None or due_ns < self._until_ns


class Silence(msgspec.Struct, frozen=True):
    """What became of a worker whose share a spare took over."""

    since_ns: int
    """Where the spare begins."""
    heard_ns: int
    """When the worker was last heard before."""
    returned_ns: int | None = None
    """When it was heard again; None: it never was."""


class Tenures:
    """The master's side: whom it heard, what it granted, and what it took away."""

    def __init__(self) -> None:
        self._until_ns: dict[str, int] = {}
        self._heard_ns: dict[str, int] = {}
        self.silences: dict[str, Silence] = {}
        """Of the workers that were taken over."""

    def grant(self, worker: str, now_ns: int) -> Grant:
        """Answer a sign of life."""
        silence = self.silences.get(worker)
        if silence is None:
            self._heard_ns[worker] = now_ns
            self._until_ns[worker] = now_ns + _TERM_NS
            return Grant(self._until_ns[worker])
        if silence.returned_ns is None:
            self.silences[worker] = msgspec.structs.replace(silence, returned_ns=now_ns)
        return Grant(silence.since_ns, last=True)

    def end(self, worker: str, now_ns: int) -> int:
        """Take the rest of its share from a silent worker; where its spare begins."""
        since_ns = max(self._until_ns.get(worker, 0), now_ns + _TAKE_OVER_NS)
        self.silences[worker] = Silence(since_ns, self._heard_ns.get(worker, 0))
        return since_ns


def taken_over(worker: int, spare: int, silence: Silence) -> str:
    """Say what became of a silent worker's share."""
    begin_s, since_s = silence.heard_ns / 1e9, silence.since_ns / 1e9
    if silence.returned_ns is None:
        ending = "never came back; what it had not sent by then is lost"
    else:
        length_s = (silence.returned_ns - silence.heard_ns) / 1e9
        ending = f"came back after {length_s:.1f} s, late with what was due until then"
    return (
        f"worker {worker} hung or was cut off at {begin_s:.1f} s, and worker {spare} took its share over "
        f"from {since_s:.1f} s on; it {ending}"
    )
