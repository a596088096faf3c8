"""How long a report of 100,000 records takes to compute."""

from __future__ import annotations

import pytest
from factories import manifest, record, run, stream, table

from harness.analysis.measures import measure
from harness.analysis.summary import summarise
from harness.analysis.validity import validate
from harness.slo.objectives import parse
from harness.slo.verdict import State, judge

N = 100_000
WINDOW = (0.0, N / 100)
OBJECTIVES = [parse("response: p(99) < 500ms"), parse("errors: rate < 0.1%")]


@pytest.fixture(scope="module")
def rows():
    return table([stream(seq=seq) if seq % 2 else record(seq=seq) for seq in range(N)])


def test_measure(benchmark, rows):
    assert len(benchmark(measure, rows)) == N


def test_summarise(benchmark, rows):
    measures = measure(rows)
    assert benchmark(summarise, measures, OBJECTIVES, WINDOW).total.requests == N


def test_validate_and_judge(benchmark, rows):
    measures = measure(rows)

    def verdict():
        validity = validate(
            measures, OBJECTIVES, WINDOW, run=run(), manifest=manifest(N), samples=[], planned=N
        )
        return judge(measures, OBJECTIVES, validity, WINDOW)

    assert benchmark(verdict).state is State.INVALID  # no worker left samples of its health
