"""Starts the harness and Locust as their users do: as processes, bounded in time, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from harness import runlog
from harness.record import Manifest

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "locustfiles" / "mixed.py"
KEY = "sk-test-secret"
PATIENCE_S = 90.0

CALM = {
    "lateness": "10s",
    "lateness_of_threshold": 1,
    "hub_lag": "10s",
    "hub_lag_of_threshold": 1,
    "hub_lag_p99": "10s",
    "read_lag": "10s",
    "gc_pause": "10s",
    "cpu_share": 1,
    "achieved_share": 0.5,
    "in_flight_share": 1,
    "lump_share": 1,
}
"""Budgets for claims about the other verdicts, so that no busy machine makes their run INVALID."""

MIXED = [
    {"kind": "completion", "weight": 4, "output": {"distribution": "uniform", "low": 4, "high": 8}},
    {"kind": "stream", "weight": 4, "output": {"distribution": "uniform", "low": 8, "high": 16}},
    {"kind": "batch", "weight": 2, "size": 3, "output": {"distribution": "uniform", "low": 4, "high": 8}},
]
EASY = ["response: p(90) < 5s", "errors: rate < 20%"]


def write_scenario(folder: Path, **keys: Any) -> Path:
    """A scenario file: three seconds of mixed traffic with objectives that any server meets."""
    scenario = {
        "name": "e2e",
        "traffic": MIXED,
        "arrivals": {"process": "poisson", "rate": 50},
        "duration": "3s",
        "warm_up": "500ms",
        "max_in_flight": 60,
        "objectives": EASY,
    }
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario | keys))  # JSON is YAML
    return path


def harness(*arguments: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one verb to its end."""
    with launched(verb(*arguments), cwd=cwd, **environ) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def verb(*arguments: str | Path) -> list[str]:
    """The command line of a verb; a run is not calibrated unless it says so, which would double its time."""
    if arguments[0] == "run" and "--calibrate" not in arguments:
        arguments = (*arguments, "--no-calibrate")
    return [sys.executable, "-m", "harness", *map(str, arguments)]


def locust(*arguments: str | Path) -> list[str]:
    """The command line of plain Locust with the mixed locustfile."""
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *map(str, arguments)]


@contextmanager
def launched(command: Sequence[str], *, cwd: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own; what is left of its family at the end is killed."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=_clean(os.environ) | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for member in [*family(process), process]:
            member.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its children, and theirs."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def command_lines(process: subprocess.Popen[str]) -> list[list[str]]:
    """Of its family; who has ended by now has none."""
    lines = []
    for each in family(process):
        with suppress(psutil.Error):
            lines.append(each.cmdline())
    return lines


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would change a run, or a key of the person who runs the tests."""
    prefixes = ("HARNESS_", "OTEL_", "LOCUST_", "DEEPSEEK_", "OPENAI_")
    return {name: value for name, value in environ.items() if not name.startswith(prefixes)}


def free_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], object], *, within_s: float = 40.0) -> None:
    """Wait until something is true; fail the test if it never is."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C for this process alone."""
    process.send_signal(signal.SIGINT)


# -- run folders ------------------------------------------------------------------------------------------


def only_run(runs: Path) -> Path:
    """The one run folder below `runs`."""
    (folder,) = runs.iterdir()
    return folder


def has_samples(runs: Path, *, count: int = 2, worker: int = 0) -> bool:
    """Whether the worker has been under way for some seconds."""
    found = [path for folder in runs.glob("*") for path in [runlog.samples_path(folder, worker)]]
    return any(path.exists() and path.read_bytes().count(b"\n") >= count for path in found)


def summary(folder: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((folder / "summary.json").read_bytes())


def failed_checks(folder: Path) -> set[str]:
    """Names of the validity checks that did not pass."""
    return {check["name"] for check in summary(folder)["validity"]["checks"] if not check["passed"]}


def rows(folder: Path) -> list[dict[str, Any]]:
    """All records."""
    return runlog.read_requests(folder).to_pylist()


def truth(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The mock's truth about each request id, attempts in order of arrival."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "truth.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "clock" in entry:
            continue  # the first line says what the stamps mean
        entries.setdefault(entry["request_id"], []).append(entry)
    return {name: sorted(found, key=lambda entry: entry["number"]) for name, found in entries.items()}


def assert_books_balance(folder: Path) -> Manifest:
    """Every planned arrival is accounted for, by a record where it should have one."""
    books = runlog.read_manifest(folder)
    assert books.imbalances == []
    assert books.planned == books.started + books.dropped + books.not_started + books.lost
    assert books.started == books.finished + books.cut_off
    assert books.lost == 0
    records = rows(folder)
    assert len(records) == books.records
    assert len({row["seq"] for row in records}) == books.started + books.dropped
    assert len({row["seq"] for row in records if row["outcome"] == "dropped"}) == books.dropped
    final = [(row["seq"], row["index"], row["turn"]) for row in records if row["final"]]
    assert len(final) == len(set(final))
    assert "ledger" not in failed_checks(folder)
    return books


def schedule_of(folder: Path) -> dict[str, tuple[int, int | None]]:
    """Request id -> (arrival, due time): what the seed fixes."""
    return {row["request_id"]: (row["seq"], row["due_ns"]) for row in rows(folder) if row["attempt"] == 0}


def spans_of(folder: Path) -> Iterator[dict[str, Any]]:
    """All spans that the run exported to its folder."""
    for line in (folder / "traces.otlp.jsonl").read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]
