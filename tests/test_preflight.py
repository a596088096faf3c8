"""Claims about what is read before any load is sent: a mistake in it costs nothing, not even time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from harness import preflight
from harness.cli import main
from harness.errors import ConfigError
from harness.workload.scenario import load, shipped

FILES = {
    "trace.jsonl": '{"timestamp": 1}\n{"timestamp": "soon"}\n',
    "prompts.jsonl": '{"prompt": "hello"}\n{"promt": "hello"}\n',
    "slow.yaml": "ttft: {distribution: gamma}",
    "faults.yaml": "faults: [{fualt: cut, probability: 1}]",
    "slo.yaml": "apiVersion: openslo/v2\nkind: SLO\n",
}


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("arrivals: {process: replay, path: trace.jsonl}", "trace.jsonl:2: timestamp is 'soon'"),
        (
            "traffic: [{kind: stream, prompt: {source: jsonl, path: prompts.jsonl}}]",
            "prompts.jsonl:2: prompt: give either `prompt` or `messages`",
        ),
        ("mock: {profile: quick}", "mock.profile is 'quick': choose one of"),
        ("mock: {profile: slow.yaml}", "slow.yaml: ttft.distribution is 'gamma'"),
        ("mock: {faults: faults.yaml}", "faults[0].fualt is 'cut': unknown; did you mean `fault`?"),
        ("objectives: ['ttft: p(99) < soon']", "objectives[0] is 'ttft: p(99) < soon'"),
        ("objectives: ['batch.response: p(99) < 1s']", "no traffic of kind batch will be sent"),
        ("objectives: [slo.yaml]", "slo.yaml: apiVersion"),
    ],
)
def test_scenario_check_finds_the_mistake_in_what_the_scenario_names(
    tmp_path: Path, text: str, blamed: str
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    scenario = tmp_path / "load.yaml"
    scenario.write_text(f"duration: 1s\n{text}\n")
    answer = CliRunner().invoke(main, ["scenario", "check", str(scenario)])
    assert answer.exit_code == 2
    assert blamed in answer.stderr
    assert answer.stdout == ""


def test_all_mistakes_in_what_the_scenario_names_are_told_at_once(tmp_path: Path) -> None:
    scenario = tmp_path / "load.yaml"
    objectives = "objectives: ['errors: rate < 0', 'responze: p(99) < 1s']"
    scenario.write_text(f"duration: 1s\n{objectives}\nmock: {{profile: quick}}\n")
    said = CliRunner().invoke(main, ["scenario", "check", str(scenario)]).stderr.splitlines()
    places = [line.removeprefix(f"harness: {scenario}: ").partition(" ")[0] for line in said]
    assert places == ["objectives[0]", "objectives[1]", "mock.profile"]


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("{duration: 1s, arrivals: {process: poisson, rate: 1000000000}}", "arrivals.rate is 1000000000.0"),
        (
            "{count: 5, arrivals: {process: constant, rate: 1100000}}",
            "no more than 1,000,000 arrivals a second",
        ),
        ("{duration: 10h, arrivals: {process: ramp, start: 0, end: 9000}}", "arrivals: some 162,000,000"),
    ],
)
def test_a_schedule_that_nobody_could_wait_for_is_refused(tmp_path: Path, text: str, blamed: str) -> None:
    scenario = tmp_path / "load.yaml"
    scenario.write_text(text)
    with pytest.raises(ConfigError, match=blamed):
        preflight.check(load(scenario), "load.yaml")


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        (
            "{arrivals: {process: constant, rate: 40}, count: 60, warm_up: 10s}",
            "warm_up is '10s': no arrival would be judged: the last is due at 1.48s",
        ),
        (
            "{arrivals: {process: constant, rate: 40}, count: 60, window: [3s, 5s]}",
            "window is '[3s, 5s]': no arrival would be judged: the last is due at 1.48s",
        ),
        (
            "{arrivals: {process: constant, rate: 1}, duration: 9s, window: [100ms, 500ms]}",
            "window is '[0.1s, 0.5s]': no arrival would be judged: the next is due at 1s",
        ),
        (
            "arrivals: {process: steps, steps: [{rate: 9, for: 2s}, {rate: 0, for: 9s}]}\nwarm_up: 3s",
            "no arrival would be judged: the last is due at 1",
        ),
        ("arrivals: {process: replay, path: few.jsonl}\nwarm_up: 1s", "the last is due at 0.5s"),
        ("{arrivals: {process: poisson, rate: 0.001}, duration: 1s}", "arrivals: not one is due"),
    ],
)
def test_scenario_check_says_that_nothing_would_be_judged(tmp_path: Path, text: str, blamed: str) -> None:
    (tmp_path / "few.jsonl").write_text('{"timestamp": 1}\n{"timestamp": 1.5}\n')
    scenario = tmp_path / "load.yaml"
    scenario.write_text(text)
    answer = CliRunner().invoke(main, ["scenario", "check", str(scenario)])
    assert answer.exit_code == 2
    assert blamed in answer.stderr


def test_a_real_target_needs_no_mock_files(tmp_path: Path) -> None:
    scenario = tmp_path / "load.yaml"
    scenario.write_text("{duration: 1s, target: 'http://127.0.0.1:1', mock: {profile: quick}}")
    preflight.check(load(scenario), "load.yaml")
    mocked = replace(load(scenario), target="mock")
    with pytest.raises(ConfigError, match=r"mock\.profile"):
        preflight.check(mocked, "load.yaml")


def test_checking_loads_no_engine_no_charts_and_no_statistics() -> None:
    heavy = {"locust", "gevent", "altair", "numpy", "scipy", "pyarrow"}
    code = (
        "import sys; from harness.cli import main\n"
        f"main(['scenario', 'check', {str(shipped('smoke'))!r}], standalone_mode=False)\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(answer.stderr.split())
