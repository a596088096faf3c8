"""Entries of the truth log as OTLP JSON: one SERVER span a request, with its queue, prefill and decode.

One TracesData a line, as the OTLP file exporter specification says: names in lowerCamelCase, ids in
hexadecimal, 64-bit integers as strings, enumerations as numbers. A span's parent is the client's span, by
the `traceparent` that it sent (W3C Trace Context); without one the request is a trace of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from harness.mock.truth import Clock, Entry

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)
_INTERNAL, _SERVER = 1, 2
_ERROR = 2
_OPERATIONS = {
    "/chat/completions": "chat",
    "/messages": "chat",
    "/responses": "chat",
    "/embeddings": "embeddings",
}
"""End of the path to `gen_ai.operation.name`; all others are `text_completion`."""
_encode = msgspec.json.Encoder().encode


class _Phase(NamedTuple):
    name: str
    start_ns: int
    end_ns: int


def line(entries: Sequence[Entry], clock: Clock, *, pid: int) -> bytes:
    """The spans of these requests as one line, with its newline.

    Args:
        entries: finished requests.
        clock: joins their monotonic stamps to the wall clock.
        pid: the mock's process.
    """
    resource = {"attributes": _attributes({"service.name": "harness-mock", "process.pid": pid})}
    spans = [span for entry in entries for span in _spans(entry, clock)]
    scope_spans = [{"scope": {"name": "harness.mock"}, "spans": spans}]
    return _encode({"resourceSpans": [{"resource": resource, "scopeSpans": scope_spans}]}) + b"\n"


def _spans(entry: Entry, clock: Clock) -> Iterator[dict[str, Any]]:
    assert entry.ended_ns is not None
    found = _TRACEPARENT.fullmatch(entry.traceparent)
    trace_id, parent = found.groups() if found else (_id(entry, clock, "trace", 16), "")
    own = _id(entry, clock, "server", 8)
    start_ns = entry.first_byte_ns or entry.arrived_ns
    operation = next(
        (name for end, name in _OPERATIONS.items() if entry.path.endswith(end)), "text_completion"
    )
    server = _span(
        trace_id, own, parent, _Phase(f"{operation} {entry.model}".rstrip(), start_ns, entry.ended_ns), clock
    )
    server["kind"] = _SERVER
    server["attributes"] = _attributes(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": entry.model,
            "gen_ai.request.stream": entry.stream,
            "gen_ai.usage.input_tokens": entry.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": entry.cached_tokens,
            "gen_ai.usage.output_tokens": entry.completion_tokens,
            "http.request.method": "POST",
            "http.response.status_code": entry.status,
            "network.protocol.version": entry.protocol,
            "url.path": entry.path,
            "mock.request_id": entry.request_id,
            "mock.number": entry.number,
            "mock.fault": entry.fault or None,
            "mock.end": entry.end,
            "mock.finish_reason": entry.finish_reason,
        }
    )
    if entry.end in {"reset", "close"} or (entry.status or 0) >= 500:
        server["status"] = {"code": _ERROR, "message": entry.fault}
    yield server
    for phase in _phases(entry):
        yield _span(trace_id, _id(entry, clock, phase.name, 8), own, phase, clock)


def _phases(entry: Entry) -> Iterable[_Phase]:
    """The phases that the request came to, each up to its end or the answer's."""
    ended_ns = entry.ended_ns
    assert ended_ns is not None
    computing_ns = entry.arrived_ns
    if entry.queued_ns is not None:
        computing_ns = entry.dequeued_ns or ended_ns
        yield _Phase("queue", entry.queued_ns, min(computing_ns, ended_ns))
    if entry.prefill_end_ns is None or computing_ns >= ended_ns:
        return
    yield _Phase("prefill", computing_ns, min(entry.prefill_end_ns, ended_ns))
    if entry.prefill_end_ns < ended_ns:
        yield _Phase("decode", entry.prefill_end_ns, ended_ns)


def _span(trace_id: str, own: str, parent: str, phase: _Phase, clock: Clock) -> dict[str, Any]:
    to_wall_ns = clock.wall_ns - clock.monotonic_ns
    return {
        "traceId": trace_id,
        "spanId": own,
        "parentSpanId": parent,
        "name": phase.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(phase.start_ns + to_wall_ns),
        "endTimeUnixNano": str(max(phase.start_ns, phase.end_ns) + to_wall_ns),
        "status": {},
    }


def _id(entry: Entry, clock: Clock, what: str, size: int) -> str:
    """An id of its own that the same request of the same mock gets again."""
    seed = f"{clock.wall_ns}/{entry.number}/{entry.request_id}/{what}"
    return hashlib.blake2b(seed.encode(), digest_size=size).hexdigest()


def _attributes(values: dict[str, str | int | bool | None]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"stringValue": value}
