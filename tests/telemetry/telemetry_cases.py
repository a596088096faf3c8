"""Records, runs and in-process OTLP collectors for this room's tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import msgspec
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from harness.clock import Anchor
from harness.record import Record, Run, Usage

START_NS = 1_790_000_000_000_000_000
MS = 1_000_000

RUN = Run(
    name="case",
    run_id="run-1",
    scenario={},
    seed=1,
    target="https://api.deepseek.com/v1",
    workers=1,
    start=Anchor(wall_ns=START_NS, monotonic_ns=0),
    started_at="2026-09-21T13:33:20Z",
    host={},
    versions={"harness": "0.1.0"},
    git_commit="",
)


def run(**changes: Any) -> Run:
    return msgspec.structs.replace(RUN, **changes)


def record(seq: int = 0, **changes: Any) -> Record:
    """A good stream of three chunks: due at 0, started 2 ms late, first token at 100 ms, ended at 200 ms."""
    base = Record(
        seq=seq,
        index=0,
        attempt=0,
        final=True,
        request_id=f"request-{seq}",
        kind="stream",
        dialect="chat",
        model="deepseek-flash",
        session=f"request-{seq}",
        turn=0,
        trace_id=f"{seq + 1:032x}",
        span_id=f"{seq + 1:016x}",
        due_ns=0,
        started_ns=2 * MS,
        connected_ns=None,
        sent_ns=3 * MS,
        headers_ns=80 * MS,
        first_event_ns=90 * MS,
        first_token_ns=100 * MS,
        first_content_ns=120 * MS,
        chunk_ns=[100 * MS, 120 * MS, 160 * MS],
        ended_ns=200 * MS,
        held_ns=0,
        status=200,
        outcome="ok",
        error="",
        finish_reason="stop",
        usage=Usage(prompt=64, completion=16, cached=32, reasoning=4),
        retry_after_s=None,
        reused_connection=True,
        wire="http/1.1",
        bytes_in=1000,
        bytes_out=500,
        tags={},
    )
    return msgspec.structs.replace(base, **changes)


def dropped(seq: int, **changes: Any) -> Record:
    """An arrival that no virtual user took up."""
    stamps = dict.fromkeys(
        (
            "started_ns",
            "sent_ns",
            "headers_ns",
            "first_event_ns",
            "first_token_ns",
            "first_content_ns",
            "ended_ns",
            "status",
            "finish_reason",
            "usage",
        )
    )
    unsent = {"trace_id": "", "span_id": "", "chunk_ns": [], "outcome": "dropped", "error": "no idle user"}
    return record(seq, **{**stamps, **unsent, **changes})


class Collector:
    """What an in-process collector was sent, and what it answers."""

    def __init__(self, status: int) -> None:
        self.endpoint = ""
        self.status = status
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def series(self) -> dict[str, Any]:
        """The last export's metrics, by name."""
        return {
            metric.name: metric
            for resource in self.metrics[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def http_collector(status: int = 200) -> Iterator[Collector]:
    collector = Collector(status)

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.hold.wait(10)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            if collector.status == 200 and self.path == "/v1/traces":
                collector.traces.append(ExportTraceServiceRequest.FromString(body))
            elif collector.status == 200 and self.path == "/v1/metrics":
                collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        collector.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    collector = Collector(200)

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name for it
            collector.headers.append({item.key: item.value for item in context.invocation_metadata()})
            collector.traces.append(request)
            return ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - the service's signature
            collector.metrics.append(request)
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    collector.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        server.stop(None).wait()
