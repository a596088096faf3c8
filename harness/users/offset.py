"""How far the master's monotonic clock is from a worker's, found out by asking.

    worker: ask ── sent ──► master ── sent, its clock ──► worker: Offset.hear

The answer was given between the asking and the hearing, so half of that time bounds the error, and the
quickest of some tries bounds it best (Cristian: Probabilistic clock synchronization, 1989). Wall clocks
play no part: those of two hosts may be seconds apart.
"""

from __future__ import annotations

import sys

TRIES = 8


class Offset:
    """The worker's side: what the tries have said so far. All in nanoseconds."""

    def __init__(self) -> None:
        self.tries = 0
        self.error_ns = sys.maxsize
        """The clocks' difference is known to so much either way."""
        self._ahead_ns = 0

    def hear(self, sent_ns: int, masters_ns: int, heard_ns: int) -> None:
        """Take an answer.

        Args:
            sent_ns: when we asked, by our clock.
            masters_ns: when the master answered, by its own.
            heard_ns: when we heard that, by ours.
        """
        self.tries += 1
        error_ns = (heard_ns - sent_ns + 1) // 2
        if error_ns < self.error_ns:
            self.error_ns, self._ahead_ns = error_ns, masters_ns - (sent_ns + heard_ns) // 2

    def ours(self, masters_ns: int) -> int:
        """The instant, by our clock, that the master's shows as `masters_ns`.

        Where the two may be one clock, they are: a master's on the same machine is read without error.
        """
        return masters_ns if abs(self._ahead_ns) <= self.error_ns else masters_ns - self._ahead_ns
