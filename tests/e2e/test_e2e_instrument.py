"""A load generator that is starved, stopped, buffered or short of files says so, and what to do about it.

Two checks are provoked with made-up samples alone (tests/analysis/test_validity.py): `clock`, for only a
privileged process may set the clock, and then for all of the machine; and `littles_law`, which finds records
that were lost or stamps that are wrong, of which no cause is known but a bug of ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from launching import (
    assert_books_balance,
    failed_checks,
    family,
    free_port,
    harness,
    has_samples,
    launched,
    only_run,
    rows,
    summary,
    until,
    verb,
    write_scenario,
)

from harness.testing import MockServer, mock_server

pytestmark = pytest.mark.timeout(120)

STREAMS = [{"kind": "stream", "output": {"distribution": "fixed", "tokens": 16}}]
SLOW_STREAMS = [{"kind": "stream", "output": {"distribution": "fixed", "tokens": 40}}]
HOGS = 20
"""So many that the client's fair share of the CPU is less than it needs."""


@pytest.fixture(scope="module")
def slow_mock() -> Iterator[MockServer]:
    """A mock whose streams of 40 tokens take a fifth of a second."""
    with mock_server("demo") as server:
        yield server


def run_against(
    mock: MockServer | str,
    place: Path,
    *,
    meanwhile: Callable[[subprocess.Popen[str]], None] = lambda _: None,
    **scenario: Any,
) -> Path:
    """A run in whose middle something may happen to its processes; its folder."""
    keys: dict[str, Any] = {"traffic": STREAMS, "warm_up": "0s", "timeouts": {"total": "5s"}} | scenario
    path = write_scenario(place, **keys)
    target = mock if isinstance(mock, str) else mock.url
    command = verb("run", path, "--target", target, "--no-telemetry", "--runs", place / "runs")
    with launched(command, cwd=place) as process:
        meanwhile(process)
        out, err = process.communicate(timeout=60)
    folder = only_run(place / "runs")
    assert process.returncode == 4, err
    assert "INVALID" in out
    assert_books_balance(folder)
    return folder


def assert_blamed(folder: Path, name: str, cause: str, remedy: str) -> None:
    """The check failed for that cause, and every report says it with its remedy."""
    (check,) = (each for each in summary(folder)["validity"]["checks"] if each["name"] == name)
    assert not check["passed"]
    assert re.search(cause, check["cause"]), check["cause"]
    assert remedy in check["remedy"]
    report = (folder / "report.md").read_text()
    assert report.startswith("## INVALID")
    for words in (check["cause"], check["remedy"]):
        assert words[1:] in report.replace("\\", "")  # what Markdown would take for markup is escaped


def engine_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The one locust process below `harness run`."""
    (engine,) = (child for child in family(process) if "locust" in child.cmdline())
    return engine


@contextmanager
def hogs(cpu: int) -> Iterator[None]:
    """Busy loops on one CPU."""
    loop = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    with ExitStack() as stack:
        for _ in range(HOGS):
            # Each in a session of its own: Linux shares the CPU out among sessions first.
            command = [sys.executable, "-c", loop]
            hog = stack.enter_context(subprocess.Popen(command, start_new_session=True))
            stack.callback(hog.kill)
        yield


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process can be pinned on Linux alone")
def test_a_cpu_hog_beside_the_client_makes_the_run_invalid(mock: MockServer, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))

    def starve(process: subprocess.Popen[str]) -> None:
        until(lambda: has_samples(tmp_path / "runs", count=1))
        engine_of(process).cpu_affinity([cpu])
        with hogs(cpu):
            time.sleep(2)

    folder = run_against(mock, tmp_path, meanwhile=starve, arrivals={"process": "poisson", "rate": 300})
    assert {"hub_lag_p99", "lateness"} & failed_checks(folder)
    for name in {"hub_lag_p99", "lateness"} & failed_checks(folder):
        assert_blamed(folder, name, r"\d m?s .*P99", "free this machine's CPU")


def test_a_worker_that_was_stopped_for_two_seconds_makes_the_run_invalid(
    mock: MockServer, tmp_path: Path
) -> None:
    def stop(process: subprocess.Popen[str]) -> None:
        until(lambda: has_samples(tmp_path / "runs", count=1))
        engine = engine_of(process)
        engine.send_signal(signal.SIGSTOP)
        time.sleep(2)
        engine.send_signal(signal.SIGCONT)

    folder = run_against(mock, tmp_path, meanwhile=stop, duration="2500ms")
    assert_blamed(folder, "hub_lag", r"away for up to (1\.9|[2-9])", "free this machine's CPU")
    assert_blamed(folder, "lateness", r"started (within )?[1-9]\.?\d* s ", "free this machine's CPU")
    assert_blamed(
        folder, "achieved_rate", r"were dispatched.*, \d+\.\d were planned", "free this machine's CPU"
    )
    assert "max_in_flight to" not in (folder / "report.md").read_text().partition("### Objectives")[0]
    assert_a_window_by_hand_is_judged_anew(folder)


def assert_a_window_by_hand_is_judged_anew(folder: Path) -> None:
    """The stall came after the first sample, half a second into the run."""
    as_planned = (folder / "report.md").read_text()
    by_hand = ("report", folder, "--window", "0s,400ms")
    again = json.loads(harness(*by_hand, "--json", cwd=folder.parent).stdout)
    assert again["summary"]["window_s"] == [0.0, 0.4]
    assert again["summary"]["window_rule"] == "fixed by hand: 0 s to 0.4 s"
    (stall,) = (each for each in again["validity"]["checks"] if each["name"] == "hub_lag")
    assert stall["observed"] < 1
    assert "fixed by hand" in " ".join(harness(*by_hand, cwd=folder.parent).stdout.split())
    assert (folder / "report.md").read_text() == as_planned


GREEDY = """
import gc, time
import gevent
from locust import events
from harness.users import StreamUser

class Stream(StreamUser):
    pass

def spin():
    began = time.monotonic()
    while time.monotonic() - began < 5:
        until = time.monotonic() + 0.004
        while time.monotonic() < until:
            pass
        gevent.sleep(0)

def hoard():
    gevent.sleep(1.5)
    held = [[] for _ in range(3_000_000)]
    gc.collect()
    return len(held)

@events.test_start.add_listener
def on_start(**_):
    gevent.spawn(spin)
    gevent.spawn(hoard)
"""
"""A locustfile that leaves the load generator no CPU, and holds more objects than can be looked through."""


def test_a_locustfile_that_burns_cpu_and_hoards_objects_makes_the_run_invalid(
    mock: MockServer, tmp_path: Path
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    scenario = write_scenario(
        tmp_path,
        traffic=STREAMS,
        duration="4s",
        warm_up="0s",
        telemetry=False,
        # A busy machine may not have a whole core to give, and a fast one not take long.
        budgets={"cpu_share": 0.4, "cpu_span": "1s", "gc_pause": "10ms"},
    )
    command = [sys.executable, "-m", "locust", "-f", str(tmp_path / "greedy.py"), "--headless"]
    command += ["--host", mock.url, "--scenario", str(scenario), "--runs", str(tmp_path / "runs")]
    with launched(command, cwd=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    folder = only_run(tmp_path / "runs")
    assert_blamed(folder, "cpu", r"used \d+% of a core", "raise --workers to ")
    assert_blamed(
        folder, "gc_pause", r"took [\d.]+ m?s, 10 ms are allowed", "raise --workers, so that each holds"
    )


def test_spans_that_nobody_takes_make_the_run_invalid(mock: MockServer, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, traffic=STREAMS, duration="1s", warm_up="0s")
    dead, runs = f"http://127.0.0.1:{free_port()}", tmp_path / "runs"
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": dead, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    done = harness("run", scenario, "--target", mock.url, "--runs", runs, cwd=tmp_path, **environ)
    assert done.returncode == 4, done.stderr
    folder = only_run(runs)
    assert_blamed(folder, "telemetry", r"(\d+) of \1 spans were not exported", f"check {dead}")


class BufferingProxy(threading.Thread):
    """Holds each answer back until the server has closed the connection, or has sent so many bytes more."""

    def __init__(self, target: str, block: int | None = None) -> None:
        super().__init__(daemon=True)
        self._far = urlsplit(target)
        self._block = block
        self._listening = threading.Event()
        self.port = 0

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with await asyncio.start_server(self._carry, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._listening.set()
            await self._ended.wait()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: *(\d+)", asked, re.IGNORECASE)
        asked += await reader.readexactly(int(length))
        far_reader, far_writer = await asyncio.open_connection(self._far.hostname, self._far.port)
        far_writer.write(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        if self._block is None:
            far_reader = _reader_of(await far_reader.read())
        while piece := await _piece(far_reader, self._block or 16_384):
            writer.write(piece)
            await asyncio.sleep(0.001)  # as over a line: one read does not take it all
        for each in (far_writer, writer):
            each.close()
            await each.wait_closed()

    def __enter__(self) -> str:
        self.start()
        assert self._listening.wait(10)
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self.join(10)


def _reader_of(answer: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(answer)
    reader.feed_eof()
    return reader


async def _piece(reader: asyncio.StreamReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as end:
        return end.partial


def test_a_proxy_that_buffers_streams_makes_the_run_invalid(slow_mock: MockServer, tmp_path: Path) -> None:
    with BufferingProxy(slow_mock.url) as url:
        folder = run_against(
            url, tmp_path, traffic=SLOW_STREAMS, arrivals={"process": "constant", "rate": 20}, duration="2s"
        )
    assert set(summary(folder)["summary"]["total"]["outcomes"]) == {"ok"}
    assert_blamed(folder, "lumps", r"(\d+) of \1 streams arrived in one lump", "a proxy or compression that")


def test_a_proxy_that_buffers_long_streams_makes_the_run_invalid_in_however_many_reads(
    slow_mock: MockServer, tmp_path: Path
) -> None:
    """Some 140 KB each."""
    with BufferingProxy(slow_mock.url) as url:
        folder = run_against(
            url,
            tmp_path,
            traffic=[{"kind": "stream", "output": {"distribution": "fixed", "tokens": 500}}],
            arrivals={"process": "constant", "rate": 5},
            duration="2s",
        )
    assert_blamed(folder, "lumps", r"(\d+) of \1 streams arrived in one lump", "a proxy or compression that")
    assert max(len(set(row["chunk_ns"])) for row in rows(folder)) > 2


def test_a_proxy_that_hands_on_block_by_block_makes_the_run_invalid(
    slow_mock: MockServer, tmp_path: Path
) -> None:
    with BufferingProxy(slow_mock.url, block=4096) as url:
        folder = run_against(
            url,
            tmp_path,
            traffic=[{"kind": "stream", "output": {"distribution": "fixed", "tokens": 100}}],
            arrivals={"process": "constant", "rate": 10},
            duration="2s",
        )
    assert_blamed(folder, "lumps", r"in blocks of 1\d chunks", "a proxy or compression that")


def test_too_few_open_files_make_the_run_invalid_and_do_not_end_it_early(
    slow_mock: MockServer, tmp_path: Path
) -> None:
    """Locust's CPU monitor dies of it ten seconds on, and would take the run with it.

    The rate grows, so that connections are still wanted whenever the limit comes down.
    """

    def lower(process: subprocess.Popen[str]) -> None:
        until(lambda: has_samples(tmp_path / "runs", count=1))
        engine = engine_of(process)
        _, hard = engine.rlimit(psutil.RLIMIT_NOFILE)
        engine.rlimit(psutil.RLIMIT_NOFILE, (engine.num_fds(), hard))

    folder = run_against(
        slow_mock,
        tmp_path,
        meanwhile=lower,
        traffic=SLOW_STREAMS,
        arrivals={"process": "ramp", "start": 5, "end": 300},
        duration="11s",
        max_in_flight=100,
    )
    assert_blamed(folder, "client_errors", "too many open files", "ulimit -n 65536")
    assert_blamed(folder, "files", r"had (\d+) of the \1 files open", "ulimit -n")
    assert json.loads((folder / "manifest.json").read_bytes())["stop_reason"] == "completed"
    assert "monitor_cpu_and_memory" in (folder / "locust.log").read_text()
