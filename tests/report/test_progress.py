"""progress.py: one moment, in one line or a few."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.report.numbers import NONE
from harness.report.progress import Progress, line, live

MOMENT = Progress(
    elapsed_s=12.3,
    remaining_s=17.7,
    due=1400,
    started=1399,
    in_flight=20,
    done=1379,
    errors=2,
    response_p50_s=0.1402,
    response_p99_s=0.33,
    ttft_p99_s=0.12,
    tokens_per_s=2104.4,
    note="draining",
)
START = Progress(0.0, None, 0, 0, 0, 0, 0, None, None, None, None)


def shown(progress: Progress, width: int) -> str:
    paper = io.StringIO()
    Console(file=paper, width=width).print(live(progress))
    return paper.getvalue()


def test_the_line_says_it_all():
    assert line(MOMENT) == (
        "0:12 (-0:17)  arrivals: due 1,400  started 1,399  in flight 20  requests: done 1,379  errors 2  "
        "response P50 140 ms  P99 330 ms  TTFT P99 120 ms  2,100 tokens/s  draining"
    )


@pytest.mark.parametrize("progress", [MOMENT, START])
def test_the_line_is_one_line_of_plain_text(progress):
    assert "\n" not in line(progress)
    assert "\x1b" not in line(progress)


def test_before_the_first_answer_there_are_dashes_and_no_remaining_time():
    assert line(START).startswith("0:00  arrivals: due 0  ")
    assert f"response P50 {NONE}" in line(START)


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_fits_and_has_every_number(width):
    text = shown(MOMENT, width)
    assert len(text.splitlines()) == 5
    for number in (
        "1,400",
        "1,399",
        "20",
        "1,379",
        "2",
        "140 ms",
        "330 ms",
        "120 ms",
        "2,100 tokens/s",
        "draining",
    ):
        assert number in text


def test_the_live_table_does_without_an_end():
    assert "(-" not in shown(START, 80)
