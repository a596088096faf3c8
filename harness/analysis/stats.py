"""Quantiles, shares and rates with exact, distribution-free intervals.

    quantile    nearest rank: the smallest value with at least a share p of all values at or below it
                (Hyndman & Fan 1996, type 1). Never interpolated, never averaged.
    interval    of a quantile, by order statistics: the number of values below the true quantile is
                Binomial(n, p) whatever the distribution (Conover 1999, section 3.2).
    bound       of a share, Clopper-Pearson (1934), from the beta distribution.

All assume independent samples. Requests of one run queue behind one another, so the true n is smaller
than the count: read the intervals as the least uncertainty there is.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

import msgspec
import numpy as np
from scipy.stats import beta, binom

from harness.analysis.measures import Floats, Window

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
"""What a distribution prints."""


class Figure(msgspec.Struct, frozen=True):
    """One number as it may be printed: with its unit, its n and, where there is one, its interval."""

    value: float | None
    """None where n is too small to say (P99.9 of 200 samples)."""
    unit: str
    """`s`, `1/s`, `1`, `tokens/s`, ..."""
    n: int
    low: float | None = None
    """Lower end of the two-sided 95 % interval."""
    high: float | None = None
    note: str = ""
    """Why the value is None, or what to mind about it."""


class Distribution(msgspec.Struct, frozen=True):
    """One measure's distribution over the judged requests (or gaps)."""

    measure: str
    """Name in measures.py: response, service, ttft, itl, ..."""
    unit: str
    n: int
    minimum: float | None
    mean: float | None
    quantiles: dict[str, Figure]
    """By name: p50, p90, p95, p99, p99.9."""
    maximum: float | None


def nearest_rank(n: int, p: float) -> int:
    """The 1-based rank of the quantile: ceil(n p), with p read as the decimal that it prints as."""
    return max(1, math.ceil(n * Fraction(repr(p))))


@lru_cache(maxsize=4096)
def interval_ranks(n: int, p: float, confidence: float = 0.95) -> tuple[int | None, int | None]:
    """The ranks of the order statistics that hold the true p-quantile between them.

    Each tail keeps (1 - confidence) / 2. None at the side where no finite bound exists: P99 has no
    upper one below n = 368.
    """
    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, n, p))
    high = int(binom.ppf(1 - tail, n, p)) + 1
    return (low if low >= 1 else None), (high if high <= n else None)


def samples_needed(p: float, confidence: float = 0.95) -> int:
    """The smallest n that can bound the quantile from its far side: 299 for P99, 2,995 for P99.9.

    With fewer, even the largest value of all (the smallest, below the median) lies short of the true
    quantile with a probability of max(p, 1 - p)**n > 1 - confidence, so the figure would mean nothing.
    """
    return math.ceil(math.log(1 - confidence) / math.log(max(p, 1 - p)))


def quantile(ordered: Floats, p: float, unit: str, *, independent: bool = True, label: str = "") -> Figure:
    """One quantile with its two-sided 95 % interval, or the refusal to give it.

    Args:
        ordered: the values in ascending order; infinities stand for what never ended.
        p: from 0 to 1, both excluded.
        unit: of the values.
        independent: False withholds the interval, which correlated values (gaps of one stream) lack.
        label: what to call it in a note, if not by p.
    """
    n, needed = len(ordered), samples_needed(p)
    label = label or f"P{100 * p:g}"
    if n < needed:
        return Figure(None, unit, n, note=f"n = {n:,} is too few: {label} needs {needed:,}")
    value = finite(ordered[nearest_rank(n, p) - 1])
    if value is None:
        return Figure(None, unit, n, note=f"{label} falls on requests that failed")
    if not independent:
        return Figure(value, unit, n, note="the values are not independent: no interval")
    low, high = interval_ranks(n, p)
    return Figure(
        value,
        unit,
        n,
        low=None if low is None else finite(ordered[low - 1]),
        high=None if high is None else finite(ordered[high - 1]),
        note="" if high is not None else f"n = {n:,} is too few for an upper bound",
    )


def finite(value: float) -> float | None:
    """A plain float, or None for an infinity or NaN."""
    return float(value) if math.isfinite(value) else None


def distribution(values: Floats, measure: str, unit: str, *, independent: bool = True) -> Distribution:
    """Describe a sample; NaN is left out."""
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return Distribution(measure, unit, 0, None, None, {}, None)
    return Distribution(
        measure=measure,
        unit=unit,
        n=len(ordered),
        minimum=float(ordered[0]),
        mean=float(ordered.mean()),
        quantiles={
            name: quantile(ordered, p, unit, independent=independent) for name, p in QUANTILES.items()
        },
        maximum=float(ordered[-1]),
    )


def upper_bound(bad: int, n: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a share: 1 where n is 0."""
    return 1.0 if bad >= n else float(beta.ppf(confidence, bad + 1, n - bad))


def lower_bound(bad: int, n: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound of a share: 0 where n is 0."""
    return 0.0 if bad <= 0 else float(beta.ppf(1 - confidence, bad, n - bad + 1))


def share(part: int, n: int, confidence: float = 0.95) -> Figure:
    """A share of n with its exact two-sided interval."""
    if not n:
        return Figure(None, "1", 0, note="no samples")
    one_sided = 1 - (1 - confidence) / 2
    return Figure(part / n, "1", n, low=lower_bound(part, n, one_sided), high=upper_bound(part, n, one_sided))


def allowed_share(target: float) -> float:
    """1 - target without the dust of binary fractions: 0.01 for 0.99."""
    return float(1 - Decimal(repr(target)))


def more_needed(bad: int, n: int, target: float, confidence: float = 0.95) -> int:
    """The smallest number of further samples, all good, that brings the upper bound below 1 - target.

    0 bad of 0 needs 299 for P99 and 2,995 for an error rate below 0.1 %.
    """
    allowed = allowed_share(target)

    def proven(further: int) -> bool:
        return upper_bound(bad, n + further, confidence) < allowed

    if proven(0):
        return 0
    high = 1
    while not proven(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle) else (middle, high)
    return high


def per_second(count: float, window: Window, unit: str = "1/s", n: int | None = None) -> Figure:
    """A count over the window's length."""
    n = int(count) if n is None else n
    length = window[1] - window[0]
    if length <= 0:
        return Figure(None, unit, n, note="the window is empty")
    return Figure(count / length, unit, n)


def mean_in_flight(started_s: Floats, ended_s: Floats, window: Window) -> Figure:
    """The time average of how many intervals [started, ended) overlap; NaN is left out."""
    low, high = window
    if high <= low:
        return Figure(None, "1", 0, note="the window is empty")
    overlap = np.minimum(ended_s, high) - np.maximum(started_s, low)
    under_way = overlap[overlap > 0]  # a comparison with NaN is False
    return Figure(float(under_way.sum() / (high - low)), "1", len(under_way))
