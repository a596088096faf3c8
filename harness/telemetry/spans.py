"""One record -> one CLIENT span, and a session's records -> the session's span: pure functions.

Spans are built as `ReadableSpan`s rather than through a tracer: their ids and times are the record's,
and nothing between here and the exporter may queue or drop them unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from harness.record import Kind, Record, Run
from harness.telemetry import semconv

Attributes = dict[str, AttributeValue]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_PORTS = {"http": 80, "https": 443}
_WIRES = {"http/1.1": "1.1", "h2": "2"}
_EVENTS = (
    (semconv.EVENT_FIRST_CHUNK, "first_event_ns"),
    (semconv.EVENT_FIRST_TOKEN, "first_token_ns"),
    (semconv.EVENT_FIRST_CONTENT, "first_content_ns"),
    (semconv.EVENT_END, "ended_ns"),
)
_PARAMETERS = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "frequency_penalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.REQUEST_PRESENCE_PENALTY,
    "stop": semconv.REQUEST_STOP_SEQUENCES,
    "seed": semconv.REQUEST_SEED,
}


class RunResource(Resource):
    """The resource of one run; its hash is taken once, as the encoder asks for it with every span."""

    def __init__(self, attributes: Mapping[str, AttributeValue]) -> None:
        super().__init__(attributes)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


def resource_of(run: Run, service: str, extra: Mapping[str, str]) -> RunResource:
    """Who speaks: the harness, in this run.

    `service.instance.id` is the run's id, so that Prometheus' `instance` label tells runs apart.
    """
    return RunResource(
        {
            semconv.SDK_LANGUAGE: "python",
            semconv.SDK_NAME: "opentelemetry",
            semconv.SDK_VERSION: sdk_version,
            semconv.SERVICE_VERSION: run.versions.get("harness", "unknown"),
            semconv.SERVICE_INSTANCE_ID: run.run_id,
            semconv.RUN_NAME: run.name,
            **extra,
            semconv.SERVICE_NAME: service,
            semconv.RUN_ID: run.run_id,
        }
    )


def was_sent(record: Record) -> bool:
    """Whether the attempt is one that can have a span: it was started, had ids, and came to an end."""
    return bool(record.trace_id) and record.started_ns is not None and record.ended_ns is not None


def session_context(run_id: str, session: str) -> SpanContext:
    """The ids of a session's span, from the run and the session alone, so that links need no look-up."""
    digest = hashlib.sha256(f"{run_id}\0{session}".encode()).digest()
    trace_id, span_id = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)


def server_of(target: str) -> tuple[str, int | None]:
    """`server.address` and `server.port` of the target's URL."""
    url = urlsplit(target)
    return url.hostname or "", url.port or _PORTS.get(url.scheme)


def requested(scenario: Mapping[str, Any]) -> dict[str, Attributes]:
    """Kind of traffic -> the request attributes that the scenario fixes for all of that kind.

    A kind that has several entries in the mix is left out: a record does not say which one it came from.
    """
    entries: Sequence[Mapping[str, Any]] = scenario.get("traffic", ())
    kinds = [entry.get("kind", "") for entry in entries]
    return {kind: _fixed(entry) for kind, entry in zip(kinds, entries, strict=True) if kinds.count(kind) == 1}


def _fixed(entry: Mapping[str, Any]) -> Attributes:
    parameters = entry.get("parameters") or {}
    attributes: Attributes = {
        attribute: parameters[name]
        for name, attribute in _PARAMETERS.items()
        if parameters.get(name) is not None
    }
    output = entry.get("output") or {}
    if output.get("distribution") == "fixed":
        attributes[semconv.REQUEST_MAX_TOKENS] = output["tokens"]
    return attributes


class Session(msgspec.Struct):
    """What is known so far of one session: the extent of its attempts."""

    started_ns: int
    ended_ns: int
    attempts: int = 1
    multi_turn: bool = False

    def extend(self, record: Record) -> None:
        """Take in a further attempt, one that was sent."""
        assert record.started_ns is not None
        assert record.ended_ns is not None
        self.started_ns = min(self.started_ns, record.started_ns)
        self.ended_ns = max(self.ended_ns, record.ended_ns)
        self.attempts += 1


class SpanMaker:
    """Turns one run's records into spans.

    Args:
        run: the run's header; its anchor maps the records' stamps onto the wall clock.
        resource: the spans' resource.
    """

    def __init__(self, run: Run, resource: Resource) -> None:
        self._run_id = run.run_id
        self._zero_ns = run.start.wall_ns
        self._resource = resource
        self._scope = InstrumentationScope(semconv.SCOPE, run.versions.get("harness"))
        self._server = server_of(run.target)
        self._requested = requested(run.scenario)
        self._constant: dict[tuple[str, str, str, str], tuple[str, Attributes]] = {}

    def attempt(self, record: Record) -> ReadableSpan:
        """The CLIENT span of an attempt that was sent (`was_sent`), linked to its session's span."""
        assert record.started_ns is not None
        assert record.ended_ns is not None
        name, attributes = self._attributes(record)
        zero_ns = self._zero_ns
        return ReadableSpan(
            name=name,
            context=SpanContext(
                int(record.trace_id, 16), int(record.span_id, 16), is_remote=False, trace_flags=_SAMPLED
            ),
            resource=self._resource,
            attributes=attributes,
            events=[
                Event(event, timestamp=zero_ns + stamp)
                for event, field in _EVENTS
                if (stamp := getattr(record, field)) is not None
            ],
            links=[Link(session_context(self._run_id, record.session))],
            kind=SpanKind.CLIENT,
            status=_status(record),
            start_time=zero_ns + record.started_ns,
            end_time=zero_ns + record.ended_ns,
            instrumentation_scope=self._scope,
        )

    def session(self, name: str, session: Session) -> ReadableSpan:
        """The root span of a whole session, in a trace of its own."""
        attributes: Attributes = {semconv.SESSION: name, semconv.SESSION_ATTEMPTS: session.attempts}
        if session.multi_turn:
            attributes[semconv.CONVERSATION_ID] = name
        return ReadableSpan(
            name=semconv.SESSION_SPAN,
            context=session_context(self._run_id, name),
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.INTERNAL,
            start_time=self._zero_ns + session.started_ns,
            end_time=self._zero_ns + session.ended_ns,
            instrumentation_scope=self._scope,
        )

    def _attributes(self, record: Record) -> tuple[str, Attributes]:
        key = (record.dialect, record.model, record.kind, record.wire)
        constant = self._constant.get(key)
        if constant is None:
            constant = self._constant[key] = self._constant_of(record)
        name, shared = constant
        return name, {**shared, **own_attributes(record)}

    def _constant_of(self, record: Record) -> tuple[str, Attributes]:
        host, port = self._server
        operation = semconv.operation(record.dialect)
        attributes: Attributes = {
            semconv.OPERATION_NAME: operation,
            semconv.PROVIDER_NAME: semconv.provider(host, record.model),
            semconv.REQUEST_MODEL: record.model,
            semconv.SERVER_ADDRESS: host,
            semconv.PROTOCOL_NAME: "http",
            semconv.KIND: record.kind,
            semconv.DIALECT: record.dialect,
            **self._requested.get(record.kind, {}),
        }
        if port is not None:
            attributes[semconv.SERVER_PORT] = port
        if record.kind == Kind.STREAM:
            attributes[semconv.REQUEST_STREAM] = True
        if (version := _WIRES.get(record.wire)) is not None:
            attributes[semconv.PROTOCOL_VERSION] = version
        return f"{operation} {record.model}", attributes


def own_attributes(record: Record) -> Attributes:
    """The attributes that differ from one attempt to the next."""
    assert record.started_ns is not None
    assert record.ended_ns is not None
    attributes: Attributes = {
        semconv.SEQ: record.seq,
        semconv.ATTEMPT: record.attempt,
        semconv.FINAL: record.final,
        semconv.REQUEST_ID: record.request_id,
        semconv.OUTCOME: record.outcome,
    }
    if record.index or record.kind == Kind.BATCH:
        attributes[semconv.INDEX] = record.index
    if record.session != record.request_id:
        attributes[semconv.CONVERSATION_ID] = record.session
        attributes[semconv.TURN] = record.turn
    if record.due_ns is not None and record.attempt == 0:
        attributes[semconv.LATENESS] = (record.started_ns - record.due_ns) / 1e9
    if record.due_ns is not None and record.final:
        attributes[semconv.RESPONSE_DURATION] = (record.ended_ns - record.due_ns) / 1e9
    if record.first_event_ns is not None:
        attributes[semconv.TIME_TO_FIRST_CHUNK] = (record.first_event_ns - record.started_ns) / 1e9
    if record.status is not None:
        attributes[semconv.STATUS_CODE] = record.status
    if record.finish_reason is not None:
        attributes[semconv.FINISH_REASONS] = (record.finish_reason,)
    if (error := semconv.error_type(record.outcome, record.status)) is not None:
        attributes[semconv.ERROR_TYPE] = error
    if (usage := record.usage) is not None:
        attributes[semconv.INPUT_TOKENS] = usage.prompt
        attributes[semconv.OUTPUT_TOKENS] = usage.completion
        if usage.cached is not None:
            attributes[semconv.CACHED_TOKENS] = usage.cached
        if usage.reasoning is not None:
            attributes[semconv.REASONING_TOKENS] = usage.reasoning
        if usage.source != "server":
            attributes[semconv.USAGE_SOURCE] = usage.source
    for name, value in record.tags.items():
        attributes[semconv.TAG_PREFIX + name] = value
    return attributes


_UNSET = Status(StatusCode.UNSET)


def _status(record: Record) -> Status:
    if semconv.error_type(record.outcome, record.status) is None:
        return _UNSET
    return Status(StatusCode.ERROR, record.error or record.outcome)
