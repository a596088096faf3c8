"""Every span, attribute, event and metric name that the harness emits, once.

The `gen_ai.*` names are those of the OpenTelemetry GenAI semantic conventions v0.1.0 (their first
release of their own; before it, `gen_ai.client.inference.duration` was called
`gen_ai.client.operation.duration`). Names under `harness.` are ours. No OpenTelemetry package is
needed to read this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

SCOPE = "harness"
"""Name of the instrumentation scope."""
SERVICE = "llm-load-harness"
"""`service.name`, where OTEL_SERVICE_NAME does not say otherwise."""

# -- resource -------------------------------------------------------------------------------------------

SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"
SDK_LANGUAGE = "telemetry.sdk.language"
SDK_NAME = "telemetry.sdk.name"
SDK_VERSION = "telemetry.sdk.version"
RUN_ID = "harness.run.id"
RUN_NAME = "harness.run.name"

# -- attributes of the conventions ------------------------------------------------------------------------

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
REQUEST_SEED = "gen_ai.request.seed"
CONVERSATION_ID = "gen_ai.conversation.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
TOKEN_MODALITY = "gen_ai.token.modality"  # noqa: S105 - an attribute's name, no password
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
STATUS_CODE = "http.response.status_code"
PROTOCOL_NAME = "network.protocol.name"
PROTOCOL_VERSION = "network.protocol.version"

# -- attributes of our own --------------------------------------------------------------------------------

SEQ = "harness.seq"
INDEX = "harness.index"
ATTEMPT = "harness.attempt"
FINAL = "harness.final"
REQUEST_ID = "harness.request.id"
KIND = "harness.kind"
DIALECT = "harness.dialect"
OUTCOME = "harness.outcome"
LATENESS = "harness.lateness"
RESPONSE_DURATION = "harness.response.duration"
USAGE_SOURCE = "harness.usage.source"
SESSION = "harness.session"
SESSION_ATTEMPTS = "harness.session.attempts"
TURN = "harness.turn"
TAG_PREFIX = "harness.tag."

# -- spans and their events -------------------------------------------------------------------------------

SESSION_SPAN = "session"
"""Name of a session's span; an attempt's is `{gen_ai.operation.name} {gen_ai.request.model}`."""
EVENT_FIRST_CHUNK = "harness.response.first_chunk"
"""First data event of a stream, be it empty."""
EVENT_FIRST_TOKEN = "harness.response.first_token"  # noqa: S105 - an event's name, no password
"""First non-empty token, reasoning or content."""
EVENT_FIRST_CONTENT = "harness.response.first_content"
"""First non-empty answer content."""
EVENT_END = "harness.response.end"
"""End of the answer, or the moment it was given up."""

# -- values -----------------------------------------------------------------------------------------------

OPERATIONS = {"chat": "chat", "completions": "text_completion", "completions-lines": "text_completion"}
"""Dialect -> `gen_ai.operation.name`."""
MODALITY_UNKNOWN = "unknown"


def operation(dialect: str) -> str:
    """`gen_ai.operation.name` of a dialect; a dialect that the conventions do not know keeps its name."""
    return OPERATIONS.get(dialect, dialect)


def provider(host: str, model: str) -> str:
    """`gen_ai.provider.name`: `deepseek`, or `openai` as the flavour of everything that speaks its API."""
    known = host == "deepseek.com" or host.endswith(".deepseek.com") or model.startswith("deepseek")
    return "deepseek" if known else "openai"


def error_type(outcome: str, status: int | None) -> str | None:
    """`error.type`: the HTTP status where it is the error, else the outcome; None where there is none."""
    if outcome in {"ok", "cancelled"}:
        return None
    if status is not None and status >= 400:
        return str(status)
    return outcome


# -- metrics ----------------------------------------------------------------------------------------------


class Instrument(StrEnum):
    """What a metric is."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """One metric: its name, its UCUM unit and, for a histogram, its bucket edges."""

    name: str
    unit: str
    instrument: Instrument
    description: str
    edges_s: tuple[float, ...] = ()


DURATION_EDGES_S = tuple(round(0.01 * 2**power, 2) for power in range(14))
"""The conventions' buckets, 10 ms to 81.92 s. They have no edge at 0.5 s: see `with_thresholds`."""
LATENESS_EDGES_S = (
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
)
"""Lateness is small where the instrument works, so its buckets start at 0.1 ms."""


def _seconds(name: str, description: str, edges_s: tuple[float, ...] = DURATION_EDGES_S) -> Metric:
    return Metric(name, "s", Instrument.HISTOGRAM, description, edges_s)


def _count(name: str, unit: str, description: str) -> Metric:
    return Metric(name, unit, Instrument.COUNTER, description)


INFERENCE_DURATION = _seconds(
    "gen_ai.client.inference.duration", "Service time of each attempt that was sent: from start to end."
)
INFERENCE_FIRST_CHUNK = _seconds(
    "gen_ai.client.inference.time_to_first_chunk", "Streams: from an attempt's start to its first data event."
)
INFERENCE_CHUNK_GAP = _seconds(
    "gen_ai.client.inference.time_per_output_chunk", "Streams: the gaps between successive chunks (ITL)."
)
USAGE_INPUT = _count(
    "gen_ai.client.inference.usage.input_tokens", "{token}", "Prompt tokens, cached included."
)
USAGE_OUTPUT = _count(
    "gen_ai.client.inference.usage.output_tokens", "{token}", "Completion tokens, reasoning included."
)
USAGE_CACHED = _count(
    "gen_ai.client.inference.usage.cache_read.input_tokens", "{token}", "Prompt tokens served from a cache."
)
USAGE_REASONING = _count(
    "gen_ai.client.inference.usage.reasoning.output_tokens", "{token}", "Reasoning tokens."
)
RESPONSE = _seconds(
    "harness.response.duration",
    "Response time of each request: from when it was due to its end, all attempts.",
)
TTFT = _seconds(
    "harness.time_to_first_token", "Streams: from when the request was due to its first non-empty token."
)
LATENESS_HISTOGRAM = _seconds(
    "harness.lateness", "From when an arrival was due to its first attempt's start.", LATENESS_EDGES_S
)
REQUESTS = _count("harness.requests", "{request}", "Requests by how they ended; dropped arrivals included.")
DROPPED = _count("harness.arrivals.dropped", "{arrival}", "Arrivals that were never started.")

METRICS = (
    INFERENCE_DURATION,
    INFERENCE_FIRST_CHUNK,
    INFERENCE_CHUNK_GAP,
    USAGE_INPUT,
    USAGE_OUTPUT,
    USAGE_CACHED,
    USAGE_REASONING,
    RESPONSE,
    TTFT,
    LATENESS_HISTOGRAM,
    REQUESTS,
    DROPPED,
)


def with_thresholds(edges_s: Iterable[float], thresholds_s: Iterable[float]) -> tuple[float, ...]:
    """Bucket edges that also hold each objective's threshold, so that its share can be read off exactly."""
    return tuple(sorted({*edges_s, *(threshold for threshold in thresholds_s if threshold > 0)}))


def prometheus_name(metric: Metric) -> str:
    """The metric's name after OTLP translation (UnderscoreEscapingWithSuffixes).

    Source: Prometheus' guide to OpenTelemetry: dots become underscores, the unit `s` becomes `_seconds`,
    a unit in braces is left out, a monotonic sum ends in `_total`.
    """
    name = prometheus_label(metric.name)
    if metric.unit == "s" and not name.endswith("_seconds"):
        name += "_seconds"
    if metric.instrument is Instrument.COUNTER:
        name += "_total"
    return name


def prometheus_label(attribute: str) -> str:
    """An attribute's name as a Prometheus label."""
    return attribute.replace(".", "_")
