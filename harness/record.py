"""What happened: the plain values that every other room reads. Nothing derived may live here.

Times are monotonic nanoseconds relative to the run's start (`Run.start`); a stamp that was never
taken is None. Derived figures (latency, TTFT, ITL, ...) are defined once, in analysis/measures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from harness.clock import Anchor


class Outcome(StrEnum):
    """How one attempt ended. All but `ok` and `cancelled` are errors."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    """The server answered with a status of 400 or more."""
    CONNECT_ERROR = "connect_error"
    """No connection: refused, unreachable, name not found, TLS not trusted."""
    TIMEOUT = "timeout"
    """The connect or the total deadline passed."""
    STALLED = "stalled"
    """Nothing came for the idle timeout while the answer was under way."""
    CUT = "cut"
    """The connection or the stream ended before the answer was whole."""
    IN_BAND_ERROR = "in_band_error"
    """HTTP 200 whose body says that it failed: an error event, or a finish reason that is a failure."""
    MALFORMED = "malformed"
    """Bytes that are not the protocol: broken HTTP, broken JSON, no end marker, no choices."""
    REFUSED_BY_SERVER = "refused_by_server"
    """The server turned the request away for load: 429, or HTTP/2 REFUSED_STREAM."""
    DROPPED = "dropped"
    """An arrival that was never started: no virtual user was idle within the scenario's patience."""
    CANCELLED = "cancelled"
    """We gave the request up: the run was ended before its answer was. No fault of the server's."""


NO_USER = "no virtual user was idle in time"
"""The error of an arrival that was dropped."""


class Kind(StrEnum):
    """What sort of traffic an arrival is."""

    COMPLETION = "completion"
    STREAM = "stream"
    BATCH = "batch"


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one request."""

    prompt: int
    """Includes the cached ones."""
    completion: int
    """Includes the reasoning ones."""
    cached: int | None = None
    reasoning: int | None = None
    source: str = "server"
    """`server`, or `estimate` where the server did not say."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One attempt of one request, as observed. One row of the run log (schema: runlog.SCHEMA)."""

    seq: int
    """The arrival it belongs to: the join key with the schedule. Requests of one batch share it."""
    index: int
    """Position within the arrival's batch; 0 outside batches."""
    attempt: int
    """0 for the first attempt."""
    final: bool
    """No further attempt follows: the record that stands for the request."""
    request_id: str
    """Unique a request within the run; sent as `x-request-id`, the key into the mock's truth log."""
    kind: str
    dialect: str
    model: str
    session: str
    turn: int
    trace_id: str
    """32 hexadecimal digits, as sent in `traceparent`; empty if never sent."""
    span_id: str
    due_ns: int | None
    """When the schedule wanted it; None in a closed loop."""
    started_ns: int | None
    """When a virtual user took it up; None if dropped."""
    connected_ns: int | None
    """When the connection stood (TLS included); None on a reused one."""
    sent_ns: int | None
    """When the last byte of the request was handed to the kernel."""
    headers_ns: int | None
    """The socket read that completed the response's headers."""
    first_event_ns: int | None
    """First data event of a stream, be it empty."""
    first_token_ns: int | None
    """First non-empty token, reasoning or content."""
    first_content_ns: int | None
    """First non-empty answer content."""
    chunk_ns: Sequence[int]
    """The stamp of each data event that carried a token, in order. Events of one read share a stamp."""
    ended_ns: int | None
    """End of the answer, or the moment it was given up."""
    held_ns: int
    """From headers to first data event during which only keep-alives came; 0 if none came."""
    status: int | None
    outcome: str
    error: str
    """Empty if ok; else a short text of low cardinality, without payload."""
    finish_reason: str | None
    usage: Usage | None
    retry_after_s: float | None
    reused_connection: bool
    wire: str
    """`http/1.1` or `h2`."""
    bytes_in: int
    bytes_out: int
    tags: Mapping[str, str]
    queued_ns: int | None = None
    """When its arrival began to wait for an idle virtual user; None: it did not wait."""


class Run(msgspec.Struct, frozen=True):
    """The header of a run: everything needed to repeat it. No secrets."""

    name: str
    run_id: str
    scenario: dict[str, Any]
    """The whole scenario, defaults filled in (workload.scenario.to_builtins)."""
    seed: int
    target: str
    """The URL that was loaded, without credentials."""
    workers: int
    start: Anchor
    """Zero of all the run's stamps."""
    started_at: str
    """The same in RFC 3339."""
    host: dict[str, Any]
    """Name, platform, CPU count, boot id."""
    versions: dict[str, str]
    git_commit: str
    stamps: str = "user"
    """Where read stamps come from, as the process that began the run found by trial: `user` (after the read
    returned) or `kernel`."""
    mock: bool = False
    """The target is the bundled mock, started by this run."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """Once a second, one worker on its own health. Counts are cumulative since the start."""

    t_ns: int
    worker: int
    due: int
    """Arrivals whose time has come."""
    started: int
    dropped: int
    finished: int
    in_flight: int
    cpu_s: float
    """Process CPU time used since the last sample, in seconds."""
    wall_s: float
    """Wall time since the last sample, in seconds."""
    hub_lag_max_ns: int
    """Longest time the event loop came back late since the last sample."""
    gc_pause_max_ns: int
    rss_bytes: int
    open_files: int
    file_limit: int = 0
    """How many files the system lets this process open; 0: not known."""
    wall_clock_ns: int = 0
    """Unix time at `t_ns`, so that a step of the wall clock shows; 0: not known."""
    hub_stalls_ns: tuple[int, ...] = ()
    """Each time since the last sample that the event loop came back more than a millisecond late: how
    much. The longest is `hub_lag_max_ns`."""
    read_lag_max_ns: int = 0
    """Longest time since the last sample that a read's last bytes lay in the kernel before they were read;
    0: not known, for only `kernel` stamps tell."""


class WorkerLedger(msgspec.Struct, frozen=True):
    """What one worker says it did with its share of the schedule. Counts are arrivals."""

    worker: int
    planned: int
    started: int
    dropped: int
    not_started: int
    """The run was ended before they were due."""
    finished: int
    cut_off: int
    """Started but not finished when the drain's patience ended."""
    records: int
    """Rows written."""


class End(msgspec.Struct, frozen=True):
    """What the engine knows at the end of a run; written as end.json once all workers have drained."""

    planned: int | None
    """Arrivals of the whole schedule; None in a closed loop, where only the claimed ones count."""
    stop_reason: str
    """As in `Manifest`."""
    faults: list[str] = []
    """What went wrong with the engine, one sentence each: a worker that hung, a bug."""


class Manifest(msgspec.Struct, frozen=True):
    """The run's books: every planned arrival is accounted for, or the run is INVALID.

    planned = started + dropped + not_started + lost;  started = finished + cut_off.
    """

    planned: int
    started: int
    dropped: int
    not_started: int
    lost: int
    """Arrivals of workers that never reported back."""
    finished: int
    cut_off: int
    records: int
    workers: list[WorkerLedger]
    stop_reason: str
    """`completed`, `interrupted`, `spend_cap`, or `killed`: the engine was, and wrote no books; or `harness
    run` above it was."""
    imbalances: list[str]
    """One sentence for each fault of the engine and each sum that does not add up; empty when all is well."""
    torn_bytes: int = 0
    """Bytes of unfinished batches at the end of the workers' logs."""


class TelemetryLedger(msgspec.Struct, frozen=True):
    """What became of the spans and metrics made from the records; written as telemetry.json."""

    records: int
    """Records read from the run log."""
    spans: int
    """Spans made: one an attempt that was sent, and one a session."""
    exported: int
    dropped: int
    """Not handed to the exporter on purpose: sampled out."""
    failed: int
    """Handed to the exporter, which gave up."""
    metric_points: int
    """Data points of the final metrics export."""
    metric_points_failed: int
    destination: str
    """The endpoint, or the file in the run folder."""
    errors: list[str]
    """Distinct exporter errors, without payload."""
