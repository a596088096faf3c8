"""charts.py: pictures that take their colours from the page and keep their size."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import msgspec
import pytest
from report import fake_run

from harness.analysis.measures import measure
from harness.report import charts
from harness.report.charts import Chart
from harness.report.facts import RunReport
from harness.slo.verdict import State


def drawn(report: RunReport) -> list[Chart]:
    measures = measure(report.records)
    return [
        *charts.distributions(report, measures),
        *charts.over_time(report, measures),
        *charts.instrument(report, measures),
    ]


@pytest.fixture(scope="module")
def figures() -> list[Chart]:
    return drawn(fake_run.report(State.FAIL))


def test_every_chart_is_well_formed_named_and_scalable(figures):
    for chart in figures:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img"
        assert re.search(r"\d", root.get("aria-label", ""))
        assert root.get("viewBox") == f"0 0 {charts.WIDTH} {charts.HEIGHT}"
        assert root.get("width") is None


def test_every_colour_is_the_pages(figures):
    colours = {
        element.get(name)
        for chart in figures
        for element in ET.fromstring(chart.svg).iter()
        for name in ("fill", "stroke")
    }
    assert {
        each for each in colours - {None, "none", "transparent"} if not each.startswith("var(--")
    } == set()
    assert "var(--c1)" in colours


def test_every_chart_says_its_n_and_has_titles_at_its_axes(figures):
    for chart in figures:
        assert re.search(r"\bn \w* ?\d|\d samples", chart.subtitle), chart.title
    for chart in figures:
        texts = "".join(ET.fromstring(chart.svg).itertext())
        assert "percentile" in texts or "time since the start (s)" in texts


def test_series_differ_by_dash_as_well_as_by_colour(figures):
    (response,) = [chart for chart in figures if chart.title == "Response"]
    legend = {
        (element.get("stroke"), element.get("stroke-dasharray"))
        for element in ET.fromstring(response.svg).iter("path")
        if (element.get("stroke") or "").startswith("var(--c")
    }
    assert len({dash for _, dash in legend}) == len({colour for colour, _ in legend}) == 3


def test_the_objective_is_drawn_where_it_is_judged(figures):
    (response,) = [chart for chart in figures if chart.title == "Response"]
    (service,) = [chart for chart in figures if chart.title == "Service"]
    assert "keep out: response p(99)" in response.svg
    assert "keep out" not in service.svg


# -- what is not judged -----------------------------------------------------------------------------------


def plot(chart: Chart) -> tuple[float, float]:
    """Width and height of what the axes enclose."""
    width, height = re.search(r'd="M0,0h([\d.]+)v([\d.]+)h', chart.svg).groups()
    return float(width), float(height)


def shaded(chart: Chart) -> list[tuple[float, float]]:
    """The shaded parts, as shares of the axis of time."""
    parts = re.findall(r'd="M([\d.]+),0h([\d.]+)v[^"]*" fill="var\(--shade\)"', chart.svg)
    width, _ = plot(chart)
    return [(float(x) / width, (float(x) + float(size)) / width) for x, size in parts]


def in_window(low: float, high: float) -> RunReport:
    report = fake_run.report(State.FAIL)
    return msgspec.structs.replace(
        report, summary=msgspec.structs.replace(report.summary, window_s=(low, high))
    )


AGAINST_TIME = {
    *("Request rate", "In flight", "Response over time", "TTFT over time", "Tokens", "Errors over time"),
    *("CPU", "Event loop lag", "Garbage collection", "Memory"),
}


@pytest.mark.parametrize(
    ("low", "high", "parts"),
    [
        (6.0, 24.0, [(0.0, 0.2), (0.8, 1.0)]),
        (12.0, 99.0, [(0.0, 0.4)]),
        (0.0, 15.0, [(0.5, 1.0)]),
        (0.0, 99.0, []),
    ],
)
def test_what_is_not_judged_is_shaded_in_every_chart_against_time(low, high, parts):
    """Warm-up, MSER-5's cut and a window by hand before it, the drain after it: all by the window alone."""
    seen = [chart for chart in drawn(in_window(low, high)) if chart.title in AGAINST_TIME]
    assert {chart.title for chart in seen} == AGAINST_TIME
    for chart in seen:
        found = shaded(chart)
        assert len(found) == len(parts), chart.title
        for found_part, part in zip(found, parts, strict=True):
            assert found_part == pytest.approx(part, abs=0.02), chart.title


def test_curves_by_percentile_hold_judged_requests_only_and_are_not_shaded():
    for chart in drawn(in_window(6.0, 24.0)):
        if chart.title not in AGAINST_TIME:
            assert "var(--shade)" not in chart.svg


# -- n, and nothing ---------------------------------------------------------------------------------------


def test_charts_of_the_whole_run_have_its_n_not_that_of_what_is_judged():
    by_title = {chart.title: chart.subtitle for chart in drawn(in_window(6.0, 7.0))}
    report = fake_run.report(State.FAIL)
    assert by_title["Request rate"].endswith(f"n {report.summary.total.requests:,} requests")
    assert by_title["In flight"].endswith(f"n {report.summary.total.requests:,} requests")
    errors = sum(n for name, n in report.summary.total.outcomes.items() if name != "ok")
    assert by_title["Errors over time"].endswith(f"n {errors:,} errors")


def test_nothing_at_all_is_drawn_at_the_bottom_of_its_axis():
    rows = [
        msgspec.structs.replace(row, outcome="http_error", usage=None, chunk_ns=[], first_token_ns=None)
        for row in fake_run.records(rate=20)
    ]
    (tokens,) = (chart for chart in drawn(fake_run.assemble(rows)) if chart.title == "Tokens")
    assert "n 0 tokens" in tokens.subtitle
    line = re.search(r'd="M[\d.]+,([\d.]+)L[^"]*" stroke="var\(--c1\)"', tokens.svg)
    assert float(line[1]) == pytest.approx(plot(tokens)[1])


def test_the_longest_outcome_has_room_beside_its_axis():
    rows = [
        msgspec.structs.replace(row, outcome="refused_by_server", error="429")
        for row in fake_run.records(rate=20)
    ]
    (errors,) = (chart for chart in drawn(fake_run.assemble(rows)) if chart.title == "Errors over time")
    left = float(re.search(r'fill="none" transform="translate\(([\d.]+),', errors.svg)[1])
    assert left >= 7 * len("refused_by_server")


def test_no_ids_that_could_clash_on_the_page(figures):
    assert not any(" id=" in chart.svg for chart in figures)


def test_texts_of_the_run_are_escaped():
    assert not any("<script" in chart.svg for chart in drawn(fake_run.hostile()))


def test_a_longer_run_makes_no_heavier_charts(figures):
    longer = drawn(fake_run.report(State.FAIL, rate=60, duration_s=150))
    assert len(longer) == len(figures)
    assert sum(len(chart.svg) for chart in longer) < 1.6 * sum(len(chart.svg) for chart in figures)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.045, 0.55], [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
        ([0.001, 0.002], [0.001, 0.002]),
        ([0.5, 0.5], [0.5, 1.0]),
        ([1e-6, 100.0], [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]),
        ([], [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]),
    ],
)
def test_ticks_are_round_and_hold_the_values_between_them(values, expected):
    assert charts._log_ticks(values) == pytest.approx(expected)
