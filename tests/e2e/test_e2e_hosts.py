"""Workers on other hosts: their records reach the master whole; a lost one is taken over by a spare."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from launching import (
    PATIENCE_S,
    assert_books_balance,
    failed_checks,
    free_port,
    has_samples,
    interrupt,
    launched,
    only_run,
    rows,
    summary,
    until,
    verb,
    write_scenario,
)

from harness import runlog
from harness.workload import scenario as scenarios
from harness.workload.schedule import arrivals

pytestmark = pytest.mark.timeout(120)

MIX = [{"kind": "completion"}, {"kind": "stream"}]
"""As many kinds as workers, of one weight: each worker must be given users of both."""


class Hosts(NamedTuple):
    """A master and its workers, each with a folder of its own, as on machines of their own."""

    place: Path
    port: int
    stack: ExitStack
    master: subprocess.Popen[str]
    workers: list[subprocess.Popen[str]]

    @property
    def runs(self) -> Path:
        return self.place / "runs"

    def join(self) -> None:
        """One more worker."""
        own = self.place / f"own-{len(self.workers)}"
        command = verb("worker", "--master", f"127.0.0.1:{self.port}", "--runs", own)
        self.workers.append(self.stack.enter_context(launched(command, cwd=self.place)))


def run(place: Path, url: str, *, meanwhile: Callable[[Hosts], None], **scenario: Any) -> tuple[int, Path]:
    """A run by two remote workers, in whose middle something happens; its exit code and folder."""
    path = write_scenario(place, traffic=MIX, arrivals={"process": "poisson", "rate": 40}, **scenario)
    with ExitStack() as stack:
        port, runs = free_port(), place / "runs"
        listen = ("--remote", "2", "--listen", f"127.0.0.1:{port}")
        command = verb("run", path, "--target", url, *listen, "--no-telemetry", "--runs", runs)
        master = stack.enter_context(launched(command, cwd=place))
        hosts = Hosts(place, port, stack, master, [])
        for _ in range(2):
            hosts.join()
        until(lambda: all(has_samples(hosts.runs, count=1, worker=number) for number in (0, 1)))
        meanwhile(hosts)
        _, err = master.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err
        for worker in hosts.workers:
            worker.wait(20)
    return master.returncode, only_run(hosts.runs)


def planned_of(folder: Path) -> dict[int, int | None]:
    """Every arrival of the schedule, and when it is due."""
    scenario = scenarios.from_builtins(runlog.read_run(folder).scenario)
    return {arrival.seq: arrival.due_ns for arrival in arrivals(scenario)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mock_url: str) -> tuple[int, Path]:
    """A run in which nobody is lost."""
    return run(tmp_path_factory.mktemp("whole"), mock_url, meanwhile=lambda _: None, duration="3s")


def test_the_masters_copy_of_a_workers_log_is_the_same_byte_for_byte(whole: tuple[int, Path]) -> None:
    _, folder = whole
    copies = sorted(folder.glob("*-?.*"))
    assert [path.name for path in copies] == [
        f"{kind}-{worker}.{suffix}"
        for kind, suffix in (("ledger", "json"), ("records", "arrows"), ("samples", "jsonl"))
        for worker in (0, 1)
    ]
    for path in copies:
        (own,) = path.parents[2].glob(f"own-*/*/{path.name}")
        assert path.read_bytes() == own.read_bytes() != b""


def test_each_worker_carries_its_share_of_every_kind(whole: tuple[int, Path]) -> None:
    exit_code, folder = whole
    books = assert_books_balance(folder)
    assert exit_code == summary(folder)["verdict"]["exit_code"]
    assert (books.stop_reason, books.dropped, books.not_started) == ("completed", 0, 0)
    records = rows(folder)
    assert {row["seq"]: row["due_ns"] for row in records} == planned_of(folder)
    assert {row["seq"] % 2 == row["worker"] for row in records} == {True}
    assert {(row["worker"], row["kind"]) for row in records} == {
        (worker, kind) for worker in (0, 1) for kind in ("completion", "stream")
    }


def test_a_late_worker_stays_a_spare_until_it_takes_over_from_a_lost_one(
    mock_url: str, tmp_path: Path
) -> None:
    """What was due between the loss and the take-over is lost, and the verdict says so."""

    def lose_one(hosts: Hosts) -> None:
        hosts.join()
        folder = only_run(hosts.runs)
        until(lambda: "3 workers connected" in (folder / "locust.log").read_text())
        assert runlog.workers_of(folder) == [0, 1]
        hosts.workers[0].kill()
        until(lambda: has_samples(hosts.runs, count=2, worker=2))
        interrupt(hosts.master)

    exit_code, folder = run(tmp_path, mock_url, meanwhile=lose_one, duration="90s")
    assert exit_code == 4
    assert "ledger" in failed_checks(folder)
    survivor, spare = runlog.read_manifest(folder).workers
    assert spare.worker == 2
    records = rows(folder)
    assert {row["outcome"] for row in records} == {"ok"}
    due_ns = planned_of(folder)
    survived, taken_over = (
        sorted(row["seq"] for row in records if row["worker"] == each.worker) for each in (survivor, spare)
    )
    before = sorted({row["seq"] for row in records} - {*survived, *taken_over})
    shard = survivor.worker  # leases are numbered like shards
    assert survived == list(range(shard, survived[-1] + 1, 2))  # nothing left out, nothing taken on
    assert survivor.planned == len([seq for seq in due_ns if seq % 2 == shard])
    assert before == list(range(1 - shard, before[-1] + 1, 2))
    assert taken_over == list(range(taken_over[0], taken_over[-1] + 1, 2))

    books = runlog.read_manifest(folder)
    assert books.lost == (taken_over[0] - before[-1]) // 2 - 1 > 0
    verdict = summary(folder)["verdict"]
    assert verdict["state"] == "INVALID"
    assert f"{books.lost} planned arrivals are lost with workers" in verdict["reason"]
