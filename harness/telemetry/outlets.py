"""Where telemetry goes, as the OTEL_* variables say: exporters in bounded time, with exact books."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from harness.clock import now_ns
from harness.errors import ConfigError
from harness.telemetry.otlp_json import metrics_line, traces_line

Batch = TypeVar("Batch")
Signal = Literal["TRACES", "METRICS"]

TRACES_FILE = "traces.otlp.jsonl"
METRICS_FILE = "metrics.otlp.jsonl"

_PROTOCOLS = ("grpc", "http/protobuf")
_PATHS = {"TRACES": "v1/traces", "METRICS": "v1/metrics"}
_MOST_ERRORS = 10


class Exporter(msgspec.Struct, Generic[Batch], frozen=True):
    """How to send one signal: two functions, and the name of the place."""

    destination: str
    """An endpoint without credentials, or a file's name."""
    export: Callable[[Batch], bool]
    """Sends one batch; whether it was accepted."""
    close: Callable[[], None]
    secrets: tuple[str, ...] = ()
    """What must never appear in an error's text."""


class Outlet(Generic[Batch]):
    """Hands batches to one exporter; every item is counted as exported or as failed, and no call hangs.

    An export runs in a thread of its own and is given up after `timeout_s`. Once failed exports have
    taken `patience_s` in all, only one batch every `patience_s` is still tried, so that a collector that
    comes back is found again; the others fail at once. A success restores all patience.

    Args:
        exporter: where to.
        timeout_s: longest time one export may take.
        patience_s: longest time that failing exports may take in a row.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        exporter: Exporter[Batch],
        timeout_s: float,
        patience_s: float,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.exported = 0
        self.failed = 0
        self.errors: list[str] = []
        self.destination = exporter.destination
        self._exporter = exporter
        self._timeout_s = timeout_s
        self._patience_ns = round(patience_s * 1e9)
        self._clock = clock
        self._lost_ns = 0
        self._retry_at_ns = 0
        self._stuck = False

    def send(self, batch: Batch, count: int) -> None:
        """Export one batch of `count` items."""
        before_ns = self._clock()
        if self._stuck or (self._lost_ns >= self._patience_ns and before_ns < self._retry_at_ns):
            self.failed += count
            return
        if self._export(batch):
            self.exported += count
            self._lost_ns = 0
            return
        after_ns = self._clock()
        self.failed += count
        self._lost_ns += after_ns - before_ns
        self._retry_at_ns = after_ns + self._patience_ns

    def close(self) -> None:
        """Let go of connections and files."""
        self._exporter.close()

    def _export(self, batch: Batch) -> bool:
        accepted: list[bool] = []
        with _Reasons(self._exporter.secrets) as reasons:
            # A daemon: an exporter that never returns must not keep the process from ending.
            thread = threading.Thread(target=self._run, args=(batch, accepted), daemon=True)
            thread.start()
            thread.join(self._timeout_s)
        if thread.is_alive():
            self._stuck = True
            self._note([*reasons.texts, f"no answer within {self._timeout_s:g} s: given up"])
            return False
        if accepted == [True]:
            return True
        self._note(reasons.texts or ["the exporter gave no further reason"])
        return False

    def _run(self, batch: Batch, accepted: list[bool]) -> None:
        accepted.append(self._exporter.export(batch))

    def _note(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self.errors]
        self.errors.extend(new[: _MOST_ERRORS - len(self.errors)])


class _Reasons(logging.Handler):
    """Why an export failed: the SDK's exporters say so to their loggers only."""

    _LOGGER = logging.getLogger("opentelemetry.exporter")
    _CHANGING = re.compile(r",? retrying in [0-9.]+s\.?| object at 0x[0-9a-f]+|ipv[46]:\S+ ")

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._secrets = secrets

    def emit(self, record: logging.LogRecord) -> None:
        text = self._CHANGING.sub("", record.getMessage())
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        self.texts.append(text[:300])

    def __enter__(self) -> Self:
        self._LOGGER.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._LOGGER.removeHandler(self)


# -- from the environment to an exporter --------------------------------------------------------------------


def traces_exporter(
    environ: Mapping[str, str], folder: Path, timeout_s: float
) -> Exporter[Sequence[ReadableSpan]] | None:
    """The spans' exporter; None where spans are switched off.

    Raises:
        ConfigError: a variable's value cannot be used.
    """
    match _choice(environ, "TRACES"):
        case "none":
            return None
        case "console":
            return _span_exporter("console", ConsoleSpanExporter(out=sys.stderr))
    endpoint = _endpoint(environ, "TRACES")
    if endpoint is None:
        return _file(folder / TRACES_FILE, traces_line)
    # The exporters cost 0.3 s of imports; a run without an endpoint does not pay for them.
    if _protocol(environ, "TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - see above
            OTLPSpanExporter as GrpcSpanExporter,
        )

        grpc = GrpcSpanExporter(endpoint=endpoint, timeout=timeout_s, headers=_headers(environ, "TRACES"))
        return _span_exporter(_shown(endpoint), grpc, _secrets(environ, "TRACES", endpoint))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - see above

    http = OTLPSpanExporter(endpoint=endpoint, timeout=timeout_s, headers=_headers(environ, "TRACES"))
    return _span_exporter(_shown(endpoint), http, _secrets(environ, "TRACES", endpoint))


def metrics_exporter(
    environ: Mapping[str, str], folder: Path, timeout_s: float
) -> Exporter[MetricsData] | None:
    """The metrics' exporter; None where metrics are switched off.

    Raises:
        ConfigError: a variable's value cannot be used.
    """
    match _choice(environ, "METRICS"):
        case "none":
            return None
        case "console":
            return _metric_exporter("console", ConsoleMetricExporter(out=sys.stderr))
    endpoint = _endpoint(environ, "METRICS")
    if endpoint is None:
        return _file(folder / METRICS_FILE, metrics_line)
    if _protocol(environ, "METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415 - as for spans
            OTLPMetricExporter as GrpcMetricExporter,
        )

        grpc = GrpcMetricExporter(endpoint=endpoint, timeout=timeout_s, headers=_headers(environ, "METRICS"))
        return _metric_exporter(_shown(endpoint), grpc, _secrets(environ, "METRICS", endpoint))
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - as for spans

    http = OTLPMetricExporter(endpoint=endpoint, timeout=timeout_s, headers=_headers(environ, "METRICS"))
    return _metric_exporter(_shown(endpoint), http, _secrets(environ, "METRICS", endpoint))


def sampling_bound(environ: Mapping[str, str]) -> int:
    """Traces whose id's lower 64 bits are below this are kept: OTEL_TRACES_SAMPLER and its argument.

    Our traces have no parent, so `parentbased_x` is `x`.

    Raises:
        ConfigError: an unknown sampler, or an argument that is no number from 0 to 1.
    """
    name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    match name.removeprefix("parentbased_"):
        case "always_on":
            return TraceIdRatioBased(1.0).bound
        case "always_off":
            return 0
        case "traceidratio":
            return TraceIdRatioBased(_ratio(environ)).bound
        case _:
            remedy = "write always_on, always_off, traceidratio, or one of them after parentbased_"
            raise ConfigError("the environment", "OTEL_TRACES_SAMPLER", name, remedy)


def resource_variables(environ: Mapping[str, str], service: str) -> tuple[str, dict[str, str]]:
    """The service's name, and the further resource attributes of OTEL_RESOURCE_ATTRIBUTES.

    Raises:
        ConfigError: a pair that is not `key=value`.
    """
    attributes: dict[str, str] = {}
    for pair in filter(None, map(str.strip, environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                "the environment", "OTEL_RESOURCE_ATTRIBUTES", pair, "write key=value,key=value"
            )
        attributes[key.strip()] = unquote(value.strip())
    return environ.get("OTEL_SERVICE_NAME") or attributes.get("service.name") or service, attributes


def timeout_s(environ: Mapping[str, str], signal: Signal) -> float:
    """Longest time for one export, in seconds, as the Python SDK reads its variables (default 10).

    Raises:
        ConfigError: not a positive number.
    """
    name = _first_set(environ, f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    return _positive(environ, name, 10.0)


def interval_s(environ: Mapping[str, str]) -> float:
    """Time between metrics exports, in seconds of the run: OTEL_METRIC_EXPORT_INTERVAL (ms), or 5.

    The specification's default is a minute: most of a load test would pass unseen.

    Raises:
        ConfigError: not a positive number.
    """
    return _positive(environ, "OTEL_METRIC_EXPORT_INTERVAL", 5000.0) / 1000


def _first_set(environ: Mapping[str, str], *names: str) -> str:
    return next((name for name in names if environ.get(name)), names[-1])


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError("the environment", name, text, "write a positive number")
    return value


def _ratio(environ: Mapping[str, str]) -> float:
    text = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigError("the environment", "OTEL_TRACES_SAMPLER_ARG", text, "write a number from 0 to 1")
    return ratio


def _choice(environ: Mapping[str, str], signal: Signal) -> str:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "none"
    name = f"OTEL_{signal}_EXPORTER"
    choice = environ.get(name) or "otlp"
    if choice not in {"otlp", "console", "none"}:
        raise ConfigError("the environment", name, choice, "write otlp, console or none")
    return choice


def _endpoint(environ: Mapping[str, str], signal: Signal) -> str | None:
    name = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    own, shared = environ.get(name), environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    source, endpoint = (name, own) if own else ("OTEL_EXPORTER_OTLP_ENDPOINT", shared)
    if not endpoint:
        return None
    if urlsplit(endpoint).scheme not in {"http", "https"}:
        shown = _shown(endpoint)
        raise ConfigError("the environment", source, shown, "write a URL: http://localhost:4318, for example")
    if own or _protocol(environ, signal) == "grpc":
        return endpoint
    return f"{endpoint.rstrip('/')}/{_PATHS[signal]}"


def _protocol(environ: Mapping[str, str], signal: Signal) -> str:
    name = _first_set(environ, f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = environ.get(name) or "http/protobuf"
    if protocol not in _PROTOCOLS:
        raise ConfigError("the environment", name, protocol, f"write {' or '.join(_PROTOCOLS)}")
    return protocol


def _headers(environ: Mapping[str, str], signal: Signal) -> dict[str, str]:
    name = _first_set(environ, f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    headers: dict[str, str] = {}
    for pair in filter(None, map(str.strip, environ.get(name, "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            # The value may be a key: it is not shown.
            raise ConfigError("the environment", name, None, "write key=value,key=value, percent-encoded")
        headers[key.strip().lower()] = unquote(value.strip())
    return headers


def _secrets(environ: Mapping[str, str], signal: Signal, endpoint: str) -> tuple[str, ...]:
    url = urlsplit(endpoint)
    found = [url.query, url.username, url.password, *_headers(environ, signal).values()]
    return tuple(secret for secret in found if secret)


def _shown(endpoint: str) -> str:
    """An endpoint without what may be secret in it."""
    url = urlsplit(endpoint)
    return SplitResult(url.scheme, url.netloc.rpartition("@")[2], url.path, "", "").geturl()


def _span_exporter(
    destination: str, exporter: SpanExporter, secrets: tuple[str, ...] = ()
) -> Exporter[Sequence[ReadableSpan]]:
    def export(spans: Sequence[ReadableSpan]) -> bool:
        return exporter.export(spans) is SpanExportResult.SUCCESS

    return Exporter(destination, export, exporter.shutdown, secrets)


def _metric_exporter(
    destination: str, exporter: MetricExporter, secrets: tuple[str, ...] = ()
) -> Exporter[MetricsData]:
    def export(points: MetricsData) -> bool:
        return exporter.export(points) is MetricExportResult.SUCCESS

    return Exporter(destination, export, exporter.shutdown, secrets)


def _file(path: Path, line: Callable[[Batch], bytes]) -> Exporter[Batch]:
    file = path.open("wb", buffering=0)

    def export(batch: Batch) -> bool:
        written = line(batch)
        try:
            return file.write(written) == len(written)
        except OSError as error:
            logging.getLogger("opentelemetry.exporter.file").warning("%s: %s", path.name, error.strerror)
            return False

    return Exporter(path.name, export, file.close)
