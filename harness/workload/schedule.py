"""Arrival processes -> Iterator[Arrival]; shard(worker, workers)."""

from __future__ import annotations

import msgspec


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One planned arrival."""

    seq: int
    """Position in the whole schedule, from 0."""
    due_ns: int | None
    """When it is due, in nanoseconds from the run's start; None in a closed loop."""
