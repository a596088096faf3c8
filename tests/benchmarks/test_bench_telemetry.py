"""What it costs to tell machines: per record, off the measuring path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import record, run
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from harness.record import Record, Usage
from harness.runlog import to_batch
from harness.telemetry.emit import emit, records_of
from harness.telemetry.metrics import Tallies
from harness.telemetry.otlp_json import traces_line
from harness.telemetry.spans import SpanMaker, resource_of

Benchmark = Callable[..., Any]

RUN = run()
RESOURCE = resource_of(RUN, "llm-load-harness", {})
GAP_NS = 20_000_000


def stream(seq: int) -> Record:
    """A stream of 32 chunks, 20 ms apart."""
    chunks = [(5 + each) * GAP_NS for each in range(32)]
    firsts = dict.fromkeys(("first_event_ns", "first_token_ns", "first_content_ns"), chunks[0])
    ids = {
        "request_id": f"r{seq}",
        "session": f"r{seq}",
        "trace_id": f"{seq + 1:032x}",
        "span_id": f"{seq + 1:016x}",
    }
    return record(
        seq=seq,
        kind="stream",
        due_ns=0,
        chunk_ns=chunks,
        ended_ns=40 * GAP_NS,
        usage=Usage(64, 32),
        **firsts,
        **ids,
    )


RECORDS = [stream(seq) for seq in range(512)]
BATCH = to_batch(RECORDS)
MAKE = SpanMaker(RUN, RESOURCE)
SPANS = [MAKE.attempt(each) for each in RECORDS]


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_reading_rows(benchmark: Benchmark) -> None:
    assert len(benchmark(lambda: list(records_of(BATCH)))) == 512


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_building_spans(benchmark: Benchmark) -> None:
    assert len(benchmark(lambda: [MAKE.attempt(each) for each in RECORDS])) == 512


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_encoding_spans_for_the_wire(benchmark: Benchmark) -> None:
    assert benchmark(lambda: encode_spans(SPANS).SerializeToString())


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_encoding_spans_for_the_file(benchmark: Benchmark) -> None:
    assert benchmark(traces_line, SPANS).endswith(b"\n")


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_tallying_metrics(benchmark: Benchmark) -> None:
    def tally() -> Tallies:
        tallies = Tallies(RUN, RESOURCE, (0.5,))
        for each in RECORDS:
            tallies.add(each)
        return tallies

    assert benchmark(tally).latest_ns == 40 * GAP_NS


@pytest.mark.benchmark(group="telemetry, 512 records")
def test_emitting_to_the_file_from_end_to_end(benchmark: Benchmark, tmp_path: Path) -> None:
    ledger = benchmark(emit, RUN, [BATCH], tmp_path, environ={})
    assert ledger.exported == ledger.spans == 1024
