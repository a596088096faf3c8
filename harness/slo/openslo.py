"""OpenSLO v1 documents -> Objective.

The metric source type is `harness`, whose free-form `spec` names a measure (docs/objectives.md). Each
SLO is put as the threshold string that says the same, so there is one meaning and one test. What would
change the meaning and cannot be evaluated on a run is refused, never skipped.

The specification: github.com/OpenSLO/OpenSLO, README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import UNSET, Meta, UnsetType

from harness.errors import ConfigError
from harness.slo.thresholds import Objective, nearest, parse

_P = TypeVar("_P")
_OPERATORS = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_Unused = Any | UnsetType
"""A part of OpenSLO that has no bearing on which requests of a run are good, or one that is refused."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What all parts have in common: an unknown key is a mistake."""


class _Metadata(_Part, frozen=True):
    name: str
    display_name: str = ""
    labels: _Unused = UNSET
    annotations: _Unused = UNSET


class _Selector(_Part, frozen=True):
    """Ours: the free-form `spec` of a metric source of type `harness`."""

    measure: str
    kind: str | None = None
    op: Literal["lt", "lte", "gt", "gte"] | None = None
    value: float | None = None
    unit: str = ""


class _Source(_Part, frozen=True):
    spec: Any
    type: str | None = None
    metric_source_ref: str | None = None


class _Metric(_Part, frozen=True):
    metric_source: _Source


class _Ratio(_Part, frozen=True):
    total: _Metric | None = None
    good: _Metric | None = None
    bad: _Metric | None = None
    counter: bool = False
    raw: _Unused = UNSET
    raw_type: _Unused = UNSET


class _Sli(_Part, frozen=True):
    description: str = ""
    threshold_metric: _Metric | None = None
    ratio_metric: _Ratio | None = None


class _Indicator(_Part, frozen=True):
    spec: _Sli
    metadata: _Metadata | None = None


class _Target(_Part, frozen=True):
    display_name: str = ""
    op: Literal["lt", "lte", "gt", "gte"] | None = None
    value: float | None = None
    target: Annotated[float, Meta(ge=0, lt=1)] | None = None
    target_percent: Annotated[float, Meta(ge=0, lt=100)] | None = None
    time_slice_target: _Unused = UNSET
    time_slice_window: _Unused = UNSET
    indicator: _Unused = UNSET
    indicator_ref: _Unused = UNSET
    composite_weight: _Unused = UNSET


class _Slo(_Part, frozen=True):
    service: str
    budgeting_method: str
    objectives: Annotated[tuple[_Target, ...], Meta(min_length=1)]
    description: str = ""
    indicator: _Indicator | None = None
    indicator_ref: str | None = None
    time_window: Annotated[tuple[dict[str, Any], ...], Meta(max_length=1)] = ()
    alert_policies: _Unused = UNSET


_SILENT_KINDS = ("Service", "DataSource", "AlertPolicy", "AlertCondition", "AlertNotificationTarget")
"""Documents that say nothing about which requests are good."""

_PARTS = (_Metadata, _Selector, _Source, _Metric, _Ratio, _Sli, _Indicator, _Target, _Slo)


def read_openslo(path: Path) -> list[Objective]:
    """Read the SLO documents of an OpenSLO v1 file.

    Raises:
        ConfigError: with source, key, value and remedy.
    """
    try:
        documents = [each for each in yaml.load_all(path.read_text("utf-8"), _Loader) if each is not None]
    except OSError as error:
        raise ConfigError(
            str(path), "", None, f"cannot be read ({error.strerror}): give the path of a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), "", None, f"is no YAML: {error}") from None
    try:
        return list(_openslo(documents))
    except ConfigError as error:
        raise ConfigError(str(path), error.key, error.value, error.remedy) from None


class _Loader(yaml.SafeLoader):
    """Refuses what SafeLoader lets pass: a key given twice, of which the last would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _wrong(key: str, value: object, remedy: str) -> ConfigError:
    """A mistake whose source `read_openslo` fills in."""
    return ConfigError("", key, value, remedy)


def _openslo(documents: Sequence[Any]) -> Iterator[Objective]:
    slos: list[tuple[str, Any]] = []
    slis: dict[str, _Sli] = {}
    for position, document in enumerate(documents):
        at = f"[{position}]." if len(documents) > 1 else ""
        kind = _kind(document, at)
        if kind == "SLI":
            name = _convert(document.get("metadata"), _Metadata, f"{at}metadata").name
            slis[name] = _convert(document.get("spec"), _Sli, f"{at}spec")
        elif kind == "SLO":
            slos.append((at, document))
    if not slos:
        raise _wrong("", None, "it holds no document of kind SLO")
    for at, document in slos:
        metadata = _convert(document.get("metadata"), _Metadata, f"{at}metadata")
        slo = _convert(document.get("spec"), _Slo, f"{at}spec")
        yield from _objectives(metadata.name, slo, _indicator(slo, slis, at), f"{at}spec")


def _kind(document: Any, at: str) -> str:
    if not isinstance(document, dict):
        raise _wrong(at, document, "a document is a mapping with apiVersion, kind, metadata and spec")
    version, kind = document.get("apiVersion"), document.get("kind")
    if version != "openslo/v1":
        raise _wrong(f"{at}apiVersion", version, "write openslo/v1")
    for key in document:
        if key not in {"apiVersion", "kind", "metadata", "spec"}:
            raise _wrong(f"{at}{key}", None, "unknown key: allowed are apiVersion, kind, metadata, spec")
    known = ["SLO", "SLI", *_SILENT_KINDS]
    if kind not in known:
        raise _wrong(f"{at}kind", kind, nearest("kind", str(kind), known))
    return str(kind)


def _convert(value: Any, part: type[_P], key: str) -> _P:
    try:
        return msgspec.convert(value, part)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        key += path.rstrip("`")
        unknown = re.search(r"unknown field `(.+?)`", message)
        if unknown is None:
            raise _wrong(key, None, message) from None
        known = sorted({field.encode_name for each in _PARTS for field in msgspec.structs.fields(each)})
        close = get_close_matches(unknown[1], known, n=1)
        remedy = (
            f"unknown key: did you mean {close[0]}?" if close else "unknown key: OpenSLO v1 has none such"
        )
        raise _wrong(f"{key}.{unknown[1]}", None, remedy) from None


def _indicator(slo: _Slo, slis: dict[str, _Sli], at: str) -> _Sli:
    if (slo.indicator is None) == (slo.indicator_ref is None):
        raise _wrong(f"{at}spec.indicator", None, "give either indicator or indicatorRef")
    if slo.indicator is not None:
        return slo.indicator.spec
    name = str(slo.indicator_ref)
    if name not in slis:
        remedy = nearest("SLI", name, sorted(slis)) if slis else "add the SLI document to this file"
        raise _wrong(f"{at}spec.indicatorRef", name, remedy)
    return slis[name]


def _objectives(name: str, slo: _Slo, sli: _Sli, at: str) -> Iterator[Objective]:
    if slo.budgeting_method != "Occurrences":
        remedy = "a run is judged request by request: write Occurrences"
        raise _wrong(f"{at}.budgetingMethod", slo.budgeting_method, remedy)
    metric, ratio = sli.threshold_metric, sli.ratio_metric
    if metric is not None and len(slo.objectives) > 1:
        raise _wrong(f"{at}.objectives", None, "OpenSLO allows one objective with a thresholdMetric")
    for position, each in enumerate(slo.objectives):
        key = f"{at}.objectives[{position}]"
        _refuse_unsupported(each, key)
        if metric is not None and ratio is None:
            objective = _from_threshold(metric, each, _target(each, key), key)
        elif ratio is not None and metric is None:
            if each.op is not None or each.value is not None:
                raise _wrong(key, None, "op and value belong to a thresholdMetric")
            objective = _from_ratio(ratio, _target(each, key), f"{at}.indicator.spec.ratioMetric")
        else:
            raise _wrong(f"{at}.indicator.spec", None, "give either thresholdMetric or ratioMetric")
        several = each.display_name and len(slo.objectives) > 1
        yield msgspec.structs.replace(objective, name=f"{name}: {each.display_name}" if several else name)


def _refuse_unsupported(target: _Target, key: str) -> None:
    for field in msgspec.structs.fields(target):
        if field.default is UNSET and getattr(target, field.name) is not UNSET:
            raise _wrong(f"{key}.{field.encode_name}", None, "cannot be judged on one run: leave it out")


def _target(target: _Target, key: str) -> Decimal:
    if (target.target is None) == (target.target_percent is None):
        raise _wrong(key, None, "give either target or targetPercent")
    share = Decimal(repr(target.target or 0.0)) + Decimal(repr(target.target_percent or 0.0)) / 100
    if not share:
        raise _wrong(key, 0, "a target of 0 is always met: ask for more")
    return share


def _selector(metric: _Metric, key: str) -> _Selector:
    source = metric.metric_source
    if source.type != "harness" or source.metric_source_ref is not None:
        remedy = (
            "only metric sources of type harness can be judged on a run: "
            "{type: harness, spec: {measure: ttft}}, without metricSourceRef"
        )
        raise _wrong(f"{key}.metricSource", source.type, remedy)
    return _convert(source.spec, _Selector, f"{key}.metricSource.spec")


def _from_threshold(metric: _Metric, each: _Target, target: Decimal, key: str) -> Objective:
    selector = _selector(metric, "indicator.spec.thresholdMetric")
    if selector.op is not None or selector.value is not None:
        raise _wrong(key, None, "op and value of a thresholdMetric stand here, not in the metric's spec")
    return _compared(msgspec.structs.replace(selector, op=each.op, value=each.value), target, key)


def _from_ratio(ratio: _Ratio, target: Decimal, at: str) -> Objective:
    if ratio.raw is not UNSET or ratio.raw_type is not UNSET:
        raise _wrong(at, None, "a precomputed ratio has no samples to judge: give good or bad, and total")
    if ratio.total is None or (ratio.good is None) == (ratio.bad is None):
        raise _wrong(at, None, "give total, and either good or bad")
    total = _selector(ratio.total, f"{at}.total")
    if total != _Selector(measure="requests", kind=total.kind):
        raise _wrong(f"{at}.total", total.measure, "the total is {measure: requests}, of a kind or of all")
    side, metric = ("good", ratio.good) if ratio.good is not None else ("bad", ratio.bad)
    assert metric is not None
    selector = _selector(metric, f"{at}.{side}")
    if selector.kind != total.kind:
        raise _wrong(f"{at}.{side}", selector.kind, "it and total must be of the same kind")
    if side == "good" and selector.op is not None:
        return _compared(selector, target, f"{at}.good")
    if selector != _Selector(measure="ok" if side == "good" else "errors", kind=total.kind):
        remedy = "good is {measure: ok}, or a measure with op and value; bad is {measure: errors}"
        raise _wrong(f"{at}.{side}", selector.measure, remedy)
    subject = f"{total.kind}.errors" if total.kind else "errors"
    return parse(f"{subject}: rate < {_plain(100 * (1 - target))}%", source="", key=at)


def _compared(selector: _Selector, target: Decimal, key: str) -> Objective:
    """A measure against a value, as the threshold string that says it."""
    if selector.op is None or selector.value is None:
        raise _wrong(key, None, "give op and value")
    percent = 1 - target if selector.op.startswith("g") else target
    subject = f"{selector.kind}.{selector.measure}" if selector.kind else selector.measure
    unit = selector.unit or ("" if selector.op.startswith("g") else "s")
    value = f"{_plain(Decimal(repr(selector.value)))}{unit}"
    claim = f"p({_plain(100 * percent)}) {_OPERATORS[selector.op]} {value}"
    return parse(f"{subject}: {claim}", source="", key=key)


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
