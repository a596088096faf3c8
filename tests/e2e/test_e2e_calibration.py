"""`harness run` as it is without flags: it measures its own error first, and goes on with what it has."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import msgspec
import pytest
from launching import (
    CALM,
    command_lines,
    family,
    harness,
    launched,
    only_run,
    summary,
    until,
    verb,
    write_scenario,
)

from harness.analysis.floor import LEAST, Floor
from harness.testing import MockServer, mock_server

pytestmark = pytest.mark.timeout(200)

STREAMS = [{"kind": "stream"}]


def floor_of(folder: Path) -> Floor:
    return msgspec.json.decode((folder / "calibration.json").read_bytes(), type=Floor)


def test_a_run_keeps_its_floor_and_its_reports_say_it_and_bear_its_marks(tmp_path: Path) -> None:
    """A mock without delay answers within the instrument's own error."""
    scenario = write_scenario(
        tmp_path,
        traffic=STREAMS,
        mock={"profile": "fast"},
        budgets=CALM,
        objectives=["ttft: p(50) < 5s", "errors: rate < 20%", "held: p(50) < 5s"],
    )
    done = harness("run", scenario, "--calibrate", "--runs", tmp_path / "runs", cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    floor = floor_of(folder)
    assert floor.profile == "fast"
    assert all(spread.n >= LEAST for spread in floor.added.values())
    assert "measuring the harness's own error first" in done.stderr
    assert "Noise floor  response" in done.stdout
    assert "Noise floor" in (folder / "report.md").read_text()
    judged = {each["objective"]["measure"]: each for each in summary(folder)["verdict"]["objectives"]}
    assert judged["ttft"]["resolvable"] is False
    assert judged["held"]["resolvable"] is None
    assert done.stdout.count(", not resolvable") == 1
    assert summary(folder)["floor"]["run"] == floor.run


def test_a_rate_that_is_too_low_for_a_floor_is_calibrated_at_a_higher_one_and_says_so(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, arrivals={"process": "constant", "rate": 0.5}, budgets=CALM)
    done = harness("run", scenario, "--calibrate", "--runs", tmp_path / "runs", cwd=tmp_path)
    floor = floor_of(only_run(tmp_path / "runs"))
    assert floor.added["ttft"].n >= LEAST
    assert "with 50.0 % streams instead of 40.0 %" in floor.unlike[0]
    assert "instead of 0.500 arrivals/s" in floor.unlike[1]
    assert "instead of 0.500 arrivals/s" in " ".join(done.stdout.split())


def test_a_calibration_that_cannot_be_made_does_not_keep_a_run_from_it(mock_url: str, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, mock={"profile": "nowhere.yaml"}, target=mock_url, budgets=CALM)
    (tmp_path / "nowhere.yaml").write_text("ttft: {distribution: gamma}")
    done = harness("run", scenario, "--calibrate", "--runs", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode in {0, 3, 4}, done.stderr
    assert "harness: noise floor: not measured, because " in done.stderr
    assert "ttft.distribution is 'gamma'" in done.stderr
    folder = only_run(tmp_path / "runs")
    assert floor_of(folder).why_not
    assert "Noise floor  not measured, because" in done.stdout


@pytest.fixture(scope="module")
def untouched() -> MockServer:
    with mock_server() as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["mock", "locust", "load"])
def test_a_calibration_that_is_interrupted_ends_the_command_and_nothing_reaches_the_target(
    untouched: MockServer, tmp_path: Path, number: signal.Signals, when: str
) -> None:
    scenario = write_scenario(tmp_path, traffic=STREAMS, target=untouched.url)
    aside = tmp_path / "aside"
    aside.mkdir()
    command = verb("run", scenario, "--calibrate", "--runs", tmp_path / "runs")
    with launched(command, cwd=tmp_path, TMPDIR=str(aside)) as process:
        until(lambda: has_come(when, aside, command_lines(process)))
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
        assert family(process) == []
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == [
        "harness: measuring the harness's own error first; --no-calibrate skips it",
        "harness: interrupted in the calibration: nothing was sent to the target",
    ]
    assert untouched.truth() == []
    assert untouched.health()["in_flight"] == 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert list(aside.iterdir()) == []


def has_come(when: str, place: Path, commands: list[list[str]]) -> bool:
    """Whether a calibration has started its mock, or its load generator, or its load."""
    if when == "load":
        return any(path.read_bytes() for path in place.rglob("samples-*.jsonl"))
    return any(when in word for command in commands for word in command)


def test_harness_calibrate_that_is_interrupted_shows_no_table_and_leaves_no_run(tmp_path: Path) -> None:
    command = verb("calibrate", "smoke", "--runs", tmp_path / "runs")
    with launched(command, cwd=tmp_path) as process:
        until(lambda: has_come("load", tmp_path, []))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "harness: interrupted"
    assert "Traceback" not in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_trace_is_calibrated_with_its_own_lengths(tmp_path: Path) -> None:
    rows = [{"timestamp": 20 * place, "input_length": 300, "output_length": 7} for place in range(150)]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arrivals = {"process": "replay", "path": "trace.jsonl", "format": "mooncake"}
    scenario = write_scenario(tmp_path, traffic=STREAMS, arrivals=arrivals, warm_up="0s")
    done = harness("calibrate", scenario, "--seconds", "3", "--runs", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    floor = floor_of(only_run(tmp_path / "runs"))
    assert floor.unmatched == floor.miscounted == 0
    assert floor.added["itl"].n == 6 * floor.requests
