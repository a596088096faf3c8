"""truth.py: the harness's figures beside the mock's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from factories import failure, ms, record, stream, table

from harness.analysis.measures import measure
from harness.analysis.truth import Truth, compare, read
from harness.record import Record

ZERO_NS = 1_000_000_000
WINDOW = (0.0, 10.0)


def line(row: Record, *, lag_ns: int = 0, **overrides: Any) -> bytes:
    """A truth-log line that says that all happened so long before the harness saw it."""
    assert row.started_ns is not None
    assert row.ended_ns is not None
    entry = {
        "request_id": row.request_id,
        "number": row.seq + 1,
        "path": "/chat/completions",
        "arrived_ns": ZERO_NS + row.started_ns + ms(1),
        "ended_ns": ZERO_NS + row.ended_ns - lag_ns,
        "chunk_ns": [ZERO_NS + stamp - lag_ns for stamp in row.chunk_ns],
        "completion_tokens": row.usage.completion if row.usage else 0,
    }
    return json.dumps(entry | overrides).encode() + b"\n"


def compared(rows: list[Record], lines: list[bytes]) -> Truth:
    head = b'{"clock":{"wall_ns":1,"monotonic_ns":1,"boot_id":"b"},"pid":1,"forgotten":0}\n'
    return compare(measure(table(rows)), WINDOW, read([head, *lines]), zero_ns=ZERO_NS)


def many(count: int = 30) -> list[Record]:
    return [stream(seq=seq) for seq in range(count)]


def test_what_lies_between_the_stamps_is_the_error():
    rows = many()
    found = compared(rows, [line(row, lag_ns=ms(2)) for row in rows]).kinds["all"]
    for name in ("response", "ttft"):
        assert found[name].error.quantiles["p50"].value == pytest.approx(0.002)
        assert found[name].error.maximum == pytest.approx(0.002)
    # The request took 1 ms to arrive, and its end 2 ms to be seen.
    assert found["service"].error.quantiles["p50"].value == pytest.approx(0.003)
    # A lag that is always the same is in no gap.
    assert found["itl"].error.maximum == pytest.approx(0, abs=1e-9)
    assert found["tpot"].error.maximum == pytest.approx(0, abs=1e-9)


def test_truth_is_the_mocks_own_figure():
    rows = many()
    measures = measure(table(rows))
    found = compared(rows, [line(row, lag_ns=ms(2)) for row in rows]).kinds["all"]
    assert found["ttft"].truth.maximum == pytest.approx(measures.ttft.max() - 0.002)
    assert found["itl"].truth.n == len(measures.itl)
    assert found["itl"].truth.maximum == pytest.approx(measures.itl.max())


def test_a_chunk_that_was_not_counted_shows_and_pairs_no_gaps():
    rows = many(2)
    extra = [*(ZERO_NS + stamp for stamp in rows[0].chunk_ns), ZERO_NS + ms(500)]
    found = compared(rows, [line(rows[0], chunk_ns=extra), line(rows[1])])
    assert found.chunks[1] == found.chunks[0] + 1
    assert found.kinds["all"]["itl"].truth.n == len(rows[1].chunk_ns) - 1


def test_tokens_are_compared_by_their_sums():
    rows = many(3)
    found = compared(rows, [line(row, completion_tokens=7) for row in rows])
    assert found.tokens == (15, 21)


def test_requests_are_joined_by_id_and_what_is_left_on_either_side_is_told():
    rows = many(4)
    stranger = line(rows[0], request_id="stranger")
    found = compared(rows, [*(line(row) for row in rows[1:]), stranger])
    assert (found.joined, found.missing, found.unknown) == (3, 1, 1)


def test_the_last_attempt_stands_for_its_request():
    row = stream(seq=0)
    early = line(row, ended_ns=ZERO_NS + ms(1), chunk_ns=[])
    assert compared([row], [early, line(row)]).chunks == (len(row.chunk_ns),) * 2


def test_only_what_was_judged_and_ended_well_is_compared():
    rows = [record(seq=0), failure(seq=1), record(seq=2, due_ns=ms(20_000))]
    found = compared(rows, [line(row) for row in rows])
    assert (found.joined, found.missing, found.unknown) == (1, 0, 0)


def test_kinds_stand_apart_where_there_are_several():
    rows = [record(seq=0), stream(seq=1)]
    found = compared(rows, [line(row) for row in rows])
    assert list(found.kinds) == ["all", "completion", "stream"]
    assert "ttft" not in found.kinds["completion"]
    assert list(compared(rows[:1], [line(rows[0])]).kinds) == ["all"]


def test_a_run_without_requests_has_no_truth_and_no_error():
    found = compared([], [])
    assert (found.joined, found.chunks, found.kinds) == (0, (0, 0), {"all": {}})
