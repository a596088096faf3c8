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
    """A worker was taken for lost."""

    heard_ns: int
    """When it was last heard before."""
    since_ns: int | None = None
    """Where a spare takes its share over; None: none does."""
    returned_ns: int | None = None
    """When it was heard again; None: it never was."""


class Tenures:
    """The master's side: whom it heard, what it granted, and what it took away."""

    def __init__(self) -> None:
        self._until_ns: dict[str, int] = {}
        self._heard_ns: dict[str, int] = {}
        self.silences: dict[str, Silence] = {}
        """The last of each worker that was taken for lost."""

    def grant(self, worker: str, now_ns: int) -> Grant:
        """Answer a sign of life."""
        silence = self.silences.get(worker)
        if silence is not None and silence.returned_ns is None:
            silence = self.silences[worker] = msgspec.structs.replace(silence, returned_ns=now_ns)
        if silence is not None and silence.since_ns is not None:
            return Grant(silence.since_ns, last=True)
        self._heard_ns[worker] = now_ns
        self._until_ns[worker] = now_ns + _TERM_NS
        return Grant(self._until_ns[worker])

    def miss(self, worker: str) -> None:
        """Note that a worker is taken for lost; it keeps its share until `end`."""
        known = self.silences.get(worker)
        if known is None or known.returned_ns is not None:
            self.silences[worker] = Silence(self._heard_ns.get(worker, 0))

    def end(self, worker: str, spare: str, now_ns: int) -> int:
        """Give the rest of a lost worker's share to a spare; where that begins."""
        since_ns = max(self._until_ns.get(worker, 0), now_ns + _TAKE_OVER_NS)
        self.silences[worker] = Silence(self._heard_ns.get(worker, 0), since_ns)
        # The spare may be lost, too, before it is ever granted anything: its own spare begins no earlier.
        self._until_ns[spare], self._heard_ns[spare] = since_ns, now_ns
        return since_ns

    def refuse(self, worker: str) -> None:
        """The spare cannot have it: the rest of a lost worker's share is nobody's again."""
        self.silences[worker] = msgspec.structs.replace(self.silences[worker], since_ns=None)


def told(worker: int, spare: int | None, silence: Silence, *, fenced: bool = True) -> str:
    """Say what became of a worker that was taken for lost, and of its share.

    Args:
        worker: its number.
        spare: that of who has its share.
        silence: since when it was lost.
        fenced: it needs grants to go on; without, as in a closed loop, it goes on by itself.
    """
    lost = f"worker {worker} hung or was cut off at {silence.heard_ns / 1e9:.1f} s"
    if not fenced:
        known = "what it sent since is not known" if silence.returned_ns is None else "it came back"
        return f"{lost}; {known}"
    share = "no spare took its share over"
    if silence.since_ns is not None:
        share = f"worker {spare} took its share over from {silence.since_ns / 1e9:.1f} s on"
    if silence.returned_ns is None:
        ending = "never came back; what it had not sent by then is lost"
    else:
        length_s = (silence.returned_ns - silence.heard_ns) / 1e9
        ending = f"came back after {length_s:.1f} s, late with what was due until then"
    return f"{lost}, and {share}; it {ending}"
