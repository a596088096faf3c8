"""docker-compose.yml and what it mounts: valid, pinned, on loopback only, and wired to what exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARDS = ROOT / "dashboards"
COLLECTOR = yaml.safe_load((DASHBOARDS / "otel-collector/config.yaml").read_text())
JAEGER = yaml.safe_load((DASHBOARDS / "jaeger/config.yaml").read_text())
PROMETHEUS = yaml.safe_load((DASHBOARDS / "prometheus/prometheus.yml").read_text())
PROVISIONING = DASHBOARDS / "grafana/provisioning"

every_service = pytest.mark.parametrize("name", SERVICES)


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":")
        yield source, target


def mounted(name: str, path: str) -> Path:
    """The file here that a service sees at a path."""
    for source, target in mounts(SERVICES[name]):
        if path == target or path.startswith(target + "/"):
            return ROOT / source / path[len(target) :].lstrip("/")
    raise AssertionError(f"{name} mounts nothing at {path}")


def hosts(value: object) -> set[str]:
    """Names of services in the URLs and addresses of a configuration, its own addresses left out."""
    found = re.findall(r"(?:https?://|[\s\"'\[])([a-z][a-z-]+):\d{2,5}\b", json.dumps(value))
    return set(found) - {"localhost"}


def test_it_is_valid_by_the_specifications_schema() -> None:
    schema = json.loads((ROOT / "tests/compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_the_schema_refuses_what_is_no_compose_file() -> None:
    schema = json.loads((ROOT / "tests/compose-spec.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"services": {"mock": {"imagee": "x"}}})


def test_the_whole_stack_is_there() -> None:
    assert set(SERVICES) == {
        "mock",
        "locust-master",
        "locust-worker",
        "otel-collector",
        "prometheus",
        "jaeger",
        "grafana",
    }


@every_service
def test_every_image_is_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


def test_the_dockerfiles_base_is_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base) for base in bases)


def test_what_the_dockerfile_copies_is_let_through() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert f"!{source.removeprefix('./')}" in ignored


@every_service
def test_every_published_port_is_on_loopback(name: str) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in SERVICES[name].get("ports", ()))


def test_no_port_is_published_twice() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == len(set(published))


@every_service
def test_every_service_has_limits(name: str) -> None:
    assert "mem_limit" in SERVICES[name]
    assert SERVICES[name]["logging"]["options"]["max-size"]


@every_service
def test_every_service_says_how_it_is(name: str) -> None:
    if name == "otel-collector":  # no program in its image could ask; its health port is published
        assert "127.0.0.1:13133:13133" in SERVICES[name]["ports"]
        assert COLLECTOR["extensions"]["health_check"]["endpoint"].endswith(":13133")
        return
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@every_service
def test_a_service_waits_only_for_what_can_be_waited_for(name: str) -> None:
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert (wanted["condition"] == "service_healthy") == ("healthcheck" in SERVICES[other])


@every_service
def test_mounted_files_exist(name: str) -> None:
    for source, _ in mounts(SERVICES[name]):
        assert source in COMPOSE["volumes"] or (ROOT / source).exists()


@every_service
def test_no_secret_stands_in_the_file(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search("KEY|TOKEN|PASSWORD|SECRET", key):
            assert re.fullmatch(r"\$\{\w+:-\}", value)


def test_the_load_is_the_repositorys_own() -> None:
    for name in ("locust-master", "locust-worker"):
        command = SERVICES[name]["command"]
        assert (ROOT / command[command.index("-f") + 1]).exists()
        scenario = SERVICES[name]["environment"]["HARNESS_SCENARIO"]
        assert (ROOT / Path(scenario).relative_to("/app")).exists()


@pytest.mark.parametrize("config", [COLLECTOR, JAEGER], ids=["collector", "jaeger"])
def test_pipelines_use_what_is_defined_and_all_of_it(config: dict[str, Any]) -> None:
    kinds = ("receivers", "processors", "exporters")
    connectors = set(config.get("connectors", {}))
    pipelines = config["service"]["pipelines"].values()
    for kind in kinds:
        used = {component for pipeline in pipelines for component in pipeline.get(kind, ())}
        defined = set(config.get(kind, {}))
        assert defined <= used <= defined | (connectors if kind != "processors" else set())
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    for connector in connectors:
        assert any(connector in pipeline["exporters"] for pipeline in pipelines)
        assert any(connector in pipeline["receivers"] for pipeline in pipelines)


def test_span_metrics_see_every_span_in_seconds_with_an_edge_at_each_default_objective() -> None:
    connector = COLLECTOR["connectors"]["span_metrics"]
    assert connector["histogram"]["unit"] == "s"
    assert "500ms" in connector["histogram"]["explicit"]["buckets"]
    (traces,) = (p for p in COLLECTOR["service"]["pipelines"].values() if "span_metrics" in p["exporters"])
    assert not [processor for processor in traces["processors"] if "sampl" in processor]


def test_jaeger_stores_what_it_queries() -> None:
    store = JAEGER["extensions"]["jaeger_query"]["storage"]["traces"]
    assert store in JAEGER["extensions"]["jaeger_storage"]["backends"]
    assert JAEGER["exporters"]["jaeger_storage_exporter"]["trace_storage"] == store


def test_configurations_speak_only_to_services_that_exist() -> None:
    configurations = [
        COLLECTOR,
        PROMETHEUS,
        yaml.safe_load((PROVISIONING / "datasources/datasources.yaml").read_text()),
    ]
    spoken_to = hosts(configurations)
    assert {"jaeger", "prometheus", "otel-collector"} <= spoken_to <= set(SERVICES)


def test_the_collector_is_where_telemetry_is_sent() -> None:
    endpoint = SERVICES["locust-master"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    port = COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert endpoint == f"http://otel-collector:{port}"


def test_prometheus_takes_otlp_and_late_samples_and_tells_runs_apart() -> None:
    assert "--web.enable-otlp-receiver" in SERVICES["prometheus"]["command"]
    assert "harness.run.id" in PROMETHEUS["otlp"]["promote_resource_attributes"]
    assert PROMETHEUS["storage"]["tsdb"]["out_of_order_time_window"]


@pytest.mark.parametrize("name", ["otel-collector", "prometheus", "jaeger"])
def test_a_services_configuration_is_the_file_that_is_mounted(name: str) -> None:
    (path,) = re.findall(r"--config(?:\.file)?=(?:file:)?(\S+)", " ".join(SERVICES[name]["command"]))
    assert mounted(name, path).is_file()


def test_grafana_finds_its_dashboards_and_its_data_sources() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/dashboards.yaml").read_text())["providers"]
    folder = mounted("grafana", provider["options"]["path"])
    dashboards = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    sources = yaml.safe_load((PROVISIONING / "datasources/datasources.yaml").read_text())["datasources"]
    wanted = {panel["datasource"]["uid"] for dashboard in dashboards for panel in dashboard["panels"]}
    assert wanted
    assert wanted <= {source["uid"] for source in sources}
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted("grafana", home).is_file()
