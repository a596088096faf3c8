"""junit.py: XML that any parser reads, and that is never green when the run is not."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import msgspec
import pytest
from report import fake_run

from harness.report.junit import junit
from harness.slo.verdict import State


def suite(report: fake_run.RunReport) -> ET.Element:
    root = ET.fromstring(junit(report))
    found = root.find("testsuite")
    assert found is not None
    return found


def counts(element: ET.Element) -> tuple[str | None, ...]:
    return tuple(element.get(name) for name in ("tests", "failures", "errors", "skipped"))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.PASS, ("3", "0", "0", "0")),
        (State.FAIL, ("3", "1", "0", "0")),
        (State.INCONCLUSIVE, ("3", "0", "0", "1")),
        (State.INVALID, ("3", "0", "1", "2")),
    ],
)
def test_each_verdict_has_its_counts(state, expected):
    assert counts(suite(fake_run.report(state))) == expected


@pytest.mark.parametrize("state", list(State))
def test_the_counts_are_those_of_the_cases(state):
    found = suite(fake_run.report(state))
    cases = found.findall("testcase")
    tags = [child.tag for case in cases for child in case]
    assert counts(found) == tuple(
        str(n) for n in (len(cases), tags.count("failure"), tags.count("error"), tags.count("skipped"))
    )


def properties_of(report: fake_run.RunReport) -> dict[str | None, str | None]:
    return {each.get("name"): each.get("value") for each in suite(report).iter("property")}


@pytest.mark.parametrize(
    ("state", "code"),
    [(State.PASS, "0"), (State.FAIL, "1"), (State.INCONCLUSIVE, "3"), (State.INVALID, "4")],
)
def test_the_properties_carry_the_verdict(state, code):
    properties = properties_of(fake_run.report(state))
    assert properties["verdict"] == state
    assert properties["exit_code"] == code


def test_an_invalid_instrument_is_an_error_that_names_the_cause():
    error = suite(fake_run.report(State.INVALID)).find("testcase[@name='instrument']/error")
    assert error is not None
    assert "after they were due" in error.get("message", "")
    assert "lateness: FAILED" in (error.text or "")
    assert "--workers" in (error.text or "")


def test_a_failed_objective_says_what_was_observed():
    failure = suite(fake_run.report(State.FAIL)).find("testcase/failure")
    assert failure is not None
    assert "0.357 %" in (failure.text or "")


def test_characters_that_xml_cannot_hold_are_replaced():
    report = fake_run.report()
    verdict = msgspec.structs.replace(report.verdict, reason="bell \x07 nul \x00 half \ud800 <&> end")
    properties = properties_of(msgspec.structs.replace(report, verdict=verdict))
    assert properties["reason"] == "bell \ufffd nul \ufffd half \ufffd <&> end"
