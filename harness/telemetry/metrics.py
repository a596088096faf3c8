"""Records -> cumulative counters and histograms, as the SDK's own data points: pure but for its tallies.

The SDK's instruments take 9 µs a value, too slow for every gap of every stream, and stamp points with
the time of export. Here values are whole nanoseconds, binned by sorting, and a point bears the time of
the last record in it, so that the same log always gives the same points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import sub

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as Series
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from harness.record import Kind, Outcome, Record, Run
from harness.telemetry import semconv
from harness.telemetry.semconv import Instrument, Metric
from harness.telemetry.spans import server_of, was_sent

Labels = tuple[tuple[str, str | int], ...]

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_MILLISECOND_NS = 1_000_000


class Bins:
    """One histogram of durations: how many values lie in each bucket (lower, upper]."""

    def __init__(self, edges_s: Sequence[float]) -> None:
        self.edges_s = edges_s
        self.counts = [0] * (len(edges_s) + 1)
        self.total_ns = 0
        self.low_ns = 0
        self.high_ns = 0
        self._edges_ns = [round(edge * 1e9) for edge in edges_s]

    @property
    def count(self) -> int:
        """Values taken in."""
        return sum(self.counts)

    def add(self, values_ns: Sequence[int]) -> None:
        """Take in values in nanoseconds."""
        if not values_ns:
            return
        ordered = sorted(values_ns)
        first = self.count == 0
        self.low_ns = ordered[0] if first else min(self.low_ns, ordered[0])
        self.high_ns = ordered[-1] if first else max(self.high_ns, ordered[-1])
        self.total_ns += sum(ordered)
        below = 0
        for bucket, edge in enumerate(self._edges_ns):
            up_to = bisect_right(ordered, edge, below)
            self.counts[bucket] += up_to - below
            if up_to == len(ordered):
                return
            below = up_to
        self.counts[-1] += len(ordered) - below


class Tallies:
    """All metrics of one run, fed with its records.

    Args:
        run: the run's header.
        resource: the metrics' resource.
        thresholds_s: the objectives' thresholds; each becomes an edge of every duration's buckets.
    """

    def __init__(self, run: Run, resource: Resource, thresholds_s: Iterable[float] = ()) -> None:
        thresholds = tuple(thresholds_s)
        self._edges = {
            metric.name: semconv.with_thresholds(metric.edges_s, thresholds)
            for metric in semconv.METRICS
            if metric.instrument is Instrument.HISTOGRAM
        }
        self._start_ns = run.start.wall_ns
        self._resource = resource
        self._scope = InstrumentationScope(semconv.SCOPE, run.versions.get("harness"))
        self._server = server_of(run.target)
        self._labels: dict[tuple[str, str, str, str | None], Labels] = {}
        self._bins: dict[str, dict[Labels, Bins]] = {name: {} for name in self._edges}
        self._sums: dict[str, dict[Labels, int]] = {
            metric.name: {} for metric in semconv.METRICS if metric.instrument is Instrument.COUNTER
        }
        self._latest_ns = 0
        self._time_ns = 0

    @property
    def latest_ns(self) -> int:
        """The last stamp taken in, in nanoseconds from the run's start."""
        return self._latest_ns

    def add(self, record: Record) -> None:
        """Take in one record."""
        if was_sent(record):
            self._add_attempt(record)
        if record.attempt == 0 and record.due_ns is not None and record.started_ns is not None:
            kind = ((semconv.KIND, record.kind),)
            self._observe(semconv.LATENESS_HISTOGRAM, kind, (record.started_ns - record.due_ns,))
        if record.final:
            self._add_request(record)
        stamp = record.ended_ns if record.ended_ns is not None else record.due_ns
        self._latest_ns = max(self._latest_ns, stamp or 0)

    def points(self) -> MetricsData:
        """All series as they stand, stamped with the last record's time.

        The time grows by a millisecond at least from one call to the next: Prometheus counts in
        milliseconds and refuses a second value for the same time.
        """
        self._time_ns = max(self._start_ns + self._latest_ns, self._time_ns + _MILLISECOND_NS)
        series = [made for metric in semconv.METRICS if (made := self._series(metric)) is not None]
        scope = ScopeMetrics(scope=self._scope, metrics=series, schema_url="")
        return MetricsData(
            [ResourceMetrics(resource=self._resource, scope_metrics=[scope] if series else [], schema_url="")]
        )

    def _add_attempt(self, record: Record) -> None:
        assert record.started_ns is not None
        assert record.ended_ns is not None
        labels = self._attempt_labels(record)
        self._observe(semconv.INFERENCE_DURATION, labels, (record.ended_ns - record.started_ns,))
        if record.first_event_ns is not None:
            wait_ns = record.first_event_ns - record.started_ns
            self._observe(semconv.INFERENCE_FIRST_CHUNK, labels, (wait_ns,))
        stamps = record.chunk_ns
        if record.kind == Kind.STREAM and len(stamps) > 1:
            self._observe(semconv.INFERENCE_CHUNK_GAP, labels, tuple(map(sub, stamps[1:], stamps)))
        usage = record.usage
        labels = (*labels, (semconv.TOKEN_MODALITY, semconv.MODALITY_UNKNOWN))
        self._count(semconv.USAGE_INPUT, labels, usage.prompt if usage else 0)
        self._count(semconv.USAGE_OUTPUT, labels, usage.completion if usage else 0)
        if usage is not None and usage.cached is not None:
            self._count(semconv.USAGE_CACHED, labels, usage.cached)
        if usage is not None and usage.reasoning is not None:
            self._count(semconv.USAGE_REASONING, labels, usage.reasoning)

    def _add_request(self, record: Record) -> None:
        kind: Labels = ((semconv.KIND, record.kind),)
        labels: Labels = (*kind, (semconv.OUTCOME, record.outcome))
        self._count(semconv.REQUESTS, labels, 1)
        if record.outcome == Outcome.DROPPED:
            # Requests of one batch share an arrival: only its first one stands for it.
            self._count(semconv.DROPPED, kind, 0 if record.index else 1)
        # In a closed loop a request is due when it is started.
        due_ns = record.due_ns if record.due_ns is not None else record.started_ns
        if due_ns is None or not was_sent(record):
            return
        assert record.ended_ns is not None
        self._observe(semconv.RESPONSE, labels, (record.ended_ns - due_ns,))
        if record.first_token_ns is not None:
            self._observe(semconv.TTFT, labels, (record.first_token_ns - due_ns,))

    def _attempt_labels(self, record: Record) -> Labels:
        error = semconv.error_type(record.outcome, record.status)
        key = (record.dialect, record.model, record.kind, error)
        labels = self._labels.get(key)
        if labels is None:
            labels = self._labels[key] = self._labels_of(record, error)
        return labels

    def _labels_of(self, record: Record, error: str | None) -> Labels:
        host, port = self._server
        labels: list[tuple[str, str | int]] = [
            (semconv.OPERATION_NAME, semconv.operation(record.dialect)),
            (semconv.PROVIDER_NAME, semconv.provider(host, record.model)),
            (semconv.REQUEST_MODEL, record.model),
            (semconv.SERVER_ADDRESS, host),
            (semconv.KIND, record.kind),
        ]
        if port is not None:
            labels.append((semconv.SERVER_PORT, port))
        if error is not None:
            labels.append((semconv.ERROR_TYPE, error))
        return tuple(labels)

    def _observe(self, metric: Metric, labels: Labels, values_ns: Sequence[int]) -> None:
        bins = self._bins[metric.name].get(labels)
        if bins is None:
            bins = self._bins[metric.name][labels] = Bins(self._edges[metric.name])
        bins.add(values_ns)

    def _count(self, metric: Metric, labels: Labels, by: int) -> None:
        sums = self._sums[metric.name]
        sums[labels] = sums.get(labels, 0) + by

    def _series(self, metric: Metric) -> Series | None:
        if metric.instrument is Instrument.COUNTER:
            numbers = [self._number(labels, value) for labels, value in self._sums[metric.name].items()]
            content: Sum | Histogram = Sum(numbers, _CUMULATIVE, is_monotonic=True)
        else:
            histograms = [self._histogram(labels, bins) for labels, bins in self._bins[metric.name].items()]
            content = Histogram(histograms, _CUMULATIVE)
        if not content.data_points:
            return None
        return Series(metric.name, metric.description, metric.unit, content)

    def _number(self, labels: Labels, value: int) -> NumberDataPoint:
        return NumberDataPoint(dict(labels), self._start_ns, self._time_ns, value)

    def _histogram(self, labels: Labels, bins: Bins) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=self._start_ns,
            time_unix_nano=self._time_ns,
            count=bins.count,
            sum=bins.total_ns / 1e9,
            bucket_counts=tuple(bins.counts),
            explicit_bounds=tuple(bins.edges_s),
            min=bins.low_ns / 1e9,
            max=bins.high_ns / 1e9,
        )


def count_points(points: MetricsData) -> int:
    """Data points in an export."""
    return sum(
        len(series.data.data_points)
        for resource in points.resource_metrics
        for scope in resource.scope_metrics
        for series in scope.metrics
    )
