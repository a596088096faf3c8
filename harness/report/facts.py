"""What every form of the report says, before it is laid out for a terminal, a page or a machine."""

from __future__ import annotations

import re
import shlex

import msgspec
import pyarrow as pa
import yaml

from harness.analysis.floor import FACTOR, LEAST, Floor, floor_s, resolvable
from harness.analysis.measures import MEASURES
from harness.analysis.stats import allowed_share
from harness.analysis.summary import Distribution, Group, Summary
from harness.analysis.truth import Beside, Truth
from harness.record import NO_USER, Manifest, Run, Sample, TelemetryLedger
from harness.report import numbers
from harness.slo.verdict import Judged, State, Verdict


class RunReport(msgspec.Struct, frozen=True):
    """Everything a report is made from."""

    run: Run
    summary: Summary
    verdict: Verdict
    manifest: Manifest
    samples: list[Sample]
    records: pa.Table
    """Of runlog.MERGED_SCHEMA."""
    telemetry: TelemetryLedger | None = None
    folder: str = ""
    """The run folder, as the reader would type it; empty if the report is not in one."""
    truth: Truth | None = None
    """What the bundled mock says it really did; None for any other target."""
    floor: Floor | None = None
    """The instrument's own error at this load on this machine; None if it was not calibrated."""
    by_hand: tuple[str, ...] = ()
    """The flags that had it judged otherwise than the run was planned: `--window 10s,40s`."""


class ObjectiveRow(msgspec.Struct, frozen=True):
    """One objective in words."""

    name: str
    expression: str
    scope: str
    """The kind of traffic it is for."""
    state: State
    observed: str
    """The percentile or rate that people call it by, with its interval."""
    bad: str
    """Bad requests of those judged."""
    bound: str
    """What the bad share is shown to be at most, or at least where that is what decides."""
    allowed: str
    budget_used: float | None
    needed: str
    """How many further good requests would make it pass; empty once it is decided."""
    reason: str


class LatencyRow(msgspec.Struct, frozen=True):
    """One measure of one kind of traffic."""

    kind: str
    measure: str
    """As people call it."""
    n: str
    quantiles: dict[str, str]
    """By name, each with its interval."""
    maximum: str


_VISIBLE = 0.005
"""Share of a run below which a part of it is no more than a line in a chart."""
_TOLD = 5
"""Most error texts in a table."""
_TOLD_IN_A_LINE = 2

_LABELS = {"response": "response", "service": "service", "ttft": "TTFT", "itl": "ITL", "tpot": "TPOT"}
"""The measures that every report shows, in order, and what people call them."""


def shown(verdict: Verdict) -> dict[str, str]:
    """The times that the report shows and what people call them: the usual ones, and what is judged."""
    judged = [
        each.objective.measure
        for each in verdict.objectives
        if each.objective.measure in MEASURES and MEASURES[each.objective.measure].unit == "s"
    ]
    return {name: _LABELS.get(name, name.replace("_", " ")) for name in [*_LABELS, *judged]}


def meaning(measure: str) -> str:
    """The measure's definition in a few words."""
    return "gap between successive chunks of a stream" if measure == "itl" else MEASURES[measure].meaning


def headline(report: RunReport) -> str:
    """The verdict in one sentence; where the instrument failed, `remedies` says of what."""
    validity = report.verdict.validity
    if validity.valid:
        # It begins with the name of an objective, as written: `ttft` is no word at the start of a sentence.
        named = report.verdict.reason.startswith(
            tuple(each.objective.name for each in report.verdict.objectives)
        )
        return f"{report.verdict.reason}." if named else sentence(report.verdict.reason)
    failed = sum(not check.passed for check in validity.checks)
    return sentence(f"the instrument failed {failed} of its {len(validity.checks)} checks")


def marks(report: RunReport) -> str:
    """What stands beside the verdict, lest it be taken for one as planned; empty where it is."""
    early = report.manifest.stop_reason in {"interrupted", "spend_cap"}
    return ", ".join(["stopped early"] * early + ["by hand"] * bool(report.by_hand))


def caveats(report: RunReport) -> list[str]:
    """What must be known with the verdict: why it bears its marks, and that nothing succeeded at all."""
    found = (_nothing_succeeded(report), _by_hand(report.by_hand), _stopped_early(report))
    return [each for each in found if each]


def _nothing_succeeded(report: RunReport) -> str:
    """A wrong key or address looks like a server that fails: say what it said, and what finds it out."""
    total = report.summary.total
    # What found no idle user was not sent: that the others held the users for so long has their cause.
    said = [text for text in total.errors if text != NO_USER]
    if not said or total.outcomes.get("ok"):
        return ""
    found = "; ".join(said[:_TOLD_IN_A_LINE])
    doctor = f" Try `harness doctor --target {shlex.quote(report.run.target)}`."
    return f"No request succeeded: {found}.{'' if report.run.mock else doctor}"


def error_rows(group: Group) -> list[tuple[str, str]]:
    """How many requests failed with which error, most frequent first; what is rare is summed up."""
    told = [(numbers.count(n), text) for text, n in list(group.errors.items())[:_TOLD]]
    rest = list(group.errors.values())[_TOLD:]
    return [*told, (numbers.count(sum(rest)), f"{len(rest)} other errors: see report.html")] if rest else told


def _by_hand(flags: tuple[str, ...]) -> str:
    other = {"--threshold": "by other objectives", "--window": "in another window"}
    ways = " and ".join(way for flag, way in other.items() if any(each.startswith(flag) for each in flags))
    return f"Judged {ways} than planned, by hand: {'; '.join(flags)}." if flags else ""


def _stopped_early(report: RunReport) -> str:
    said = {
        "interrupted": "The run was interrupted; this is what it had recorded until then. A run that is "
        "stopped where its figures please errs more often than the 5 % allowed for.",
        "spend_cap": "The run reached its spend cap; this is what it had recorded until then.",
        "killed": "The run was killed; this is what reached the disk.",
    }.get(report.manifest.stop_reason, "")
    lost = report.summary.total.outcomes.get("cancelled", 0)
    which = f"{numbers.count(lost)} request{'s' * (lost != 1)} under way"
    cut = f"Cut off with it and not judged: {which}, likely the slowest."
    return " ".join([said] * bool(said) + [cut] * bool(lost))


# XML 1.0 cannot hold these, escaped or not; a terminal obeys some of them.
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """The text with each control character and lone surrogate replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


class Remedy(msgspec.Struct, frozen=True):
    """What to do about the instrument, and all that it is for."""

    action: str
    causes: list[str]


def remedies(verdict: Verdict) -> list[Remedy]:
    """What to do about the instrument, if it failed: each once, with every cause that asks for it."""
    causes: dict[str, list[str]] = {}
    for each in verdict.validity.checks:
        if not each.passed:
            causes.setdefault(sentence(each.remedy) if each.remedy else "", []).append(sentence(each.cause))
    return [Remedy(action, list(dict.fromkeys(of))) for action, of in causes.items()]


def remedy_line(remedy: Remedy) -> str:
    """The causes, then what to do about them."""
    action = f"Remedy: {remedy.action}" if remedy.action else ""
    return " ".join([*remedy.causes, action]).rstrip()


def objective_rows(report: RunReport) -> list[ObjectiveRow]:
    """The objectives in the order in which they were given."""
    return [_objective_row(each, report.floor) for each in report.verdict.objectives]


def _objective_row(judged: Judged, floor: Floor | None) -> ObjectiveRow:
    objective = judged.objective
    needed = "" if judged.more_needed is None else numbers.count(judged.more_needed)
    return ObjectiveRow(
        name=objective.name,
        expression=objective.expression,
        scope=objective.kind or "all",
        state=judged.state,
        observed=numbers.figure_text(judged.observed) + unresolved(judged, floor),
        bad=f"{numbers.count(judged.bad)} of {numbers.count(judged.n)}",
        bound=_bound(judged),
        allowed=numbers.target_share(allowed_share(objective.target)),
        budget_used=judged.budget_used,
        needed=needed,
        reason=judged.reason,
    )


def resolved(judged: Judged, floor: Floor | None) -> bool | None:
    """Whether the instrument is fine enough for what is judged: the figure, or the limit where there is none.

    None where it was not calibrated, and of what is no time.
    """
    if floor is None or judged.observed.unit != "s":
        return None
    value = judged.objective.threshold if judged.observed.value is None else judged.observed.value
    return None if value is None else resolvable(value, floor, judged.objective.measure)


def unresolved(judged: Judged, floor: Floor | None) -> str:
    """A mark beside a figure that the instrument is too coarse for, or a limit."""
    if resolved(judged, floor) is not False:
        return ""
    return ", limit not resolvable" if judged.observed.value is None else ", not resolvable"


def floor_line(floor: Floor) -> str:
    """The noise floor in one sentence: of what was measured, and nothing else."""
    if floor.why_not:
        return f"not measured, because {floor.why_not}"
    rate = numbers.quantity(floor.rate_per_s, "1/s")
    load = f"{rate}{carried_by(floor)} (n {numbers.count(floor.requests)})"
    labels = {"response": "response", "ttft": "TTFT", "itl": "ITL"}
    compared = {measure: floor.added[measure].n for measure in labels if floor.added[measure].n}
    known = {measure: floor_s(floor, measure) for measure in compared}
    told = [
        f"{labels[measure]} {numbers.quantity(own_s, 's')}"
        for measure, own_s in known.items()
        if own_s is not None
    ]
    few = [
        f"{labels[measure]} (n {numbers.count(compared[measure])}, {LEAST} are needed)"
        for measure, own_s in known.items()
        if own_s is None
    ]
    parts = [f"{', '.join(told) or 'unknown'} is the instrument's own error at {load}", *floor.unlike]
    parts += [f"too few compared of {', '.join(few)}"] if few else []
    return "; ".join([*parts, f"a judged figure below {FACTOR:g} times that is not resolvable"])


def carried_by(floor: Floor) -> str:
    """What carried the load of the calibration, where it was not simply one process."""
    if floor.share_of > 1:
        return f", one worker's share of {floor.share_of}, on this machine instead of theirs"
    return f" by {floor.workers} workers" if floor.workers > 1 else ""


def _bound(judged: Judged) -> str:
    # A failure is proven by the lower bound, everything else by the upper one.
    if judged.state is State.FAIL and judged.bad_share.low is not None:
        return f"≥ {numbers.share(judged.bad_share.low)}"
    return f"≤ {numbers.share(judged.bad_share.high)}"


def groups(summary: Summary) -> list[Group]:
    """Each kind of traffic, after all of it where there is more than one."""
    return [summary.total, *summary.kinds] if len(summary.kinds) > 1 else [summary.total]


def latency_rows(report: RunReport) -> list[LatencyRow]:
    """The measures of each kind of traffic, all of it first."""
    return [
        _latency_row(group.kind, label, group.distributions[measure])
        for group in groups(report.summary)
        for measure, label in shown(report.verdict).items()
        if measure in group.distributions
    ]


def _latency_row(kind: str, label: str, distribution: Distribution) -> LatencyRow:
    unit = distribution.unit
    return LatencyRow(
        kind=kind,
        measure=label,
        n=numbers.count(distribution.n),
        quantiles={name: numbers.figure_text(figure) for name, figure in distribution.quantiles.items()},
        maximum=numbers.quantity(distribution.maximum, unit),
    )


class TruthRow(msgspec.Struct, frozen=True):
    """One measure of one kind of traffic, beside the mock's truth."""

    kind: str
    measure: str
    n: str
    p50: str
    true_p50: str
    p99: str
    true_p99: str
    error_p50: str
    """Harness minus truth, request by request."""
    error_p99: str


def truth_rows(report: RunReport) -> list[TruthRow]:
    """The measures that the mock's truth log knows, of each kind of traffic; none for other targets."""
    if report.truth is None:
        return []
    return [
        _truth_row(group.kind, label, group.distributions[measure], beside)
        for group in groups(report.summary)
        for measure, label in _LABELS.items()
        if measure in group.distributions
        and (beside := report.truth.kinds.get(group.kind, {}).get(measure)) is not None
    ]


def _truth_row(kind: str, label: str, own: Distribution, beside: Beside) -> TruthRow:
    def cell(distribution: Distribution, name: str) -> str:
        figure = distribution.quantiles.get(name)
        return numbers.NONE if figure is None else numbers.quantity(figure.value, figure.unit)

    return TruthRow(
        kind=kind,
        measure=label,
        n=numbers.count(beside.truth.n),
        p50=cell(own, "p50"),
        true_p50=cell(beside.truth, "p50"),
        p99=cell(own, "p99"),
        true_p99=cell(beside.truth, "p99"),
        error_p50=cell(beside.error, "p50"),
        error_p99=cell(beside.error, "p99"),
    )


def truth_line(truth: Truth) -> str:
    """How much of the run the truth log covers, and whether the counts agree, in one sentence."""
    line = (
        f"{numbers.count(truth.joined)} requests joined, {numbers.count(truth.missing)} missing, "
        f"{numbers.count(truth.unknown)} without a record; "
    )
    return line + "; ".join(
        f"{name}: {numbers.count(own)} counted, {numbers.count(true)} sent"
        for name, (own, true) in (("chunks", truth.chunks), ("completion tokens", truth.tokens))
    )


def outcome_names(summary: Summary) -> list[str]:
    """The outcomes that occurred, most frequent first."""
    outcomes = summary.total.outcomes
    return sorted((name for name in outcomes if outcomes[name]), key=lambda name: (-outcomes[name], name))


def outcomes_line(group: Group) -> str:
    """`3,590 ok, 8 timeout`, most frequent first."""
    ordered = sorted(group.outcomes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{numbers.count(n)} {name}" for name, n in ordered if n) or "no requests"


def ledger_line(manifest: Manifest) -> str:
    """The books in one sentence, balanced or not."""
    books = (
        f"{numbers.count(manifest.planned)} planned = {numbers.count(manifest.started)} started + "
        f"{numbers.count(manifest.dropped)} dropped + {numbers.count(manifest.not_started)} not started + "
        f"{numbers.count(manifest.lost)} lost; {numbers.count(manifest.started)} started = "
        f"{numbers.count(manifest.finished)} finished + {numbers.count(manifest.cut_off)} cut off; "
        f"{numbers.count(manifest.records)} records"
    )
    return books if not manifest.imbalances else f"{books}. NOT BALANCED: {'; '.join(manifest.imbalances)}"


def telemetry_line(ledger: TelemetryLedger | None) -> str:
    """What became of the spans and metrics, in one sentence."""
    if ledger is None:
        return "off, or not ended when the report was made"
    line = (
        f"{numbers.count(ledger.spans)} spans from {numbers.count(ledger.records)} records: "
        f"{numbers.count(ledger.exported)} exported, {numbers.count(ledger.dropped)} sampled out, "
        f"{numbers.count(ledger.failed)} failed; {numbers.count(ledger.metric_points)} metric points, "
        f"{numbers.count(ledger.metric_points_failed)} failed; to {ledger.destination}"
    )
    return line if not ledger.errors else f"{line}. {'; '.join(ledger.errors)}"


def instrument_line(verdict: Verdict) -> str:
    """The instrument's judgement of itself in one sentence."""
    validity = verdict.validity
    passed = sum(check.passed for check in validity.checks)
    tally = f"{passed} of {len(validity.checks)} checks passed"
    if validity.valid:
        return f"valid, {tally}"
    failed = ", ".join(check.name.replace("_", " ") for check in validity.checks if not check.passed)
    return f"NOT VALID, {tally}; failed: {failed}"


def window_line(summary: Summary) -> str:
    """Which part of the run was judged, and at what rate."""
    low, high = summary.window_s
    planned = summary.planned_rate
    plan = "" if planned is None else f", {numbers.quantity(planned, '1/s')} planned"
    return (
        f"{numbers.count(summary.total.requests)} requests due from {numbers.quantity(low, 's')} to "
        f"{numbers.quantity(high, 's')}; arrivals {numbers.figure_text(summary.arrivals)}{plan}"
        + (f". Window {summary.window_rule}" if summary.window_rule else "")
    )


def unjudged(window_s: tuple[float, float], end_s: float) -> list[tuple[float, float]]:
    """The parts of a run that are not judged, in seconds from its start, as far as a chart can show them."""
    low, high = window_s
    parts = ((0.0, min(low, end_s)), (min(high, end_s), end_s))
    return [(start, end) for start, end in parts if end - start > _VISIBLE * end_s]


def shaded_line(summary: Summary, end_s: float) -> str:
    """What the charts over time are shaded for, in one or two sentences."""
    low, high = summary.window_s
    where = [
        f"before {numbers.quantity(low, 's')}" if end <= low else f"from {numbers.quantity(high, 's')} on"
        for _, end in unjudged(summary.window_s, end_s)
    ]
    if not where:
        return "Nothing is shaded: all of it is judged."
    rule = f" The window is {summary.window_rule}." if summary.window_rule else ""
    return f"Shaded is what lies {' and '.join(where)}: requests due then are not judged.{rule}"


def files_line(report: RunReport) -> str:
    """Where the run's files lie, and what is in them."""
    if report.by_hand:
        return (
            f"{report.folder}: left as they were, with the verdict as planned; --html > FILE keeps this one"
        )
    return f"{report.folder}/report.html, summary.json, junit.xml, requests.parquet"


def repeat_command(report: RunReport) -> str:
    """The command that sends the same requests at the same times, from the scenario in the run folder."""
    run = report.run
    target = "mock" if run.mock else shlex.quote(run.target)
    file = shlex.quote(f"{report.folder}/scenario.yaml" if report.folder else "scenario.yaml")
    return f"harness run {file} --seed {run.seed} --workers {run.workers} --target {target}"


def scenario_yaml(run: Run) -> str:
    """The whole scenario, as it was run, as the text of a scenario file."""
    plain = msgspec.json.decode(msgspec.json.encode(run.scenario))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def commit_line(run: Run) -> str:
    """Whose commit it is: not the harness's, which has a version, but that of the tests it is run from."""
    return f"{run.git_commit or 'none'}, of the folder that the run was started in"


def thresholds(verdict: Verdict, measure: str) -> list[tuple[str, float, float, str | None]]:
    """The objectives on a measure that is a time: (name, threshold in seconds, target share, kind)."""
    return [
        (each.objective.name, each.objective.threshold, each.objective.target, each.objective.kind)
        for each in verdict.objectives
        if each.objective.measure == measure and each.objective.threshold is not None
    ]
