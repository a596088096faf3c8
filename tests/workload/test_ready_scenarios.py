"""Claims about the ready scenarios: each is sound, and runs against the bundled mock as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from harness import conduct, preflight, runlog
from harness.workload.scenario import (
    Burst,
    Replay,
    Scenario,
    Seconds,
    Sine,
    Steps,
    check,
    load,
    override,
    shipped,
)
from harness.workload.schedule import arrivals, planned

READY = sorted(shipped("default").parent.glob("*.yaml"))
SHORT_S = 2.0


def squeezed(scenario: Scenario) -> Scenario:
    """All of the scenario's shape in two seconds: its rates stay, its times shrink."""
    if scenario.count is not None:
        scenario = override(scenario, rate=scenario.count / 10 / SHORT_S, count=scenario.count // 10)
    if isinstance(scenario.arrivals, Replay):
        scenario = replace(scenario, count=50)  # all of the trace in two seconds is more than its mock can do
    open_process, whole_s = scenario.arrivals, scenario.duration_s
    if isinstance(open_process, Replay | Steps):
        whole_s = Seconds(max(arrival.due_ns for arrival in arrivals(scenario)) / 1e9)
    by = SHORT_S / whole_s if whole_s else 1.0

    def shrunk(time_s: float) -> Seconds:
        return Seconds(time_s * by)

    match open_process:
        case Sine(period_s=period_s):
            open_process = replace(open_process, period_s=shrunk(period_s))
        case Steps(steps=steps):
            open_process = replace(
                open_process, steps=tuple(replace(step, for_s=shrunk(step.for_s)) for step in steps)
            )
        case Replay(scale=scale):
            open_process = replace(open_process, scale=scale * by)
    return replace(
        scenario,
        target="mock",
        traffic=tuple(replace(entry, think_time_s=shrunk(entry.think_time_s)) for entry in scenario.traffic),
        arrivals=open_process,
        bursts=tuple(
            Burst(at_s=shrunk(burst.at_s), count=burst.count, over_s=shrunk(burst.over_s))
            for burst in scenario.bursts
        ),
        duration_s=None if scenario.duration_s is None else shrunk(scenario.duration_s),
        warm_up_s=shrunk(scenario.warm_up_s),
        telemetry=False,
    )


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_scenario_names_nothing_that_is_not_there(path: Path) -> None:
    preflight.check(load(path), str(path))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_scenario_runs_against_the_mock(path: Path, tmp_path: Path) -> None:
    scenario = squeezed(load(path))
    check(scenario, path.stem)
    folder = conduct.conduct(scenario, runs=tmp_path)
    books = conduct.close(folder)
    assert books.imbalances == []
    assert books.planned == books.started + books.dropped
    assert books.planned == (planned(scenario) or books.planned)
    records = runlog.read_requests(folder).to_pylist()
    answered = [record for record in records if record["outcome"] == "ok"]
    assert {record["outcome"] for record in records} <= {"ok", "dropped"}
    assert len(answered) >= max(10, 0.9 * len(records))
    assert {record["kind"] for record in answered} == {str(entry.kind) for entry in scenario.traffic}
    if any(entry.turns != 1 for entry in scenario.traffic):
        assert {record["turn"] for record in answered} >= {0, 1, 2}
    if isinstance(scenario.arrivals, Replay):
        assert sum(record["cached_tokens"] or 0 for record in answered) > 0
