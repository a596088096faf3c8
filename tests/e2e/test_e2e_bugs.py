"""A bug of ours ends the run at once, spoils its verdict, and is named there."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import PATIENCE_S, free_port, launched, locust, only_run, summary, write_scenario

from harness import runlog

pytestmark = pytest.mark.timeout(120)

BROKEN = """
from harness.users import BatchUser, CompletionUser, StreamUser
from harness.users.telling import Teller
from harness.users.worker import Worker

class Completion(CompletionUser): ...
class Stream(StreamUser): ...
class Batch(BatchUser): ...
prepare, add, carry = Worker._prepare, Teller.add, Worker._carry

def broken_prepare(worker, due_ns, requests):
    if requests[0].seq == 31:
        raise LookupError("no such prompt")
    return prepare(worker, due_ns, requests)

def broken_add(teller, records):
    if any(record.seq == 31 for record in records):
        raise LookupError("no such prompt")
    add(teller, records)

def broken_carry(worker, user, work):
    if work.calls[0].request.seq == 31:
        raise LookupError("no such prompt")
    carry(worker, user, work)
"""
IN_DISPATCHER = BROKEN + "\nWorker._prepare = broken_prepare\n"
IN_CLERK = BROKEN + "\nTeller.add = broken_add\n"
IN_USER = BROKEN + "\nWorker._carry = broken_carry\n"
LATE = """
from harness.runlog import Writer
from harness.users import BatchUser, CompletionUser, StreamUser

class Completion(CompletionUser): ...
class Stream(StreamUser): ...
class Batch(BatchUser): ...
close = Writer.close

def broken_close(log):
    close(log)
    raise OSError(28, "No space left on device")

Writer.close = broken_close
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "locustfile", [IN_DISPATCHER, IN_USER, IN_CLERK], ids=["dispatcher", "user", "clerk"]
)
def test_a_bug_ends_the_run_with_its_name(
    mock_url: str, tmp_path: Path, locustfile: str, processes: int
) -> None:
    folder = invalid_run(mock_url, tmp_path, locustfile, processes, duration="60s")
    books, verdict = runlog.read_manifest(folder), summary(folder)["verdict"]
    assert verdict["state"] == "INVALID"
    bug = f"worker {31 % processes} could not go on: a bug, LookupError: no such prompt"
    assert bug in verdict["reason"]
    assert books.stop_reason == "interrupted"
    assert books.imbalances == [bug]
    assert books.not_started > 1000


@pytest.mark.parametrize("processes", [1, 2])
def test_a_log_that_cannot_be_ended_is_named(mock_url: str, tmp_path: Path, processes: int) -> None:
    folder = invalid_run(mock_url, tmp_path, LATE, processes, duration="2s")
    books = runlog.read_manifest(folder)
    bug = "could not go on: No space left on device"
    assert sorted(books.imbalances) == [f"worker {number} {bug}" for number in range(processes)]
    assert books.stop_reason == "completed"


def invalid_run(mock_url: str, tmp_path: Path, locustfile: str, processes: int, *, duration: str) -> Path:
    """The folder of a run with this locustfile, which ends with the code for INVALID."""
    (tmp_path / "broken.py").write_text(locustfile)
    scenario = write_scenario(tmp_path, duration=duration, telemetry=False, drain="2s")
    command = locust("--headless", "--host", mock_url, "--scenario", scenario, "--runs", tmp_path / "runs")
    command[command.index("-f") + 1] = str(tmp_path / "broken.py")
    if processes > 1:
        port = str(free_port())
        command += ["--processes", str(processes), "--master-bind-port", port, "--master-port", port]
    with launched(command, cwd=tmp_path) as process:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 4
    return only_run(tmp_path / "runs")
