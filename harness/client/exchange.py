"""What a wire saw of one attempt, bounded by its deadlines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import gevent
import msgspec
from gevent import get_hub, getcurrent
from greenlet import greenlet

from harness.client.pattern import Stride
from harness.clock import now_ns
from harness.record import Outcome
from harness.workload.scenario import Timeouts

_switch_to = greenlet.switch
"""As the hub's own, but for asking whether somebody wants to know of each switch."""

DIGEST_BYTES = 8_192
"""A stream's bytes are read and let go when this many have gathered: some 30 chunks, so that a thousand
streams stay in the cache, and none holds up the others for long."""

_LEARN_BYTES = 1_024
"""The first of its body are read sooner: they teach how the others look."""

SWEEP_S = 0.05
"""Deadlines are looked at this often; later only by who was away himself."""
_AWAY_NS = int(3 * SWEEP_S * 1e9)
"""Where the event loop was away for so long, what the server sent meanwhile is read before it is blamed."""


HEADERS = (b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"retry-after")
"""The response headers that are looked at."""

HEADER_LENGTHS = frozenset(map(len, HEADERS))
"""Tells most other headers apart, at the cost of a length."""


class Limits(msgspec.Struct, frozen=True):
    """A scenario's timeouts in nanoseconds."""

    connect_ns: int
    idle_ns: int
    total_ns: int
    first_ns: int = 0
    """No deadline of a request passes sooner after its start."""


def limits(timeouts: Timeouts) -> Limits:
    """The timeouts, ready for comparing with stamps."""
    idle_ns, total_ns = round(timeouts.idle_s * 1e9), round(timeouts.total_s * 1e9)
    return Limits(round(timeouts.connect_s * 1e9), idle_ns, total_ns, min(idle_ns, total_ns))


class Digest(Protocol):
    """What reads a stream's bytes as they gather."""

    def read(self, exchange: Exchange) -> None:
        """Take in the pieces that have come since the last call."""

    @property
    def latest_ns(self) -> int:
        """The stamp of the last token; 0 before the first."""

    def stride(self, exchange: Exchange) -> Stride | None:
        """What may take the chunks to come, once all pieces are read; None if none looks like another."""


class Exchange:
    """One attempt as its wire saw it. Stamps are absolute, by `clock.now_ns`; None is never taken.

    The wire calls `finish` once; the greenlet that asked waits in `wait`. Every attribute has its slot:
    one that is read from the class takes ten times as long.
    """

    __slots__ = (
        "_waiter",
        "_waking",
        "bug",
        "bytes_in",
        "bytes_out",
        "check_ns",
        "connected_ns",
        "digest_at",
        "digester",
        "ended_ns",
        "error",
        "headers",
        "headers_ns",
        "limits",
        "outcome",
        "pieces",
        "progress_ns",
        "reused",
        "sent_ns",
        "stamps",
        "started_ns",
        "status",
    )

    def __init__(self, bounds: Limits, started_ns: int, digester: Digest | None = None) -> None:
        self.limits = bounds
        self.digester = digester
        self.started_ns = started_ns
        self.connected_ns: int | None = None
        self.sent_ns: int | None = None
        self.headers_ns: int | None = None
        self.ended_ns: int | None = None
        self.status: int | None = None
        self.bytes_in = self.bytes_out = self.progress_ns = 0
        self.reused = False
        self.outcome: Outcome | None = None
        """What went wrong on the wire; None if nothing did."""
        self.error = ""
        self.bug: BaseException | None = None
        self.digest_at = sys.maxsize
        self._waiter: gevent.Greenlet | None = None
        self._waking: Any = None
        """The loop's callback that will wake the waiter."""
        self.headers: dict[bytes, bytes] = {}
        """Of the response, at least those that `HEADERS` names: names in lower case, the first of each."""
        self.pieces: list[bytes] = []
        """The body, as it came: one piece a read and HTTP chunk. Of a stream, what has not been read."""
        self.stamps: list[int] = []
        """The stamp of the read that brought each piece."""
        self.check_ns = started_ns + bounds.first_ns

    def reopen(self) -> None:
        """Forget a connection that had died before the request reached anybody; `started_ns` stays."""
        self.ended_ns = self.sent_ns = self.outcome = None
        self.error, self.reused = "", False

    def header(self, name: bytes) -> bytes | None:
        """The first value of a response header; `name` in lower case."""
        return self.headers.get(name)

    def wait(self) -> None:
        """Sleep until the wire has finished; our own bug on the wire's side is raised here."""
        while self.ended_ns is None and self.bug is None:
            self._waiter = getcurrent()
            try:
                _switch_to(get_hub())  # not by a gevent Waiter, which takes twice as long
            finally:
                self._waiter = None
                if self._waking is not None:
                    self._waking.stop()  # it was killed meanwhile, and may wait for something else by now
                    self._waking = None
        if self.bug is not None:
            raise self.bug

    def finish(self, stamp_ns: int, outcome: Outcome | None = None, error: str = "") -> None:
        """The end of the answer, or of the hope for one. Only the first call counts.

        The waiting greenlet is woken by the loop's next round of callbacks, so that the other
        sockets that are ready now are read, and stamped, first.
        """
        if self.ended_ns is not None:
            return
        self.ended_ns = stamp_ns
        if outcome is not None:
            self.outcome, self.error = outcome, error
        self._wake()

    def crash(self, bug: BaseException) -> None:
        """Hand a bug of ours, met in the hub, to the greenlet that waits."""
        self.bug = bug
        self._wake()

    def begin_body(self) -> None:
        """The head is whole. Only what it promises to be a stream is read while it comes."""
        if self.digester is not None and self.status is not None and self.status < 300:
            self.digest_at = self.bytes_in + _LEARN_BYTES

    def digest(self) -> None:
        """Read and let go the gathered pieces."""
        if self.digester is not None:
            self.progress_ns = self._last_progress_ns()
            self.digester.read(self)
            self.pieces.clear()
            self.stamps.clear()
            self.digest_at = self.bytes_in + DIGEST_BYTES

    def overdue(self, now: int) -> tuple[Outcome, str] | None:
        """Which deadline has passed, and how to say so; if none has, when to look again is found out."""
        total_ns = self.started_ns + self.limits.total_ns
        if now >= total_ns:
            return Outcome.TIMEOUT, "total timeout"
        if self.sent_ns is None:
            self.check_ns = min(now + self.limits.idle_ns, total_ns)
            return None
        idle_ns = self._last_progress_ns() + self.limits.idle_ns
        if now < idle_ns:
            self.check_ns = min(idle_ns, total_ns)
            return None
        where = "before the response" if self.headers_ns is None else "in mid-answer"
        return Outcome.STALLED, f"idle timeout {where}"

    def _last_progress_ns(self) -> int:
        """When anything but keep-alives came last."""
        came = max(self.progress_ns, self.sent_ns or 0, self.headers_ns or 0)
        if self.digester is not None:
            came = max(came, self.digester.latest_ns)
        for piece, stamp_ns in zip(reversed(self.pieces), reversed(self.stamps), strict=True):
            if not is_noise(piece):
                return max(came, stamp_ns)
        return came

    def _wake(self) -> None:
        if self._waiter is not None and self._waking is None:
            self._waking = get_hub().loop.run_callback(self._waiter.switch)


def is_noise(piece: bytes) -> bool:
    """Nothing but blank lines and comments: what a server sends while a request is queued."""
    text = piece.strip()
    if text and not text.startswith(b":"):
        return False
    return all(not line or line.startswith(b":") for line in text.splitlines())


class Carrier(Protocol):
    """A connection that carries exchanges."""

    def under_way(self) -> Iterable[Exchange]:
        """Those that have begun and not ended."""

    def give_up(self, exchange: Exchange, outcome: Outcome, text: str) -> None:
        """End one of these: its deadline has passed."""


class Deadlines:
    """The connections of one hub, from open to `close`, swept by one timer.

    A timer for each exchange would cost more than a read.
    """

    def __init__(self, hub: Any, on_sweep: Callable[[], None]) -> None:
        self._swept_ns = 0
        self._away = False
        self.first_ns = sys.maxsize
        """No exchange need be looked at before this. Whoever begins one lowers it, if it must."""
        self._carriers: set[Carrier] = set()
        self._on_sweep = on_sweep
        self._timer = hub.loop.timer(SWEEP_S, SWEEP_S, ref=False)

    def watch(self, carrier: Carrier) -> None:
        """Look after a connection's exchanges from now on."""
        if not self._carriers:
            self._on_sweep()
            self._swept_ns = now_ns()
            self._timer.start(self.sweep)
        self._carriers.add(carrier)

    def forget(self, carrier: Carrier) -> None:
        """Look after it no longer, if it was watched at all."""
        self._carriers.discard(carrier)
        if not self._carriers:
            self._timer.stop()

    def sweep(self) -> None:
        """Give up what has passed its deadline."""
        self._on_sweep()
        before, now = self._swept_ns, now_ns()
        self._swept_ns = now
        # Once only: by the next sweep all that came is read, and a client that is always away must end, too.
        self._away = now - before > _AWAY_NS and not self._away
        if now < self.first_ns or self._away:
            return
        for carrier, exchange in self._under_way():
            if now >= exchange.check_ns:
                overdue = exchange.overdue(now)
                if overdue is not None:
                    carrier.give_up(exchange, *overdue)
        self.first_ns = min((each.check_ns for _, each in self._under_way()), default=sys.maxsize)

    def _under_way(self) -> list[tuple[Carrier, Exchange]]:
        return [(carrier, exchange) for carrier in self._carriers for exchange in carrier.under_way()]


_deadlines: WeakKeyDictionary[Any, Deadlines] = WeakKeyDictionary()


def deadlines(on_sweep: Callable[[], None]) -> Deadlines:
    """The present hub's deadlines; `on_sweep` is called with each sweep of a new one."""
    hub = get_hub()
    found = _deadlines.get(hub)
    if found is None:
        found = _deadlines[hub] = Deadlines(hub, on_sweep)
    return found
