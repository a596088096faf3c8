"""A verdict that is not the planned one says so beside its word, in every form of the report."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest
from report import fake_run

from harness.report import facts
from harness.report.facts import RunReport
from harness.report.html import html
from harness.report.junit import junit
from harness.report.machine import to_json
from harness.report.markdown import markdown
from harness.report.terminal import terminal
from harness.slo.verdict import State

FLAGS = ("--threshold 'response: p(50) < 10s'", "--window 10s,20s")
FORMS: dict[str, Callable[[RunReport], str]] = {
    "terminal": lambda report: terminal(report, 400),
    "markdown": lambda report: markdown(report).replace("\\", ""),
    "html": html,
    "junit": junit,
    "json": lambda report: to_json(report).decode(),
}
BESIDE_THE_WORD = {
    "terminal": "PASS  {}  ─",
    "markdown": "## PASS ({}): default",
    "html": '<p class="word">PASS<small> {}</small></p>',
    "junit": '<property name="verdict_marks" value="{}" />',
}


def judged_by_hand(*flags: str) -> RunReport:
    return msgspec.structs.replace(fake_run.report(State.PASS), by_hand=flags)


def stopped(reason: str, cut_off: int = 0) -> RunReport:
    rows = fake_run.records(faults=0.0)
    ended = len(rows) - cut_off
    rows[ended:] = [
        msgspec.structs.replace(row, outcome="cancelled", error="cut off: the run ended first")
        for row in rows[ended:]
    ]
    report = fake_run.assemble(rows)
    manifest = msgspec.structs.replace(report.manifest, stop_reason=reason)
    return msgspec.structs.replace(report, manifest=manifest)


@pytest.mark.parametrize("form", BESIDE_THE_WORD)
@pytest.mark.parametrize(
    ("stop_reason", "flags", "mark"),
    [
        ("completed", FLAGS, "by hand"),
        ("interrupted", (), "stopped early"),
        ("interrupted", FLAGS, "stopped early, by hand"),
    ],
)
def test_the_mark_stands_beside_the_verdict(
    form: str, stop_reason: str, flags: tuple[str, ...], mark: str
) -> None:
    report = msgspec.structs.replace(stopped(stop_reason), by_hand=flags)
    assert BESIDE_THE_WORD[form].format(mark) in FORMS[form](report)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_by_what_else_it_was_judged(form: str) -> None:
    text = FORMS[form](judged_by_hand(*FLAGS)).replace("&#39;", "'").replace("&lt;", "<")
    assert "by other objectives and in another window than planned, by hand: --threshold 'response" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_verdict_as_planned_bears_no_mark(form: str) -> None:
    text = FORMS[form](fake_run.report(State.PASS))
    assert not re.search(r"by hand[^l]|stopped early|interrupted", text.replace('"by_hand":', ""))


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_run_is_no_planned_one(form: str) -> None:
    text = FORMS[form](stopped("interrupted"))
    assert "The run was interrupted" in text
    assert "errs more often than the 5 % allowed for" in text


def test_another_window_alone_is_no_other_objective() -> None:
    (caveat,) = facts.caveats(judged_by_hand("--window 10s,20s"))
    assert caveat == "Judged in another window than planned, by hand: --window 10s,20s."


def test_what_was_cut_off_is_counted_and_not_judged() -> None:
    report = stopped("interrupted", cut_off=25)
    assert report.verdict.state is State.PASS
    (caveat,) = facts.caveats(report)
    assert "Cut off with it and not judged: 25 requests under way, likely the slowest." in caveat
    assert "1 request under way" in facts.caveats(stopped("interrupted", cut_off=1))[0]


def test_a_run_that_was_cut_off_whole_proves_nothing() -> None:
    report = stopped("interrupted", cut_off=len(fake_run.records(faults=0.0)))
    assert report.verdict.state is State.INCONCLUSIVE
    assert report.summary.total.errors == {}


def test_the_files_of_a_run_judged_by_hand_are_told_to_hold_the_planned_verdict() -> None:
    assert "left as they were" in facts.files_line(judged_by_hand(*FLAGS))
    assert "left as they were" in " ".join(terminal(judged_by_hand(*FLAGS), 400).split())
