"""Records and tables for tests: whole by default, with any field overridden.

`record(seq=3, ttft_ms=40)` would hide what is tested: times are given as the record holds them, in
nanoseconds; `ms` makes them readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from harness import runlog
from harness.clock import Anchor
from harness.record import Manifest, Outcome, Record, Run, Usage, WorkerLedger


def ms(milliseconds: float) -> int:
    """Milliseconds as nanoseconds."""
    return round(milliseconds * 1_000_000)


def record(**overrides: Any) -> Record:
    """A completion that was due at seq * 10 ms, started on time, and took 100 ms."""
    seq = overrides.get("seq", 0)
    due_ns = overrides.get("due_ns", ms(10 * seq))
    started_ns = overrides.get("started_ns", 0 if due_ns is None else due_ns)
    start = started_ns or 0
    fields: dict[str, Any] = {
        "seq": seq,
        "index": 0,
        "attempt": 0,
        "final": True,
        "request_id": f"r{seq}-{overrides.get('index', 0)}",
        "kind": "completion",
        "dialect": "chat",
        "model": "m",
        "session": f"s{seq}",
        "turn": 0,
        "trace_id": f"{seq + 1:032x}",
        "span_id": f"{seq + 1:016x}",
        "due_ns": due_ns,
        "started_ns": started_ns,
        "connected_ns": None,
        "sent_ns": start + ms(0.1),
        "headers_ns": start + ms(20),
        "first_event_ns": None,
        "first_token_ns": None,
        "first_content_ns": None,
        "chunk_ns": (),
        "ended_ns": start + ms(100),
        "held_ns": 0,
        "status": 200,
        "outcome": Outcome.OK.value,
        "error": "",
        "finish_reason": "stop",
        "usage": Usage(prompt=10, completion=5),
        "retry_after_s": None,
        "reused_connection": True,
        "wire": "http/1.1",
        "bytes_in": 300,
        "bytes_out": 200,
        "tags": {},
    }
    return Record(**(fields | overrides))


def stream(**overrides: Any) -> Record:
    """A stream with its first token 30 ms after its start and five chunks 10 ms apart."""
    seq = overrides.get("seq", 0)
    due_ns = overrides.get("due_ns", ms(10 * seq))
    start = overrides.get("started_ns", 0 if due_ns is None else due_ns) or 0
    chunks = tuple(start + ms(30 + 10 * each) for each in range(5))
    fields: dict[str, Any] = {
        "kind": "stream",
        "first_event_ns": start + ms(25),
        "first_token_ns": chunks[0],
        "first_content_ns": chunks[0],
        "chunk_ns": chunks,
        "ended_ns": start + ms(75),
    }
    return record(**(fields | overrides))


def failure(**overrides: Any) -> Record:
    """An answer of status 500."""
    return record(
        **({"outcome": "http_error", "error": "HTTP 500", "status": 500, "usage": None} | overrides)
    )


def dropped(**overrides: Any) -> Record:
    """An arrival that found no idle virtual user."""
    fields: dict[str, Any] = {
        "outcome": "dropped",
        "error": "no idle user",
        "started_ns": None,
        "sent_ns": None,
        "headers_ns": None,
        "ended_ns": None,
        "status": None,
        "usage": None,
        "finish_reason": None,
    }
    return record(**(fields | overrides))


def table(records: Sequence[Record], *, worker: int = 0) -> pa.Table:
    """A merged run log of these records, of `runlog.MERGED_SCHEMA`."""
    if not records:
        return runlog.MERGED_SCHEMA.empty_table()
    rows = pa.Table.from_batches([runlog.to_batch(records)], runlog.SCHEMA)
    column = pa.repeat(pa.scalar(worker, pa.int32()), len(rows))
    return rows.append_column(runlog.MERGED_SCHEMA.field("worker"), column)


def manifest(arrivals: int, **overrides: Any) -> Manifest:
    """Balanced books of one worker that did everything it planned."""
    ledger = WorkerLedger(
        worker=0,
        planned=arrivals,
        started=arrivals,
        dropped=0,
        not_started=0,
        finished=arrivals,
        cut_off=0,
        records=arrivals,
    )
    fields: dict[str, Any] = {
        "planned": arrivals,
        "started": arrivals,
        "dropped": 0,
        "not_started": 0,
        "lost": 0,
        "finished": arrivals,
        "cut_off": 0,
        "records": arrivals,
        "workers": [ledger],
        "stop_reason": "completed",
        "imbalances": [],
    }
    return Manifest(**(fields | overrides))


def run(**overrides: Any) -> Run:
    """The header of a run against the mock."""
    fields: dict[str, Any] = {
        "name": "test",
        "run_id": "0123456789abcdef",
        "scenario": {"name": "test", "max_in_flight": 100},
        "seed": 1,
        "target": "http://127.0.0.1:1",
        "workers": 1,
        "start": Anchor(wall_ns=0, monotonic_ns=0),
        "started_at": "1970-01-01T00:00:00Z",
        "host": {"name": "test"},
        "versions": {},
        "git_commit": "",
    }
    return Run(**(fields | overrides))
