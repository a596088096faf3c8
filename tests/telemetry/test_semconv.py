"""The names, once each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.telemetry import semconv


def test_every_name_is_defined_once() -> None:
    names = [value for key, value in vars(semconv).items() if key.isupper() and isinstance(value, str)]
    names += [metric.name for metric in semconv.METRICS if metric is not semconv.RESPONSE]
    names.remove(semconv.LATENESS)  # the span attribute and the metric of one quantity share a name
    assert len(names) == len(set(names))


def test_every_metric_is_listed() -> None:
    defined = [value for value in vars(semconv).values() if isinstance(value, semconv.Metric)]
    assert sorted(metric.name for metric in defined) == sorted(metric.name for metric in semconv.METRICS)


def test_names_are_of_the_conventions_or_ours() -> None:
    assert all(metric.name.startswith(("gen_ai.client.inference.", "harness.")) for metric in semconv.METRICS)


def test_the_conventions_buckets_have_no_edge_at_half_a_second() -> None:
    assert semconv.DURATION_EDGES_S[:7] == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
    assert semconv.DURATION_EDGES_S[-1] == 81.92
    assert 0.5 not in semconv.DURATION_EDGES_S


def test_thresholds_become_edges_in_order() -> None:
    edges = semconv.with_thresholds(semconv.DURATION_EDGES_S, (0.5, 0.64, 0.0))
    assert edges == tuple(sorted({*semconv.DURATION_EDGES_S, 0.5}))


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (semconv.INFERENCE_DURATION, "gen_ai_client_inference_duration_seconds"),
        (semconv.USAGE_OUTPUT, "gen_ai_client_inference_usage_output_tokens_total"),
        (semconv.RESPONSE, "harness_response_duration_seconds"),
        (semconv.LATENESS_HISTOGRAM, "harness_lateness_seconds"),
        (semconv.REQUESTS, "harness_requests_total"),
        (semconv.DROPPED, "harness_arrivals_dropped_total"),
    ],
)
def test_prometheus_names_follow_otlp_translation(metric: semconv.Metric, name: str) -> None:
    assert semconv.prometheus_name(metric) == name


@pytest.mark.parametrize(
    ("host", "model", "provider"),
    [
        ("api.deepseek.com", "anything", "deepseek"),
        ("127.0.0.1", "deepseek-flash", "deepseek"),
        ("127.0.0.1", "gpt-5", "openai"),
        ("notdeepseek.com", "gpt-5", "openai"),
    ],
)
def test_the_provider_comes_from_the_host_or_the_model(host: str, model: str, provider: str) -> None:
    assert semconv.provider(host, model) == provider


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        ("ok", 200, None),
        ("cancelled", None, None),
        ("http_error", 503, "503"),
        ("refused_by_server", 429, "429"),
        ("refused_by_server", None, "refused_by_server"),
        ("cut", 200, "cut"),
        ("connect_error", None, "connect_error"),
    ],
)
def test_the_error_type_is_the_status_or_the_outcome(outcome: str, status: int | None, error: str) -> None:
    assert semconv.error_type(outcome, status) == error


def test_the_names_need_no_opentelemetry() -> None:
    code = (
        "import sys, harness.telemetry.semconv; assert not [m for m in sys.modules if 'opentelemetry' in m]"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_documented(metric: semconv.Metric) -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs/telemetry.md").read_text()
    assert f"| `{metric.name}` | {metric.unit} | {metric.description} |" in docs
