"""Numbers as people read them: three significant digits, a unit, and the interval where there is one."""

from __future__ import annotations

import math

from harness.analysis.summary import Figure

NONE = "\u2013"
"""Stands where there is no number to print."""

_TIME_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTE_SCALES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SCALED = {"s": _TIME_SCALES, "B": _BYTE_SCALES}


def digits(value: float) -> str:
    """Three significant digits, never an exponent: `0.0123`, `4.00`, `1,230`."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def count(value: int) -> str:
    """A whole number in full, with separators: `3,612`."""
    return f"{value:,}"


def share(value: float | None) -> str:
    """A share as a percentage: `0.0828 %`."""
    return NONE if value is None else f"{digits(100 * value)} %"


def target_share(value: float) -> str:
    """A share that somebody chose, as they would write it: `99.9 %`."""
    return f"{100 * value:.6g} %"


def ratio(value: float | None) -> str:
    """A ratio of two like things: `1.84` and a times sign."""
    return NONE if value is None else f"{digits(value)}\u00d7"


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit; seconds and bytes are scaled, a `1` is a share.

    Args:
        value: in `unit`; None prints as a dash.
        unit: `s`, `B`, `1` (a share of one), or any other, which is printed as it stands; whole numbers
            of these are counts and printed in full.
    """
    if value is None:
        return NONE
    if unit == "1":
        return share(value)
    if unit not in _SCALED and float(value).is_integer():
        return f"{count(int(value))} {_scale(0, unit)[1]}".rstrip()
    size, name = _scale(abs(value), unit)
    return f"{digits(value / size)} {name}".rstrip()


def interval(figure: Figure) -> str:
    """The figure's interval on one scale, `398 to 431 ms` with a dash; empty where it has none."""
    low, high = figure.low, figure.high
    if low is None and high is None:
        return ""
    if low is None:
        return f"≤ {quantity(high, figure.unit)}"
    if high is None:
        return f"≥ {quantity(low, figure.unit)}"
    if figure.unit == "1":
        return f"{digits(100 * low)}{NONE}{digits(100 * high)} %"
    size, name = _scale(max(abs(low), abs(high)), figure.unit)
    return f"{digits(low / size)}{NONE}{digits(high / size)} {name}"


def figure_text(figure: Figure) -> str:
    """The figure with its interval in brackets, `412 ms [398, 431]` with a dash; a unit they share once."""
    value = quantity(figure.value, figure.unit)
    bounds = interval(figure)
    if figure.value is None or not bounds:
        return value
    unit = value.partition(" ")[2]
    return f"{value} [{bounds.removesuffix(f' {unit}')}]"


def clock(seconds: float) -> str:
    """A duration as a stopwatch shows it: `0:07`, `12:30`, `1:02:03`."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def _scale(size: float, unit: str) -> tuple[float, str]:
    if unit == "1/s":
        return 1.0, "/s"
    scales = _SCALED.get(unit)
    if scales is None or size == 0:
        return 1.0, unit
    # 0.9996 ms prints as 1.00 ms: the scale is chosen after rounding.
    rounded = float(f"{size:.3g}")
    return next((scale for scale in scales if rounded >= scale[0]), scales[-1])
