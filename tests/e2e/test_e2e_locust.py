"""Plain Locust, in each of its ways to run, leaves the same run folder as `harness run` does."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from launching import (
    PATIENCE_S,
    assert_books_balance,
    failed_checks,
    free_port,
    has_samples,
    launched,
    locust,
    only_run,
    rows,
    schedule_of,
    summary,
    until,
    write_scenario,
)

from harness import runlog

pytestmark = pytest.mark.timeout(400)


def common(scenario: Path, url: str, runs: Path) -> tuple[str | Path, ...]:
    return ("--host", url, "--scenario", scenario, "--runs", runs)


def distributed(port: int) -> tuple[list[str], list[str]]:
    """The flags of a master, and of its workers."""
    master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
    worker = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
    return [*master, "--expect-workers", "2", "--headless", "--only-summary"], worker


def assert_whole_run(folder: Path, exit_code: int | None, like: Ran, workers: int) -> None:
    """The same arrivals and requests as `harness run` made of this scenario, judged and in balance."""
    books = assert_books_balance(folder)
    assert books.stop_reason == "completed"
    assert books.planned == books.finished
    assert [ledger.worker for ledger in books.workers] == list(range(workers))
    assert schedule_of(folder) == schedule_of(like.folder)
    assert sorted({row["seq"] for row in rows(folder)}) == list(range(books.planned))
    assert {row["outcome"] for row in rows(folder)} == {"ok"}
    assert exit_code == summary(folder)["verdict"]["exit_code"]
    assert not failed_checks(folder) & {"ledger", "completed", "telemetry", "recorded"}
    for name in ("report.html", "junit.xml", "report.md", "traces.otlp.jsonl", "telemetry.json"):
        assert (folder / name).exists()


def test_one_headless_process(mixed_run: Ran, mock_url: str, tmp_path: Path) -> None:
    command = locust("--headless", *common(mixed_run.scenario, mock_url, tmp_path / "runs"))
    with launched(command, cwd=tmp_path) as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert_whole_run(only_run(tmp_path / "runs"), process.returncode, mixed_run, workers=1)
    assert "Objectives" in out


def test_two_forked_processes(mixed_run: Ran, mock_url: str, tmp_path: Path) -> None:
    port = str(free_port())
    command = locust(
        *("--headless", "--only-summary", "--processes", "2"),
        *("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port),
        *common(mixed_run.scenario, mock_url, tmp_path / "runs"),
    )
    with launched(command, cwd=tmp_path) as process:
        process.communicate(timeout=PATIENCE_S)
    assert_whole_run(only_run(tmp_path / "runs"), process.returncode, mixed_run, workers=2)


def test_a_master_and_two_workers_share_out_the_schedule(
    mixed_run: Ran, mock_url: str, tmp_path: Path
) -> None:
    as_master, as_worker = distributed(free_port())
    with ExitStack() as stack:
        workers = [stack.enter_context(launched(locust(*as_worker), cwd=tmp_path)) for _ in range(2)]
        command = locust(*as_master, *common(mixed_run.scenario, mock_url, tmp_path / "runs"))
        master = stack.enter_context(launched(command, cwd=tmp_path))
        master.communicate(timeout=PATIENCE_S)
        for worker in workers:
            worker.communicate(timeout=20)
    folder = only_run(tmp_path / "runs")
    assert [worker.returncode for worker in workers] == [0, 0]
    assert_whole_run(folder, master.returncode, mixed_run, workers=2)
    shares = [{row["seq"] for row in rows(folder) if row["worker"] == worker} for worker in (0, 1)]
    planned = runlog.read_manifest(folder).planned
    assert shares == [set(range(0, planned, 2)), set(range(1, planned, 2))]


def test_a_killed_worker_ends_in_an_invalid_run_that_keeps_its_records_and_counts_what_it_lost(
    mock_url: str, tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path, duration="8s")
    as_master, as_worker = distributed(free_port())
    runs = tmp_path / "runs"
    with ExitStack() as stack:
        workers = [stack.enter_context(launched(locust(*as_worker), cwd=tmp_path)) for _ in range(2)]
        command = locust(*as_master, *common(scenario, mock_url, runs))
        master = stack.enter_context(launched(command, cwd=tmp_path))
        until(lambda: has_samples(runs, worker=0) and has_samples(runs, worker=1))
        workers[0].kill()
        out, _ = master.communicate(timeout=PATIENCE_S)
    folder = only_run(runs)
    assert master.returncode == 4
    assert "INVALID" in out
    assert "ledger" in failed_checks(folder)
    books = runlog.read_manifest(folder)
    (left,) = books.workers
    records = rows(folder)
    theirs = [row for row in records if row["worker"] != left.worker]
    ours = [row for row in records if row["worker"] == left.worker]
    assert len(ours) == left.records
    assert left.finished == left.planned  # the other worker's share is whole
    assert len({row["seq"] for row in theirs}) > 0
    assert books.planned == books.started + books.dropped + books.not_started + books.lost
    assert books.lost == books.planned - len({row["seq"] for row in records}) > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_loses_nothing(
    processes: int, mock_url: str, tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path, duration="60s")
    port = str(free_port())
    flags = ["--headless", "--only-summary"]
    if processes > 1:
        flags += ["--processes", "2", "--master-bind-host", "127.0.0.1"]
        flags += ["--master-bind-port", port, "--master-port", port]
    command = locust(*flags, *common(scenario, mock_url, tmp_path / "runs"))
    with launched(command, cwd=tmp_path) as process:
        until(lambda: all(has_samples(tmp_path / "runs", worker=worker) for worker in range(processes)))
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    folder = only_run(tmp_path / "runs")
    books = assert_books_balance(folder)
    assert books.stop_reason == "interrupted"
    assert books.not_started > books.started > 0
    assert {row["outcome"] for row in rows(folder)} == {"ok"}
    assert len(books.workers) == processes
    assert (folder / "telemetry.json").exists()
    assert not failed_checks(folder) & {"ledger", "completed", "telemetry"}
    assert process.returncode == summary(folder)["verdict"]["exit_code"]


def test_the_web_ui_starts_and_stops_runs_one_after_the_other(mock_url: str, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, duration="60s")
    runs, port = tmp_path / "runs", free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("--web-host", "127.0.0.1", "--web-port", str(port))
    command = locust(*flags, *common(scenario, mock_url, runs))
    with launched(command, cwd=tmp_path) as process, httpx.Client(base_url=url, trust_env=False) as ui:
        until(lambda: answers(ui))
        for number in (1, 2):
            form = {"user_count": 30, "spawn_rate": 30, "host": mock_url}
            assert ui.post("/swarm", data=form).json()["success"]
            until(lambda number=number: len(list(runs.glob("*/samples-0.jsonl"))) == number)
            newest = max(runs.iterdir(), key=lambda folder: folder.stat().st_ctime_ns)
            until(lambda newest=newest: runlog.samples_path(newest, 0).read_bytes().count(b"\n") >= 2)
            assert ui.post("/stop", timeout=60).json()["success"]
            until(lambda newest=newest: (newest / "report.html").exists())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    folders = sorted(runs.iterdir())
    assert len(folders) == 2
    for folder in folders:
        books = assert_books_balance(folder)
        assert books.stop_reason == "interrupted"
        assert books.started > 0
    first, second = (schedule_of(folder) for folder in folders)
    common_ids = first.keys() & second.keys()
    assert {name: first[name] for name in common_ids} == {name: second[name] for name in common_ids} != {}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_start_that_is_stopped_before_it_began_sends_nothing_and_leaves_the_next_one_whole(
    processes: int, mock_url: str, tmp_path: Path
) -> None:
    """The share of ten hours takes some seconds to build: time enough to press Stop."""
    arrivals = {"process": "gamma", "rate": 50, "cv": 1.5}
    scenario = write_scenario(tmp_path, arrivals=arrivals, duration="36000s", telemetry=False)
    runs, port = tmp_path / "runs", free_port()
    flags = ["--web-host", "127.0.0.1", "--web-port", str(port)]
    if processes > 1:
        bind = str(free_port())
        flags += ["--processes", "2", "--master-bind-host", "127.0.0.1"]
        flags += ["--master-bind-port", bind, "--master-port", bind]
    command = locust(*flags, *common(scenario, mock_url, runs))
    url = f"http://127.0.0.1:{port}"
    with launched(command, cwd=tmp_path) as process, httpx.Client(base_url=url, trust_env=False) as ui:
        until(lambda: answers(ui) and workers_of(ui) == processes)
        form = {"user_count": 30, "spawn_rate": 30, "host": mock_url}
        assert ui.post("/swarm", data=form).json()["success"]
        until(lambda: runs.exists() and list(runs.iterdir()))
        (called_off,) = runs.iterdir()
        assert ui.post("/stop", timeout=60).json()["success"]
        until(lambda: ui.get("/stats/requests").json()["state"] in {"stopped", "ready"})
        until(lambda: workers_of(ui) == processes)

        assert ui.post("/swarm", data=form).json()["success"]
        until(lambda: len(list(runs.iterdir())) == 2)
        (begun,) = set(runs.iterdir()) - {called_off}
        sampled = [runlog.samples_path(begun, worker) for worker in range(processes)]
        until(lambda: all(each.exists() and each.read_bytes().count(b"\n") >= 2 for each in sampled))
        assert ui.post("/stop", timeout=60).json()["success"]
        until((begun / "report.html").exists)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert not (called_off / "run.json").exists()
    books = assert_books_balance(begun)
    assert books.stop_reason == "interrupted"
    assert books.started > books.dropped == 0
    assert {row["outcome"] for row in rows(begun)} == {"ok"}
    end = runlog.read_end(begun)
    assert end is not None
    assert end.faults == []


def test_a_master_whose_workers_are_all_lost_before_the_start_says_so(mock_url: str, tmp_path: Path) -> None:
    arrivals = {"process": "gamma", "rate": 50, "cv": 1.5}
    scenario = write_scenario(tmp_path, arrivals=arrivals, duration="36000s", telemetry=False)
    port = str(free_port())
    runs = tmp_path / "runs"
    flags = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    flags += ["--expect-workers", "1", "--headless", "--only-summary"]
    beside = ["--worker", "--master-host", "127.0.0.1", "--master-port", port]
    master = locust(*flags, *common(scenario, mock_url, runs))
    with launched(master, cwd=tmp_path) as process, launched(locust(*beside), cwd=tmp_path) as worker:
        until(lambda: runs.exists() and list(runs.iterdir()))
        worker.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "harness: every worker was lost before the start" in said
    assert not list(runs.glob("*/run.json"))


def workers_of(ui: httpx.Client) -> int:
    """How many processes are ready to carry traffic; the only one is its own worker."""
    workers = ui.get("/stats/requests").json().get("workers")
    return 1 if workers is None else [each["state"] for each in workers].count("ready")


def answers(ui: httpx.Client) -> bool:
    try:
        return ui.get("/").status_code == 200
    except httpx.ConnectError:
        return False


def test_without_a_host_plain_locust_says_what_to_give(tmp_path: Path) -> None:
    """The bundled mock belongs to `harness run`."""
    done = subprocess.run(
        locust("--headless", "--runs", tmp_path / "runs"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "harness: locust: --host: give the API's URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
