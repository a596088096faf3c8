"""The mock's own figures beside the harness's, in every form of the report."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from report import fake_run

from harness.analysis.measures import measure
from harness.analysis.truth import Answer, compare
from harness.report.facts import RunReport, truth_line, truth_rows
from harness.report.html import html
from harness.report.machine import to_json
from harness.report.markdown import markdown
from harness.report.terminal import terminal

LAG_NS = 2_000_000


@pytest.fixture(scope="module")
def report() -> RunReport:
    """A report on a mock that saw everything two milliseconds before the harness did."""
    plain = fake_run.report()
    answers = [
        Answer(
            row["request_id"],
            row["started_ns"],
            row["ended_ns"] - LAG_NS,
            np.array(row["chunk_ns"], dtype=np.int64) - LAG_NS,
            row["completion_tokens"] or 0,
        )
        for row in plain.records.to_pylist()
        if row["ended_ns"] is not None
    ]
    truth = compare(measure(plain.records), plain.summary.window_s, answers, zero_ns=0)
    return msgspec.structs.replace(plain, truth=truth)


def test_each_figure_that_truth_knows_has_it_beside_it(report: RunReport):
    rows = truth_rows(report)
    assert {row.measure for row in rows} == {"response", "service", "TTFT", "ITL", "TPOT"}
    response = next(row for row in rows if (row.kind, row.measure) == ("all", "response"))
    assert response.error_p50 == response.error_p99 == "2.00 ms"
    assert response.p50 != response.true_p50


@pytest.mark.parametrize("form", [html, markdown, lambda report: terminal(report, 140)])
def test_every_form_for_people_has_the_column(report: RunReport, form):
    text = form(report)
    assert "error P99" in text
    assert "truth" in text
    response = next(row for row in truth_rows(report) if row.measure == "response")
    assert response.true_p50 in text


def test_the_form_for_machines_has_it_too(report: RunReport):
    truth = msgspec.json.decode(to_json(report))["truth"]
    assert truth["kinds"]["all"]["response"]["error"]["maximum"] == pytest.approx(0.002)


def test_what_is_not_covered_and_what_was_counted_is_told(report: RunReport):
    assert "0 missing" in truth_line(report.truth)
    assert " counted, " in truth_line(report.truth)


@pytest.mark.parametrize("form", [html, markdown, terminal])
def test_other_targets_have_no_such_column(form):
    assert "error P99" not in form(fake_run.report())


def test_no_line_is_wider_than_the_terminal(report: RunReport):
    assert max(map(len, terminal(report, 100).splitlines())) <= 100
