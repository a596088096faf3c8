"""Which part of a run is judged: from where on it was steady, to where its arrivals end.

    window: [10s, 50s]        just that, as far as the arrivals went; so too `harness report --window 10s,50s`
    steady_state: mser5       from the warm-up's end or MSER-5's cut, whichever is later
    else                      from the warm-up's end
                              ... to the end of the arrivals: the cool-down after them is not judged

MSER-5 (White: An effective truncation heuristic for bias reduction in simulation output, Simulation 69,
1997; batches of five: Spratt 1998; White, Cobb, Spratt 2000) cuts those first d batch means that leave
the rest with the least standard error: d minimises

    sum over i > d of (y_i - mean of y after d)^2  /  (k - d)^2
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from harness.analysis.measures import Floats, Measures, Window, judged_window, within

BATCH = 5
_TAIL = 5
"""Batch means at the end that are no candidates: so few agree by chance (Hoad, Robinson, Davies 2010)."""
_FEWEST = 4 * _TAIL


class Part(msgspec.Struct, frozen=True):
    """The judged part of a run, and why it is that."""

    window: Window
    rule: str
    """One sentence for people."""


def judged_part(
    measures: Measures,
    *,
    warm_up_s: float,
    duration_s: float | None,
    fixed: Window | None = None,
    fixed_by: str = "the scenario",
    mser5: bool = False,
) -> Part:
    """Find the window of a run, and say so if nothing came in it.

    Args:
        measures: of the run.
        warm_up_s: arrivals before this are not judged.
        duration_s: as in `measures.judged_window`.
        fixed: a window that is given; of a run that ended before it, what there is of it.
        fixed_by: by whom, in words.
        mser5: whether to cut off what came before the steady state.
    """
    start_s, end_s = judged_window(measures, warm_up_s=warm_up_s, duration_s=duration_s)
    begin = f"the warm-up of {warm_up_s:g} s" if warm_up_s else "the start"
    if fixed is not None:
        low_s, high_s = map(float, fixed)
        rule = f"fixed by {fixed_by}: {low_s:g} s to {high_s:g} s"
        part = Part((min(low_s, end_s), min(high_s, end_s)), rule)
    elif mser5:
        part = _steady(measures, (start_s, end_s), begin)
    else:
        part = Part((start_s, end_s), f"from {begin} to the end of the arrivals")
    empty = emptiness(measures, part.window)
    return Part(part.window, f"{part.rule}; {empty}") if empty else part


def emptiness(measures: Measures, window: Window) -> str:
    """Say that nothing came in the window, but at other times; empty if it did, or nothing ever came."""
    if not len(measures) or within(measures, window).any():
        return ""
    came = "was due" if measures.open_loop.any() else "was started"
    first_s, last_s = measures.arrival_s.min(), measures.arrival_s.max()
    return f"no request {came} in the judged window, but from {first_s:.3g} s to {last_s:.3g} s"


def _steady(measures: Measures, window: Window, begin: str) -> Part:
    start_s, end_s = window
    answered = np.flatnonzero(within(measures, (start_s, end_s)) & measures.ok)
    in_order = answered[np.argsort(measures.arrival_s[answered], kind="stable")]
    n, cut = len(in_order), truncation(measures.response[in_order])
    if cut is None:
        rule = f"from {begin} to the end of the arrivals: MSER-5 found no steady state in {n:,} requests"
        return Part((start_s, end_s), rule)
    cut_s = float(measures.arrival_s[in_order[cut]]) if cut else start_s
    rule = f"from MSER-5's cut, {cut:,} of {n:,} requests after {begin}, to the end of the arrivals"
    return Part((cut_s, end_s), "; ".join([rule, *_cut_with_them(measures, (start_s, cut_s), end_s)]))


def _cut_with_them(measures: Measures, cut: Window, end_s: float) -> Iterator[str]:
    """What escapes judgement with a cut: a cold start is slow, but so is a server that stalls."""
    away, rest = within(measures, cut), within(measures, (cut[1], end_s))
    failed = int((away & measures.failed).sum())
    if failed:
        yield f"{failed:,} failed in what was cut"
    slowest_s, left_s = (measures.response[part & measures.ok].max(initial=0.0) for part in (away, rest))
    if slowest_s > left_s:
        yield f"the slowest in what was cut took {slowest_s:.3g} s, in the rest {left_s:.3g} s"


def truncation(values: Floats) -> int | None:
    """How many of the first values MSER-5 cuts; None where there is no steady state to be found.

    That is so where the cut would exceed half of the values, or where there are fewer than a hundred.
    """
    batches = len(values) // BATCH
    if batches < _FEWEST:
        return None
    means = values[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    means = means - means.mean()  # keeps the difference of squares below from cancelling
    left = batches - np.arange(batches)
    total = np.cumsum(means[::-1])[::-1]
    squares = np.cumsum(np.square(means[::-1]))[::-1]
    error = (squares - total**2 / left) / left**2
    cut = int(np.argmin(error[:-_TAIL]))
    return BATCH * cut if 2 * cut <= batches else None
