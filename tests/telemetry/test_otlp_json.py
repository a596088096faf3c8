"""The files hold what the wire would have carried."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from telemetry_cases import RUN, dropped, record

from harness.telemetry.metrics import Tallies
from harness.telemetry.otlp_json import metrics_line, traces_line
from harness.telemetry.spans import Session, SpanMaker, resource_of

RESOURCE = resource_of(RUN, "llm-load-harness", {"team": "blue"})


def with_ids_in_base64(value: Any) -> Any:
    """OTLP JSON has hexadecimal ids where protobuf's has base64."""
    if isinstance(value, list):
        return [with_ids_in_base64(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(each)).decode()
        if key in {"traceId", "spanId"}
        else with_ids_in_base64(each)
        for key, each in value.items()
    }


def test_a_line_of_spans_is_the_message_of_the_wire() -> None:
    make = SpanMaker(RUN, RESOURCE)
    cases = [
        record(),
        record(1, outcome="cut", error="cut", tags={"team": 'blue "n" green'}),
        record(2, usage=None),
    ]
    spans = [*map(make.attempt, cases), make.session("talk", Session(0, 5, multi_turn=True))]
    line = traces_line(spans)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read = ParseDict(with_ids_in_base64(json.loads(line)), TracesData())
    assert read.resource_spans[0] == encode_spans(spans).resource_spans[0]


def test_ids_and_times_are_written_as_the_file_format_says() -> None:
    span = SpanMaker(RUN, RESOURCE).attempt(record(trace_id="ab" * 16, span_id="cd" * 8))
    written = json.loads(traces_line([span]))["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (written["traceId"], written["spanId"]) == ("ab" * 16, "cd" * 8)
    assert written["startTimeUnixNano"] == "1790000000002000000"
    assert written["kind"] == 3


def test_a_line_of_points_is_the_message_of_the_wire() -> None:
    tallies = Tallies(RUN, RESOURCE, (0.5,))
    for each in (record(), dropped(1)):
        tallies.add(each)
    points = tallies.points()
    line = metrics_line(points)
    assert line.count(b"\n") == 1
    read = ParseDict(json.loads(line), MetricsData())
    assert read.resource_metrics[0] == encode_metrics(points).resource_metrics[0]
