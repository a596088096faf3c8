"""charts.py: pictures that take their colours from the page and keep their size."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

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
