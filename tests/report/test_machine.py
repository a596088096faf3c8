"""machine.py: summary.json can be read back into what it was made from."""

from __future__ import annotations

import msgspec
import pytest
from report import fake_run

from harness.analysis.summary import Summary
from harness.record import Manifest, Run, TelemetryLedger
from harness.report.machine import to_json
from harness.slo.verdict import Judged, State


def test_nothing_is_lost_on_the_way():
    report = fake_run.report()
    document = msgspec.json.decode(to_json(report))
    assert msgspec.convert(document["summary"], Summary) == report.summary
    assert msgspec.convert(document["manifest"], Manifest) == report.manifest
    assert msgspec.convert(document["telemetry"], TelemetryLedger) == report.telemetry
    assert msgspec.convert(document["run"], Run) == report.run
    assert msgspec.convert(document["verdict"]["objectives"], list[Judged]) == report.verdict.objectives


@pytest.mark.parametrize("state", list(State))
def test_the_verdict_and_its_exit_code_are_there(state):
    document = msgspec.json.decode(to_json(fake_run.report(state)))
    assert document["verdict"]["state"] == state
    assert document["verdict"]["exit_code"] == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}[state]
    assert document["validity"]["valid"] is (state is not State.INVALID)


def test_the_keys_stay():
    document = msgspec.json.decode(to_json(fake_run.report()))
    measured = ["verdict", "validity", "summary", "manifest", "telemetry", "truth", "floor"]
    assert list(document) == ["schema", *measured, "run"]
    assert document["schema"] == 1
    assert list(document["verdict"]) == ["state", "exit_code", "reason", "objectives", "by_hand", "caveats"]
