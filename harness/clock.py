"""Monotonic nanoseconds, with one wall-clock anchor a process.

`now_ns` is the only clock of the measuring path. On Linux it is CLOCK_MONOTONIC, which all processes
of one boot share, so that stamps of different processes on one machine subtract directly.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

now_ns = time.monotonic_ns


class Anchor(msgspec.Struct, frozen=True):
    """One instant on both clocks: the only bridge between them."""

    wall_ns: int
    """Unix time in nanoseconds."""
    monotonic_ns: int
    """The same instant on `now_ns`."""

    def wall_of(self, monotonic_ns: int) -> int:
        """The Unix time in nanoseconds of a monotonic stamp."""
        return self.wall_ns + monotonic_ns - self.monotonic_ns


def anchor() -> Anchor:
    """Read both clocks, the wall between two monotonic reads, and keep the tightest of five tries."""
    best: tuple[int, Anchor] | None = None
    for _ in range(5):
        before = now_ns()
        wall = time.time_ns()
        after = now_ns()
        if best is None or after - before < best[0]:
            best = (after - before, Anchor(wall_ns=wall, monotonic_ns=(before + after) // 2))
    assert best is not None
    return best[1]


def boot_id() -> str:
    """What tells this boot of this machine from any other: monotonic stamps compare only within one."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


class FakeClock:
    """A clock that tests move by hand."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        """The present, in nanoseconds."""
        return self.now

    def advance(self, ns: int) -> None:
        """Move the present forward."""
        self.now += ns
