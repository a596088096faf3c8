"""A run that never happened, realistic enough to be reported on: seeded, about 4,000 requests."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache

import msgspec
import pyarrow as pa

from harness import runlog
from harness.analysis.measures import measure
from harness.analysis.summary import summarise
from harness.analysis.validity import validate
from harness.clock import Anchor
from harness.record import Manifest, Outcome, Record, Run, Sample, TelemetryLedger, Usage, WorkerLedger
from harness.report.facts import RunReport
from harness.slo.objectives import parse
from harness.slo.verdict import State, judge

DURATION_S = 30.0
_NS = 1_000_000_000


def records(
    *, rate: float = 120.0, seed: int = 7, duration_s: float = DURATION_S, faults: float = 1.0
) -> list[Record]:
    """Poisson arrivals of completions, streams and batches of four, with an incident from second 18 to 20."""
    rng = random.Random(seed)
    made: list[Record] = []
    t_s, seq = 0.0, 0
    while (t_s := t_s + rng.expovariate(rate)) < duration_s:
        kind = rng.choices(("completion", "stream", "batch"), (0.55, 0.4, 0.05))[0]
        for index in range(4 if kind == "batch" else 1):
            made.extend(_attempts(rng, seq, index, kind, t_s, faults=faults))
        seq += 1
    return made


def _attempts(
    rng: random.Random, seq: int, index: int, kind: str, due_s: float, *, faults: float
) -> list[Record]:
    first = _record(rng, seq, index, kind, due_s, attempt=0, faults=faults)
    if first.outcome != Outcome.REFUSED_BY_SERVER:
        return [first]
    again = _record(rng, seq, index, kind, due_s, attempt=1, faults=0.0, delay_s=0.2)
    return [msgspec.structs.replace(first, final=False), again]


def _record(
    rng: random.Random,
    seq: int,
    index: int,
    kind: str,
    due_s: float,
    *,
    attempt: int,
    faults: float,
    delay_s: float = 0.0,
) -> Record:
    incident = 18 <= due_s < 20
    outcome = _outcome(rng, faults if incident else 0.0)
    due = int(due_s * _NS)
    started = due + int((delay_s + rng.expovariate(1 / 0.0003)) * _NS)
    slow = 1.8 if incident else 1.0
    ttft_s = 0.045 * slow * math.exp(rng.gauss(0, 0.35))
    tokens = rng.randint(6, 24)
    gaps_s = [0.006 * slow * math.exp(rng.gauss(0, 0.3)) for _ in range(tokens - 1)]
    first = started + int(ttft_s * _NS)
    chunks = [first]
    for gap_s in gaps_s:
        chunks.append(chunks[-1] + int(gap_s * _NS))
    ended = chunks[-1] + 200_000
    ok, stream = outcome == Outcome.OK, kind == "stream"
    if outcome == Outcome.CUT:
        chunks = chunks[: len(chunks) // 2]
    dropped = outcome == Outcome.DROPPED
    return Record(
        seq=seq,
        index=index,
        attempt=attempt,
        final=True,
        request_id=f"r{seq}-{index}",
        kind=kind,
        dialect="chat",
        model="deepseek-flash",
        session=f"s{seq}",
        turn=0,
        trace_id="" if dropped else f"{rng.getrandbits(128):032x}",
        span_id="" if dropped else f"{rng.getrandbits(64):016x}",
        due_ns=due,
        started_ns=None if dropped else started,
        connected_ns=None,
        sent_ns=None if dropped else started + 60_000,
        headers_ns=None if dropped else started + 2_000_000,
        first_event_ns=first if stream and not dropped else None,
        first_token_ns=first if stream and outcome in {Outcome.OK, Outcome.CUT} else None,
        first_content_ns=first if stream and outcome in {Outcome.OK, Outcome.CUT} else None,
        chunk_ns=chunks if stream and outcome in {Outcome.OK, Outcome.CUT} else [],
        ended_ns=None if dropped else ended,
        held_ns=0,
        status=_STATUS.get(outcome),
        outcome=outcome,
        error=_ERROR.get(outcome, ""),
        finish_reason="stop" if ok else None,
        usage=Usage(prompt=64, completion=tokens, cached=32) if ok else None,
        retry_after_s=0.2 if outcome == Outcome.REFUSED_BY_SERVER else None,
        reused_connection=True,
        wire="h2" if kind == "batch" else "http/1.1",
        bytes_in=200 * tokens,
        bytes_out=600,
        tags={},
    )


_STATUS = {Outcome.OK: 200, Outcome.CUT: 200, Outcome.HTTP_ERROR: 500, Outcome.REFUSED_BY_SERVER: 429}
_ERROR = {
    Outcome.CUT: "the stream ended before [DONE]",
    Outcome.HTTP_ERROR: "500 Internal Server Error",
    Outcome.REFUSED_BY_SERVER: "429 Too Many Requests",
    Outcome.TIMEOUT: "no answer within 600 s",
    Outcome.DROPPED: "no idle virtual user",
}


def _outcome(rng: random.Random, faults: float) -> Outcome:
    weights = [0.01 * faults, 0.015 * faults, 0.015 * faults, 0.01 * faults]
    names = (Outcome.CUT, Outcome.HTTP_ERROR, Outcome.REFUSED_BY_SERVER, Outcome.DROPPED)
    return rng.choices((Outcome.OK, *names), (1 - sum(weights), *weights))[0]


def table(rows: Sequence[Record]) -> pa.Table:
    """The records as the merged log has them, from two workers."""
    if not rows:
        return runlog.MERGED_SCHEMA.empty_table()
    merged = pa.Table.from_batches([runlog.to_batch(rows)], runlog.SCHEMA)
    workers = pa.array([row.seq % 2 for row in rows], pa.int32())
    return merged.append_column(runlog.MERGED_SCHEMA.field("worker"), workers)


def samples(rows: Sequence[Record], *, duration_s: float = DURATION_S) -> list[Sample]:
    """One a second from each of two workers."""
    rng = random.Random(3)
    made = []
    for second in range(1, int(duration_s) + 1):
        for worker in range(2):
            mine = [row for row in rows if row.seq % 2 == worker]
            now = second * _NS
            due = sum((row.due_ns or 0) <= now for row in mine)
            started = sum(row.started_ns is not None and row.started_ns <= now for row in mine)
            finished = sum(row.ended_ns is not None and row.ended_ns <= now for row in mine)
            made.append(
                Sample(
                    t_ns=now,
                    worker=worker,
                    due=due,
                    started=started,
                    dropped=0,
                    finished=finished,
                    in_flight=started - finished,
                    cpu_s=0.22 + 0.05 * rng.random() + 0.04 * worker,
                    wall_s=1.0,
                    hub_lag_max_ns=int(rng.expovariate(1 / 900_000)),
                    gc_pause_max_ns=int(rng.expovariate(1 / 400_000)),
                    rss_bytes=92_000_000 + 300_000 * second,
                    open_files=80,
                )
            )
    return made


def header(*, rate: float = 120.0, duration_s: float = DURATION_S) -> Run:
    """The run's header."""
    return Run(
        name="default",
        run_id="20260130T101500Z-default",
        scenario={
            "name": "default",
            "target": "mock",
            "models": {"deepseek-flash": 1.0},
            "traffic": [
                {"kind": "completion", "weight": 0.55},
                {"kind": "stream", "weight": 0.4},
                {"kind": "batch", "weight": 0.05, "size": 4},
            ],
            "arrivals": {"process": "poisson", "rate": rate},
            "duration": f"{duration_s:g}s",
            "seed": 7,
            "max_in_flight": 100,
            "objectives": list(OBJECTIVES),
        },
        seed=7,
        target="http://127.0.0.1:8017",
        workers=2,
        start=Anchor(wall_ns=1_769_768_100 * _NS, monotonic_ns=0),
        started_at="2026-01-30T10:15:00Z",
        host={"name": "bench-1", "platform": "Linux-6.8-x86_64", "cpus": 8, "boot_id": "b7f0"},
        versions={"llm-load-harness": "0.1.0", "python": "3.11.9", "locust": "2.47.0"},
        git_commit="e3eca26",
        mock=True,
    )


def manifest(rows: Sequence[Record]) -> Manifest:
    """Books that balance."""
    ledgers = []
    for worker in range(2):
        mine = [row for row in rows if row.seq % 2 == worker]
        arrivals = len({row.seq for row in mine})
        dropped = len({row.seq for row in mine if row.outcome == Outcome.DROPPED})
        started = arrivals - dropped
        ledgers.append(WorkerLedger(worker, arrivals, started, dropped, 0, started, 0, len(mine)))
    planned = sum(ledger.planned for ledger in ledgers)
    return runlog.reconcile(ledgers, planned=planned, rows=len(rows), stop_reason="completed")


def telemetry(rows: Sequence[Record]) -> TelemetryLedger:
    """All spans exported: one an attempt that was sent, one a session."""
    spans = sum(row.outcome != Outcome.DROPPED for row in rows) + len({row.session for row in rows})
    return TelemetryLedger(
        records=len(rows),
        spans=spans,
        exported=spans,
        dropped=0,
        failed=0,
        metric_points=214,
        metric_points_failed=0,
        destination="traces.otlp.jsonl",
        errors=[],
    )


OBJECTIVES = ("response: p(99) < 500ms", "errors: rate < 0.1%")
FAULTS = {State.PASS: 0.0, State.INVALID: 0.0, State.INCONCLUSIVE: 0.3, State.FAIL: 2.5}
"""How bad the incident is that leads to each verdict; INVALID comes from arrivals that start late."""


@cache
def report(state: State = State.FAIL, *, rate: float = 120.0, duration_s: float = DURATION_S) -> RunReport:
    """A whole report with the verdict asked for."""
    rows = records(rate=rate, duration_s=duration_s, faults=FAULTS[state])
    if state is State.INVALID:
        rows = [msgspec.structs.replace(row, due_ns=max(0, row.due_ns - 214_000_000)) for row in rows]
    return assemble(rows, rate=rate, duration_s=duration_s)


def hostile() -> RunReport:
    """A report whose texts try to be markup: of HTML, of Markdown, of SVG."""
    evil = '<script>alert("|1|")</script> **x** [y](z) & \x07'
    rows = [
        msgspec.structs.replace(row, kind=evil if row.kind == "batch" else row.kind, error=row.error and evil)
        for row in records(rate=40, faults=5.0)
    ]
    report = assemble(rows)
    run = msgspec.structs.replace(
        report.run, name=evil, target=evil, git_commit=evil, scenario={"name": evil}, versions={evil: evil}
    )
    verdict = msgspec.structs.replace(report.verdict, reason=evil)
    return msgspec.structs.replace(report, run=run, verdict=verdict, folder=evil)


def assemble(rows: Sequence[Record], *, rate: float = 120.0, duration_s: float = DURATION_S) -> RunReport:
    """The report of any records."""
    run, books, spans = header(rate=rate, duration_s=duration_s), manifest(rows), telemetry(rows)
    health, merged, window = samples(rows, duration_s=duration_s), table(rows), (0.0, duration_s)
    objectives = [parse(text) for text in OBJECTIVES]
    measures = measure(merged)
    validity = validate(
        measures, objectives, window, run=run, manifest=books, samples=health, telemetry=spans
    )
    return RunReport(
        run=run,
        summary=summarise(measures, objectives, window),
        verdict=judge(measures, objectives, validity, window),
        manifest=books,
        samples=health,
        records=merged,
        telemetry=spans,
        folder="runs/20260130T101500Z-default",
    )
