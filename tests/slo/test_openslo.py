"""openslo.py: OpenSLO v1 documents that a run can be judged by, and those it can not."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

from harness.errors import ConfigError
from harness.slo.objectives import load, parse, read_openslo

THRESHOLD = """
apiVersion: openslo/v1
kind: SLO
metadata:
  name: first-token
  labels: {team: inference}
spec:
  description: Streams start quickly
  service: chat
  indicator:
    metadata: {name: ttft}
    spec:
      thresholdMetric:
        metricSource:
          type: harness
          spec: {measure: ttft, kind: stream, unit: ms}
  timeWindow:
    - {duration: 28d, isRolling: true}
  budgetingMethod: Occurrences
  objectives:
    - {op: lt, value: 500, target: 0.99}
"""

RATIO = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: availability}
spec:
  service: chat
  indicator:
    spec:
      ratioMetric:
        counter: true
        bad: {metricSource: {type: harness, spec: {measure: errors}}}
        total: {metricSource: {type: harness, spec: {measure: requests}}}
  budgetingMethod: Occurrences
  objectives:
    - {displayName: bronze, targetPercent: 99}
    - {displayName: gold, targetPercent: 99.9}
"""


def read(tmp_path: Path, *texts: str):
    path = tmp_path / "slo.yaml"
    path.write_text("\n---\n".join(texts))
    return read_openslo(path)


def edited(text: str, path: str, value: object) -> str:
    """The document with one key set (or removed, where the value is None)."""
    document = copy.deepcopy(yaml.safe_load(text))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = document
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(document)


def test_a_threshold_metric_is_the_threshold_string_that_says_the_same(tmp_path):
    (objective,) = read(tmp_path, THRESHOLD)
    same = parse("stream.ttft: p(99) < 500ms")
    assert objective.name == "first-token"
    assert objective.expression == same.expression
    assert (objective.measure, objective.operator, objective.threshold) == ("ttft", "<", 0.5)
    assert (objective.target, objective.kind) == (0.99, "stream")


def test_a_ratio_metric_may_have_several_objectives(tmp_path):
    found = read(tmp_path, RATIO)
    assert [(each.name, each.expression, each.target) for each in found] == [
        ("availability: bronze", "errors: rate < 1%", 0.99),
        ("availability: gold", "errors: rate < 0.1%", 0.999),
    ]


def test_good_may_be_a_measure_below_a_value(tmp_path):
    good = {"metricSource": {"type": "harness", "spec": {"measure": "response", "op": "lte", "value": 0.3}}}
    text = edited(
        edited(RATIO, "spec.indicator.spec.ratioMetric.bad", None),
        "spec.indicator.spec.ratioMetric.good",
        good,
    )
    assert read(tmp_path, text)[0].expression == "response: p(99) <= 0.3s"


def test_good_may_be_all_that_is_ok(tmp_path):
    good = {"metricSource": {"type": "harness", "spec": {"measure": "ok"}}}
    text = edited(
        edited(RATIO, "spec.indicator.spec.ratioMetric.bad", None),
        "spec.indicator.spec.ratioMetric.good",
        good,
    )
    assert read(tmp_path, text)[1].target == 0.999


def test_where_higher_is_better_the_percentile_is_the_low_one(tmp_path):
    spec = {"measure": "tokens_per_s"}
    text = edited(THRESHOLD, "spec.indicator.spec.thresholdMetric.metricSource.spec", spec)
    text = edited(text, "spec.objectives.0", {"op": "gte", "value": 20, "target": 0.95})
    (objective,) = read(tmp_path, text)
    assert objective.expression == "tokens_per_s: p(5) >= 20"
    assert objective.target == 0.95


def test_an_indicator_may_be_a_document_of_its_own(tmp_path):
    indicator = yaml.safe_load(THRESHOLD)["spec"]["indicator"]
    sli = {"apiVersion": "openslo/v1", "kind": "SLI", **indicator}
    slo = edited(edited(THRESHOLD, "spec.indicator", None), "spec.indicatorRef", "ttft")
    service = "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: chat}\nspec: {}\n"
    (objective,) = read(tmp_path, service, slo, yaml.safe_dump(sli))
    assert objective.measure == "ttft"


SOURCE = "spec.indicator.spec.thresholdMetric.metricSource"
RATIO_METRIC = "spec.indicator.spec.ratioMetric"


@pytest.mark.parametrize(
    ("edit", "key", "remedy"),
    [
        ((THRESHOLD, "apiVersion", "openslo/v1alpha"), "apiVersion", "write openslo/v1"),
        ((THRESHOLD, "kind", "SLOs"), "kind", "did you mean SLO?"),
        ((THRESHOLD, "status", {}), "status", "unknown key"),
        ((THRESHOLD, "metadata.nmae", "x"), "metadata.nmae", "did you mean name?"),
        ((THRESHOLD, "spec.budgetingMethod", "Timeslices"), "spec.budgetingMethod", "write Occurrences"),
        ((THRESHOLD, "spec.budgetingMetod", "x"), "spec.budgetingMetod", "did you mean budgetingMethod?"),
        ((THRESHOLD, "spec.service", None), "spec", "missing required field `service`"),
        ((THRESHOLD, "spec.indicator", None), "spec.indicator", "either indicator or indicatorRef"),
        ((THRESHOLD, "spec.indicatorRef", "x"), "spec.indicator", "either indicator or indicatorRef"),
        ((THRESHOLD, "spec.objectives", []), "spec.objectives", "length >= 1"),
        ((THRESHOLD, "spec.objectives.0.target", 1.0), "spec.objectives[0].target", "< 1.0"),
        ((THRESHOLD, "spec.objectives.0.target", None), "spec.objectives[0]", "target or targetPercent"),
        ((THRESHOLD, "spec.objectives.0.target", 0), "spec.objectives[0]", "always met"),
        ((THRESHOLD, "spec.objectives.0.targetPercent", 99), "spec.objectives[0]", "target or targetPercent"),
        ((THRESHOLD, "spec.objectives.0.op", "gt"), "spec.objectives[0]", "use < or <="),
        ((THRESHOLD, "spec.objectives.0.op", "eq"), "spec.objectives[0].op", "eq"),
        ((THRESHOLD, "spec.objectives.0.op", None), "spec.objectives[0]", "give op and value"),
        (
            (THRESHOLD, "spec.objectives.0.timeSliceTarget", 0.9),
            "spec.objectives[0].timeSliceTarget",
            "leave it out",
        ),
        (
            (THRESHOLD, "spec.objectives.0.compositeWeight", 2),
            "spec.objectives[0].compositeWeight",
            "leave it out",
        ),
        (
            (THRESHOLD, f"{SOURCE}.type", "Prometheus"),
            "indicator.spec.thresholdMetric.metricSource",
            "type harness",
        ),
        (
            (THRESHOLD, f"{SOURCE}.metricSourceRef", "x"),
            "indicator.spec.thresholdMetric.metricSource",
            "type harness",
        ),
        ((THRESHOLD, f"{SOURCE}.spec.measure", "tfft"), "spec.objectives[0]", "did you mean ttft?"),
        (
            (THRESHOLD, f"{SOURCE}.spec.filter", "x"),
            "indicator.spec.thresholdMetric.metricSource.spec.filter",
            "unknown",
        ),
        ((THRESHOLD, f"{SOURCE}.spec.op", "lt"), "spec.objectives[0]", "stand here"),
        ((RATIO, "spec.objectives.0.value", 3), "spec.objectives[0]", "belong to a thresholdMetric"),
        ((RATIO, f"{RATIO_METRIC}.raw", {}), RATIO_METRIC, "precomputed"),
        ((RATIO, f"{RATIO_METRIC}.total", None), RATIO_METRIC, "give total"),
        ((RATIO, f"{RATIO_METRIC}.bad", None), RATIO_METRIC, "either good or bad"),
        (
            (RATIO, f"{RATIO_METRIC}.total.metricSource.spec.measure", "ok"),
            f"{RATIO_METRIC}.total",
            "requests",
        ),
        ((RATIO, f"{RATIO_METRIC}.bad.metricSource.spec.measure", "ok"), f"{RATIO_METRIC}.bad", "bad is"),
        ((RATIO, f"{RATIO_METRIC}.bad.metricSource.spec.kind", "batch"), f"{RATIO_METRIC}.bad", "same kind"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_its_place(tmp_path, edit, key, remedy):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, edited(*edit))
    assert caught.value.source == str(tmp_path / "slo.yaml")
    assert caught.value.key == key
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "no document of kind SLO"),
        ("[1, 2]", "a document is a mapping"),
        ("a: [", "is no YAML"),
        (THRESHOLD + "kind: SLO\n", "the key 'kind' stands twice"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path, text, remedy):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert remedy in caught.value.remedy


def test_an_unknown_reference_suggests_the_nearest(tmp_path):
    indicator = yaml.safe_load(THRESHOLD)["spec"]["indicator"]
    sli = {"apiVersion": "openslo/v1", "kind": "SLI", **indicator}
    slo = edited(edited(THRESHOLD, "spec.indicator", None), "spec.indicatorRef", "tttf")
    with pytest.raises(ConfigError, match="did you mean ttft"):
        read(tmp_path, slo, yaml.safe_dump(sli))
    with pytest.raises(ConfigError, match="add the SLI document"):
        read(tmp_path, slo)


def test_a_threshold_metric_has_one_objective(tmp_path):
    each = {"op": "lt", "value": 1, "target": 0.9}
    with pytest.raises(ConfigError, match="allows one objective"):
        read(tmp_path, edited(THRESHOLD, "spec.objectives", [each, each]))


def test_files_and_strings_stand_side_by_side(tmp_path):
    (tmp_path / "slo.yml").write_text(RATIO)
    found = load(["response: p(99) < 500ms", "slo.yml"], source="s.yaml", base=tmp_path)
    assert [each.name for each in found] == ["response p(99)", "availability: bronze", "availability: gold"]


def test_the_documents_of_the_manual_say_what_it_says_they_say(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    example = page.partition("```yaml\n")[2].partition("```")[0]
    said = re.findall(r"# (.+)$", example, flags=re.MULTILINE)
    assert [each.expression for each in read(tmp_path, example)] == said
