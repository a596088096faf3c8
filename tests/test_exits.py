"""Claims about how verbs end: one line on stderr, and a code that says whose fault it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.errors import EngineError


@pytest.fixture
def fail() -> Iterator[list[BaseException]]:
    """A verb `fail` that raises what is put in here."""
    causes: list[BaseException] = []

    @main.command("fail")
    def verb() -> None:
        raise causes[0]

    yield causes
    del main.commands["fail"]


@pytest.mark.parametrize(
    ("cause", "code", "line"),
    [
        (EngineError("the mock died"), 2, "harness: the mock died"),
        (PermissionError(13, "Permission denied", "runs/a"), 2, "harness: runs/a: Permission denied"),
        (KeyboardInterrupt(), 130, "harness: interrupted"),
        (KeyboardInterrupt("interrupted: nothing was sent"), 130, "harness: interrupted: nothing was sent"),
        (click.UsageError("no such thing"), 2, "Error: no such thing"),
    ],
)
def test_what_ends_a_verb_is_one_line_and_a_code_of_its_own(fail, cause, code: int, line: str) -> None:
    fail.append(cause)
    answer = CliRunner().invoke(main, ["fail"])
    assert answer.exit_code == code
    assert answer.stderr.splitlines()[-1] == line
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def test_a_bug_shows_its_traceback_and_never_looks_like_a_fail(fail) -> None:
    fail.append(LookupError("no such prompt"))
    answer = CliRunner().invoke(main, ["fail"])
    assert answer.exit_code == 70
    assert "LookupError: no such prompt" in answer.stderr
    assert answer.stderr.splitlines()[-1] == "harness: this is a bug: please report it, with the lines above"


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        (("--remote", "1", "--workers", "2"), "--workers is 2: with --remote"),
        (("--listen", "127.0.0.1:5557"), "--listen is '127.0.0.1:5557': give --remote too"),
        (("--remote", "1", "--listen", "nohost.invalid:5557"), "--listen is 'nohost.invalid:5557'"),
        (("--remote", "1", "--listen", "127.0.0.1:soon"), "--listen is '127.0.0.1:soon'"),
        (("--runs", "/dev/null/runs"), "--runs is '/dev/null/runs': no run folder can be made there"),
        (("--rate", "1e9"), "arrivals.rate is 1000000000.0: no more than 1,000,000"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_its_calibration(
    arguments: tuple[str, ...], blamed: str
) -> None:
    answer = CliRunner().invoke(main, ["run", "smoke", *arguments])
    assert answer.exit_code == 2
    assert blamed in answer.stderr
    assert "measuring" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        (("--master", "nohost.invalid"), "--master is 'nohost.invalid'"),
        (("--master", "127.0.0.1", "--runs", "/dev/null/runs"), "--runs is '/dev/null/runs'"),
    ],
)
def test_a_worker_that_cannot_be_says_so_at_once(arguments: tuple[str, ...], blamed: str) -> None:
    answer = CliRunner().invoke(main, ["worker", *arguments])
    assert answer.exit_code == 2
    assert blamed in answer.stderr


def schema_to(shell: str) -> subprocess.CompletedProcess[str]:
    """`harness scenario schema` with its output as the shell says; its exit code is the script's."""
    script = f'{sys.executable} -m harness scenario schema {shell}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_a_reader_who_has_had_enough_is_no_error() -> None:
    answer = schema_to("| true")
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_one_line() -> None:
    answer = schema_to("> /dev/full")
    assert (answer.returncode, answer.stderr) == (2, "harness: stdout: No space left on device\n")
