"""terminal.py: the verdict first, nothing cut off."""

from __future__ import annotations

import re

import msgspec
import pytest
from report import fake_run
from rich.cells import cell_len

from harness.analysis.validity import Validity
from harness.report.html import html
from harness.report.markdown import markdown
from harness.report.terminal import terminal
from harness.slo.verdict import State


@pytest.mark.parametrize("state", list(State))
def test_the_verdict_stands_in_the_first_line_and_its_reason_in_the_next(state):
    report = fake_run.report(state)
    first, second, third, *_ = terminal(report, 200).splitlines()
    assert f" {state} " in first
    if state is State.INVALID:
        assert "The instrument failed 1 of its" in second
        assert "started 215 ms after they were due at P99, 25 ms are allowed. Remedy: Raise" in third
    else:
        assert report.verdict.reason[1:] in second


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("state", [State.FAIL, State.INCONCLUSIVE])
def test_no_line_is_wider_than_the_terminal_and_no_verdict_is_broken(width, state):
    text = terminal(fake_run.report(state), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.count(state) >= 2


def test_there_are_no_escapes_unless_colour_is_asked_for():
    report = fake_run.report()
    assert "\x1b" not in terminal(report)
    assert "\x1b[" in terminal(report, colour=True)


def test_colour_adds_nothing_but_escapes():
    report = fake_run.report()
    plain = "".join(terminal(report).split())
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", terminal(report, colour=True))
    assert "".join(coloured.split()) == plain


def test_an_invalid_run_says_what_to_do():
    text = terminal(fake_run.report(State.INVALID), 200)
    assert "Remedy: Raise --workers" in text
    assert "NOT VALID" in text


def test_a_remedy_is_given_once_with_all_its_causes():
    report = fake_run.report(State.INVALID)
    (late,) = (each for each in report.verdict.validity.checks if not each.passed)
    hub = msgspec.structs.replace(late, name="hub_lag", cause="the event loop was away")
    other = msgspec.structs.replace(late, name="files", cause="no file was left", remedy="ulimit -n 9")
    verdict = msgspec.structs.replace(
        report.verdict, validity=Validity([*report.verdict.validity.checks, hub, other])
    )
    report = msgspec.structs.replace(report, verdict=verdict)
    for form in (html, markdown, lambda each: terminal(each, 400)):
        text = re.sub(r"<[^>]*>|\\", "", form(report)).split("Objectives")[0]
        assert text.count("Remedy: Raise --workers") == 1
        assert re.search(r"started 215 ms [^.]*\. The event loop was away\. Remedy: Raise --workers", text)
        assert "No file was left. Remedy: Ulimit -n 9." in text


def test_an_inconclusive_run_says_how_many_more_are_needed():
    report = fake_run.report(State.INCONCLUSIVE)
    (needed,) = [each.more_needed for each in report.verdict.objectives if each.more_needed]
    text = terminal(report, 200)
    assert f"{needed:,}\n" in text[text.index("still needed") :]


def test_texts_of_the_run_are_not_taken_for_markup():
    report = fake_run.report()
    run = msgspec.structs.replace(report.run, name="[red]x[/red] :smile:")
    text = terminal(msgspec.structs.replace(report, run=run), 200)
    assert "[red]x[/red] :smile:" in text


def test_a_run_without_records_still_has_a_report():
    assert " INVALID " in terminal(fake_run.assemble([]))
