"""The Grafana dashboard, made from semconv.py so that no metric's name can drift.

Write it again after a change, from the repository's root:

    python -m harness.telemetry.dashboard > dashboards/grafana/dashboards/harness.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from harness.telemetry import semconv
from harness.telemetry.semconv import Metric, prometheus_label, prometheus_name

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8
"""Of a panel, in Grafana's grid of 24 columns."""

RUN = f'{prometheus_label(semconv.RUN_ID)}=~"$run"'
KIND = prometheus_label(semconv.KIND)
OUTCOME = prometheus_label(semconv.OUTCOME)
SPAN_CALLS = "traces_span_metrics_calls_total"
"""Counted by the collector's span_metrics connector from the spans: a second opinion on the first."""

Query = tuple[str, str]
"""An expression and its legend."""


def rate(metric: Metric, by: str = "", where: str = "") -> str:
    """A counter's rate per second."""
    return _summed(f"rate({prometheus_name(metric)}{{{RUN}{where}}}[$__rate_interval])", by)


def quantile(q: float, metric: Metric, by: str = "") -> str:
    """A quantile estimated from a histogram's buckets."""
    buckets = f"rate({prometheus_name(metric)}_bucket{{{RUN}}}[$__rate_interval])"
    return f"histogram_quantile({q}, {_summed(buckets, f'le, {by}' if by else 'le')})"


def total(metric: Metric, where: str = "") -> str:
    """A counter's value, over all series."""
    return f"sum({prometheus_name(metric)}{{{RUN}{where}}})"


def _summed(expression: str, by: str) -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def _quantiles(metric: Metric) -> list[Query]:
    return [(quantile(q, metric), f"P{q * 100:g}") for q in (0.5, 0.95, 0.99)]


ERRORS = f', {OUTCOME}!~"ok|cancelled"'

PANELS: tuple[tuple[str, str, str, list[Query]], ...] = (
    (
        "Requests by outcome",
        "Requests that ended, per second, by how they ended; dropped arrivals included.",
        "reqps",
        [(rate(semconv.REQUESTS, OUTCOME), f"{{{{{OUTCOME}}}}}")],
    ),
    (
        "Error rate",
        "Share of requests that are errors after all retries. The default objective is below 0.1 %.",
        "percentunit",
        [(f"{rate(semconv.REQUESTS, where=ERRORS)} / {rate(semconv.REQUESTS)}", "errors")],
    ),
    (
        "Requests so far",
        "Requests that ended since the run's start, by kind of traffic.",
        "short",
        [(f"sum by ({KIND}) ({prometheus_name(semconv.REQUESTS)}{{{RUN}}})", f"{{{{{KIND}}}}}")],
    ),
    (
        "Response time",
        (
            "From when a request was due to its end, all attempts: what the objectives judge. Estimated from "
            "buckets; the verdict uses every request."
        ),
        "s",
        _quantiles(semconv.RESPONSE),
    ),
    (
        "Time to first token",
        "Streams: from when a request was due to its first non-empty token.",
        "s",
        _quantiles(semconv.TTFT),
    ),
    (
        "Gap between chunks",
        "Streams: gaps between successive chunks (ITL), all of them.",
        "s",
        _quantiles(semconv.INFERENCE_CHUNK_GAP),
    ),
    (
        "Service time P99 by kind",
        "From an attempt's start to its end, 99th percentile.",
        "s",
        [(quantile(0.99, semconv.INFERENCE_DURATION, KIND), f"{{{{{KIND}}}}}")],
    ),
    (
        "Time to first chunk",
        "Streams: from an attempt's start to its first data event, be it empty.",
        "s",
        _quantiles(semconv.INFERENCE_FIRST_CHUNK),
    ),
    (
        "Tokens",
        "Tokens per second as the server counts them; estimates where it does not.",
        "tokens/s",
        [
            (rate(semconv.USAGE_INPUT), "prompt"),
            (rate(semconv.USAGE_CACHED), "prompt, cached"),
            (rate(semconv.USAGE_OUTPUT), "completion"),
            (rate(semconv.USAGE_REASONING), "completion, reasoning"),
        ],
    ),
    (
        "Lateness",
        (
            "The instrument's own: from when an arrival was due to its start. Where it is large, the load "
            "generator was the bottleneck and the run is INVALID."
        ),
        "s",
        _quantiles(semconv.LATENESS_HISTOGRAM),
    ),
    (
        "Dropped arrivals",
        "Arrivals that were never started, since the run's start: no virtual user was idle in time.",
        "short",
        [(f"{total(semconv.DROPPED)} or vector(0)", "dropped")],
    ),
    (
        "Attempts: metrics against spans",
        (
            "Attempts sent, counted by the harness and again by the collector from the spans. The two lines "
            "must end at the same height; a sampler lowers the second."
        ),
        "short",
        [
            (f"sum({prometheus_name(semconv.INFERENCE_DURATION)}_count{{{RUN}}})", "harness"),
            (f'sum({SPAN_CALLS}{{{RUN}, span_kind="SPAN_KIND_CLIENT"}})', "collector, from spans"),
        ],
    ),
)
"""Title, description, unit and queries of each panel, in reading order."""


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana's JSON model."""
    return {
        "uid": "llm-load-harness",
        "title": "LLM load",
        "description": "One load test, live. The verdict is the harness's own report; this is for watching.",
        "tags": ["llm", "load test"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_run_variable()]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _run_variable() -> dict[str, Any]:
    label = prometheus_label(semconv.RUN_ID)
    query = f"label_values({prometheus_name(semconv.REQUESTS)}, {label})"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,
        "sort": 2,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
    }


def _panel(number: int, title: str, description: str, unit: str, queries: Sequence[Query]) -> dict[str, Any]:
    columns = 24 // WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": number % columns * WIDTH,
            "y": number // columns * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def text() -> str:
    """The dashboard as the file holds it."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
