"""Threshold strings and OpenSLO v1 documents -> Objective."""

from __future__ import annotations

import msgspec


class Objective(msgspec.Struct, frozen=True):
    """A proportion that must hold: at least `target` of the requests are good.

    A request is good if its outcome is not an error and, where `measure` is a time, that time
    compares by `operator` with `threshold`.
    """

    name: str
    """Unique within the run, as printed."""
    expression: str
    """As the user wrote it: `response: p(99) < 500ms`."""
    measure: str
    """Name in analysis/measures.py, or `errors`."""
    operator: str
    """`<` or `<=`, on the request's own value; for `errors` it stands for the rate."""
    threshold: float | None
    """In the measure's base unit (s, tokens/s); None for `errors`."""
    target: float
    """Share of good requests wanted: 0.99 for P99, 0.999 for an error rate below 0.1 %."""
    kind: str | None = None
    """Only requests of this kind; None: of all kinds that have the measure."""
    confidence: float = 0.95
    """Of the one-sided bound."""
