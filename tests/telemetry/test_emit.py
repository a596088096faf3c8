"""A run's records reach the collector or the file, and the books say exactly how many."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from telemetry_cases import MS, RUN, START_NS, Collector, dropped, grpc_collector, http_collector, record, run

from harness.record import Record, TelemetryLedger
from harness.runlog import MERGED_SCHEMA, to_batch
from harness.telemetry.emit import Emitter, emit, records_of

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def emitted(records: Sequence[Record], folder: Path, **environ: str) -> TelemetryLedger:
    return emit(RUN, [to_batch(records)], folder, environ=environ, thresholds_s=(0.5,), patience_s=2.0)


def balanced(ledger: TelemetryLedger) -> bool:
    return ledger.spans == ledger.exported + ledger.dropped + ledger.failed


def span_ids(collector: Collector) -> set[tuple[str, str]]:
    return {(span.trace_id.hex(), span.span_id.hex()) for span in collector.spans}


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_rows_of_the_log_are_the_records_again() -> None:
    cases = [record(), dropped(1), record(2, usage=None, tags={"team": "blue"}, retry_after_s=1.5)]
    assert list(records_of(to_batch(cases))) == cases
    merged = pa.Table.from_batches([to_batch(cases)])
    merged = merged.append_column(MERGED_SCHEMA.field("worker"), pa.repeat(pa.scalar(0, pa.int32()), 3))
    assert list(records_of(merged.to_batches()[0])) == cases
    assert list(records_of(to_batch(cases).slice(1, 2))) == cases[1:]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_every_span_reaches_the_collector_with_its_ids(protocol: str, tmp_path: Path) -> None:
    cases = [record(seq) for seq in range(1100)]
    with grpc_collector() if protocol == "grpc" else http_collector() as collector:
        environ = {
            ENDPOINT: collector.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=hunter%202",
        }
        ledger = emitted(cases, tmp_path, **environ)
    assert (ledger.records, ledger.spans, ledger.exported) == (1100, 2200, 2200)
    assert (ledger.dropped, ledger.failed, ledger.errors) == (0, 0, [])
    assert len(collector.spans) == 2200
    assert {(case.trace_id, case.span_id) for case in cases} < span_ids(collector)
    assert collector.headers[0]["x-key"] == "hunter 2"
    assert collector.series()["gen_ai.client.inference.duration"].histogram.data_points[0].count == 1100
    assert sum(
        len(m.histogram.data_points) + len(m.sum.data_points) for m in collector.series().values()
    ) == (ledger.metric_points)
    assert ledger.metric_points_failed == 0
    assert not list(tmp_path.iterdir())


def test_the_resource_names_the_run(tmp_path: Path) -> None:
    with http_collector() as collector:
        emitted(
            [record()], tmp_path, **{ENDPOINT: collector.endpoint, "OTEL_RESOURCE_ATTRIBUTES": "team=blue"}
        )
    attributes = {
        item.key: item.value.string_value
        for item in collector.traces[0].resource_spans[0].resource.attributes
    }
    assert attributes["service.name"] == "llm-load-harness"
    assert attributes["service.instance.id"] == attributes["harness.run.id"] == "run-1"
    assert attributes["team"] == "blue"


def test_retries_share_their_trace_and_their_session(tmp_path: Path) -> None:
    first = record(final=False, outcome="http_error", status=503)
    second = record(attempt=1, span_id="f" * 16, started_ns=300 * MS, ended_ns=500 * MS)
    with http_collector() as collector:
        ledger = emitted([first, second], tmp_path, **{ENDPOINT: collector.endpoint})
    assert ledger.spans == 3
    attempts = [span for span in collector.spans if span.links]
    (session,) = [span for span in collector.spans if not span.links]
    assert {span.trace_id for span in attempts} == {bytes.fromhex(first.trace_id)}
    assert {span.links[0].span_id for span in attempts} == {session.span_id}
    assert session.start_time_unix_nano == START_NS + 2 * MS
    assert session.end_time_unix_nano == START_NS + 500 * MS


def test_a_session_of_several_turns_is_one_span_at_the_end(tmp_path: Path) -> None:
    # As the workload numbers them: the first turn's request id is the session's.
    ids = ["talk", "talk.t1", "talk.t2"]
    turns = [
        record(turn, session="talk", request_id=ids[turn], turn=turn, ended_ns=(200 + turn) * MS)
        for turn in range(3)
    ]
    scenario = {**RUN.scenario, "traffic": [{"kind": "stream", "turns": 3}]}
    with http_collector() as collector:
        emitter = Emitter(
            msgspec.structs.replace(RUN, scenario=scenario), tmp_path, environ={ENDPOINT: collector.endpoint}
        )
        for turn in turns:
            emitter.feed(to_batch([turn]))
        ledger = emitter.finish()
    assert ledger.spans == 4
    assert [span.name for span in collector.spans].count("session") == 1
    assert collector.spans[-1].end_time_unix_nano == START_NS + 202 * MS


def test_dropped_arrivals_make_no_span_but_are_counted(tmp_path: Path) -> None:
    with http_collector() as collector:
        ledger = emitted([record(), dropped(1), dropped(2)], tmp_path, **{ENDPOINT: collector.endpoint})
    assert (ledger.records, ledger.spans) == (3, 2)
    assert collector.series()["harness.arrivals.dropped"].sum.data_points[0].as_int == 2


def test_without_an_endpoint_the_files_hold_it_all(tmp_path: Path) -> None:
    cases = [record(seq) for seq in range(600)]
    ledger = emitted(cases, tmp_path)
    assert ledger.destination == "traces.otlp.jsonl, metrics.otlp.jsonl"
    lines = (tmp_path / "traces.otlp.jsonl").read_bytes().splitlines()
    spans = [
        span
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert len(spans) == ledger.spans == ledger.exported == 1200
    assert {(case.trace_id, case.span_id) for case in cases} < {(s["traceId"], s["spanId"]) for s in spans}
    assert (tmp_path / "metrics.otlp.jsonl").read_bytes().count(b"\n") == 1


def test_emitting_again_gives_the_same_files(tmp_path: Path) -> None:
    cases = [record(seq) for seq in range(10)]
    contents = []
    for _ in range(2):
        emitted(cases, tmp_path)
        contents.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_unreachable_collector_fails_every_span_in_bounded_time(protocol: str, tmp_path: Path) -> None:
    environ = {
        ENDPOINT: f"http://127.0.0.1:{unused_port()}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2",
    }
    batches = [to_batch([record(seq) for seq in range(600)])] * 4
    started = time.monotonic()
    ledger = emit(RUN, batches, tmp_path, environ=environ, patience_s=0.2)
    assert time.monotonic() - started < 10
    assert (ledger.spans, ledger.exported, ledger.failed) == (4800, 0, 4800)
    assert ledger.metric_points_failed == ledger.metric_points > 0
    assert ledger.errors
    assert "hunter2" not in msgspec.json.encode(ledger).decode()


def test_a_collector_that_answers_500_fails_every_span(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with http_collector(status=500) as collector:
        environ = {ENDPOINT: collector.endpoint, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2"}
        ledger = emitted([record(seq) for seq in range(10)], tmp_path, **environ)
    assert (ledger.exported, ledger.failed) == (0, 20)
    assert balanced(ledger)
    assert any("500" in error for error in ledger.errors)
    assert "hunter2" not in caplog.text


def test_a_collector_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with http_collector() as collector:
        collector.hold.clear()
        started = time.monotonic()
        environ = {ENDPOINT: collector.endpoint}
        ledger = emit(RUN, [to_batch([record()])], tmp_path, environ=environ, patience_s=0.2)
        assert time.monotonic() - started < 10
    assert (ledger.exported, ledger.failed) == (0, 2)
    assert balanced(ledger)


def test_a_collector_that_comes_back_gets_the_rest(tmp_path: Path) -> None:
    with http_collector(status=500) as collector:
        environ = {ENDPOINT: collector.endpoint, "OTEL_METRICS_EXPORTER": "none"}
        emitter = Emitter(RUN, tmp_path, environ=environ)
        emitter.feed(to_batch([record(seq) for seq in range(256)]))
        collector.status = 200
        emitter.feed(to_batch([record(seq) for seq in range(256, 512)]))
        ledger = emitter.finish()
    assert balanced(ledger)
    assert ledger.exported == len(collector.spans)


def test_what_the_sampler_leaves_out_is_counted(tmp_path: Path) -> None:
    # The lower 64 bits of the trace id decide: half of these are above the bound.
    cases = [record(seq, trace_id=f"{seq + 1:016x}{(seq % 2) * (2**64 - 1):016x}") for seq in range(100)]
    with http_collector() as collector:
        sampler = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
        ledger = emitted(cases, tmp_path, **{ENDPOINT: collector.endpoint}, **sampler)
    assert ledger.spans == 200
    assert ledger.exported == len(collector.spans)
    assert ledger.dropped == 200 - ledger.exported
    assert {case.trace_id for case in cases[::2]} == {
        trace for trace, _ in span_ids(collector) if trace.endswith("0" * 16)
    }
    assert collector.series()["harness.requests"].sum.data_points[0].as_int == 100


def test_telemetry_that_is_off_makes_only_books(tmp_path: Path) -> None:
    ledger = emitted([record()], tmp_path, OTEL_SDK_DISABLED="true")
    assert (ledger.spans, ledger.dropped, ledger.metric_points) == (2, 2, 0)
    assert ledger.destination == "none"
    assert not list(tmp_path.iterdir())


def test_metrics_are_exported_as_the_run_goes_and_at_its_end(tmp_path: Path) -> None:
    batches = [to_batch([record(seq, ended_ns=seq * 1000 * MS)]) for seq in range(1, 8)]
    emit(RUN, batches, tmp_path, environ={"OTEL_METRIC_EXPORT_INTERVAL": "2000"})
    lines = (tmp_path / "metrics.otlp.jsonl").read_bytes().splitlines()
    times = [
        int(m["sum"]["dataPoints"][0]["timeUnixNano"]) - START_NS
        for line in lines
        for m in json.loads(line)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        if m["name"] == "harness.requests"
    ]
    assert times == [2000 * MS, 4000 * MS, 6000 * MS, 7000 * MS]


def test_no_prompt_and_no_answer_text_leaves_the_run(tmp_path: Path) -> None:
    entry = {
        "kind": "stream",
        "prompt": {"source": "jsonl", "path": "private-prompts.jsonl"},
        "parameters": {"extra": {"system": "private-prompt"}},
    }
    environ = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    emit(run(scenario={"traffic": [entry]}), [to_batch([record()])], tmp_path, environ=environ)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"private" not in written
    assert b"messages" not in written
