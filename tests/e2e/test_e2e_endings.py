"""However a run ends, what it recorded is kept, and its books say what is missing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from conftest import Ran
from launching import (
    CALM,
    assert_books_balance,
    command_lines,
    failed_checks,
    family,
    free_port,
    harness,
    has_samples,
    interrupt,
    launched,
    only_run,
    rows,
    summary,
    truth,
    until,
    verb,
    write_scenario,
)

from harness import runlog

pytestmark = pytest.mark.timeout(200)

LONG = {"duration": "60s", "drain": "30s"}


def test_ctrl_c_ends_a_run_with_a_complete_log_balanced_books_and_a_report(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, **LONG)
    with launched(verb("run", scenario, "--runs", tmp_path / "runs"), cwd=tmp_path) as process:
        until(lambda: has_samples(tmp_path / "runs"))
        interrupt(process)
        out, err = process.communicate(timeout=60)
    folder = only_run(tmp_path / "runs")
    books = assert_books_balance(folder)
    assert books.stop_reason == "interrupted"
    assert books.planned == books.started + books.dropped + books.not_started
    assert books.not_started > books.started > 0
    assert books.cut_off == 0  # what was under way was awaited
    assert {row["outcome"] for row in rows(folder)} <= {"ok", "dropped"}
    assert sorted(truth(folder)) == sorted(row["request_id"] for row in rows(folder) if row["started_ns"])
    assert process.returncode == summary(folder)["verdict"]["exit_code"], err
    assert not failed_checks(folder) & {"completed", "ledger", "telemetry", "sampled"}
    assert "Objectives" in out
    assert (folder / "report.html").exists()


def test_a_second_ctrl_c_cuts_off_what_is_still_under_way_and_records_it_so(tmp_path: Path) -> None:
    """The tenth request never gets an answer; the drain would wait for it for half a minute."""
    (tmp_path / "faults.yaml").write_text(json.dumps({"faults": [{"fault": "hang", "requests": [10]}]}))
    scenario = write_scenario(
        tmp_path,
        traffic=[{"kind": "stream"}],
        warm_up="0s",
        mock={"profile": "fast", "faults": "faults.yaml"},
        **LONG,
    )
    command = verb("run", scenario, "--no-telemetry", "--runs", tmp_path / "runs")
    with launched(command, cwd=tmp_path) as process:
        until(lambda: has_samples(tmp_path / "runs"))
        interrupt(process)
        until(lambda: has_samples(tmp_path / "runs", count=4))  # it waits, and goes on taking samples
        assert process.poll() is None
        interrupt(process)
        process.communicate(timeout=20)
    folder = only_run(tmp_path / "runs")
    books = assert_books_balance(folder)
    assert (books.stop_reason, books.cut_off) == ("interrupted", 1)
    (lost,) = (row for row in rows(folder) if row["outcome"] != "ok")
    assert (lost["outcome"], lost["error"]) == ("cancelled", "cut off: the run ended first")
    assert lost["final"]
    total = summary(folder)["summary"]["total"]
    assert total["outcomes"].keys() == {"ok", "cancelled"}  # our own stop is no error of the server's
    assert (total["error_rate"]["value"], total["errors"]) == (0, {})


def test_a_run_killed_with_sigkill_is_reported_from_what_was_recorded(tmp_path: Path) -> None:
    """Parent, engine and telemetry die at once, as when the machine's memory ends."""
    scenario = write_scenario(tmp_path, **LONG)
    with launched(verb("run", scenario, "--runs", tmp_path / "runs"), cwd=tmp_path) as process:
        until(lambda: has_samples(tmp_path / "runs", count=3))
        engine = engine_of(process.pid)
        process.kill()
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait(10)
    folder = only_run(tmp_path / "runs")
    assert not (folder / "requests.parquet").exists()
    finished = runlog.read_samples(folder)[-1].finished

    done = harness("report", folder, cwd=tmp_path)
    assert done.returncode == 4
    assert "INVALID" in done.stdout
    assert "killed" in done.stdout
    assert {"completed", "ledger"} <= failed_checks(folder)
    books = runlog.read_manifest(folder)
    assert books.stop_reason == "killed"
    records = rows(folder)
    assert books.records == len(records)
    assert books.lost == books.planned - len({row["seq"] for row in records}) > 0
    # All that had ended when the last batch was written: batches are counted once, by their first request.
    assert len([row for row in records if row["index"] == 0]) >= finished - 1 > 0
    assert summary(folder)["summary"]["total"]["outcomes"].keys() == {"ok"}
    assert "INVALID" in (folder / "report.html").read_text()


def test_a_run_whose_engine_alone_is_killed_is_reported_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, **LONG)
    with launched(
        verb("run", scenario, "--no-telemetry", "--runs", tmp_path / "runs"), cwd=tmp_path
    ) as process:
        until(lambda: has_samples(tmp_path / "runs", count=1))
        started = family(process)
        os.killpg(engine_of(process.pid).pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert len(started) >= 2  # the engine and the mock
        assert psutil.wait_procs(started, timeout=10)[1] == []
    assert process.returncode == 4
    assert "INVALID" in out
    assert runlog.read_manifest(only_run(tmp_path / "runs")).stop_reason == "killed"


def test_the_load_ends_when_harness_run_is_killed_and_its_run_is_not_judged_before(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, **LONG)
    with launched(
        verb("run", scenario, "--no-telemetry", "--runs", tmp_path / "runs"), cwd=tmp_path
    ) as process:
        until(lambda: has_samples(tmp_path / "runs", count=1))
        folder = only_run(tmp_path / "runs")
        early = harness("report", folder, cwd=tmp_path)
        started = family(process)
        process.kill()
        gone, alive = psutil.wait_procs(started, timeout=40)
        for each in alive:
            each.kill()
    assert early.returncode == 2
    assert "is still being written by worker 0" in early.stderr
    assert not alive, gone
    done = harness("report", folder, cwd=tmp_path)
    assert runlog.read_manifest(folder).stop_reason == "killed", done.stderr
    assert done.returncode == 4  # what failed, for want of the mock that died with it, is no server's fault
    assert "completed" in failed_checks(folder)
    assert_books_balance(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [("--workers", "2"), ("--remote", "1")], ids=["here", "elsewhere"])
def test_an_interrupt_before_the_run_begins_is_one_line_and_leaves_nothing(
    tmp_path: Path, workers: tuple[str, str], number: signal.Signals
) -> None:
    listen = ("--listen", f"127.0.0.1:{free_port()}") if "--remote" in workers else ()
    command = verb("run", "smoke", *workers, *listen, "--runs", tmp_path / "runs")
    with launched(command, cwd=tmp_path) as process:
        until(lambda: any("locust" in each for each in command_lines(process)))
        started = family(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert psutil.wait_procs(started, timeout=10)[1] == []
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "harness: interrupted before the run began: nothing was sent"
    assert "Traceback" not in err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_whose_progress_nobody_reads_is_judged_all_the_same(tmp_path: Path) -> None:
    """As by `harness run 2>&1 | head -1`: both ends of its output are gone."""
    scenario = write_scenario(tmp_path, budgets=CALM, telemetry=False)
    words = " ".join(shlex.quote(word) for word in verb("run", scenario, "--runs", tmp_path / "runs"))
    script = ["bash", "-c", f'{words} 2>&1 | true; exit "${{PIPESTATUS[0]}}"']
    with launched(script, cwd=tmp_path) as process:
        process.communicate(timeout=60)
    folder = only_run(tmp_path / "runs")
    assert process.returncode == summary(folder)["verdict"]["exit_code"]
    assert_books_balance(folder)


def test_a_report_in_an_encoding_that_lacks_its_signs_is_still_a_report(mixed_run: Ran) -> None:
    environ = {"PYTHONIOENCODING": "ascii"}
    done = harness("report", mixed_run.folder, cwd=mixed_run.folder.parent, **environ)
    assert done.returncode == mixed_run.done.returncode
    assert "Objectives" in done.stdout
    assert done.stderr == ""


def test_a_report_that_cannot_be_written_is_one_line(mixed_run: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(mixed_run.folder, folder)
    (folder / "summary.json.part").mkdir()
    done = harness("report", folder, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"harness: {folder / 'summary.json.part'}: Is a directory\n"


def engine_of(pid: int) -> psutil.Process:
    """Locust's process: the leader of its own group."""
    (engine,) = (child for child in psutil.Process(pid).children() if "locust" in child.cmdline())
    assert os.getpgid(engine.pid) == engine.pid
    return engine
