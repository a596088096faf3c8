"""Charts as inline SVG: drawn once, coloured by the page's CSS variables so that they suit light and dark.

    series.py rows -> Altair -> Vega-Lite -> vl-convert (offline) -> SVG -> lighter SVG

Two themes rendered side by side would double the page; `var(--c1)` in an SVG attribute costs nothing.
No series is told by colour alone: each has a dash pattern of its own.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import msgspec
import vl_convert

from harness.analysis import series
from harness.analysis.measures import Measures
from harness.analysis.stats import allowed_share
from harness.report import facts, numbers
from harness.report.facts import RunReport

WIDTH, HEIGHT = 380, 236
"""A chart's size in CSS pixels: readable at full width on a phone, three abreast on a desktop."""

Row = dict[str, Any]


class Chart(msgspec.Struct, frozen=True):
    """One figure of the page."""

    title: str
    subtitle: str
    """What is drawn, with n."""
    svg: str
    """Safe to embed: made by Vega, which escapes its texts."""


class Stroke(msgspec.Struct, frozen=True):
    """How one series is drawn."""

    colour: str
    dash: tuple[int, int] = (1, 0)
    width: float = 1.8


_STROKES = (
    Stroke("var(--c1)"),
    Stroke("var(--c2)", (6, 3)),
    Stroke("var(--c3)", (2, 2)),
    Stroke("var(--c4)", (9, 3)),
    Stroke("var(--c5)", (4, 4)),
    Stroke("var(--c6)", (12, 4)),
)
_KINDS = ("completion", "stream", "batch")
_WIDE = Stroke("var(--c0)", (1, 0), 4.5)

_WIDEST = 7.2
"""Pixels that a letter of an axis's label takes in the widest of common fonts, at 11 pixels."""

_SECONDS = (
    "datum.value >= 1 ? format(datum.value, '~g') + ' s' : datum.value >= 0.001 ? "
    "format(datum.value * 1000, '~g') + ' ms' : format(datum.value * 1000000, '~g') + ' µs'"
)
_PERCENTILE = "'P' + format(100 * (1 - 1 / datum.value), '~g')"
_PERCENTILES = (2, 10, 100, 1_000, 10_000, 100_000, 1_000_000)

_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titlePadding": 8,
    },
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--text)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 11,
        "symbolSize": 500,
        "symbolStrokeWidth": 2,
        "columnPadding": 16,
        "offset": 8,
    },
    "text": {"fill": "var(--bad)", "fontSize": 11},
}


# -- the page's charts -----------------------------------------------------------------------------------


def distributions(report: RunReport, measures: Measures) -> list[Chart]:
    """One quantile curve a kind for each measure that the run has, with the objectives drawn in."""
    made = []
    for name, label in facts.shown(report.verdict).items():
        curves = series.curves(measures, name, report.summary.window_s)
        if curves:
            limits = facts.thresholds(report.verdict, name)
            made.append(_quantiles(label, facts.meaning(name), curves, limits))
    return made


def over_time(report: RunReport, measures: Measures) -> list[Chart]:
    """What was sent, what came back, and how long it took, by the clock."""
    intervals = series.timeline(measures)
    if not intervals:
        return []
    clock = _clock(intervals[-1].end_s, report.summary.window_s)
    made = [_rates(intervals, clock, len(measures)), _in_flight(intervals, clock, len(measures))]
    for name, label in (("response", "response"), ("ttft", "TTFT")):
        spreads = series.spreads(measures, name)
        if spreads:
            made.append(_spread(label, spreads, clock, facts.thresholds(report.verdict, name)))
    made.append(_tokens(intervals, clock))
    if any(interval.errors for interval in intervals):
        made.append(_errors(intervals, clock))
    return made


def instrument(report: RunReport, measures: Measures) -> list[Chart]:
    """The load generator's own health."""
    late = series.curves(measures, "lateness", report.summary.window_s)
    made = [_quantiles("Lateness", facts.meaning("lateness"), late, [])] if late else []
    healths = series.health(report.samples)
    if not healths:
        return made
    clock = _clock(max(each.t_s for each in healths), report.summary.window_s)
    n = f"{numbers.count(len(report.samples))} samples; the worst of each interval"
    for title, axis, field, factor in (
        ("CPU", "share of a core (%)", "cpu", 100.0),
        ("Event loop lag", "longest lag (ms)", "hub_lag_s", 1e3),
        ("Garbage collection", "longest pause (ms)", "gc_pause_s", 1e3),
        ("Memory", "resident (MB)", "rss_bytes", 1e-6),
    ):
        rows = [
            {"t": each.t_s, "v": factor * getattr(each, field), "series": each.worker} for each in healths
        ]
        made.append(_lines(title, n, rows, clock, axis))
    return made


def _rates(intervals: Sequence[series.Interval], clock: _Clock, n: int) -> Chart:
    strokes = {"started": Stroke("var(--c1)"), "ended": Stroke("var(--c2)", (6, 3))}
    if any(interval.due for interval in intervals):
        strokes = {"due": _WIDE, **strokes}
    rows = [
        {"t": _middle(each), "v": getattr(each, name), "series": name}
        for each in intervals
        for name in strokes
    ]
    note = f"per {_length(intervals[0])}; n {numbers.count(n)} requests"
    return _lines("Request rate", note, rows, clock, "requests per second", strokes=strokes)


def _in_flight(intervals: Sequence[series.Interval], clock: _Clock, n: int) -> Chart:
    rows = [{"t": _middle(each), "v": each.in_flight, "series": "mean in flight"} for each in intervals]
    note = f"requests under way, mean of each {_length(intervals[0])}; n {numbers.count(n)} requests"
    return _lines("In flight", note, rows, clock, "requests")


def _tokens(intervals: Sequence[series.Interval], clock: _Clock) -> Chart:
    rows = [{"t": _middle(each), "v": each.tokens, "series": "completion tokens"} for each in intervals]
    n = numbers.count(_total(intervals, [each.tokens for each in intervals]))
    note = f"completion tokens as they came, per {_length(intervals[0])}; n {n} tokens"
    return _lines("Tokens", note, rows, clock, "tokens per second")


def _spread(label: str, spreads: Sequence[series.Spread], clock: _Clock, limits: Sequence[_Limit]) -> Chart:
    rows = [
        {"t": _middle(each), "v": value, "series": name}
        for each in spreads
        for name, value in (("P50", each.p50_s), ("P99", each.p99_s))
    ]
    sizes = [each.n for each in spreads]
    least, most = numbers.count(min(sizes)), numbers.count(max(sizes))
    note = f"by when they were due, per {_length(spreads[0])}; n {least} to {most} an interval"
    if all(each.p99_s is None for each in spreads):
        note += "; too few for P99"
    title = f"{_capital(label)} over time"
    return _lines(title, note, rows, clock, "time", limits=[limit[:2] for limit in limits], seconds=True)


def _errors(intervals: Sequence[series.Interval], clock: _Clock) -> Chart:
    rows: list[Row] = [
        {"t": _middle(each), "v": rate, "outcome": outcome}
        for each in intervals
        for outcome, rate in each.errors.items()
        if rate > 0
    ]
    names = sorted({row["outcome"] for row in rows})
    rates = [row["v"] for row in rows]
    size = alt.Size(
        "v:Q",
        title="errors per second",
        scale=alt.Scale(domainMin=0, range=[12, 180]),
        legend=alt.Legend(values=sorted({min(rates), max(rates)}), format=".3~g", symbolStrokeWidth=1),
    )
    # Vega leaves as much room for the labels as they take in its own font: the page's may be wider.
    room = alt.Axis(minExtent=_WIDEST * max(map(len, names)))
    x, y = clock.x(), alt.Y("outcome:N", title=None, scale=alt.Scale(domain=names), axis=room)
    dots = (
        alt.Chart(_inline(clock.scaled(rows)))
        .mark_circle(color="var(--bad)", opacity=0.6)
        .encode(x=x, y=y, size=size)
    )
    errors = _total(intervals, [sum(each.errors.values()) for each in intervals])
    note = f"by outcome, per {_length(intervals[0])}; n {numbers.count(errors)} errors"
    alternative = f"{numbers.count(errors)} errors over time: {', '.join(names)}"
    return Chart("Errors over time", note, _svg([*clock.shades(x), dots], alternative))


# -- two ways of drawing ----------------------------------------------------------------------------------


_Limit = tuple[str, float, float, str | None]
"""An objective: name, threshold in seconds, target share, kind."""


def _quantiles(title: str, meaning: str, curves: Sequence[series.Curve], limits: Sequence[_Limit]) -> Chart:
    """Time against percentile, the slow end stretched: each further nine takes as much room as the last."""
    # A log scale has no zero: two chunks of one read have a gap of 0.
    rows: list[Row] = [
        {"x": 1 / slower, "v": seconds, "series": curve.kind}
        for curve in curves
        for slower, seconds in zip(curve.slower, curve.seconds, strict=True)
        if seconds > 0
    ]
    ticks = _log_ticks(
        [row["v"] for row in rows] + [threshold * f for _, threshold, *_ in limits for f in (0.9, 1.5)]
    )
    furthest = max(
        [
            10.0,
            *(float(curve.n) for curve in curves),
            *(1 / allowed_share(target) for _, _, target, _ in limits),
        ]
    )
    x = alt.X(
        "x:Q",
        title="percentile (slowest to the right)",
        scale=alt.Scale(type="log", domain=[1, furthest], nice=False),
        axis=alt.Axis(values=[p for p in _PERCENTILES if p <= furthest], labelExpr=_PERCENTILE),
    )
    y = _seconds_axis(ticks)
    layers = [part for limit in limits for part in _forbidden(limit, ticks, x, y)]
    strokes = _strokes_of_kinds([curve.kind for curve in curves])
    line = (
        alt.Chart(_inline(rows)).mark_line().encode(x=x, y=y, **_told_apart(strokes, legend=len(curves) > 1))
    )
    described = "; ".join(f"{each.kind} P50 {_at(each, 0.5)}, P99 {_at(each, 0.01)}" for each in curves)
    n = ", ".join(f"{each.kind} {numbers.count(each.n)}" for each in curves)
    return Chart(
        _capital(title), f"{meaning}; n {n}", _svg([*layers, line], f"{title} by percentile: {described}")
    )


def _lines(
    title: str,
    subtitle: str,
    rows: Sequence[Row],
    clock: _Clock,
    axis: str,
    *,
    strokes: Mapping[str, Stroke] | None = None,
    limits: Sequence[tuple[str, float]] = (),
    seconds: bool = False,
) -> Chart:
    """A value against time, one line a series; the part of the run that is not judged is shaded."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    strokes = strokes or dict(zip(names, _STROKES, strict=False))
    values = [row["v"] for row in rows if row["v"] is not None]
    if seconds:
        y = _seconds_axis(
            _log_ticks(values + [limit * factor for _, limit in limits for factor in (0.9, 1.2)])
        )
    else:
        # Of nothing but zeros Vega would make an axis with its zero in the middle.
        scale = alt.Scale(domainMin=0, nice=True) if any(values) else alt.Scale(domain=[0, 1])
        y = alt.Y("v:Q", title=axis, scale=scale, axis=alt.Axis(tickCount=5))
    x = clock.x()
    layers = clock.shades(x)
    layers += [part for name, limit in limits for part in _limit(name, limit, y)]
    layers.append(
        alt.Chart(_inline(clock.scaled(rows)))
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=14) if seconds else False)
        .encode(x=x, y=y, **_told_apart(strokes, legend=len(names) > 1))
    )
    unit = "s" if seconds else ""
    extremes = "; ".join(f"{name} {_range(rows, name, unit)}" for name in names)
    return Chart(title, subtitle, _svg(layers, f"{title}, {axis}: {extremes}"))


def _forbidden(limit: _Limit, ticks: Sequence[float], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The corner that a curve must keep out of for the objective to hold."""
    name, threshold, target, kind = limit
    corner = {"x": 1, "x2": 1 / allowed_share(target), "v": threshold, "v2": ticks[-1]}
    text = f"keep out: {name}" if kind is None else f"keep out: {name} ({kind})"
    base = alt.Chart(_inline([corner])).encode(x=x, y=y)
    area = base.mark_rect(
        color="var(--bad)", opacity=0.09, stroke="var(--bad)", strokeDash=[3, 3], strokeOpacity=1
    ).encode(x2="x2:Q", y2="v2:Q")
    label = base.mark_text(align="left", baseline="bottom", dx=5, dy=-4).encode(text=alt.value(text))
    return [area, label]


def _limit(name: str, threshold: float, y: alt.Y) -> list[alt.Chart]:
    base = alt.Chart(_inline([{"v": threshold}])).encode(y=y)
    rule = base.mark_rule(color="var(--bad)", strokeDash=[3, 3])
    text = f"{name}: {numbers.quantity(threshold, 's')}"
    label = base.mark_text(align="left", baseline="bottom", dx=4, dy=-3).encode(
        x=alt.value(0), text=alt.value(text)
    )
    return [rule, label]


def _told_apart(strokes: Mapping[str, Stroke], *, legend: bool = True) -> Row:
    names = list(strokes)
    shown = alt.Legend(symbolType="stroke") if legend else None
    of = strokes.values()
    return {
        "color": alt.Color(
            "series:N", scale=alt.Scale(domain=names, range=[s.colour for s in of]), legend=shown, sort=names
        ),
        "strokeDash": alt.StrokeDash(
            "series:N", scale=alt.Scale(domain=names, range=[list(s.dash) for s in of])
        ),
        "strokeWidth": alt.StrokeWidth(
            "series:N", scale=alt.Scale(type="ordinal", domain=names, range=[s.width for s in of])
        ),
    }


def _strokes_of_kinds(kinds: Iterable[str]) -> dict[str, Stroke]:
    """The same kind looks the same in every chart."""
    known = dict(zip(_KINDS, _STROKES, strict=False))
    ordered = sorted(kinds, key=lambda kind: (_KINDS.index(kind) if kind in known else len(_KINDS), kind))
    return {kind: known.get(kind, _STROKES[-1]) for kind in ordered}


# -- axes -------------------------------------------------------------------------------------------------


class _Clock(msgspec.Struct, frozen=True):
    """The axis of time, in the unit that suits the run's length."""

    end_s: float
    unit: str
    unit_s: float
    window_s: tuple[float, float]

    def scaled(self, rows: Iterable[Row]) -> list[Row]:
        """The rows with their time in the axis's unit."""
        return [{**row, "t": row["t"] / self.unit_s} for row in rows]

    def x(self) -> alt.X:
        """The axis itself."""
        return alt.X(
            "t:Q",
            title=f"time since the start ({self.unit})",
            scale=alt.Scale(domain=[0, self.end_s / self.unit_s], nice=False),
            axis=alt.Axis(grid=False, tickCount=6),
        )

    def shades(self, x: alt.X) -> list[alt.Chart]:
        """Grey over what is not judged; nothing where all of the run is."""
        parts = facts.unjudged(self.window_s, self.end_s)
        if not parts:
            return []
        rows = [{"t": start / self.unit_s, "t2": end / self.unit_s} for start, end in parts]
        return [alt.Chart(_inline(rows)).mark_rect(color="var(--shade)").encode(x=x, x2="t2:Q")]


def _clock(end_s: float, window_s: tuple[float, float]) -> _Clock:
    unit, unit_s = ("s", 1.0) if end_s <= 600 else ("min", 60.0) if end_s <= 6 * 3600 else ("h", 3600.0)
    return _Clock(end_s, unit, unit_s, window_s)


def _seconds_axis(ticks: Sequence[float]) -> alt.Y:
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    return alt.Y("v:Q", title="time", scale=scale, axis=alt.Axis(values=list(ticks), labelExpr=_SECONDS))


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least to above the greatest: few and evenly spaced."""
    positive = [value for value in values if value > 0] or [1e-3, 1.0]
    low, high = min(positive), max(positive)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        grid = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        start = max(at for at, tick in enumerate(grid) if tick <= low * (1 + 1e-9))
        end = min((at for at, tick in enumerate(grid) if tick >= high * (1 - 1e-9)), default=len(grid) - 1)
        ticks = grid[start : max(end, start + 1) + 1]
        if len(ticks) <= 8:
            break
    return ticks


# -- small change -----------------------------------------------------------------------------------------


def _middle(interval: series.Interval | series.Spread) -> float:
    return (interval.start_s + interval.end_s) / 2


def _length(interval: series.Interval | series.Spread) -> str:
    length = round(interval.end_s - interval.start_s, 9)
    return f"{1000 * length:g} ms" if length < 1 else f"{length:g} s"


def _total(intervals: Sequence[series.Interval], rates: Sequence[float]) -> int:
    """How many there were of what is drawn as a rate."""
    pairs = zip(intervals, rates, strict=True)
    return round(sum((each.end_s - each.start_s) * rate for each, rate in pairs))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _at(curve: series.Curve, slower: float) -> str:
    """The first point of the curve at or beyond a percentile."""
    at = next(
        (i for i, share in enumerate(curve.slower) if share <= slower * (1 + 1e-9)), len(curve.slower) - 1
    )
    return numbers.quantity(curve.seconds[at], "s")


def _range(rows: Sequence[Row], name: str, unit: str) -> str:
    values = [row["v"] for row in rows if row["series"] == name and row["v"] is not None]
    if not values:
        return "too few to say"
    return f"{numbers.quantity(min(values), unit)} to {numbers.quantity(max(values), unit)}"


def _inline(rows: Sequence[Row]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


# -- SVG --------------------------------------------------------------------------------------------------


def _svg(layers: Sequence[alt.Chart], alternative: str) -> str:
    """Draw a chart, without touching the network; `alternative` says the same to those who cannot see it."""
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    chart = alt.LayerChart(layer=list(layers), width=WIDTH, height=HEIGHT, autosize=fit)
    drawn = vl_convert.vegalite_to_svg(
        _printable(chart.to_dict()) | {"config": _CONFIG}, allowed_base_urls=[]
    )
    return _lighter(drawn, alternative)


def _printable(spec: Any) -> Any:
    """The specification with all texts cleaned: one control character makes vl-convert abort the process."""
    if isinstance(spec, dict):
        return {facts.printable(name): _printable(value) for name, value in spec.items()}
    if isinstance(spec, list):
        return [_printable(value) for value in spec]
    return facts.printable(spec) if isinstance(spec, str) else spec


_NOISE = re.compile(r' (?:aria-[a-z]+|role|class|pointer-events|font-family|stroke-miterlimit)="[^"]*"')
_EMPTY = re.compile(r'<path [^>]*d="(?:M0(?:\.5)?,0(?:\.5)?h0v0h0Z)?"[^>]*/>')
_GEOMETRY = re.compile(r' (?:d|transform)="[^"]*"')
_LONG = re.compile(r"(\.\d)\d+")
_OPENING = re.compile(r"<svg [^>]*>")


def _lighter(svg: str, alternative: str) -> str:
    """The same picture, named for screen readers, scalable, and about half the size."""
    bare = _EMPTY.sub("", _NOISE.sub("", svg))
    bare = _GEOMETRY.sub(lambda found: _LONG.sub(r"\1", found.group()), bare)
    label = html.escape(alternative, quote=True)
    opening = f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return _OPENING.sub(lambda _: opening, bare, count=1)
