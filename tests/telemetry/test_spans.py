"""A record becomes the span that its stamps and ids say."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from telemetry_cases import MS, RUN, START_NS, dropped, record, run

from harness.record import Record, Run, Usage
from harness.telemetry.spans import Session, SpanMaker, requested, resource_of, session_context, was_sent


def span_of(case: Record, of: Run = RUN) -> ReadableSpan:
    return SpanMaker(of, resource_of(of, "llm-load-harness", {})).attempt(case)


def test_ids_are_those_that_were_sent() -> None:
    context = span_of(record(trace_id="ab" * 16, span_id="cd" * 8)).get_span_context()
    assert context is not None
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == ("ab" * 16, "cd" * 8)


def test_times_are_the_records_on_the_wall_clock() -> None:
    span = span_of(record())
    assert (span.start_time, span.end_time) == (START_NS + 2 * MS, START_NS + 200 * MS)
    assert [(event.name, event.timestamp - START_NS) for event in span.events] == [
        ("harness.response.first_chunk", 90 * MS),
        ("harness.response.first_token", 100 * MS),
        ("harness.response.first_content", 120 * MS),
        ("harness.response.end", 200 * MS),
    ]


def test_an_event_that_never_came_is_not_there() -> None:
    span = span_of(record(first_event_ns=None, first_token_ns=None, first_content_ns=None))
    assert [event.name for event in span.events] == ["harness.response.end"]


def test_a_good_stream_has_every_attribute_the_conventions_ask_for() -> None:
    span = span_of(record())
    assert span.name == "chat deepseek-flash"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "deepseek",
        "gen_ai.request.model": "deepseek-flash",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.088,
        "gen_ai.usage.input_tokens": 64,
        "gen_ai.usage.output_tokens": 16,
        "gen_ai.usage.cache_read.input_tokens": 32,
        "gen_ai.usage.reasoning.output_tokens": 4,
        "server.address": "api.deepseek.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "harness.seq": 0,
        "harness.attempt": 0,
        "harness.final": True,
        "harness.kind": "stream",
        "harness.dialect": "chat",
        "harness.request.id": "request-0",
        "harness.outcome": "ok",
        "harness.lateness": 0.002,
        "harness.response.duration": 0.2,
    }


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"dialect": "completions"}, "gen_ai.operation.name", "text_completion"),
        ({"dialect": "completions-lines"}, "gen_ai.operation.name", "text_completion"),
        ({"kind": "completion"}, "gen_ai.request.stream", None),
        ({"outcome": "http_error", "status": 503, "error": "503"}, "error.type", "503"),
        ({"outcome": "stalled", "error": "stalled"}, "error.type", "stalled"),
        ({"outcome": "cancelled"}, "error.type", None),
        ({"usage": None}, "gen_ai.usage.input_tokens", None),
        ({"usage": Usage(1, 2)}, "gen_ai.usage.cache_read.input_tokens", None),
        ({"usage": Usage(1, 2, source="estimate")}, "harness.usage.source", "estimate"),
        ({"status": None}, "http.response.status_code", None),
        ({"wire": "h2"}, "network.protocol.version", "2"),
        ({"session": "talk", "turn": 3}, "gen_ai.conversation.id", "talk"),
        ({"session": "talk", "turn": 3}, "harness.turn", 3),
        ({"kind": "batch", "index": 0}, "harness.index", 0),
        ({"due_ns": None}, "harness.lateness", None),
        ({"attempt": 1}, "harness.lateness", None),
        ({"final": False}, "harness.response.duration", None),
        ({"tags": {"team": "blue"}}, "harness.tag.team", "blue"),
    ],
)
def test_attributes_follow_the_record(changes: dict[str, Any], attribute: str, value: object) -> None:
    assert (span_of(record(**changes)).attributes or {}).get(attribute) == value


def test_an_error_is_the_spans_status() -> None:
    status = span_of(record(outcome="cut", error="cut after 3 chunks")).status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "cut after 3 chunks")


@pytest.mark.parametrize(
    ("target", "address", "port"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000),
        ("http://[::1]:8000/v1", "::1", 8000),
        ("http://mock", "mock", 80),
    ],
)
def test_the_server_is_the_targets(target: str, address: str, port: int) -> None:
    attributes = span_of(record(), run(target=target)).attributes or {}
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)


def test_a_span_is_linked_to_its_sessions_span() -> None:
    make = SpanMaker(RUN, resource_of(RUN, "x", {}))
    link = make.attempt(record(session="talk")).links[0].context
    session = make.session("talk", Session(2 * MS, 200 * MS, attempts=1, multi_turn=True))
    context = session.get_span_context()
    assert context is not None
    assert (link.trace_id, link.span_id) == (context.trace_id, context.span_id)
    assert session.parent is None
    assert (session.start_time, session.end_time) == (START_NS + 2 * MS, START_NS + 200 * MS)
    assert dict(session.attributes or {}) == {
        "harness.session": "talk",
        "harness.session.attempts": 1,
        "gen_ai.conversation.id": "talk",
    }


def test_session_ids_depend_on_the_run_and_the_session_alone() -> None:
    assert session_context("run-1", "talk") == session_context("run-1", "talk")
    assert session_context("run-1", "talk").trace_id != session_context("run-2", "talk").trace_id
    assert session_context("run-1", "talk").trace_id != session_context("run-1", "walk").trace_id
    assert session_context("run-1", "talk").is_valid


def test_what_the_scenario_fixes_for_a_kind_is_on_its_spans() -> None:
    parameters = {"temperature": 0.5, "top_p": None, "stop": ["\n"], "seed": 7}
    fixed = {"kind": "stream", "output": {"distribution": "fixed", "tokens": 16}, "parameters": parameters}
    attributes = span_of(record(), run(scenario={"traffic": [fixed]})).attributes or {}
    assert attributes["gen_ai.request.max_tokens"] == 16
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.stop_sequences"] == ["\n"]
    assert attributes["gen_ai.request.seed"] == 7
    assert "gen_ai.request.top_p" not in attributes


def test_what_is_drawn_or_ambiguous_is_not_claimed() -> None:
    drawn = {"kind": "stream", "output": {"distribution": "uniform", "low": 1, "high": 9}}
    assert requested({"traffic": [drawn]}) == {"stream": {}}
    assert requested({"traffic": [drawn, drawn]}) == {}


@pytest.mark.parametrize(
    ("case", "sent"),
    [
        (record(), True),
        (dropped(0), False),
        (record(trace_id=""), False),
        (record(outcome="connect_error", status=None), True),
    ],
)
def test_only_an_attempt_that_was_sent_has_a_span(case: Record, sent: bool) -> None:
    assert was_sent(case) is sent
