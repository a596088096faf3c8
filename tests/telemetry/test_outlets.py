"""Exports take a bounded time, and each item is counted once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.clock import FakeClock
from harness.errors import ConfigError
from harness.telemetry import outlets
from harness.telemetry.outlets import Exporter, Outlet

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def scripted(answers: Iterable[bool], clock: FakeClock, cost_s: float) -> Exporter[list[int]]:
    """An exporter that takes `cost_s` and gives the answers one after the other."""
    script = iter(answers)

    def export(_: list[int]) -> bool:
        clock.advance(round(cost_s * 1e9))
        return next(script)

    return Exporter("somewhere", export, lambda: None)


def test_what_is_accepted_is_exported_and_what_is_refused_has_failed() -> None:
    clock = FakeClock()
    outlet = Outlet(scripted([True, False, True], clock, 0.1), 5, 10, clock)
    for count in (3, 4, 5):
        outlet.send([], count)
    assert (outlet.exported, outlet.failed) == (8, 4)
    assert outlet.errors == ["the exporter gave no further reason"]


def test_after_its_patience_only_one_batch_a_patience_is_tried() -> None:
    clock = FakeClock()
    outlet = Outlet(scripted([False, False, False, True, True], clock, 6), 60, 10, clock)
    for _ in range(100):
        outlet.send([], 1)
    assert clock.now == 12_000_000_000
    clock.advance(10_000_000_000)
    for _ in range(100):
        outlet.send([], 1)
    assert clock.now == 28_000_000_000
    clock.advance(10_000_000_000)
    for _ in range(2):
        outlet.send([], 1)
    assert (outlet.exported, outlet.failed) == (2, 200)


def test_an_exporter_that_never_returns_is_given_up_once() -> None:
    release = threading.Event()
    calls = []

    def hang(batch: list[int]) -> bool:
        calls.append(batch)
        return release.wait(60)

    outlet = Outlet(Exporter("nowhere", hang, lambda: None), timeout_s=0.05, patience_s=10)
    for _ in range(5):
        outlet.send([], 2)
    release.set()
    assert (outlet.exported, outlet.failed, len(calls)) == (0, 10, 1)
    assert outlet.errors == ["no answer within 0.05 s: given up"]


def test_reasons_are_kept_once_without_secrets_or_what_changes() -> None:
    def fail(_: list[int]) -> bool:
        logger = logging.getLogger("opentelemetry.exporter.otlp")
        logger.warning("refused <Connection object at 0x7f01> for key hunter2, retrying in 0.97s.")
        logger.warning("refused <Connection object at 0x7f02> for key hunter2, retrying in 1.10s.")
        return False

    outlet = Outlet(Exporter("x", fail, lambda: None, ("hunter2",)), timeout_s=5, patience_s=10)
    outlet.send([], 1)
    outlet.send([], 1)
    assert outlet.errors == ["refused <Connection> for key [redacted]"]


def test_without_an_endpoint_the_run_folder_gets_files(tmp_path: Path) -> None:
    traces = outlets.traces_exporter({}, tmp_path, 1)
    metrics = outlets.metrics_exporter({}, tmp_path, 1)
    assert traces is not None
    assert metrics is not None
    assert (traces.destination, metrics.destination) == ("traces.otlp.jsonl", "metrics.otlp.jsonl")
    traces.close()
    metrics.close()


@pytest.mark.parametrize(
    ("environ", "destination"),
    [
        ({ENDPOINT: "http://otel:4318"}, "http://otel:4318/v1/traces"),
        ({ENDPOINT: "http://otel:4318/base/"}, "http://otel:4318/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://otel:4318/own"}, "http://otel:4318/own"),
        ({ENDPOINT: "https://user:pw@otel:4318?token=t"}, "https://otel:4318"),
        ({ENDPOINT: "http://otel:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://otel:4317"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
    ],
)
def test_the_destination_follows_the_standard_variables(
    environ: dict[str, str], destination: str, tmp_path: Path
) -> None:
    exporter = outlets.traces_exporter(environ, tmp_path, 1)
    assert exporter is not None
    exporter.close()
    assert exporter.destination.startswith(destination)
    assert not {"user", "pw", "token"} & set(exporter.destination.replace("/", " ").replace("@", " ").split())


@pytest.mark.parametrize("environ", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_spans_can_be_switched_off(environ: dict[str, str], tmp_path: Path) -> None:
    assert outlets.traces_exporter({**environ, ENDPOINT: "http://otel:4318"}, tmp_path, 1) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({ENDPOINT: "otel:4318"}, ENDPOINT),
        ({ENDPOINT: "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({ENDPOINT: "http://x", "OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_a_value_that_cannot_be_used_is_the_users_mistake(
    environ: dict[str, str], key: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        outlets.traces_exporter(environ, tmp_path, 1)
    assert caught.value.key == key
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "argument", "share"),
    [
        ("", "", 1.0),
        ("always_on", "", 1.0),
        ("always_off", "", 0.0),
        ("traceidratio", "0.25", 0.25),
        ("parentbased_traceidratio", "0.5", 0.5),
        ("parentbased_always_off", "", 0.0),
        ("traceidratio", "", 1.0),
    ],
)
def test_the_sampler_keeps_its_share_of_trace_ids(sampler: str, argument: str, share: float) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert outlets.sampling_bound(environ) == round(share * 2**64)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
    ],
)
def test_a_sampler_that_is_not_known_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        outlets.sampling_bound(environ)


def test_resource_attributes_are_read_and_the_service_name_wins() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "team=a%20b, service.name=one", "OTEL_SERVICE_NAME": "two"}
    service, attributes = outlets.resource_variables(environ, "default")
    assert service == "two"
    assert attributes["team"] == "a b"
    assert outlets.resource_variables({}, "default") == ("default", {})
    with pytest.raises(ConfigError):
        outlets.resource_variables({"OTEL_RESOURCE_ATTRIBUTES": "team"}, "default")


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_a_time_must_be_a_positive_number(text: str) -> None:
    with pytest.raises(ConfigError):
        outlets.timeout_s({"OTEL_EXPORTER_OTLP_TIMEOUT": text}, "TRACES")
    with pytest.raises(ConfigError):
        outlets.interval_s({"OTEL_METRIC_EXPORT_INTERVAL": text})
    assert outlets.timeout_s({"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2.5"}, "TRACES") == 2.5
    assert outlets.interval_s({"OTEL_METRIC_EXPORT_INTERVAL": "250"}) == 0.25
