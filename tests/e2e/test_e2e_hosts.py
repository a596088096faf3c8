"""Workers on other hosts: their records reach the master whole; a lost one is taken over by a spare."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from launching import (
    PATIENCE_S,
    assert_books_balance,
    failed_checks,
    free_port,
    has_samples,
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
    workers: list[subprocess.Popen[str]]

    @property
    def runs(self) -> Path:
        return self.place / "runs"

    def join(self) -> None:
        """One more worker."""
        own = self.place / f"own-{len(self.workers)}"
        command = verb("worker", "--master", f"127.0.0.1:{self.port}", "--runs", own)
        self.workers.append(self.stack.enter_context(launched(command, cwd=self.place)))

    def own_copies(self, name: str) -> list[bytes]:
        """This file as the workers kept it."""
        return [path.read_bytes() for path in self.place.glob(f"own-*/*/{name}")]


def run(place: Path, url: str, *, meanwhile: Callable[[Hosts], None], **scenario: Any) -> tuple[int, Path]:
    """A run by two remote workers, in whose middle something happens; its exit code and folder."""
    path = write_scenario(place, traffic=MIX, arrivals={"process": "poisson", "rate": 40}, **scenario)
    with ExitStack() as stack:
        hosts = Hosts(place, free_port(), stack, [])
        listen = ("--remote", "2", "--listen", f"127.0.0.1:{hosts.port}")
        command = verb("run", path, "--target", url, *listen, "--no-telemetry", "--runs", hosts.runs)
        master = stack.enter_context(launched(command, cwd=place))
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
def whole(tmp_path_factory: pytest.TempPathFactory, mock_url: str) -> Iterator[tuple[int, Path]]:
    """A run in which nobody is lost, and a third worker joins late."""
    yield run(tmp_path_factory.mktemp("whole"), mock_url, meanwhile=Hosts.join, duration="6s")


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


def test_a_worker_that_joins_late_stays_a_spare(whole: tuple[int, Path]) -> None:
    _, folder = whole
    assert runlog.workers_of(folder) == [0, 1]
    assert not (folder.parents[1] / "own-2").exists()
    assert runlog.read_run(folder).workers == 2


def test_a_spare_takes_over_from_a_killed_worker_and_what_was_due_meanwhile_is_lost(
    mock_url: str, tmp_path: Path
) -> None:
    def lose_one(hosts: Hosts) -> None:
        hosts.join()
        log = next(hosts.runs.iterdir()) / "locust.log"
        until(lambda: "3 workers connected" in log.read_text())
        victim = hosts.workers.pop()
        hosts.workers.append(victim)
        lost = hosts.workers[0]
        psutil.Process(lost.pid).kill()
        lost.wait()

    exit_code, folder = run(tmp_path, mock_url, meanwhile=lose_one, duration="16s")
    assert exit_code == 4
    assert "ledger" in failed_checks(folder)
    books = runlog.read_manifest(folder)
    survivor, spare = books.workers
    records = rows(folder)
    due_ns = planned_of(folder)
    (shard,) = {row["seq"] % 2 for row in records if row["worker"] == survivor.worker}
    survived = {row["seq"] for row in records if row["worker"] == survivor.worker}
    assert survived == {seq for seq in due_ns if seq % 2 == shard}
    assert survivor.finished == survivor.planned == len(survived)

    assert spare.worker == 2
    taken_over = {row["seq"] for row in records if row["worker"] == spare.worker}
    assert taken_over == {seq for seq in due_ns if seq % 2 != shard and seq >= min(taken_over)}
    assert {row["outcome"] for row in records} == {"ok"}

    before = {row["seq"] for row in records if row["worker"] not in {survivor.worker, spare.worker}}
    gap_s = (due_ns[min(taken_over)] - due_ns[max(before)]) / 1e9
    assert 2 < gap_s < 12  # a heartbeat is missed after three seconds or so, and a second is for the start
    assert books.lost == len(due_ns) - len(survived | taken_over | before) > 0
    assert any(f"{books.lost} planned arrivals are lost" in each for each in books.imbalances)
    verdict = summary(folder)["verdict"]
    assert verdict["state"] == "INVALID"
    assert (
        f"{books.lost} planned arrivals are lost with workers that never reported back" in verdict["reason"]
    )
