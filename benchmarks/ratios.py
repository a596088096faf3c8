"""Does the harness reach its ratios? Two cores: a reference server on one, a client on the other.

    python benchmarks/ratios.py [rate] [streams] [many] [import] [--quick] [--json FILE]

Every client meets the same server, which logs when it received what and when it wrote what; rates and
errors are computed from that log, by the same definition for all. CPU time is read from /proc while
the client runs. Ratios are medians over pairs of runs, one after the other, so that a noisy neighbour
hits both sides; a run in which client or server did not have its core to itself is done again. The
exit code is 1 if a required figure was missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import psutil
import pyarrow as pa

from harness import runlog
from harness.client.call import prepare
from harness.client.target import parse
from harness.workload import scenario as scenarios
from harness.workload.prompts import workload

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
LOCUSTFILES = HERE.parent / "locustfiles"
BASELINES = HERE / "baselines"
LOCUST = (sys.executable, "-m", "locust", "--headless", "--only-summary", "--loglevel", "ERROR")
PATIENCE_S = 180
OWN_CORE = 0.85
"""A client that waits for nothing but its CPU, and got less of it than this, had to share it."""
USERS = 32
STEADY = (0.25, 0.9)
"""The share of a run whose requests are counted: not its start, not its end."""
SHORT_PROMPT = {"source": "synthetic", "tokens": {"distribution": "fixed", "tokens": 16}}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much work is done. `--quick` is for trying things out: its figures prove nothing."""

    pairs: int
    run_s: int
    runs: int
    streams: int
    chunks: int
    imports: int
    many: tuple[tuple[int, int], ...]
    """Streams, and the pause between their chunks in milliseconds."""


FULL = Size(30, 4, runs=3, streams=500, chunks=128, imports=5, many=((1000, 20), (2000, 40)))
QUICK = Size(1, 2, runs=1, streams=100, chunks=64, imports=3, many=((200, 20), (400, 40)))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result."""

    what: str
    measured: str
    required: str = ""
    reached: bool | None = None
    """None where nothing is required."""


# -- processes ------------------------------------------------------------------------------------------


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """Processes started within this context stay on one CPU of those that we may use."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        sys.exit("ratios need two CPUs: one for the server, one for the client")
    os.sched_setaffinity(0, {sorted(allowed)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def compiled(compiler: str) -> Path:
    """The reference server in C, built where no file of this source was before."""
    source = HERE / "reference_server.c"
    # A folder of our own: of what lies in the common one, anybody may be the author.
    folder = Path(tempfile.gettempdir()) / f"reference-server-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        sys.exit(f"{folder} is open to others: remove it")
    program = folder / hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            new = Path(scratch) / "reference_server"
            built = subprocess.run(
                [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(new), str(source)],
                capture_output=True,
                text=True,
                check=False,
            )
            if built.returncode:
                sys.exit(f"{compiler} does not compile {source.name}:\n{built.stderr}")
            new.replace(program)
    return program


def server_command() -> tuple[str, ...]:
    """The reference server: in C, or, where nothing compiles it, in Python, which is itself late."""
    compiler = shutil.which("cc")
    if compiler is None:
        return (sys.executable, str(HERE / "reference_server.py"))
    return (str(compiled(compiler)),)


@contextmanager
def reference_server(*options: str) -> Iterator[str]:
    """A reference server on the first CPU; its URL."""
    command = [*server_command(), "--port", "0", *options]
    with on_cpu(0):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.communicate()


def truth_of(url: str) -> list[dict[str, Any]]:
    """What the server has received and sent since it was last asked."""
    with urllib.request.urlopen(f"{url}/__truth", timeout=60) as answer:
        return [json.loads(line) for line in answer]


@dataclasses.dataclass(frozen=True)
class Usage:
    """CPU seconds that a process had used, at instants of CLOCK_MONOTONIC."""

    at_ns: list[int]
    cpu_s: list[float]

    def between(self, low_ns: float, high_ns: float) -> float:
        """CPU seconds used from one instant to another, interpolated."""
        return self._until(high_ns) - self._until(low_ns)

    def _until(self, instant_ns: float) -> float:
        after = min(max(bisect_left(self.at_ns, instant_ns), 1), len(self.at_ns) - 1)
        low_ns, high_ns = self.at_ns[after - 1], self.at_ns[after]
        low_s, high_s = self.cpu_s[after - 1], self.cpu_s[after]
        return low_s + (high_s - low_s) * (instant_ns - low_ns) / (high_ns - low_ns)


def run_client(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Usage:
    """Run a client on the second CPU, and watch what it uses.

    Raises:
        SystemExit: it failed, or took far too long.
    """
    usage = Usage([], [])
    with log.open("wb") as out:
        with on_cpu(1):
            client = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **environ}
            )
        process, deadline = psutil.Process(client.pid), time.monotonic() + PATIENCE_S
        while client.poll() is None and time.monotonic() < deadline:
            times = process.cpu_times()
            usage.at_ns.append(time.monotonic_ns())
            usage.cpu_s.append(times.user + times.system)
            time.sleep(0.1)
    if client.returncode is None:
        client.kill()
        client.wait()
    # Locust exits with 1 where requests have failed; what was and was not sent shows in the truth log.
    if client.returncode not in {0, 1}:
        sys.exit(f"{' '.join(command)} ended with {client.returncode}:\n{log.read_text()[-2000:]}")
    return usage


# -- scenarios ------------------------------------------------------------------------------------------


def completions(run_s: int) -> dict[str, Any]:
    """32 users in a closed loop that ask for short answers in one piece."""
    return {
        "name": "ratios-rate",
        "traffic": [
            {"kind": "completion", "prompt": SHORT_PROMPT, "output": {"distribution": "fixed", "tokens": 8}}
        ],
        "arrivals": {"process": "closed", "users": USERS},
        "duration": f"{run_s}s",
        "telemetry": False,
    }


def streams(count: int, chunks: int) -> dict[str, Any]:
    """Streams, one an arrival, started evenly over one second."""
    return {
        "name": "ratios-streams",
        "traffic": [
            {"kind": "stream", "prompt": SHORT_PROMPT, "output": {"distribution": "fixed", "tokens": chunks}}
        ],
        "arrivals": {"process": "constant", "rate": count},
        "count": count,
        "max_in_flight": count,
        "telemetry": False,
    }


def body_of(plain: Mapping[str, Any], url: str) -> str:
    """The body of the scenario's first request: what the baselines send, byte for byte."""
    (request,) = workload(scenarios.from_builtins(plain))(0)
    return prepare(request, parse(url)).body.decode()


def run_harness(locustfile: str, plain: Mapping[str, Any], url: str, folder: Path) -> tuple[pa.Table, Usage]:
    """Run a scenario the way `harness run` does, up to the closed log; the records and the CPU time."""
    folder.mkdir()
    scenario = scenarios.to_builtins(scenarios.from_builtins(plain))
    runlog.write_json(folder / "plan.json", {"scenario": scenario, "target": url, "mock": False})
    command = [*LOCUST, "-f", str(LOCUSTFILES / locustfile), "--run-folder", str(folder)]
    usage = run_client(command, {}, folder / "client.log")
    records, torn_bytes = runlog.merge(folder)
    if torn_bytes:
        sys.exit(f"{folder} holds unfinished batches")
    return records, usage


# -- (1) requests in one piece --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rate:
    """A client's steady state, by the server's log."""

    per_s: float
    cpu_us: float
    """CPU time a request, in microseconds."""

    @property
    def core(self) -> float:
        """The share of its core that the client used."""
        return self.per_s * self.cpu_us / 1e6


def rate_of(truth: Sequence[Mapping[str, Any]], usage: Usage) -> Rate:
    """Requests a second that the server received in the steady part of a run."""
    received_ns = sorted(row["received_ns"] for row in truth)
    begin_ns, length_ns = received_ns[0], received_ns[-1] - received_ns[0]
    low_ns, high_ns = (begin_ns + share * length_ns for share in STEADY)
    count = bisect_left(received_ns, high_ns) - bisect_left(received_ns, low_ns)
    return Rate(count / (high_ns - low_ns) * 1e9, usage.between(low_ns, high_ns) / count * 1e6)


def harness_rate(url: str, size: Size, folder: Path, locustfile: Path, *, heard: bool = False) -> Rate:
    """Our rate, every request of which must have its record; and its event, if the locustfile counts them."""
    records, usage = run_harness(str(locustfile), completions(size.run_s), url, folder)
    truth = truth_of(url)
    if len(truth) != len(records) or set(records["outcome"].to_pylist()) != {"ok"}:
        sys.exit(f"the server received {len(truth)} requests, the log holds {len(records)} records")
    if heard and f"heard {len(records)}" not in (folder / "client.log").read_text().splitlines():
        sys.exit(f"the event was not fired {len(records)} times, once a request: {folder / 'client.log'}")
    return rate_of(truth, usage)


def fasthttp_rate(url: str, size: Size, folder: Path) -> Rate:
    """The bare loop's rate."""
    folder.mkdir()
    command = [*LOCUST, "-f", str(BASELINES / "fasthttp_completions.py"), "--host", url]
    command += ["-u", str(USERS), "-r", str(USERS), "-t", f"{size.run_s}s"]
    environ = {"BASELINE_BODY": body_of(completions(size.run_s), url)}
    usage = run_client(command, environ, folder / "client.log")
    return rate_of(truth_of(url), usage)


def measure_rate(size: Size, root: Path) -> list[Row]:
    """Ours, ours with a listener of Locust's `request` event, and the bare loop's, in turn."""

    def ours(number: int) -> Rate:
        return harness_rate(url, size, root / f"rate-ours-{number}", LOCUSTFILES / "completion.py")

    def heard(number: int) -> Rate:
        locustfile = BASELINES / "heard_completions.py"
        return harness_rate(url, size, root / f"rate-heard-{number}", locustfile, heard=True)

    def bare(number: int) -> Rate:
        return fasthttp_rate(url, size, root / f"rate-bare-{number}")

    def turn(number: int) -> list[Rate]:
        say(f"requests in one piece, turn {number + 1}")
        # There and back again: what changes while they run favours nobody.
        order = (ours, heard, bare) if number % 2 else (bare, heard, ours)
        seen = {client: client(number) for client in order}
        return [seen[client] for client in (ours, heard, bare)]

    with reference_server("--spin") as url:
        turns, kept = repeat(turn, lambda seen: all(each.core >= OWN_CORE for each in seen), size.pairs)
    names, sides = ("harness", "harness, event fired", "FastHttpUser"), list(zip(*turns, strict=True))
    rows = [
        *[
            Row(f"{name}, requests/s", spread([each.per_s for each in side], ",.0f"))
            for name, side in zip(names, sides, strict=True)
        ],
        *[
            Row(f"{name}, CPU µs/request", spread([each.cpu_us for each in side], ".0f"))
            for name, side in zip(names, sides, strict=True)
        ],
    ]
    for name, side in zip(names[:2], sides[:2], strict=True):
        ratios = [ours.per_s / bare.per_s for ours, bare in zip(side, sides[2], strict=True)]
        what = f"requests/s, {name} : FastHttpUser"
        rows.append(Row(what, spread(ratios, ".2f"), ">= 4", median(ratios) >= 4))
    return [*rows, Row("turns undisturbed : disturbed", kept)]


# -- (2) streams ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stream as its client saw it; nanoseconds of CLOCK_MONOTONIC."""

    started_ns: int
    chunk_ns: Sequence[int]
    sent_ns: int | None = None


TTFT_MS, ITL_MS = 200, 20
CHUNKS_PER_S = 300_000
SERVER_LATE_MS = 1.0
"""A server that was later than this at P99 did not have its core to itself: the truth is blurred."""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """A client's streams against the server's log."""

    missing: int
    """Chunks that the server wrote and the client did not see, or saw and the server did not write."""
    failed: int
    """Streams that are not ok in the client's eyes; 0 of a baseline, which does not say."""
    ttft_error_ms: list[float]
    """TTFT by the client, from its own start, minus the server's: first chunk written - request read."""
    answer_error_ms: list[float]
    """The same from the moment when the request's last byte was sent: without connecting."""
    lag_ms: list[float]
    """The client's stamp of a chunk, minus the server's, just before it wrote it."""
    server_late_ms: list[float]
    """How late the server wrote each stream's first chunk, after when it was due."""
    cpu_us: float
    """CPU time a chunk, in microseconds."""
    core: float
    """The share of its core that the client used, from the first request to the last chunk."""


def compare(
    client: Mapping[str, Stream],
    truth: Sequence[Mapping[str, Any]],
    usage: Usage,
    asked: int,
    failed: int = 0,
) -> Fidelity:
    """What the client saw, minus what was so."""
    missing, errors_ms, late_ms, written = 0, [], [], 0
    answer_errors_ms, lags_ms = [], []
    for row in truth:
        seen, sent_ns = client.get(row["id"]), row["chunk_ns"]
        written += len(sent_ns)
        missing += abs(len(sent_ns) - (0 if seen is None else len(seen.chunk_ns)))
        if seen is not None and seen.chunk_ns:
            true_ns = sent_ns[0] - row["received_ns"]
            late_ms.append(true_ns / 1e6 - TTFT_MS)
            errors_ms.append((seen.chunk_ns[0] - seen.started_ns - true_ns) / 1e6)
            if seen.sent_ns is not None:
                answer_errors_ms.append((seen.chunk_ns[0] - seen.sent_ns - true_ns) / 1e6)
            lags_ms += [(came - went) / 1e6 for came, went in zip(seen.chunk_ns, sent_ns, strict=False)]
    first_ns = min(row["received_ns"] for row in truth)
    last_ns = max(row["chunk_ns"][-1] for row in truth)
    cpu_s = usage.between(first_ns, last_ns)
    return Fidelity(
        missing=asked - written + missing,
        failed=failed,
        ttft_error_ms=errors_ms,
        answer_error_ms=answer_errors_ms,
        lag_ms=lags_ms,
        server_late_ms=late_ms,
        cpu_us=cpu_s / written * 1e6,
        core=cpu_s / (last_ns - first_ns) * 1e9,
    )


def harness_streams(url: str, size: Size, folder: Path) -> Fidelity:
    """Ours, from the run log."""
    records, usage = run_harness("stream.py", streams(size.streams, size.chunks), url, folder)
    origin_ns = runlog.read_run(folder).start.monotonic_ns
    client = {
        row["request_id"]: Stream(
            row["started_ns"] + origin_ns,
            [each + origin_ns for each in row["chunk_ns"]],
            None if row["sent_ns"] is None else row["sent_ns"] + origin_ns,
        )
        for row in records.select(["request_id", "started_ns", "sent_ns", "chunk_ns"]).to_pylist()
    }
    failed = size.streams - records["outcome"].to_pylist().count("ok")
    return compare(client, truth_of(url), usage, size.streams * size.chunks, failed)


def baseline_streams(command: Sequence[str], url: str, size: Size, folder: Path, read: str = "") -> Fidelity:
    """A baseline's, from the rows it leaves."""
    folder.mkdir()
    out = folder / "streams.jsonl"
    environ = {
        "BASELINE_BODY": body_of(streams(size.streams, size.chunks), url),
        "BASELINE_STREAMS": str(size.streams),
        "BASELINE_RAMP_S": "1",
        "BASELINE_OUT": str(out),
        "BASELINE_READ": read,
    }
    usage = run_client(command, environ, folder / "client.log")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    client = {row["id"]: Stream(row["started_ns"], row["chunk_ns"]) for row in rows}
    return compare(client, truth_of(url), usage, size.streams * size.chunks)


def measure_streams(size: Size, root: Path) -> list[Row]:
    """Ours, then each baseline, beside the same paced server; then our rate without pauses."""
    users = ["-u", str(size.streams), "-r", str(size.streams)]

    def own(number: int) -> Fidelity:
        say(f"{size.streams} streams, harness, run {number + 1}")
        return harness_streams(url, size, root / f"streams-ours-{number}")

    with reference_server("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS)) as url:
        fast = [*LOCUST, "-f", str(BASELINES / "fasthttp_streams.py"), "--host", url, *users]
        httpx = [sys.executable, str(BASELINES / "httpx_streams.py"), url]
        ours, kept = repeat(own, lambda seen: percentiles(seen.server_late_ms)[1] < SERVER_LATE_MS, size.runs)
        beside: dict[str, Fidelity] = {}
        for name, command, read in (
            ("httpx under gevent", httpx, ""),
            ("FastHttpUser readline", fast, "readline"),
            ("FastHttpUser iter_lines", fast, "iter_lines"),
        ):
            say(f"{size.streams} streams, {name}")
            beside[name] = baseline_streams(command, url, size, root / f"streams-{len(beside)}", read)
    late_ms = [percentiles(each.server_late_ms)[1] for each in ours]
    p50s_ms, p99s_ms = zip(*[percentiles(each.ttft_error_ms) for each in ours], strict=True)
    rows = [
        *_whole("harness", ours),
        Row("harness, TTFT error P50", spread(p50s_ms, ".3f", "ms"), "< 0.5 ms", abs(median(p50s_ms)) < 0.5),
        Row("harness, TTFT error P99", spread(p99s_ms, ".3f", "ms"), "< 5 ms", abs(median(p99s_ms)) < 5),
        Row("harness, CPU µs/chunk", spread([each.cpu_us for each in ours], ".1f")),
        Row("runs undisturbed : disturbed", kept),
        Row("the server's own lateness P99", spread(late_ms, ".2f", "ms")),
    ]
    for name, seen in beside.items():
        p50_ms, p99_ms = percentiles(seen.ttft_error_ms)
        rows.append(Row(f"{name}, chunks missing", f"{seen.missing:,}"))
        rows.append(Row(f"{name}, TTFT error P50 / P99", f"{p50_ms:.2f} / {p99_ms:.2f} ms"))
        rows.append(Row(f"{name}, CPU µs/chunk", f"{seen.cpu_us:.1f}"))
    return [*rows, *measure_chunks(size, root), *measure_chunks(size, root, "--vary")]


def _whole(what: str, seen: Sequence[Fidelity]) -> list[Row]:
    """No chunk is missing, no stream has failed."""
    missing, failed = sum(each.missing for each in seen), sum(each.failed for each in seen)
    return [
        Row(f"{what}, chunks missing", f"{missing:,}", "0", missing == 0),
        Row(f"{what}, streams failed", f"{failed:,}", "0", failed == 0),
    ]


def measure_chunks(size: Size, root: Path, *options: str) -> list[Row]:
    """How many chunks a second we read when the server never pauses, all of which it must have written."""
    plain = streams(200, 256)
    plain["arrivals"], plain["count"] = {"process": "closed", "users": 200}, 200 * (10 if size is FULL else 3)
    what = " ".join(["chunks/s without pauses", *(f"({option[2:]})" for option in options)])
    rates = []
    with reference_server(*options) as url:
        for number in range(size.runs):
            say(f"harness, {what}, run {number + 1}")
            folder = root / f"chunks-{len(options)}-{number}"
            records, _ = run_harness("stream.py", plain, url, folder)
            seen = [len(each) for each in records["chunk_ns"].to_pylist()]
            written = [len(row["chunk_ns"]) for row in truth_of(url)]
            if sorted(seen) != sorted(written) or records["outcome"].to_pylist().count("ok") != len(seen):
                sys.exit(f"of {sum(written)} chunks, {sum(seen)} were read: see {folder}")
            begin_ns, end_ns = min(records["sent_ns"].to_pylist()), max(records["ended_ns"].to_pylist())
            rates.append(sum(seen) / (end_ns - begin_ns) * 1e9)
    required = ("", None) if options else (f">= {CHUNKS_PER_S:,}", median(rates) >= CHUNKS_PER_S)
    return [Row(f"harness, {what}", spread(rates, ",.0f"), *required)]


# -- (3) a thousand streams and more ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """The harness, and right after it a bare loop of epoll and recv, which tells how fast the machine was."""

    ours: Fidelity
    bare: Fidelity

    @property
    def undisturbed(self) -> bool:
        """Whether the server had its core to itself beside the harness."""
        return percentiles(self.ours.server_late_ms)[1] < SERVER_LATE_MS

    @property
    def ratio(self) -> float:
        """The harness's CPU time a chunk, in those of the bare loop."""
        return self.ours.cpu_us / self.bare.cpu_us


def measure_many(size: Size, root: Path) -> list[Row]:
    """More streams at once than most clients carry; beside each run a bare loop's."""
    rows = []
    loads: list[tuple[Any, ...]] = [*size.many, (*size.many[0], "--vary")]
    for place, (count, itl_ms, *options) in enumerate(loads):
        what = " ".join([f"{count:,} streams at {itl_ms} ms", *(f"({option[2:]})" for option in options)])
        first = (count, itl_ms, *options) == FULL.many[0]
        many = dataclasses.replace(size, streams=count)

        def pair(number: int, many: Size = many, what: str = what, place: int = place) -> Pair:
            say(f"{what}, turn {number + 1}")
            folder = root / f"many-{place}-{number}"
            ours = harness_streams(url, many, folder)
            command = [sys.executable, str(BASELINES / "bare_streams.py"), url]
            bare = baseline_streams(command, url, many, folder.with_name(f"{folder.name}-bare"))
            if bare.missing:
                sys.exit(f"{what}: the bare loop has missed {bare.missing:,} chunks, and is no measure")
            return Pair(ours, bare)

        with reference_server("--ttft-ms", str(TTFT_MS), "--itl-ms", str(itl_ms), *options) as url:
            pairs, kept = repeat(pair, lambda each: each.undisturbed, size.runs)
        seen = [each.ours for each in pairs]
        core = [each.core for each in seen]
        p50s_ms, p99s_ms = zip(*[percentiles(each.answer_error_ms) for each in seen], strict=True)
        lag50s_ms, lag99s_ms = zip(*[percentiles(each.lag_ms) for each in seen], strict=True)
        rows += [
            *_whole(what, seen),
            _bound(f"{what}, share of a core", core, "", 0.5 if first else None),
            Row(f"{what}, CPU µs/chunk", spread([each.cpu_us for each in seen], ".1f")),
            _bound(f"{what}, TTFT error P50, connected", p50s_ms, "ms", 0.03 if first else None),
            _bound(f"{what}, TTFT error P99, connected", p99s_ms, "ms", 0.2 if first else None),
            Row(f"{what}, lag of a chunk's stamp P50", spread(lag50s_ms, ".3f", "ms")),
            Row(f"{what}, lag of a chunk's stamp P99", spread(lag99s_ms, ".3f", "ms")),
            Row(f"{what}, a bare loop's share of a core", spread([each.bare.core for each in pairs], ".3f")),
            Row(f"{what}, CPU, harness : bare loop", spread([each.ratio for each in pairs], ".2f")),
            Row(f"{what}, turns undisturbed : disturbed", kept),
        ]
    return rows


def _bound(what: str, values: Sequence[float], unit: str, most: float | None) -> Row:
    measured = spread(values, ".3f", unit)
    if most is None:
        return Row(what, measured)
    return Row(what, measured, f"< {most} {unit}".rstrip(), abs(median(values)) < most)


# -- (4) import -----------------------------------------------------------------------------------------

_CUMULATIVE = re.compile(r"import time:\s+\d+ \|\s+(\d+) \| *(\S+)")
HEAVY = ("locust", "numpy", "opentelemetry")


def import_times(*arguments: str) -> dict[str, int]:
    """Cumulative microseconds of each module that a fresh interpreter imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    with on_cpu(1):
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {name: int(us) for us, name in _CUMULATIVE.findall(said.stderr)}


def measure_import(size: Size, _root: Path) -> list[Row]:
    """What it costs to import the package, and to ask for help."""
    say("import")
    import_times("-c", "import harness")  # writes the byte code, reads the disk
    times_ms = [import_times("-c", "import harness")["harness"] / 1e3 for _ in range(size.imports)]
    help_ms = []
    for _ in range(size.imports):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "harness", "--help"], capture_output=True, check=True)
        help_ms.append((time.perf_counter() - began) * 1e3)
    heavy = sorted({name.partition(".")[0] for name in import_times("-m", "harness", "--help")} & set(HEAVY))
    return [
        Row("import harness", spread(times_ms, ".1f", "ms"), "< 50 ms", median(times_ms) < 50),
        Row("harness --help imports of " + ", ".join(HEAVY), ", ".join(heavy) or "none", "none", not heavy),
        Row("harness --help", spread(help_ms, ".0f", "ms")),
    ]


# -- repeating ------------------------------------------------------------------------------------------


def repeat(measure: Callable[[int], T], undisturbed: Callable[[T], bool], wanted: int) -> tuple[list[T], str]:
    """Measure until so many runs had the machine to themselves; on a busy one, take what there is.

    Returns:
        The runs that count, and how many were undisturbed and disturbed.
    """
    alone: list[T] = []
    crowded: list[T] = []
    while len(alone) < wanted and len(crowded) < 2 * wanted:
        seen = measure(len(alone) + len(crowded))
        (alone if undisturbed(seen) else crowded).append(seen)
    return alone or crowded, f"{len(alone)} : {len(crowded)}"


# -- telling --------------------------------------------------------------------------------------------


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """A median, with the range it stands in."""
    text = f"{median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"
    return f"{text} {unit}" if unit else text


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table that also reads well in a terminal."""
    said = {True: "yes", False: "NO", None: ""}
    cells = [("measured", "median [min-max]", "required", "reached"), ("-" * 8,) * 4]
    cells += [(row.what, row.measured, row.required, said[row.reached]) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("locust", "gevent", "httpx", "geventhttpclient", "httptools", "uvloop", "pyarrow", "msgspec")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "reference_server": "c" if shutil.which("cc") else "python",
        **{name: version(name) for name in names},
    }


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Size, Path], list[Row]]] = {
    "rate": measure_rate,
    "streams": measure_streams,
    "many": measure_many,
    "import": measure_import,
}


def main() -> None:
    """Read the flags, measure, tell."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("parts", nargs="*", metavar="PART", help="rate, streams, many, import; default: all")
    flags.add_argument("--quick", action="store_true", help="less of everything, to try it out")
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    options = flags.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        flags.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    on, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="ratios-") as root:
        for name in options.parts or PARTS:
            rows += PARTS[name](QUICK if options.quick else FULL, Path(root))
    print(table(rows))
    print(", ".join(f"{name} {value}" for name, value in on.items()), file=sys.stderr)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": on, "rows": [dataclasses.asdict(row) for row in rows]})
        )
    sys.exit(1 if any(row.reached is False for row in rows) else 0)


if __name__ == "__main__":
    main()
