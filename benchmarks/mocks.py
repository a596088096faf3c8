"""How much do mock servers carry on one core? This harness's, aiperf's and guidellm's, one after the other.

    python benchmarks/mocks.py [--servers harness,guidellm] [--streams 100,2000] [--quick] [--json FILE]

The server has the first CPU to itself; a bare epoll client, which shares no code with the harness, has the
second. Requests in one piece are asked for by 32 connections in a closed loop. Streams of 20 ms a chunk are
opened evenly over a second; how late a chunk was counts from its stream's first chunk, by the client's
stamps for every server, and for ours by its truth log too, from when it was due. The peers come from the
environments of `benchmarks/peers.py --install`. Of our own mock 15,000 requests/s are required, or 2,000
streams on time; the exit code is 1 if neither was reached.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from peers import Pair, chosen, end_tree, last_line, pair_text, spread_of
from ratios import machine, on_cpu, say, truth_of

ITL_MS = 20
TTFT_MS = 20
CONNECTIONS = 32
TOKENS = 8
"""Of an answer in one piece."""
OPENING_S = 1.0
START_S = 45
"""How long a server may take to start: guidellm's imports most of its package."""
PATIENCE_S = 25
"""Beyond the ideal time for a server's streams."""
REQUIRED_PER_S = 15_000
"""Required is this, or the following number of streams on time."""
REQUIRED_STREAMS = 2_000
REQUIRED_LATE_MS = 2.0
STREAMS = (100, 500, 1_000, 2_000)
PATH = "/v1/chat/completions"
MODEL = "reference"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKEN = re.compile(rb'"content": ?"[^"]')
"""Of a chunk with text: those with the role or the finish reason have none."""
_END = b"0\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much work is done. `--quick` is for trying things out: its figures prove nothing."""

    requests_s: float
    chunks: int


FULL = Size(requests_s=5, chunks=200)
QUICK = Size(requests_s=1, chunks=50)


# -- the servers -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a server is started for."""

    port: int
    folder: Path
    cache: Path
    pause_ms: int
    """Before each chunk of a stream."""
    chunks: int


def harness(asked: Asked) -> Sequence[str]:
    """This harness's own mock."""
    profile, pause = asked.folder / "mocks.yaml", f"{{distribution: fixed, value: {asked.pause_ms}ms}}"
    profile.write_text(f"ttft: {pause}\nitl: {pause}\n")
    command = [sys.executable, "-m", "harness", "mock", "--port", str(asked.port)]
    return [*command, "--profile", str(profile), "--die-with-parent"]


def aiperf(asked: Asked) -> Sequence[str]:
    """NVIDIA's, which is in the repository of aiperf (tests/aiperf_mock_server) but not in its wheel."""
    command = [str(asked.cache / "aiperf" / "bin" / "aiperf-mock-server"), "--port", str(asked.port)]
    return [*command, "--ttft", str(asked.pause_ms), "--itl", str(asked.pause_ms), "--workers", "1"]


def guidellm(asked: Asked) -> Sequence[str]:
    """The vLLM project's, on Sanic; it has no delay for answers in one piece unless told."""
    command = [str(asked.cache / "guidellm" / "bin" / "guidellm"), "mock-server", "--port", str(asked.port)]
    command += ["--host", "127.0.0.1", "--workers", "1", "--model", MODEL]
    command += ["--ttft-ms", str(asked.pause_ms), "--itl-ms", str(asked.pause_ms), "--request-latency", "0"]
    return [*command, "--output-tokens", str(asked.chunks)]


SERVERS: dict[str, Callable[[Asked], Sequence[str]]] = {
    "harness": harness,
    "aiperf": aiperf,
    "guidellm": guidellm,
}
LACKS = {"aiperf": "not installed: its wheel lacks the server, which is in its repository's tests"}


class CannotError(Exception):
    """A server gives no figures; the text says why."""


@contextlib.contextmanager
def served(name: str, size: Size, pause_ms: int, cache: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server on the first CPU: its port and its process.

    Raises:
        CannotError: it is not installed, or does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="mocks-") as root:
        command = SERVERS[name](Asked(port, Path(root), cache, pause_ms, size.chunks))
        if shutil.which(command[0]) is None:
            raise CannotError(LACKS.get(name, f"not installed: peers.py --install --tools {name}"))
        log = Path(root, "server.log")
        with log.open("wb") as out, on_cpu(0):
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        process = psutil.Process(server.pid)
        try:
            deadline = time.monotonic() + START_S
            while not answers(port):
                if server.poll() is not None:
                    raise CannotError(f"does not start: {last_line(log.read_text(errors='replace'))}")
                if time.monotonic() > deadline:
                    raise CannotError(f"does not answer within {START_S} s")
                time.sleep(0.1)
            yield port, process
        finally:
            end_tree(process)
            server.wait()


def answers(port: int) -> bool:
    """Whether a server answers a short request in one piece."""
    body = body_of(stream=False, tokens=1)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# -- the client: another process, of nothing but the standard library -------------------------------------


def body_of(*, stream: bool, tokens: int) -> bytes:
    """A short chat request."""
    messages = [{"role": "user", "content": "Say something about the weather of the day, please."}]
    wish = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream}
    return json.dumps(wish).encode()


def request_of(*, stream: bool, tokens: int) -> bytes:
    """The same, in HTTP."""
    body = body_of(stream=stream, tokens=tokens)
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def connections(port: int, count: int) -> dict[int, socket.socket]:
    """Open connections by their descriptors."""
    found = {}
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found[connection.fileno()] = connection
    return found


def ask_in_one_piece(port: int, seconds: float) -> dict[str, Any]:
    """Ask again as soon as an answer is complete; how many were, in how long."""
    request = request_of(stream=False, tokens=TOKENS)
    poll, open_, parts = select.epoll(), connections(port, CONNECTIONS), dict[int, bytes]()
    for descriptor, connection in open_.items():
        poll.register(descriptor, select.EPOLLIN)
        connection.send(request)
    began, cpu_s, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < seconds:
        for descriptor, _ in poll.poll(1):
            connection = open_[descriptor]
            received = parts.pop(descriptor, b"") + connection.recv(65_536)
            at, length = received.find(b"\r\n\r\n"), _LENGTH.search(received)
            if not received.startswith(b"HTTP/1.1 200") or (at > 0 and length is None):
                raise SystemExit(f"an answer that is none: {received[:200]!r}")
            if at < 0 or length is None or len(received) < at + 4 + int(length[1]):
                parts[descriptor] = received
                continue
            count += 1
            connection.send(request)
    wall_s = time.monotonic() - began
    return {"answers": count, "wall_s": wall_s, "client_share": (time.process_time() - cpu_s) / wall_s}


def ask_for_streams(port: int, count: int, chunks: int) -> dict[str, Any]:
    """Open streams evenly; their chunks' times, as the client saw them."""
    request, ideal_s = request_of(stream=True, tokens=chunks), chunks * ITL_MS / 1e3
    open_ = connections(port, count)
    waiting, poll = list(open_.items()), select.epoll()
    stamps = {descriptor: array("q") for descriptor in open_}
    reads, tail, began, cpu_s = 0, dict[int, bytes](), time.monotonic(), time.process_time()
    deadline, left, opened = began + OPENING_S + ideal_s + PATIENCE_S, count, 0.0
    while left and (now := time.monotonic()) < deadline:
        while waiting and now - began >= OPENING_S * (count - len(waiting)) / count:
            descriptor, connection = waiting.pop()
            poll.register(descriptor, select.EPOLLIN)
            connection.send(request)
            opened = now
        for descriptor, _ in poll.poll(0.0005 if waiting else 1, 256):
            try:
                received = open_[descriptor].recv(65_536)
            except ConnectionResetError:
                received = b""
            stamp = time.monotonic_ns()
            reads += 1
            stamps[descriptor].extend([stamp] * len(_TOKEN.findall(received)))
            tail[descriptor] = (tail.get(descriptor, b"") + received)[-len(_END) :]
            if not received or tail[descriptor].endswith(_END):
                poll.unregister(descriptor)
                left -= 1
    wall_s = time.monotonic() - began
    told = seen(list(stamps.values()), chunks)
    share = (time.process_time() - cpu_s) / wall_s
    return {**told, "reads": reads, "opened_ns": round(opened * 1e9), "client_share": share}


def seen(streams: Sequence[Sequence[int]], chunks: int) -> dict[str, Any]:
    """What the stamps of some streams say."""
    gap_ns, started = ITL_MS * 1_000_000, [each for each in streams if len(each) > 1]
    off_ms = [abs(later - earlier - gap_ns) / 1e6 for each in started for earlier, later in pairwise(each)]
    late_ms = [(stamp - each[0] - i * gap_ns) / 1e6 for each in started for i, stamp in enumerate(each)]
    ideal_ns = (chunks - 1) * gap_ns
    lasted = [(each[-1] - each[0]) / ideal_ns for each in started if len(each) == chunks]
    return {
        "chunks": sum(map(len, streams)),
        "gap_off_ms": spread_of(off_ms),
        "late_ms": spread_of(late_ms),
        "lasted": spread_of(lasted),
    }


def client(*work: object) -> dict[str, Any]:
    """Have the client do its work on the second CPU.

    Raises:
        CannotError: it could not.
    """
    command = [sys.executable, __file__, "--client", json.dumps(work)]
    with on_cpu(1):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, said = process.communicate(timeout=4 * PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise CannotError(last_line(said))
    found: dict[str, Any] = json.loads(out)
    return found


def be_the_client(work: Sequence[Any]) -> None:
    """The client's process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, streams, amount = work
    told = ask_for_streams(port, streams, amount) if streams else ask_in_one_piece(port, amount)
    print(json.dumps(told))


# -- measuring -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One server at one work; shares are of a core."""

    server: str
    streams: int
    """0: requests in one piece."""
    why_not: str = ""
    """Why there are no figures."""
    per_s: float = 0
    """Requests, or chunks, a second."""
    due: int = 0
    delivered: int = 0
    reads: int = 0
    """How many times the client had something to read; fewer than the chunks where some came together."""
    gap_off_ms: Pair = (None, None)
    """How far gaps were from 20 ms, by the client."""
    late_ms: Pair = (None, None)
    """How long after its place in its stream, counted from the first chunk, a chunk came to the client."""
    true_late_ms: Pair = (None, None)
    """How late chunks were written, by the server's truth log."""
    lasted: Pair = (None, None)
    """Duration of the streams that were complete, ideal 1."""
    cpu_us: float = 0
    """CPU time a request or a chunk."""
    cpu_share: float = 0
    client_share: float = 0
    rss_mb: float = 0
    reached: bool | None = None
    """None where nothing is required."""


def used_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    spent = 0.0
    for each in (process, *process.children(recursive=True)):
        times = each.cpu_times()
        spent += times.user + times.system
    return spent


def rss_mb(process: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6)


def true_lateness(truth: Sequence[Mapping[str, Any]]) -> Pair:
    """How late our mock wrote its chunks, by its own log, after when they were due."""
    gap_ns = ITL_MS * 1_000_000
    return spread_of(
        [
            (stamp - row["arrived_ns"] - TTFT_MS * 1_000_000 - i * gap_ns) / 1e6
            for row in truth
            for i, stamp in enumerate(row["chunk_ns"])
        ]
    )


def measure_requests(name: str, size: Size, cache: Path) -> Row:
    """Requests in one piece without any delay."""
    with served(name, size, 0, cache) as (port, process):
        client(port, 0, size.requests_s / 5)
        before_s = used_s(process)
        told = client(port, 0, size.requests_s)
        spent_s = used_s(process) - before_s
        per_s = told["answers"] / told["wall_s"]
        return Row(
            name,
            0,
            per_s=per_s,
            cpu_us=spent_s / told["answers"] * 1e6,
            cpu_share=spent_s / told["wall_s"],
            client_share=told["client_share"],
            rss_mb=rss_mb(process),
            reached=per_s >= REQUIRED_PER_S if name == "harness" else None,
        )


def measure_streams(name: str, count: int, size: Size, cache: Path) -> Row:
    """Streams at 20 ms a chunk."""
    with served(name, size, ITL_MS, cache) as (port, process):
        before_s, began = used_s(process), time.monotonic()
        told = client(port, count, size.chunks)
        spent_s, wall_s = used_s(process) - before_s, time.monotonic() - began
        memory_mb = rss_mb(process)
        truth = truth_of(f"http://127.0.0.1:{port}") if name == "harness" else []
    written = [row for row in truth if len(row["chunk_ns"]) > 1]
    true_ms, due, delivered = true_lateness(written), count * size.chunks, told["chunks"]
    reached = None
    if name == "harness" and count == REQUIRED_STREAMS:
        reached = delivered == due and true_ms[1] is not None and true_ms[1] < REQUIRED_LATE_MS
    busy_s = OPENING_S + (size.chunks + 1) * ITL_MS / 1e3 if delivered == due else wall_s
    return Row(
        name,
        count,
        per_s=delivered / wall_s,
        due=due,
        delivered=delivered,
        reads=told["reads"],
        gap_off_ms=told["gap_off_ms"],
        late_ms=told["late_ms"],
        true_late_ms=true_ms,
        lasted=told["lasted"],
        cpu_us=spent_s / max(1, delivered) * 1e6,
        cpu_share=min(1.0, spent_s / busy_s),
        client_share=told["client_share"],
        rss_mb=memory_mb,
        reached=reached,
    )


def measure(name: str, count: int, size: Size, cache: Path) -> Row:
    """One server, one work; whatever goes wrong with it is in the row."""
    say(f"{name}, {count or 'requests in one piece'}")
    try:
        return measure_streams(name, count, size, cache) if count else measure_requests(name, size, cache)
    except (CannotError, subprocess.TimeoutExpired) as lack:
        return Row(name, count, str(lack))


# -- telling ---------------------------------------------------------------------------------------------

HEADINGS = (
    "server",
    "work",
    "requests/s",
    "chunks delivered / due",
    "reads",
    "late ms, truth",
    "late ms, client",
    "gap off 20 ms by",
    "stream / ideal",
    "CPU µs each",
    "CPU",
    "client CPU",
    "RSS MB",
    "required",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row's columns; a server without figures has its reason in the third."""
    work = f"{row.streams:,} streams" if row.streams else "requests"
    if row.why_not:
        return (row.server, work, row.why_not, *[""] * (len(HEADINGS) - 3))
    required = {None: "", True: "reached", False: "missed"}[row.reached]
    return (
        row.server,
        work,
        "" if row.streams else f"{row.per_s:,.0f}",
        f"{row.delivered:,} / {row.due:,}" if row.streams else "",
        f"{row.reads:,}" if row.streams else "",
        pair_text(row.true_late_ms) if row.streams else "",
        pair_text(row.late_ms) if row.streams else "",
        pair_text(row.gap_off_ms) if row.streams else "",
        pair_text(row.lasted) if row.streams else "",
        f"{row.cpu_us:.1f}",
        f"{row.cpu_share:.0%}",
        f"{row.client_share:.0%}",
        f"{row.rss_mb:,.0f}",
        required,
    )


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; pairs are P50 / P99."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Read the flags, measure, tell."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--servers", metavar="A,B", help=f"of {', '.join(SERVERS)}; default: all")
    flags.add_argument(
        "--streams", metavar="N,N", help="0: requests in one piece; default: 0,100,500,1000,2000"
    )
    flags.add_argument("--quick", action="store_true", help="less of everything, to try it out")
    default_cache = Path(tempfile.gettempdir()) / "peers"
    flags.add_argument(
        "--cache", type=Path, default=default_cache, metavar="DIR", help="the peers' environments"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    flags.add_argument("--client", help=argparse.SUPPRESS)
    options = flags.parse_args()
    if options.client is not None:
        be_the_client(json.loads(options.client))
        return
    size = QUICK if options.quick else FULL
    names = chosen(options.servers, list(SERVERS), flags)
    known = [str(count) for count in (0, *STREAMS)]
    counts = [int(count) for count in chosen(options.streams, known, flags)]
    # Ended from outside, it still ends the server and the client, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    on = machine()
    rows = [measure(name, count, size, options.cache.resolve()) for name in names for count in counts]
    print(table(rows), flush=True)
    print(f"\n{', '.join(f'{name} {value}' for name, value in on.items())}", file=sys.stderr)
    if options.json is not None:
        rows_as_json = [dataclasses.asdict(row) for row in rows]
        options.json.write_text(json.dumps({"machine": on, "rows": rows_as_json}, indent=1))
    required = [row.reached for row in rows if row.reached is not None]
    sys.exit(0 if any(required) or not required else 1)


if __name__ == "__main__":
    main()
