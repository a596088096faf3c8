"""The report as one HTML file that opens offline, holds no script and loads nothing."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from harness.analysis import series
from harness.analysis.measures import measure
from harness.analysis.summary import Distribution, Figure
from harness.report import charts, facts, numbers
from harness.report.charts import Chart
from harness.report.facts import RunReport

QUANTILES = ("p50", "p90", "p95", "p99", "p99.9")


def html(report: RunReport) -> str:
    """Lay the report out; everything but our own charts is escaped."""
    return _template().render(_context(report))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=numbers.count,
        quantity=numbers.quantity,
        figure=numbers.figure_text,
        share=numbers.share,
        ratio=numbers.ratio,
    )
    return environment.from_string(files("harness.report").joinpath("report.html.j2").read_text("utf-8"))


def _context(report: RunReport) -> dict[str, Any]:
    measures = measure(report.records)
    end_s = series.end_s(measures)
    return {
        "report": report,
        "run": report.run,
        "summary": report.summary,
        "verdict": report.verdict,
        "manifest": report.manifest,
        "facts": facts,
        "marks": facts.marks(report),
        "groups": facts.groups(report.summary),
        "objectives": facts.objective_rows(report),
        "latency": facts.latency_rows(report),
        "truth": facts.truth_rows(report),
        "quantiles": QUANTILES,
        "key_facts": _key_facts(report),
        "batch": _batch(report),
        "outcomes": _tally(report, "outcomes"),
        "statuses": _tally(report, "statuses"),
        "errors": report.summary.total.errors,
        "distributions": _embed(charts.distributions(report, measures)),
        "over_time": _embed(charts.over_time(report, measures)),
        "unjudged": facts.unjudged(report.summary.window_s, end_s),
        "shaded": facts.shaded_line(report.summary, end_s),
        "instrument": _embed(charts.instrument(report, measures)),
        "scenario": facts.scenario_yaml(report.run),
        "dash": numbers.NONE,
    }


def _key_facts(report: RunReport) -> list[tuple[str, str, str]]:
    """The handful of numbers that people look for first: what, how much, and how sure."""
    summary, total = report.summary, report.summary.total
    figures = [
        (each.objective.expression, each.observed, "requests", facts.unresolved(each, report.floor))
        for each in report.verdict.objectives
    ]
    figures += [
        ("goodput", total.goodput, "requests", ""),
        ("arrivals", summary.arrivals, "arrivals", ""),
        ("completion tokens", total.tokens_per_s, "requests", ""),
    ]
    low, high = summary.window_s
    judged = (
        "judged",
        f"{numbers.count(total.requests)} requests",
        f"due in {numbers.quantity(high - low, 's')}",
    )
    return [*(_key_fact(*each) for each in figures), judged]


def _key_fact(name: str, figure: Figure, of: str, mark: str) -> tuple[str, str, str]:
    bounds = numbers.interval(figure)
    n = f"n {numbers.count(figure.n)} {of}{mark}"
    if figure.value is None:
        return name, numbers.NONE, f"{figure.note}{mark}" if figure.note else n
    return name, numbers.quantity(figure.value, figure.unit), f"95 % interval {bounds}, {n}" if bounds else n


def _tally(report: RunReport, field: str) -> dict[str, list[int]]:
    """For each outcome or status that occurred, its count in each group; the most frequent first."""
    groups = facts.groups(report.summary)
    total: dict[str, int] = getattr(report.summary.total, field)
    names = sorted((name for name in total if total[name]), key=lambda name: (-total[name], name))
    return {name: [getattr(group, field).get(name, 0) for group in groups] for name in names}


def _batch(report: RunReport) -> dict[str, list[str]] | None:
    """What is said of whole batches: by row, the quantiles, the maximum and n."""
    batch = report.summary.batch
    if batch is None or not batch.all_done.n:
        return None
    return {
        "time to all done": _row(batch.all_done, ratio=False),
        "slowest over median service time": _row(batch.slowest_ratio, ratio=True),
    }


def _row(distribution: Distribution, *, ratio: bool) -> list[str]:
    figures = [distribution.quantiles.get(name) for name in QUANTILES]
    if ratio:
        values = [numbers.ratio(figure.value if figure else None) for figure in figures]
        return [*values, numbers.ratio(distribution.maximum), numbers.count(distribution.n)]
    texts = [numbers.figure_text(figure) if figure else numbers.NONE for figure in figures]
    return [*texts, numbers.quantity(distribution.maximum, distribution.unit), numbers.count(distribution.n)]


def _embed(drawn: list[Chart]) -> list[dict[str, Any]]:
    return [
        # The SVG is Vega's, which escapes the texts it is given (a test asserts it).
        {"title": chart.title, "subtitle": chart.subtitle, "svg": Markup(chart.svg)}  # noqa: S704 - see above
        for chart in drawn
    ]
