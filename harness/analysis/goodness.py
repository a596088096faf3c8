"""Which requests a criterion speaks of, and which of them are good: one answer for verdict and goodput."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from harness.analysis.measures import MEASURES, Mask, Measures
from harness.analysis.names import ERRORS as ERRORS  # noqa: PLC0414 - part of this contract
from harness.analysis.stats import Figure, allowed_share, quantile


class Criterion(Protocol):
    """What slo.objectives.Objective looks like from here."""

    @property
    def measure(self) -> str:
        """Name in `MEASURES`, or `errors`."""

    @property
    def operator(self) -> str:
        """One of <, <=, >, >=."""

    @property
    def threshold(self) -> float | None:
        """In the measure's unit; None for `errors`."""

    @property
    def target(self) -> float:
        """Share of good requests wanted."""

    @property
    def kind(self) -> str | None:
        """Only requests of this kind; None: all."""


def concerned(measures: Measures, criterion: Criterion, measure: str | None = None) -> Mask:
    """The requests that the criterion speaks of.

    A failed request counts wherever its kind has the measure: its latency is not known because there
    was no answer, and leaving it out would reward a server for failing where it is slow.
    """
    mask: Mask = ~measures.cancelled
    if criterion.kind is not None:
        mask = mask & (measures.kind == criterion.kind)
    name = measure or criterion.measure
    if name == ERRORS:
        return mask
    definition = MEASURES[name]
    if definition.streams_only:
        mask = mask & measures.streaming
    if definition.may_lack:
        mask = mask & (measures.failed | ~np.isnan(measures.of(name)))
    return mask


def good(measures: Measures, criterion: Criterion, measure: str | None = None) -> Mask:
    """The requests that are not errors and whose value compares as the criterion wants.

    Args:
        measures: of the run.
        criterion: what is asked.
        measure: instead of the criterion's own: its twin from start, say.
    """
    name = measure or criterion.measure
    if name == ERRORS:
        return measures.ok
    assert criterion.threshold is not None  # only `errors` has none
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    met: Mask = compare[criterion.operator](
        measures.of(name), criterion.threshold
    )  # a comparison with NaN is False
    return met & measures.ok


def meets_all(measures: Measures, criteria: Iterable[Criterion]) -> Mask:
    """The requests that are ok and good by every criterion that speaks of them."""
    mask = measures.ok
    for criterion in criteria:
        mask = mask & (good(measures, criterion) | ~concerned(measures, criterion))
    return mask


def observed_quantile(measures: Measures, criterion: Criterion, mask: Mask) -> Figure:
    """The quantile that the criterion is named after, with failed requests as infinitely bad.

    The value compares with the threshold exactly as the share of bad requests does with the allowed one.

    Args:
        measures: of the run.
        criterion: any but `errors`.
        mask: the requests judged by it.
    """
    definition = MEASURES[criterion.measure]
    sign = -1.0 if definition.higher_is_better else 1.0
    values = np.where(measures.ok, sign * measures.of(criterion.measure), np.inf)[mask]
    values = np.sort(np.where(np.isnan(values), np.inf, values))
    percent = allowed_share(criterion.target) if sign < 0 else criterion.target
    figure = quantile(values, criterion.target, definition.unit, label=f"P{100 * percent:g}")
    if sign > 0 or figure.value is None:
        return figure
    return Figure(
        value=-figure.value,
        unit=figure.unit,
        n=figure.n,
        low=None if figure.high is None else -figure.high,
        high=None if figure.low is None else -figure.low,
        note=figure.note,
    )
