"""Workers on other hosts: their records reach the master whole; a lost one is taken over by a spare."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from launching import (
    CALM,
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
    truth,
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
    gate: threading.Event
    """While it is cleared, worker 0 and the master do not hear each other."""

    @property
    def runs(self) -> Path:
        return self.place / "runs"

    def join(self, port: int | None = None, *, as_if: str = "") -> None:
        """One more worker, which finds the master at a port.

        Args:
            port: left out: the master's own.
            as_if: statements that make it another machine's, before anything else.
        """
        number = len(self.workers)
        customs = self.place / f"customs-{number}"
        customs.mkdir()
        (customs / "sitecustomize.py").write_text(as_if)
        path = os.pathsep.join([str(customs), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        command = verb("worker", "--master", f"127.0.0.1:{port or self.port}", "--runs", self.own(number))
        self.workers.append(self.stack.enter_context(launched(command, cwd=self.place, PYTHONPATH=path)))

    def own(self, number: int) -> Path:
        """Where a worker keeps its own logs."""
        return self.place / f"own-{number}"

    def join_as_spare(self, *, as_if: str = "") -> Path:
        """One more, once the run is under way; the run's folder."""
        self.join(as_if=as_if)
        folder = only_run(self.runs)
        until(lambda: "3 workers connected" in (folder / "locust.log").read_text())
        assert runlog.workers_of(folder) == [0, 1]
        return folder

    def end_once_the_spare_sends(self) -> None:
        """Ctrl-C, when worker 2 has sent something."""
        folder = only_run(self.runs)
        until(lambda: any(s.started for s in runlog.read_samples(folder) if s.worker == 2))
        interrupt(self.master)


@contextmanager
def relay(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A port that leads to another, and the gate that lets the bytes through."""
    gate = threading.Event()
    gate.set()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                gate.wait()
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near = stack.enter_context(closing(listener.accept()[0]))
                try:
                    far = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
                except ConnectionRefusedError:  # the master does not listen yet: the worker tries again
                    near.close()
                    continue
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], gate
        gate.set()
        listener.shutdown(socket.SHUT_RDWR)


def run(
    place: Path,
    url: str | None,
    *,
    meanwhile: Callable[[Hosts], None],
    second_as_if: str = "",
    **scenario: Any,
) -> tuple[int, Path]:
    """A run by two remote workers, in whose middle something happens; its exit code and folder.

    Without a URL the target is a mock of the run's own, which leaves its truth.
    """
    path = write_scenario(place, traffic=MIX, arrivals={"process": "poisson", "rate": 40}, **scenario)
    with ExitStack() as stack:
        port, runs = free_port(), place / "runs"
        listen = ("--remote", "2", "--listen", f"127.0.0.1:{port}")
        target = () if url is None else ("--target", url)
        command = verb("run", path, *target, *listen, "--no-telemetry", "--runs", runs)
        master = stack.enter_context(launched(command, cwd=place))
        way, gate = stack.enter_context(relay(port))
        hosts = Hosts(place, port, stack, master, [], gate)
        hosts.join(way)
        hosts.join(as_if=second_as_if)
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
        hosts.join_as_spare()
        hosts.workers[0].kill()
        hosts.end_once_the_spare_sends()

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


def hang_one(hosts: Hosts) -> None:
    """Worker 0 stops for six seconds: its spare has its lease, and does not send yet."""
    folder = hosts.join_as_spare()
    hosts.workers[0].send_signal(signal.SIGSTOP)
    time.sleep(6)
    until(lambda: 2 in runlog.workers_of(folder))
    hosts.workers[0].send_signal(signal.SIGCONT)
    hosts.end_once_the_spare_sends()


def cut_one_off(hosts: Hosts) -> None:
    """Worker 0 still reaches the target, but not the master until its spare sends."""
    folder = hosts.join_as_spare()
    hosts.gate.clear()
    until(lambda: any(s.started for s in runlog.read_samples(folder) if s.worker == 2))
    hosts.gate.set()
    time.sleep(2)
    interrupt(hosts.master)


@pytest.mark.parametrize("lose_one", [hang_one, cut_one_off])
def test_a_worker_that_comes_back_has_left_to_its_spare_what_the_spare_took_over(
    tmp_path: Path, lose_one: Callable[[Hosts], None]
) -> None:
    """The target gets each arrival at most once, and each is in the books once: nothing is lost."""
    exit_code, folder = run(tmp_path, None, meanwhile=lose_one, target="mock", duration="90s")
    assert exit_code == 4
    books, records, due_ns = runlog.read_manifest(folder), rows(folder), planned_of(folder)
    assert [ledger.worker for ledger in books.workers] == [0, 1, 2]
    assert books.planned == books.started + books.dropped + books.not_started == len(due_ns)
    assert books.lost == 0
    assert books.records == len(records) == len({row["seq"] for row in records})
    assert len(records) == books.started + books.dropped
    sent = {row["request_id"] for row in records if row["outcome"] != "dropped"}
    got = truth(folder)
    assert {len(entries) for entries in got.values()} == {1}
    assert set(got) == sent
    seqs = {
        each.worker: [row["seq"] for row in records if row["worker"] == each.worker] for each in books.workers
    }
    (hung,) = {0, 1} - {max(books.workers[:2], key=lambda ledger: ledger.planned).worker}
    assert {seq % 2 for seq in seqs[hung]} == {seq % 2 for seq in seqs[2]} == {hung}
    assert max(seqs[hung]) + 2 == min(seqs[2])
    reason = summary(folder)["verdict"]["reason"]
    assert f"worker {hung} hung or was cut off at" in reason
    assert "and worker 2 took its share over from" in reason
    assert "came back after" in reason


def lose_a_spare(hosts: Hosts) -> None:
    """Worker 0 is cut off from the master only, and its spare is killed before it is granted anything."""
    folder = hosts.join_as_spare()
    hosts.gate.clear()
    until(lambda: list(hosts.own(2).glob("*/records-2.arrows")))
    hosts.workers[2].kill()
    hosts.join()
    until(lambda: any(s.started for s in runlog.read_samples(folder) if s.worker == 3))
    hosts.gate.set()
    time.sleep(2)
    interrupt(hosts.master)


def test_the_spare_of_a_lost_spare_sends_nothing_that_the_first_worker_may_still_send(tmp_path: Path) -> None:
    exit_code, folder = run(tmp_path, None, meanwhile=lose_a_spare, target="mock", duration="90s")
    assert exit_code == 4
    records = rows(folder)
    assert len(records) == len({row["seq"] for row in records})
    assert {len(entries) for entries in truth(folder).values()} == {1}
    reason = summary(folder)["verdict"]["reason"]
    assert "and worker 2 took its share over from" in reason
    assert "and worker 3 took its share over from" in reason


def lose_all(hosts: Hosts) -> None:
    for worker in hosts.workers:
        worker.kill()


def test_a_run_whose_workers_are_all_lost_ends_and_says_so(mock_url: str, tmp_path: Path) -> None:
    exit_code, folder = run(tmp_path, mock_url, meanwhile=lose_all, duration="90s")
    assert exit_code == 4
    books = runlog.read_manifest(folder)
    assert (books.stop_reason, books.workers) == ("interrupted", [])
    assert books.lost == books.planned - books.started > 1000
    reason = summary(folder)["verdict"]["reason"]
    for worker in (0, 1):
        assert f"worker {worker} hung or was cut off at" in reason
    assert "no spare took its share over; it never came back" in reason


OTHER_BOOT = """
import ctypes, time
real, library = time.monotonic_ns, ctypes.CDLL
time.monotonic_ns = lambda: real() + 5_000_000_000

def without_timerfd(name=None, *rest, **more):  # the kernel's own would still show the other time
    found = library(name, *rest, **more)
    if name is None:
        found.timerfd_create = lambda *_: -1
    return found

ctypes.CDLL = without_timerfd
time.time_ns = lambda wall=time.time_ns: wall() - 3_000_000_000
"""
"""Its monotonic clock is 5 s ahead of the master's, its wall clock 3 s behind."""


def test_workers_start_together_whatever_their_clocks_show(tmp_path: Path) -> None:
    _, folder = run(
        tmp_path,
        None,
        meanwhile=lambda _: None,
        second_as_if=OTHER_BOOT,
        target="mock",
        duration="4s",
        budgets=CALM,
    )
    assert_books_balance(folder)
    start_ns = runlog.read_run(folder).start.monotonic_ns
    due_ns, got = {row["request_id"]: row["due_ns"] for row in rows(folder)}, truth(folder)
    assert len(got) == len(due_ns) > 100
    apart_s = [(entries[0]["first_byte_ns"] - start_ns - due_ns[name]) / 1e9 for name, entries in got.items()]
    assert min(apart_s) > -0.5
    assert max(apart_s) < 2


OTHER_VERSION = "import harness; harness.__version__ = '0.0.1'"


def lose_one_to_an_unfit_spare(hosts: Hosts) -> None:
    """Worker 0 is lost, worker 2 is of another version, worker 3 comes after that was told."""
    folder = hosts.join_as_spare(as_if=OTHER_VERSION)
    hosts.workers[0].kill()
    until(lambda: "worker 2 could not go on" in (folder / "locust.log").read_text())
    hosts.join()
    until(lambda: any(s.started for s in runlog.read_samples(folder) if s.worker == 3))
    interrupt(hosts.master)


def test_a_spare_that_is_not_fit_leaves_the_share_to_another_and_the_run_goes_on(tmp_path: Path) -> None:
    exit_code, folder = run(
        tmp_path, None, meanwhile=lose_one_to_an_unfit_spare, target="mock", duration="90s"
    )
    assert exit_code == 4
    assert [ledger.worker for ledger in runlog.read_manifest(folder).workers][-1] == 3
    reason = summary(folder)["verdict"]["reason"]
    assert "worker 2 could not go on: it has version 0.0.1 of the harness, the master" in reason
    assert "and worker 3 took its share over from" in reason


def test_a_worker_of_another_version_ends_the_run_before_it_begins(mock_url: str, tmp_path: Path) -> None:
    path, port = write_scenario(tmp_path), free_port()
    listen = ("--remote", "2", "--listen", f"127.0.0.1:{port}")
    command = verb("run", path, "--target", mock_url, *listen, "--runs", tmp_path / "runs")
    with ExitStack() as stack:
        master = stack.enter_context(launched(command, cwd=tmp_path))
        hosts = Hosts(tmp_path, port, stack, master, [], threading.Event())
        hosts.join()
        hosts.join(as_if=OTHER_VERSION)
        _, err = master.communicate(timeout=PATIENCE_S)
    assert master.returncode == 2
    assert "could not go on: it has version 0.0.1 of the harness, the master" in err


def test_a_worker_with_another_trace_ends_the_run_before_it_begins(mock_url: str, tmp_path: Path) -> None:
    trace, port = tmp_path / "trace.csv", free_port()
    trace.write_text("timestamp\n" + "".join(f"{row / 10}\n" for row in range(20)))
    arrivals = {"process": "replay", "path": str(trace)}
    path = write_scenario(tmp_path, arrivals=arrivals)
    listen = ("--remote", "1", "--listen", f"127.0.0.1:{port}")
    command = verb("run", path, "--target", mock_url, *listen, "--runs", tmp_path / "runs")
    another = f"""
import io, pathlib
real = pathlib.Path.open

def another(path, *rest, **more):
    if str(path) == {str(trace)!r} and rest == ("rb",):
        return io.BytesIO(b"timestamp, 0")
    return real(path, *rest, **more)

pathlib.Path.open = another
"""
    with ExitStack() as stack:
        master = stack.enter_context(launched(command, cwd=tmp_path))
        hosts = Hosts(tmp_path, port, stack, master, [], threading.Event())
        hosts.join(as_if=another)
        _, err = master.communicate(timeout=PATIENCE_S)
    assert master.returncode == 2
    assert f"its {trace} is not the master's: copy the same file to the same place" in err
