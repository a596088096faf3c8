import msgspec
import numpy as np
import pytest
from report import fake_run

from harness.analysis.floor import LEAST, Floor, unmeasured
from harness.analysis.stats import distribution
from harness.report import facts
from harness.report.html import html
from harness.report.junit import junit
from harness.report.machine import to_json
from harness.report.markdown import markdown
from harness.report.terminal import terminal
from harness.slo.verdict import State


def floor(added_s: float, streams: int = 400) -> Floor:
    sizes = {"ttft": streams, "response": 400, "itl": streams}
    errors = {name: distribution(np.full(n, added_s), name, "s") for name, n in sizes.items()}
    return Floor(
        run="r",
        profile="demo",
        window_s=(0.0, 3.0),
        rate_per_s=133.0,
        requests=400,
        unmatched=0,
        miscounted=0,
        added=errors,
        lateness=distribution(np.full(400, added_s), "lateness", "s"),
        hub_lag_max_s=0.001,
        cpu_share=0.1,
        mock_lateness_max_s=0.001,
    )


@pytest.mark.parametrize(("added_s", "marked"), [(0.0005, False), (10.0, True)])
def test_a_judged_time_below_three_times_the_floor_is_marked(added_s: float, marked: bool) -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(added_s))
    rows = facts.objective_rows(report)
    assert any("not resolvable" in row.observed for row in rows) is marked


@pytest.mark.parametrize("form", [to_json, junit, markdown, html, terminal])
def test_every_form_of_the_report_bears_the_mark(form) -> None:
    def said(added_s: float) -> bool:
        text = form(msgspec.structs.replace(fake_run.report(State.PASS), floor=floor(added_s)))
        text = text.decode() if isinstance(text, bytes) else text
        return '"resolvable": false' in text or "not resolvable" in text.split("Noise floor")[0]

    assert said(10.0)
    assert not said(0.0005)


def test_the_limit_is_marked_where_n_is_too_small_for_a_figure() -> None:
    few = fake_run.report(State.INCONCLUSIVE, rate=2.0)
    (judged, *_) = few.verdict.objectives
    assert judged.observed.value is None
    assert facts.unresolved(judged, floor(0.2)) == ", limit not resolvable"
    assert facts.unresolved(judged, floor(0.1)) == ""


def test_what_was_not_measured_is_not_in_the_floor() -> None:
    assert "TTFT 1.00 ms, ITL 1.00 ms" in facts.floor_line(floor(0.001))
    line = facts.floor_line(floor(0.001, streams=0))
    assert line.startswith("response 1.00 ms is the instrument's own error")
    assert "TTFT" not in line


def test_an_error_rate_has_no_floor() -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(10.0))
    errors = [row for row in facts.objective_rows(report) if row.expression.startswith("errors")]
    assert errors
    assert not any("not resolvable" in row.observed for row in errors)


def test_the_floor_stands_beside_the_results() -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(0.0005))
    assert "Noise floor" in terminal(report)
    assert "Noise floor" not in terminal(fake_run.report())


def test_in_what_the_calibration_was_unlike_the_run_is_said() -> None:
    line = facts.floor_line(
        msgspec.structs.replace(floor(0.001), unlike=("over plain HTTP, the run over TLS",))
    )
    assert "at 133 /s (n 400); over plain HTTP, the run over TLS; a judged figure" in line


def test_a_floor_of_a_handful_is_not_told_and_marks_nothing() -> None:
    few = floor(10.0, streams=12)
    assert f"too few compared of TTFT (n 12, {LEAST} are needed), ITL (n 12" in facts.floor_line(few)
    assert facts.floor_line(few).startswith("response 10.0 s is")


@pytest.mark.parametrize("form", [to_json, markdown, terminal])
def test_a_run_whose_floor_was_not_measured_says_why_and_has_no_marks(form) -> None:
    text = form(msgspec.structs.replace(fake_run.report(), floor=unmeasured("the mock died")))
    text = text.decode() if isinstance(text, bytes) else text
    assert "the mock died" in text
    assert "not resolvable" not in text
    assert '"resolvable": false' not in text
