"""Claims about the verbs that judge: what they print, what they leave alone, whom they blame."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from report import fake_run

from harness import runlog
from harness.cli import _obeys_escapes, main
from harness.slo.verdict import State
from harness.workload.scenario import from_builtins, load, shipped


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def leave_run(folder: Path, state: State = State.FAIL) -> Path:
    """A run folder, closed and reported on."""
    report = fake_run.report(state)
    folder.mkdir(parents=True)
    for name, part in (("run", report.run), ("manifest", report.manifest), ("telemetry", report.telemetry)):
        runlog.write_json(folder / f"{name}.json", part)
    lines = [msgspec.json.encode(each) for each in report.samples]
    (folder / "samples-0.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    pq.write_table(report.records, folder / "requests.parquet")
    ask("report", folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave_run(tmp_path_factory.mktemp("cli") / "runs" / "20260130T101500Z-default")


REPORTS = ("junit.xml", "report.md", "summary.json", "report.html")


@pytest.mark.parametrize("flags", [("--threshold", "response: p(50) < 10s"), ("--window", "1s,9s")])
def test_a_verdict_by_hand_leaves_the_reports_of_the_run_alone(run: Path, flags: tuple[str, ...]) -> None:
    kept = {name: (run / name).read_bytes() for name in REPORTS}
    done = ask("report", run, *flags)
    assert "by hand" in done.stdout.splitlines()[0]
    assert {name: (run / name).read_bytes() for name in REPORTS} == kept
    assert b"by hand" not in b"".join(kept.values())


def test_an_objective_by_hand_stands_beside_those_of_the_run_and_replaces_its_like(run: Path) -> None:
    """As on `harness run`."""

    def objectives(threshold: str) -> list[str]:
        document = msgspec.json.decode(ask("report", run, "--json", "--threshold", threshold).stdout)
        return [each["objective"]["expression"] for each in document["verdict"]["objectives"]]

    response, errors = fake_run.OBJECTIVES
    assert objectives("response: p(50) < 10s") == [response, errors, "response: p(50) < 10s"]
    assert objectives("response: p(99) < 10s") == [errors, "response: p(99) < 10s"]


@pytest.mark.parametrize("group", [(), ("scenario",), ("mock",)])
def test_each_verb_is_said_in_full_on_a_terminal_of_80_columns(group: tuple[str, ...]) -> None:
    said = CliRunner().invoke(main, [*group, "--help"], terminal_width=80).stdout
    commands = said[said.index("Commands:") :]
    assert "..." not in commands
    assert max(map(len, said.splitlines())) <= 80


def test_the_help_names_every_shipped_scenario_and_says_that_files_are_yaml() -> None:
    said = " ".join(ask("run", "--help").stdout.split())
    names = re.search(r"YAML file [^:]*, or the name of a shipped one: ([^.]*)\.", said)
    assert names is not None
    assert set(names[1].split(", ")) == {path.stem for path in shipped("default").parent.glob("*.yaml")}


def test_two_forms_at_once_are_refused(run: Path) -> None:
    done = ask("report", run, "--html", "--json")
    assert done.exit_code == 2
    assert "give one of --html and --json" in done.stderr
    assert done.stdout == ""


def test_without_a_run_the_newest_is_taken_and_named(run: Path) -> None:
    newer = run.with_name("20260131T000000Z-default")
    shutil.copytree(run, newer)
    (run.parent / "20270101T000000Z-no-run").mkdir()
    shutil.copytree(run, run.with_name("20270102T000000Z-calibration"))
    shutil.copytree(run, run.with_name("20270103T000000Z-profiled"))
    run.with_name("20270103T000000Z-profiled").joinpath("ticks.json").touch()
    done = ask("report", "--runs", run.parent, "--json")
    assert f"harness: RUN is {newer}, the newest below {run.parent}" in done.stderr
    shutil.rmtree(newer)
    assert f"RUN is {run}," in ask("report", "--runs", run.parent, "--json").stderr


def test_where_there_is_no_run_to_take_it_says_so(tmp_path: Path) -> None:
    done = ask("report", "--runs", tmp_path)
    assert (done.exit_code, done.stderr) == (
        2,
        f"harness: RUN: there is no run below {tmp_path}; give the folder of one\n",
    )


def test_the_run_folder_holds_the_scenario_that_the_report_says_to_run_again(run: Path) -> None:
    again = load(run / "scenario.yaml")
    assert again == from_builtins(runlog.read_run(run).scenario)
    command = re.search(r"harness run (\S+) --seed 7", (run / "report.html").read_text())
    assert command is not None
    assert Path(command[1]).samefile(run / "scenario.yaml")


@pytest.mark.parametrize("verb", ["run", "report"])
@pytest.mark.parametrize(
    ("threshold", "remedy"),
    [
        ("responze: p(99) < 1s", "unknown measure responze: did you mean response?"),
        (" ", "write one like"),
    ],
)
def test_a_bad_threshold_is_blamed_on_its_flag(run: Path, verb: str, threshold: str, remedy: str) -> None:
    done = ask(verb, run if verb == "report" else "smoke", "--threshold", threshold)
    assert done.exit_code == 2
    assert f"harness: --threshold is {threshold!r}: {remedy}" in done.stderr


def test_a_threshold_on_traffic_that_is_not_sent_is_blamed_on_its_flag() -> None:
    done = ask("run", "ramp", "--threshold", "batch.response: p(99) < 1s")
    assert done.exit_code == 2
    assert "harness: --threshold is 'batch.response: p(99) < 1s': no traffic of kind batch" in done.stderr


@pytest.mark.parametrize(("term", "obeys"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_terminal_that_is_dumb_gets_no_escapes(
    monkeypatch: pytest.MonkeyPatch, term: str, *, obeys: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    assert _obeys_escapes(TTY()) is obeys
    assert not _obeys_escapes(io.StringIO())


class TTY(io.StringIO):
    """A terminal, as far as it says so itself."""

    def isatty(self) -> bool:
        return True
