"""`harness run` against the mock: what it says is what the mock's truth log says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from conftest import Ran
from launching import KEY, assert_books_balance, harness, rows, spans_of, summary, truth

from harness import runlog
from harness.workload import scenario as scenarios
from harness.workload.prompts import workload
from harness.workload.schedule import arrivals

pytestmark = pytest.mark.timeout(400)  # the first test waits for the run that all share

FILES = (
    "end.json",
    "junit.xml",
    "manifest.json",
    "metrics.otlp.jsonl",
    "report.html",
    "report.md",
    "requests.parquet",
    "run.json",
    "summary.json",
    "telemetry.json",
    "traces.otlp.jsonl",
    "truth.jsonl",
)


def pairs(ran: Ran) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each record beside the truth about it."""
    known = truth(ran.folder)
    return [(row, *known[row["request_id"]]) for row in rows(ran.folder)]


def test_a_server_that_meets_its_objectives_passes_with_exit_code_0(mixed_run: Ran) -> None:
    verdict = summary(mixed_run.folder)["verdict"]
    assert verdict["state"] == "PASS", verdict["reason"]
    assert mixed_run.done.returncode == verdict["exit_code"] == 0
    assert "PASS" in mixed_run.done.stdout


def test_a_run_leaves_every_file_that_it_promises(mixed_run: Ran) -> None:
    for name in FILES:
        assert (mixed_run.folder / name).stat().st_size > 0, name
    suite = ET.parse(mixed_run.folder / "junit.xml").getroot()
    assert suite.get("failures") == suite.get("errors") == "0"
    assert (mixed_run.folder / "report.md").read_text().startswith("## PASS")
    assert "PASS" in (mixed_run.folder / "report.html").read_text()


def test_progress_goes_to_stderr_and_the_report_to_stdout(mixed_run: Ran) -> None:
    assert "in flight" in mixed_run.done.stderr
    assert "Objectives" in mixed_run.done.stdout
    assert "Objectives" not in mixed_run.done.stderr


def test_every_planned_arrival_is_accounted_for(mixed_run: Ran) -> None:
    books = assert_books_balance(mixed_run.folder)
    scenario = scenarios.load(mixed_run.scenario)
    assert books.planned == books.finished == sum(1 for _ in arrivals(scenario)) > 100
    assert books.stop_reason == "completed"


def test_every_request_that_was_recorded_reached_the_mock_once_and_no_other_did(mixed_run: Ran) -> None:
    known = truth(mixed_run.folder)
    assert sorted(known) == sorted(row["request_id"] for row in rows(mixed_run.folder))
    assert {len(entries) for entries in known.values()} == {1}


def test_chunks_and_tokens_are_counted_exactly(mixed_run: Ran) -> None:
    assert {row["kind"] for row in rows(mixed_run.folder)} == {"completion", "stream", "batch"}
    for row, true in pairs(mixed_run):
        assert row["outcome"] == "ok"
        assert row["status"] == true["status"] == 200
        assert len(row["chunk_ns"]) == len(true["chunk_ns"])
        assert row["completion_tokens"] == true["completion_tokens"]
        assert row["prompt_tokens"] == true["prompt_tokens"]
        assert row["cached_tokens"] == true["cached_tokens"]
        assert row["usage_source"] == "server"
        assert row["finish_reason"] == true["finish_reason"]
        assert (row["wire"] == "h2") == (row["kind"] == "batch") == (true["protocol"] == "2")


def test_no_stamp_precedes_its_cause(mixed_run: Ran) -> None:
    """Both clocks are CLOCK_MONOTONIC, so that stamps of the two processes compare to the nanosecond."""
    zero_ns = runlog.read_run(mixed_run.folder).start.monotonic_ns
    for row, true in pairs(mixed_run):
        assert row["due_ns"] <= row["started_ns"]
        assert zero_ns + row["started_ns"] <= true["arrived_ns"]
        assert true["headers_ns"] <= zero_ns + row["headers_ns"]
        assert true["ended_ns"] <= zero_ns + row["ended_ns"]
        for seen_ns, written_ns in zip(row["chunk_ns"], true["chunk_ns"], strict=True):
            assert written_ns <= zero_ns + seen_ns
        if row["kind"] == "stream":
            assert row["first_token_ns"] == row["chunk_ns"][0]


def test_the_time_to_first_token_is_the_servers_own_but_for_a_small_part(mixed_run: Ran) -> None:
    zero_ns = runlog.read_run(mixed_run.folder).start.monotonic_ns
    streams = [(row, true) for row, true in pairs(mixed_run) if row["kind"] == "stream"]
    lag_ns = median(zero_ns + row["first_token_ns"] - true["chunk_ns"][0] for row, true in streams)
    measured_ns = median(row["first_token_ns"] - row["started_ns"] for row, _ in streams)
    true_ns = median(true["chunk_ns"][0] - true["arrived_ns"] for _, true in streams)
    assert true_ns <= measured_ns < 1.2 * true_ns
    assert lag_ns < 0.1 * true_ns


def test_the_report_shows_the_time_to_first_token_that_the_records_hold(mixed_run: Ran) -> None:
    (streams,) = (
        group for group in summary(mixed_run.folder)["summary"]["kinds"] if group["kind"] == "stream"
    )
    shown = streams["distributions"]["ttft"]
    from_due_s = sorted(
        (row["first_token_ns"] - row["due_ns"]) / 1e9
        for row in rows(mixed_run.folder)
        if row["kind"] == "stream" and row["due_ns"] >= 0.5e9  # the warm-up's are not judged
    )
    assert shown["n"] == len(from_due_s)
    assert shown["maximum"] == pytest.approx(from_due_s[-1])
    assert from_due_s[0] <= shown["quantiles"]["p50"]["value"] <= from_due_s[-1]


def test_spans_are_as_many_as_the_ledger_says_and_bear_the_records_ids(mixed_run: Ran) -> None:
    ledger = runlog.read_telemetry(mixed_run.folder)
    assert ledger is not None
    spans = list(spans_of(mixed_run.folder))
    assert len(spans) == ledger.spans == ledger.exported
    assert ledger.dropped == ledger.failed == ledger.metric_points_failed == 0
    records = rows(mixed_run.folder)
    assert ledger.records == len(records)
    client = [(span["traceId"], span["spanId"]) for span in spans if span["kind"] == 3]
    assert sorted(client) == sorted((row["trace_id"], row["span_id"]) for row in records)


def everything_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file's text; tables are taken out of their compression first."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".parquet", ".arrows"}:
            yield path.name, path.read_bytes().decode(errors="replace")
    tail = runlog.Tail(runlog.records_path(folder, 0))
    yield tail.path.name, repr([batch.to_pylist() for batch in tail.poll()])
    yield "requests.parquet", repr(rows(folder))


def test_no_prompt_is_kept(mixed_run: Ran) -> None:
    scenario = scenarios.load(mixed_run.scenario)
    ask = workload(scenario)
    texts = [request.messages[0]["content"] for seq in range(5) for request in ask(seq)]
    runs_of_words = [" ".join(text.split()[at : at + 3]) for text in texts for at in range(0, 30, 3)]
    for name, text in everything_in(mixed_run.folder):
        assert not [words for words in runs_of_words if words in text], name


def test_the_key_is_sent_and_kept_nowhere(mixed_run: Ran) -> None:
    """The mock of this run answers 401 to any other key, and every answer was 200."""
    for name, text in everything_in(mixed_run.folder):
        assert KEY not in text, name
    assert KEY not in mixed_run.done.stdout + mixed_run.done.stderr


def test_the_report_can_be_made_again_from_the_records_alone(mixed_run: Ran) -> None:
    again = harness("report", mixed_run.folder, "--json", cwd=mixed_run.folder.parent)
    assert again.returncode == mixed_run.done.returncode
    assert json.loads(again.stdout) == summary(mixed_run.folder)
