"""Claims about the truth log's spans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.mock import spans
from harness.mock.truth import Clock, Entry

CLOCK = Clock(wall_ns=1_700_000_000_000_000_000, monotonic_ns=1_000, boot_id="b")
TRACE, PARENT = "a" * 32, "b" * 16
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "request_id": "r",
        "number": 1,
        "path": "/v1/chat/completions",
        "protocol": "1.1",
        "arrived_ns": 2_000,
        "first_byte_ns": 1_900,
        "traceparent": TRACEPARENT,
        "model": "m",
        "stream": True,
        "status": 200,
        "queued_ns": 2_000,
        "dequeued_ns": 3_000,
        "prefill_end_ns": 5_000,
        "ended_ns": 9_000,
        "end": "complete",
        "completion_tokens": 3,
    }
    return Entry(**values | changes)


def written(*entries: Entry) -> list[dict[str, Any]]:
    text = spans.line(entries, CLOCK, pid=1)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    (resource,) = json.loads(text)["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    return scope["spans"]


def times(span: dict[str, Any]) -> tuple[int, int]:
    zero = CLOCK.wall_ns - CLOCK.monotonic_ns
    return int(span["startTimeUnixNano"]) - zero, int(span["endTimeUnixNano"]) - zero


def test_the_server_span_is_the_child_of_the_clients_and_the_parent_of_its_phases():
    server, *phases = written(entry())
    assert (server["traceId"], server["parentSpanId"], server["kind"]) == (TRACE, PARENT, 2)
    assert server["name"] == "chat m"
    assert times(server) == (1_900, 9_000)
    assert {(phase["traceId"], phase["parentSpanId"]) for phase in phases} == {(TRACE, server["spanId"])}
    assert [(phase["name"], times(phase)) for phase in phases] == [
        ("queue", (2_000, 3_000)),
        ("prefill", (3_000, 5_000)),
        ("decode", (5_000, 9_000)),
    ]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"queued_ns": None, "dequeued_ns": None}, ["prefill", "decode"]),
        ({"dequeued_ns": None, "prefill_end_ns": None}, ["queue"]),
        ({"queued_ns": None, "dequeued_ns": None, "prefill_end_ns": None}, []),
        ({"ended_ns": 4_000}, ["queue", "prefill"]),
    ],
)
def test_only_the_phases_that_a_request_came_to_have_spans(changes: dict[str, Any], names: list[str]):
    assert [span["name"] for span in written(entry(**changes))[1:]] == names


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"]
)
def test_without_a_valid_traceparent_the_request_is_a_trace_of_its_own(traceparent: str):
    first, second = (written(entry(traceparent=traceparent, number=number))[0] for number in (1, 2))
    assert first["parentSpanId"] == ""
    assert len(first["traceId"]) == 32
    assert first["traceId"] != second["traceId"]


def test_a_later_version_of_traceparent_is_read_as_far_as_it_is_known():
    assert written(entry(traceparent=f"01-{TRACE}-{PARENT}-01-more"))[0]["traceId"] == TRACE


def test_a_broken_answer_is_an_error_and_says_which_fault():
    server = written(entry(end="reset", fault="cut;after=1"))[0]
    assert server["status"] == {"code": 2, "message": "cut;after=1"}
    assert {"key": "mock.fault", "value": {"stringValue": "cut;after=1"}} in server["attributes"]


def test_ids_of_one_line_are_all_different():
    ids = [span["spanId"] for span in written(*(entry(number=n) for n in range(1, 50)))]
    assert len(set(ids)) == len(ids) == 49 * 4
