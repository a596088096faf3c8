"""The dashboard shows metrics that are really emitted, and says what each panel means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.telemetry import dashboard, semconv

FILE = Path(__file__).resolve().parents[2] / "dashboards/grafana/dashboards/harness.json"
PANELS = dashboard.dashboard()["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
SUFFIXES = ("_bucket", "_count", "_sum")


def test_the_file_is_the_one_that_semconv_makes() -> None:
    assert FILE.read_text() == dashboard.text(), "python -m harness.telemetry.dashboard > the file"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_asks_for_a_metric_that_is_emitted(expression: str) -> None:
    emitted = {semconv.prometheus_name(metric) for metric in semconv.METRICS} | {dashboard.SPAN_CALLS}
    asked = re.findall(r"([a-z_]+)\{", expression)
    assert asked
    for name in asked:
        suffix = next((each for each in SUFFIXES if name.endswith(each)), "")
        assert name.removesuffix(suffix) in emitted


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_is_of_the_chosen_run(expression: str) -> None:
    selectors = re.findall(r"\{([^}]*)\}", expression)
    assert all('harness_run_id=~"$run"' in selector for selector in selectors)


def test_every_metric_is_shown() -> None:
    shown = " ".join(EXPRESSIONS)
    assert [m.name for m in semconv.METRICS if semconv.prometheus_name(m) not in shown] == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_a_unit_and_a_description(panel: dict) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["targets"]


def test_panels_do_not_overlap() -> None:
    taken = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(taken) == len(set(taken))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
