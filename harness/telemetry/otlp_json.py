"""Spans and metrics as OTLP JSON, one TracesData or MetricsData a line.

Source: the OTLP file exporter specification: names in lowerCamelCase, ids in hexadecimal, 64-bit
integers as strings, enumerations as numbers, one signal a file. Spans are written by hand: protobuf's
own JSON has ids in base64, and takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToJson  # type: ignore[import-untyped]  # ships no types
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, StatusCode, format_span_id, format_trace_id

_FLAGS = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK  # and the bit beside it, not set: not remote
_encode = msgspec.json.Encoder().encode


def traces_line(spans: Sequence[ReadableSpan]) -> bytes:
    """One TracesData of spans that share their resource and their scope, with the newline."""
    first = spans[0]
    scope = first.instrumentation_scope
    named = {} if scope is None else {"name": scope.name, "version": scope.version or ""}
    resource = _encode({"attributes": _attributes(first.resource.attributes)})
    # Span by span: the trees of a whole batch would keep the garbage collector busy three times as long.
    written = b",".join(_encode(_span(span)) for span in spans)
    scope_spans = b'{"scope":%b,"spans":[%b]}' % (_encode(named), written)
    return b'{"resourceSpans":[{"resource":%b,"scopeSpans":[%b]}]}\n' % (resource, scope_spans)


def metrics_line(points: MetricsData) -> bytes:
    """One MetricsData, with the newline."""
    text: str = MessageToJson(encode_metrics(points), indent=None, use_integers_for_enums=True)
    return text.encode() + b"\n"


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    written: dict[str, Any] = {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "flags": _FLAGS,
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1; 0 is unspecified
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes),
        "status": {},
    }
    if span.events:
        written["events"] = [_event(event) for event in span.events]
    if span.links:
        written["links"] = [_link(link) for link in span.links]
    if span.status.status_code is StatusCode.ERROR:
        written["status"] = {"code": StatusCode.ERROR.value, "message": span.status.description or ""}
    return written


def _event(event: Event) -> dict[str, str]:
    return {"name": event.name, "timeUnixNano": str(event.timestamp)}


def _link(link: Link) -> dict[str, Any]:
    return {
        "traceId": format_trace_id(link.context.trace_id),
        "spanId": format_span_id(link.context.span_id),
        "flags": _FLAGS,
    }


def _attributes(attributes: Mapping[str, object] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in (attributes or {}).items()]


def _value(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    assert isinstance(value, Iterable)
    return {"arrayValue": {"values": [_value(each) for each in value]}}
