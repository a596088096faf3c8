"""markdown.py: tables that stay tables."""

from __future__ import annotations

import re

import pytest
from report import fake_run

from harness.report.markdown import markdown
from harness.slo.verdict import State


@pytest.mark.parametrize("state", list(State))
def test_the_verdict_is_the_heading(state):
    assert markdown(fake_run.report(state)).startswith(f"## {state}: default\n")


def test_every_row_has_as_many_cells_as_its_header():
    cells = []
    for line in markdown(fake_run.hostile()).splitlines():
        if not line.startswith("|"):
            cells = []
            continue
        cells.append(len(re.split(r"(?<!\\)\|", line)))
        assert cells[-1] == cells[0]


def test_texts_of_the_run_are_escaped():
    text = markdown(fake_run.hostile())
    assert re.search(r"(?<!\\)<script", text) is None
    assert r"\<script\>" in text


def test_it_fits_a_comment():
    assert len(markdown(fake_run.report())) < 65_536


def test_all_figures_of_the_objectives_are_there():
    report = fake_run.report(State.FAIL)
    text = markdown(report)
    assert "15 of 4,196" in text
    assert "**PASS**" in text
    assert "**FAIL**" in text
