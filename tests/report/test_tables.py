"""tables.py: at any width a figure stays whole, and what is left out was said to be spare."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from report import fake_run
from rich.cells import cell_len

from harness.report.tables import Sheet, tables
from harness.report.terminal import terminal
from harness.slo.verdict import State

SHEET = Sheet(
    "Way",
    ("to", "it", "error P50", "time", "share", "what it says", "note"),
    [
        ("there", "slow", "1.00 ms", "66.8 µs [60.1, 70.2]", "≤ 0.378 %", "more than one word at 12 ms", ""),
        ("there", "fast", "2.00 ms", "1,580 tokens/s", "≥ 99.6 %", "less", ""),
    ],
    right=("error P50", "time", "share"),
    lead=2,
    spare=(("error P50",), ("share",)),
    grouped=True,
)
WIDE = max(len(line) for line in tables([SHEET], width=200).splitlines())
WIDTHS = range(30, 130)
BROKEN = re.compile(r"^\s*(?:[mnµ]?s|%|tokens/s|/s|refused_by_server)(?!\w)")


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 140])
@pytest.mark.parametrize("state", [State.FAIL, State.INVALID])
def test_no_line_of_the_report_begins_with_a_unit_or_is_wider_than_the_terminal(
    width: int, state: State
) -> None:
    for line in terminal(fake_run.report(state), width).splitlines():
        assert cell_len(line) <= width
        assert not BROKEN.match(line.strip("│ ")), line


def test_no_line_of_a_table_is_too_wide_and_each_figure_stands_in_one() -> None:
    for width in WIDTHS:
        lines = tables([SHEET], width=width).splitlines()
        assert max(map(cell_len, lines)) <= width
        for figure in ("66.8 µs [60.1, 70.2]", "1,580 tokens/s"):
            assert any(figure in line for line in lines), (width, figure)


def test_a_figure_among_words_is_not_broken_either() -> None:
    for width in WIDTHS:
        assert any("12 ms" in line for line in tables([SHEET], width=width).splitlines()), width


def test_what_is_empty_goes_first_and_then_what_is_spare() -> None:
    seen = [
        [name for name in SHEET.columns if name in tables([SHEET], width=width).splitlines()[1]]
        for width in range(WIDE, 40, -1)
    ]
    gone = [set(more) - set(less) for more, less in pairwise(seen) if more != less]
    assert gone[:3] == [{"note"}, {"error P50"}, {"share"}]


def test_where_no_table_has_room_each_row_says_all_it_has_in_lines() -> None:
    assert tables([SHEET], width=30).splitlines() == [
        "Way",
        "there  slow",
        "  error P50: 1.00 ms",
        "  time: 66.8 µs [60.1, 70.2]",
        "  share: ≤ 0.378 %",
        "  what it says: more than one",
        "  word at 12 ms",
        "there  fast",
        "  error P50: 2.00 ms",
        "  time: 1,580 tokens/s",
        "  share: ≥ 99.6 %",
        "  what it says: less",
    ]


def test_blanks_are_plain_ones_so_that_figures_can_be_searched_for() -> None:
    text = terminal(fake_run.report(State.FAIL), 60)
    assert not re.search("[\u00a0\ue000]", text)


def test_an_address_that_the_border_has_no_room_for_stands_within() -> None:
    report = fake_run.report(State.PASS)
    assert f"default → {report.run.target}" in "".join(re.split(r"\s*[│\n]+\s*", terminal(report, 36)))
