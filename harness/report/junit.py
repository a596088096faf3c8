"""The report as JUnit XML, for CI systems that show tests.

    objective PASS          a test that passed
    objective FAIL          a failure
    objective INCONCLUSIVE  skipped: not enough samples is no proof either way
    instrument not valid    an error on the test `instrument`; the objectives are skipped, unmeasured

CI systems show a suite of skipped tests as green. The gate is therefore the exit code of `harness gate`,
which is repeated, with the verdict, in the suite's properties.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from harness.analysis.stats import allowed_share
from harness.analysis.summary import Group
from harness.analysis.validity import Check
from harness.report import facts, numbers
from harness.report.facts import RunReport, printable
from harness.slo.verdict import Judged, State


def junit(report: RunReport) -> str:
    """One test for the instrument and one for each objective."""
    cases = [_instrument(report), *(_objective(report, judged) for judged in report.verdict.objectives)]
    counts = {
        "tests": str(len(cases)),
        "failures": _having(cases, "failure"),
        "errors": _having(cases, "error"),
        "skipped": _having(cases, "skipped"),
        "time": f"{_duration_s(report):.3f}",
    }
    root = ET.Element("testsuites", {"name": "harness", **counts})
    timestamp = {"timestamp": printable(report.run.started_at)}
    suite = ET.SubElement(root, "testsuite", {"name": printable(report.run.name), **counts, **timestamp})
    suite.append(_properties(report))
    suite.extend(cases)
    if caveats := facts.caveats(report):
        ET.SubElement(suite, "system-out").text = printable("\n".join(caveats))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _properties(report: RunReport) -> ET.Element:
    run = report.run
    element = ET.Element("properties")
    for name, value in (
        ("verdict", report.verdict.state.value),
        ("exit_code", str(report.verdict.exit_code)),
        ("verdict_marks", facts.marks(report)),
        ("reason", report.verdict.reason),
        ("run_id", run.run_id),
        ("target", run.target),
        ("seed", str(run.seed)),
        ("git_commit", run.git_commit),
        ("requests", str(report.summary.total.requests)),
    ):
        ET.SubElement(element, "property", {"name": name, "value": printable(value)})
    return element


def _instrument(report: RunReport) -> ET.Element:
    case = _case(report, "instrument", _duration_s(report))
    validity = report.verdict.validity
    if not validity.valid:
        error = ET.SubElement(case, "error", {"type": "INVALID", "message": printable(report.verdict.reason)})
        error.text = printable("\n".join(_check(check) for check in validity.checks))
    return case


def _check(check: Check) -> str:
    mark = "passed" if check.passed else "FAILED"
    observed = numbers.quantity(check.observed, check.unit)
    budget = numbers.quantity(check.budget, check.unit)
    remedy = f"; {check.remedy}" if check.remedy else ""
    return f"{check.name}: {mark}: {check.cause} (observed {observed}, budget {budget}, n {check.n}){remedy}"


def _objective(report: RunReport, judged: Judged) -> ET.Element:
    case = _case(report, judged.objective.name, 0.0)
    mark = facts.unresolved(judged, report.floor)
    mark += "".join(f", {each}" for each in [facts.marks(report)] if each)
    text = f"{judged.objective.expression}: {judged.reason}{mark}"
    if not report.verdict.validity.valid:
        message = printable(f"not judged, for the instrument failed; otherwise {judged.state}: {text}")
        ET.SubElement(case, "skipped", {"message": message})
    elif judged.state is State.FAIL:
        failure = ET.SubElement(case, "failure", {"type": "FAIL", "message": printable(text)})
        observed, bad = numbers.figure_text(judged.observed), numbers.figure_text(judged.bad_share)
        allowed = numbers.target_share(allowed_share(judged.objective.target))
        failure.text = printable(
            "\n".join(
                [
                    f"observed {observed}{mark}, bad {bad}, allowed {allowed}, n {numbers.count(judged.n)}",
                    *(f"{n} {text}" for n, text in facts.error_rows(_group_of(report, judged))),
                ]
            )
        )
    elif judged.state is State.INCONCLUSIVE:
        ET.SubElement(case, "skipped", {"message": printable(f"INCONCLUSIVE: {text}")})
    elif mark:
        ET.SubElement(case, "system-out").text = printable(text)
    return case


def _group_of(report: RunReport, judged: Judged) -> Group:
    """The traffic that the objective speaks of."""
    kinds = {group.kind: group for group in report.summary.kinds}
    return kinds.get(judged.objective.kind or "", report.summary.total)


def _case(report: RunReport, name: str, time_s: float) -> ET.Element:
    classname = f"harness.{report.run.name}"
    return ET.Element(
        "testcase", {"classname": printable(classname), "name": printable(name), "time": f"{time_s:.3f}"}
    )


def _having(cases: list[ET.Element], tag: str) -> str:
    return str(sum(case.find(tag) is not None for case in cases))


def _duration_s(report: RunReport) -> float:
    low, high = report.summary.window_s
    return high - low
