"""A run's records, fed as they come -> spans and metrics at the exporters, with books that balance.

Spans made = attempts that were sent + sessions = exported + dropped + failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from harness.clock import now_ns
from harness.record import Record, Run, TelemetryLedger, Usage
from harness.telemetry import outlets, semconv
from harness.telemetry.metrics import Tallies, count_points
from harness.telemetry.outlets import Outlet
from harness.telemetry.spans import Session, SpanMaker, resource_of, session_context, was_sent

BATCH_SPANS = 512
"""Most spans in one export."""

_LOW_64 = TraceIdRatioBased.TRACE_ID_LIMIT
_FIELDS = Record.__struct_fields__
_USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "usage_source")


def records_of(batch: pa.RecordBatch) -> Iterator[Record]:
    """The rows of a run log's batch (runlog.SCHEMA, or any that adds columns to it) as records."""
    columns = {name: batch.column(name).to_pylist() for name in _FIELDS if name not in {"usage", "tags"}}
    columns["tags"] = [dict(pairs) for pairs in batch.column("tags").to_pylist()]
    counts = zip(*(batch.column(name).to_pylist() for name in _USAGE), strict=True)
    columns["usage"] = [None if prompt is None else Usage(prompt, *rest) for prompt, *rest in counts]
    for row in zip(*(columns[name] for name in _FIELDS), strict=True):
        yield Record(*row)


class Emitter:
    """Follows one run: `feed` its record batches in any order, then `finish` once.

    Args:
        run: the run's header.
        folder: the run's folder, where the files go if no endpoint is set. Emitting again replaces them.
        environ: the OTEL_* variables. Certificates and compression are read by the SDK's exporters
            themselves, from the process's environment.
        thresholds_s: the objectives' thresholds in seconds; they become bucket edges.
        patience_s: longest time that exports which fail may take in a row (see `outlets.Outlet`).
        clock: monotonic nanoseconds.

    Raises:
        ConfigError: a variable's value cannot be used.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        *,
        environ: Mapping[str, str],
        thresholds_s: Sequence[float] = (),
        patience_s: float = 10.0,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        service, extra = outlets.resource_variables(environ, semconv.SERVICE)
        resource = resource_of(run, service, extra)
        self._run_id = run.run_id
        self._make = SpanMaker(run, resource)
        self._tallies = Tallies(run, resource, thresholds_s)
        self._interval_ns = round(outlets.interval_s(environ) * 1e9)
        self._next_export_ns = self._interval_ns
        self._bound = outlets.sampling_bound(environ)
        span_timeout_s = min(outlets.timeout_s(environ, "TRACES"), patience_s)
        point_timeout_s = min(outlets.timeout_s(environ, "METRICS"), patience_s)
        spans = outlets.traces_exporter(environ, folder, span_timeout_s)
        points = outlets.metrics_exporter(environ, folder, point_timeout_s)
        # The exporter's own limit comes first, so that it can say why; ours is for one that hangs.
        self._spans = None if spans is None else Outlet(spans, span_timeout_s + 1, patience_s, clock)
        self._points = None if points is None else Outlet(points, point_timeout_s + 1, patience_s, clock)
        self._pending: list[ReadableSpan] = []
        self._sessions: dict[str, Session] = {}
        self._has_turns = any(entry.get("turns", 1) != 1 for entry in run.scenario.get("traffic", ()))
        self._records = 0
        self._made = 0
        self._dropped = 0

    def feed(self, batch: pa.RecordBatch) -> None:
        """Take in a batch of the run log; export the spans made of it, and the metrics if they are due."""
        for record in records_of(batch):
            self._records += 1
            self._tallies.add(record)
            if was_sent(record):
                self._add(record)
        while len(self._pending) >= BATCH_SPANS:
            self._flush()
        if self._tallies.latest_ns >= self._next_export_ns:
            self._flush()
            self._export_points()
            self._next_export_ns = self._tallies.latest_ns + self._interval_ns

    def finish(self) -> TelemetryLedger:
        """Close the sessions, export what is left and the final metrics, and return the books.

        Takes no longer than two exports' timeouts, or `patience_s` and one such where the exporters fail.
        """
        for name, session in self._sessions.items():
            self._add_session(name, session)
        self._sessions.clear()
        while self._pending:
            self._flush()
        points, points_failed = self._export_points()
        ends = (self._spans, self._points)
        for outlet in ends:
            if outlet is not None:
                outlet.close()
        return TelemetryLedger(
            records=self._records,
            spans=self._made,
            exported=self._spans.exported if self._spans else 0,
            dropped=self._dropped,
            failed=self._spans.failed if self._spans else 0,
            metric_points=points,
            metric_points_failed=points_failed,
            destination=", ".join(outlet.destination for outlet in ends if outlet) or "none",
            errors=list(dict.fromkeys(error for outlet in ends if outlet for error in outlet.errors)),
        )

    def _add(self, record: Record) -> None:
        if self._keeps(int(record.trace_id, 16)):
            self._push(self._make.attempt(record))
        else:
            self._drop()
        session = self._sessions.get(record.session)
        if session is None:
            assert record.started_ns is not None
            assert record.ended_ns is not None
            session = self._sessions[record.session] = Session(record.started_ns, record.ended_ns)
        else:
            session.extend(record)
        if record.session != record.request_id:
            session.multi_turn = True
        elif record.final and not self._has_turns:
            # A session of one request is over now; held to the end, millions of them would fill the memory.
            self._add_session(record.session, self._sessions.pop(record.session))

    def _add_session(self, name: str, session: Session) -> None:
        if self._keeps(session_context(self._run_id, name).trace_id):
            self._push(self._make.session(name, session))
        else:
            self._drop()

    def _keeps(self, trace_id: int) -> bool:
        return self._spans is not None and trace_id & _LOW_64 < self._bound

    def _push(self, span: ReadableSpan) -> None:
        self._made += 1
        self._pending.append(span)

    def _drop(self) -> None:
        self._made += 1
        self._dropped += 1

    def _flush(self) -> None:
        batch, self._pending = self._pending[:BATCH_SPANS], self._pending[BATCH_SPANS:]
        if batch and self._spans is not None:
            self._spans.send(batch, len(batch))

    def _export_points(self) -> tuple[int, int]:
        """Export all series; how many points they had, and how many of them failed."""
        if self._points is None:
            return 0, 0
        points = self._tallies.points()
        count, failed = count_points(points), self._points.failed
        if count:
            self._points.send(points, count)
        return count, self._points.failed - failed


def emit(
    run: Run,
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    *,
    environ: Mapping[str, str],
    thresholds_s: Sequence[float] = (),
    patience_s: float = 10.0,
) -> TelemetryLedger:
    """Emit a run whose records are all there: `Emitter`, fed and finished."""
    emitter = Emitter(run, folder, environ=environ, thresholds_s=thresholds_s, patience_s=patience_s)
    for batch in batches:
        emitter.feed(batch)
    return emitter.finish()
