"""What the master costs as workers are added: a real Locust master of ours, and simulated workers.

    python benchmarks/master.py [--workers 2 20 100 200] [--records 50 500] [--limit 400 800] [--json FILE]

The master is started as `harness run --remote N` starts it, on one CPU. On another, one process speaks
for all workers over ZeroMQ, in Locust's own messages and in ours: heartbeats, statistics, and once a
second the pieces of a log whose batches are real ones. No load is sent. The figures are of the seconds
between the start and the end of the schedule; a run's end is checked: every byte of every log must
have reached the master's folder. CPU seconds bear a noisy machine; lags are wall time,
and do not. The run folders go to TMPDIR. All ends within five minutes: a master that does not is said
and left, and what then has no time any more is left out and named.
"""

from __future__ import annotations

import locust  # isort: skip - it patches what the others use

import argparse
import dataclasses
import gc
import heapq
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import linear_regression
from typing import Any

import msgspec
import psutil
import zmq
from locust.rpc.protocol import Message
from locust.runners import HEARTBEAT_INTERVAL, WORKER_REPORT_INTERVAL
from locust.stats import RequestStats
from ratios import Usage, machine, on_cpu, percentiles

from harness import conduct, runlog
from harness.record import Record, Sample
from harness.record import Usage as Tokens
from harness.users.freight import Outbox
from harness.workload import scenario as scenarios

RUN_S = 6
SETTLED_S = 1
"""The master's first second after the start is not judged."""
PATIENCE_S = 45
"""For one row: 14 s on a quiet machine."""
BUDGET_S = 290
"""For all rows."""
USERS = 50
"""Virtual users a worker."""
CHUNKS = 64


@dataclasses.dataclass(frozen=True)
class Load:
    """What the simulated workers do."""

    workers: int
    records: int
    """A second and worker; half of them streams of 64 chunks. 0: Locust's own messages alone."""
    in_step: bool = False
    """All send their pieces at the same moment of the second; else spread over it, as our workers do."""


class Unfinished(Exception):  # noqa: N818 - an outcome, told in its row
    """A run that gave no row."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One run."""

    load: Load
    cpu: float
    """Share of one core that the master used."""
    rss_mb: float
    ack_p50_ms: float
    ack_p99_ms: float
    lease_to_go_s: float
    """From the first worker's lease to the last one's start."""
    end_s: float
    """From the first worker's `exhausted` to the last one's `quit`: the drain, and the books."""
    resent: int
    missing: int
    """How often the master took a worker for lost."""
    whole: bool
    """Every byte that was sent is in the master's folder."""
    fleet_cpu: float
    """Share of its core that the simulation used: near 1, it is the limit, not the master."""
    received_mb_s: float


# -- the fleet: all workers in one process ----------------------------------------------------------------


def log_pieces(records: int, folder: Path) -> tuple[bytes, list[bytes]]:
    """The first message of a worker's log, and those of one second, as our writer makes them."""
    pieces: list[bytes] = []
    writer = runlog.Writer(folder / "sample.arrows", ship=pieces.append)
    writer.extend([record(seq, streams=seq % 2 == 0) for seq in range(records)])
    writer.flush()
    head, *batches = pieces
    return head, batches


def record(seq: int, *, streams: bool, random: Random = Random(1)) -> Record:  # noqa: B008 - one source for all
    """A record like those of a run of the mixed locustfile."""
    due_ns = seq * 2_000_000
    started_ns = due_ns + random.randrange(20_000, 80_000)
    first_ns = started_ns + random.randrange(150_000_000, 250_000_000)
    gaps_ns = [random.randrange(19_000_000, 21_000_000) for _ in range(CHUNKS)]
    chunk_ns = [first_ns + sum(gaps_ns[:place]) for place in range(CHUNKS)] if streams else ()
    ended_ns = chunk_ns[-1] if streams else first_ns
    return Record(
        seq=seq,
        index=0,
        attempt=0,
        final=True,
        request_id=f"{random.getrandbits(48):012x}-{seq}",
        kind="stream" if streams else "completion",
        dialect="chat",
        model="deepseek-chat",
        session="",
        turn=0,
        trace_id=f"{random.getrandbits(128):032x}",
        span_id=f"{random.getrandbits(64):016x}",
        due_ns=due_ns,
        started_ns=started_ns,
        connected_ns=None,
        sent_ns=started_ns + 30_000,
        headers_ns=first_ns - 90_000,
        first_event_ns=first_ns if streams else None,
        first_token_ns=first_ns if streams else None,
        first_content_ns=first_ns if streams else None,
        chunk_ns=chunk_ns,
        ended_ns=ended_ns,
        held_ns=0,
        status=200,
        outcome="ok",
        error="",
        finish_reason="stop",
        usage=Tokens(prompt=128, completion=CHUNKS, cached=0, reasoning=0),
        retry_after_s=None,
        reused_connection=True,
        wire="http/1.1",
        bytes_in=random.randrange(800, 20_000),
        bytes_out=random.randrange(600, 900),
        tags={},
    )


def sample_piece() -> bytes:
    """One line of a worker's samples."""
    counts = {"due": 4000, "started": 4000, "dropped": 0, "finished": 3950, "in_flight": 50}
    health = {"cpu_s": 0.5, "wall_s": 1.0, "hub_lag_max_ns": 900_000, "gc_pause_max_ns": 400_000}
    sample = Sample(t_ns=8_000_000_000, worker=0, **counts, **health, rss_bytes=90_000_000, open_files=70)
    return msgspec.json.encode(sample) + b"\n"


def statistics(records: int) -> dict[str, Any]:
    """What a worker's Locust reports of three seconds, as Locust itself says it."""
    stats, random = RequestStats(), Random(2)
    for seq in range(max(records, 1) * 3):
        kind = "stream" if seq % 2 else "completion"
        stats.log_request(kind, "chat", random.lognormvariate(5, 0.7), random.randrange(800, 20_000))
    total = stats.total.get_stripped_report()
    return {"stats": stats.serialize_stats(), "stats_total": total, "errors": {}}


class Fleet:
    """All simulated workers: their sockets, their timetable, and what they noted."""

    def __init__(self, load: Load, port: int, folder: Path) -> None:

        self.load = load
        self.head, self.batches = log_pieces(max(load.records, 1), folder)
        self.sample = sample_piece()
        self.stats = statistics(load.records)
        self.moments_s: dict[str, list[float]] = defaultdict(list)
        """When each message came, or our last word of that name went, on the monotonic clock."""
        self.lags_s: list[float] = []
        self.resent = 0
        self.shipped: Counter[str] = Counter()
        self.cpu_s: dict[str, float] = {}
        self._timetable: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        context = zmq.Context()  # one for all: Locust's client would start two threads for each worker
        context.set(zmq.MAX_SOCKETS, 4 * load.workers + 64)
        self._poller = zmq.Poller()
        self.workers = {}
        for number in range(load.workers):
            name = f"simulated_{number:04}"
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, name.encode())
            socket.connect(f"tcp://127.0.0.1:{port}")
            self._poller.register(socket, zmq.POLLIN)
            self.workers[socket] = SimulatedWorker(self, socket, name, number / load.workers)

    def later(self, due_s: float, action: Callable[[], None]) -> None:
        """Have something done at an instant."""
        self._planned += 1
        heapq.heappush(self._timetable, (due_s, self._planned, action))

    def run(self) -> None:
        """Until the master has told every worker to quit, or never does."""
        gc.freeze()
        end_s = time.monotonic() + PATIENCE_S
        while any(worker.alive for worker in self.workers.values()):
            if time.monotonic() > end_s:
                sys.exit("the master did not come to an end")
            while self._timetable and self._timetable[0][0] <= time.monotonic():
                heapq.heappop(self._timetable)[2]()
            wait_s = self._timetable[0][0] - time.monotonic() if self._timetable else 0.1
            for socket, _ in self._poller.poll(max(0, wait_s) * 1000):
                self._read(socket)

    def _read(self, socket: Any) -> None:

        while True:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.workers[socket].on_message(Message.unserialize(frame))


class SimulatedWorker:
    """What one worker says, and when; it sends no load."""

    def __init__(self, fleet: Fleet, socket: Any, name: str, phase: float) -> None:

        self.alive = True
        self._fleet, self._socket, self._name, self._phase = fleet, socket, name, phase
        self._state, self._classes = "ready", {}
        self._sent_s: dict[int, float] = {}
        self._outbox = Outbox(self._ship)
        self._number = -1
        self._begin_s = self._end_s = 0.0
        self._exhausted = False
        self._say("client_ready", locust.__version__)
        self._beat()
        # The others' sampling and reporting begin when they do: these three are never in step.
        fleet.later(time.monotonic() + 3 * phase, self._report)

    def on_message(self, message: Any) -> None:
        """Answer as a worker does."""
        note = self._fleet.moments_s[message.type].append
        match message.type:
            case "spawn":
                self._classes = message.data["user_classes_count"]
                self._say("spawning", None)
                self._say("spawning_complete", self._users())
                self._state = "running"
            case "harness.lease":
                note(time.monotonic())
                self._number = message.data["lease"]["worker"]
                self._put("records", "arrows", self._fleet.head)
                self._say("harness.ready", None)
            case "harness.go":
                note(time.monotonic())
                self._begin_s = message.data["monotonic_ns"] / 1e9
                self._end_s = self._begin_s + RUN_S
                self._fleet.cpu_s.setdefault("begin", time.process_time())
                phase_s = 0 if self._fleet.load.in_step else self._phase
                self._fleet.later(self._begin_s + phase_s, self._ship_second)
            case "harness.ack":
                self._outbox.acknowledge(message.data["n"])
                sent_s = self._sent_s.pop(message.data["n"], None)
                if sent_s is not None and self._begin_s <= sent_s < self._end_s:
                    self._fleet.lags_s.append(time.monotonic() - sent_s)
            case "harness.drain":
                self._put("ledger", "json", self._ledger())
                self._drained()
            case "quit":
                note(time.monotonic())
                self.alive = False

    def _say(self, kind: str, content: Any) -> None:

        self._socket.send(Message(kind, content, self._name).serialize())

    def _users(self) -> dict[str, Any]:
        return {"user_classes_count": self._classes, "user_count": sum(self._classes.values())}

    def _beat(self) -> None:

        vitals = {"state": self._state, "current_cpu_usage": 50, "current_memory_usage": 90_000_000}
        self._say("heartbeat", vitals)
        self._fleet.later(time.monotonic() + HEARTBEAT_INTERVAL, self._beat)

    def _report(self) -> None:

        now_s = int(time.time())
        seconds = dict.fromkeys(range(now_s - 3, now_s), self._fleet.load.records)
        entries = [{**entry, "num_reqs_per_sec": seconds} for entry in self._fleet.stats["stats"]]
        total = {**self._fleet.stats["stats_total"], "num_reqs_per_sec": seconds}
        self._say("stats", {**self._fleet.stats, **self._users(), "stats": entries, "stats_total": total})
        self._fleet.later(time.monotonic() + WORKER_REPORT_INTERVAL, self._report)

    def _ship_second(self) -> None:
        """One second's records and one sample, as a worker's sampling does; then the next second."""
        now_s = time.monotonic()
        if now_s >= self._end_s:
            self._fleet.cpu_s.setdefault("end", time.process_time())
            self._fleet.moments_s["exhausted"].append(now_s)
            self._say("harness.exhausted", None)
            return
        if self._fleet.load.records:
            self._put("samples", "jsonl", self._fleet.sample)
            for batch in self._fleet.batches:
                self._put("records", "arrows", batch)
        self._outbox.resend()
        self._fleet.later(now_s + 1, self._ship_second)

    def _put(self, what: str, ending: str, piece: bytes) -> None:
        name = f"{what}-{self._number}.{ending}"
        self._fleet.shipped[name] += len(piece)
        self._outbox.put(name, piece)

    def _ship(self, message: dict[str, Any]) -> None:
        if message["n"] in self._sent_s:
            self._fleet.resent += 1
        self._sent_s.setdefault(message["n"], time.monotonic())
        self._say("harness.piece", message)

    def _ledger(self) -> bytes:
        count = self._fleet.load.records * RUN_S
        balanced = {"planned": count, "started": count, "finished": count, "records": count}
        open_ends = {"dropped": 0, "not_started": 0, "cut_off": 0}
        return json.dumps({"worker": self._number, **balanced, **open_ends}).encode()

    def _drained(self) -> None:
        """Say so once the master has everything."""
        if self._outbox.empty:
            self._say("harness.drained", None)
            return
        self._outbox.resend()
        self._fleet.later(time.monotonic() + 0.02, self._drained)


def be_the_fleet(load: Load, port: int, folder: Path) -> None:
    """Simulate until the master ends; what was noted goes to stdout."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    fleet = Fleet(load, port, folder)
    fleet.run()
    noted = {
        "moments_s": fleet.moments_s,
        "lags_s": fleet.lags_s,
        "resent": fleet.resent,
        "shipped": fleet.shipped,
        "cpu": (fleet.cpu_s["end"] - fleet.cpu_s["begin"]) / RUN_S,
    }
    json.dump(noted, sys.stdout)


# -- one run -----------------------------------------------------------------------------------------------


@contextmanager
def started(command: list[str], cpu: int, **outputs: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one CPU, which does not outlive the context."""
    with on_cpu(cpu):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **outputs)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def measure(load: Load, folder: Path) -> Row:
    """One master and its workers, from the first word to the last."""
    folder.mkdir()
    port = conduct._free_port()  # noqa: SLF001 - as it finds one
    traffic = [{"kind": "completion", "weight": 1}, {"kind": "stream", "weight": 1}]
    plain = {
        "name": "master",
        "traffic": traffic,
        "arrivals": {"process": "constant", "rate": load.workers * max(load.records, 1)},
        "duration": f"{RUN_S}s",
        "drain": "20s",
        "max_in_flight": USERS * load.workers,
        "telemetry": False,
    }
    scenario = scenarios.to_builtins(scenarios.from_builtins(plain))
    plan = {"scenario": scenario, "target": "http://127.0.0.1:9", "mock": False}
    (folder / "plan.json").write_text(json.dumps(plan))
    remote = conduct.Remote("127.0.0.1", port, load.workers)
    command = conduct._locust(folder, workers=1, remote=remote, web=False, sampled=False)  # noqa: SLF001 - the command that is judged
    spoken = [
        sys.executable,
        __file__,
        "--fleet",
        json.dumps(dataclasses.asdict(load)),
        str(port),
        str(folder),
    ]
    with (
        (folder / "locust.log").open("wb") as log,
        started(command, 1, stdout=log, stderr=log) as master,
        started(spoken, 0, stdout=subprocess.PIPE) as fleet,
    ):
        usage, rss_mb = watch(master)
        assert fleet.stdout is not None
        noted = json.loads(fleet.stdout.read() or "null")
    text = (folder / "locust.log").read_text()
    if noted is None or master.returncode != 0:
        raise Unfinished(f"the master ended with {master.returncode}: {text[-2000:]}")
    missing = len(re.findall("failed to send heartbeat", text))
    return row(load, noted, usage, folder, rss_mb=rss_mb, missing=missing)


def watch(master: subprocess.Popen[bytes]) -> tuple[Usage, float]:
    """The master's CPU time until its end, and the most memory it had, in MB."""
    usage, rss_mb = Usage([], []), 0.0
    process, end_s = psutil.Process(master.pid), time.monotonic() + PATIENCE_S
    while master.poll() is None:
        if time.monotonic() > end_s:
            raise Unfinished(f"the master did not end within {PATIENCE_S} s")
        with process.oneshot():
            times = process.cpu_times()
            rss_mb = max(rss_mb, process.memory_info().rss / 1e6)
        usage.at_ns.append(time.monotonic_ns())
        usage.cpu_s.append(times.user + times.system)
        time.sleep(0.1)
    return usage, rss_mb


def row(load: Load, noted: dict[str, Any], usage: Usage, folder: Path, *, rss_mb: float, missing: int) -> Row:
    """What one run comes to."""
    moments = noted["moments_s"]
    begin_s, end_s = max(moments["harness.go"]) + 0.5 + SETTLED_S, min(moments["exhausted"])
    p50_s, p99_s = percentiles(noted["lags_s"]) if load.records else (float("nan"), float("nan"))
    kept = {name: (folder / name).stat().st_size for name in noted["shipped"]}
    return Row(
        load=load,
        cpu=usage.between(begin_s * 1e9, end_s * 1e9) / (end_s - begin_s),
        rss_mb=rss_mb,
        ack_p50_ms=p50_s * 1e3,
        ack_p99_ms=p99_s * 1e3,
        lease_to_go_s=max(moments["harness.go"]) - min(moments["harness.lease"]),
        end_s=max(moments["quit"]) - min(moments["exhausted"]),
        resent=noted["resent"],
        missing=missing,
        whole=kept == noted["shipped"],
        fleet_cpu=noted["cpu"],
        received_mb_s=sum(kept.values()) / 1e6 / RUN_S,
    )


# -- telling -----------------------------------------------------------------------------------------------

_COLUMNS = (
    "workers | records/s each | MB/s in | master CPU | MB RSS | ack P50 / P99 ms | lease→go s | end s "
    "| resent | taken for lost | log whole | fleet CPU"
)


def line(one: Row) -> str:
    """One run as a row of a Markdown table."""
    load = one.load
    pieces = f"{load.records}{', in step' if load.in_step else ''}" if load.records else "no log"
    cells = [
        str(load.workers),
        pieces,
        f"{one.received_mb_s:.1f}",
        f"{one.cpu:.1%}",
        f"{one.rss_mb:.0f}",
        f"{one.ack_p50_ms:.1f} / {one.ack_p99_ms:.0f}" if load.records else "",
        f"{one.lease_to_go_s:.2f}",
        f"{one.end_s:.2f}",
        str(one.resent),
        str(one.missing),
        "yes" if one.whole else "NO",
        f"{one.fleet_cpu:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def slope(rows: list[Row]) -> tuple[float, float]:
    """The master's CPU share without workers, and what each adds: a straight line by least squares."""
    fitted = linear_regression([each.load.workers for each in rows], [each.cpu for each in rows])
    return fitted.intercept, fitted.slope


def tell_slope(records: int, rows: list[Row]) -> None:
    """Say what a worker of so many records a second costs the master."""
    if len(rows) < 2:
        return
    intercept, each_adds = slope(rows)
    print(
        f"\n{records} records/s a worker: {intercept:.1%} of a core, and {each_adds:.3%} for each worker;"
        f" a core is full at {(1 - intercept) / each_adds:,.0f} workers by this line"
    )


def main() -> None:
    """Read the flags, measure, tell."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--workers", type=int, nargs="+", default=[2, 20, 100, 200])
    flags.add_argument("--records", type=int, nargs="+", default=[50, 500], help="a second and worker")
    flags.add_argument(
        "--limit", type=int, nargs="*", default=[400, 800], help="workers, at the last of these"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    flags.add_argument("--fleet", nargs=3, help=argparse.SUPPRESS)
    options = flags.parse_args()
    if options.fleet:
        load, port, folder = options.fleet
        be_the_fleet(Load(**json.loads(load)), int(port), Path(folder))
        return
    most, busiest = max(options.workers), options.records[-1]
    loads = [Load(count, records) for records in options.records for count in options.workers]
    loads += [Load(most, 0), Load(most, busiest, in_step=True)]
    loads += [Load(count, busiest) for count in options.limit]
    begin_s = time.monotonic()
    rows, left = [], []
    print(f"| {_COLUMNS} |\n|{' --- |' * (_COLUMNS.count('|') + 1)}", flush=True)
    for load in loads:
        if time.monotonic() - begin_s > BUDGET_S - PATIENCE_S:
            left.append(f"{load}: no time was left")
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="master-") as root:
                rows.append(measure(load, Path(root) / "run"))
        except Unfinished as why:
            left.append(f"{load}: {why}")
            continue
        print(line(rows[-1]), flush=True)
    print(*(f"\nNo row: {each}" for each in left))
    for records in options.records:
        part = [
            each for each in rows if each.load.records == records and each.load.workers in options.workers
        ]
        tell_slope(records, [each for each in part if not each.load.in_step])
    if options.json is not None:
        found = {"machine": machine(), "rows": [dataclasses.asdict(each) for each in rows]}
        options.json.write_text(json.dumps(found))
    sys.exit(0 if not left and all(each.whole for each in rows) else 1)


if __name__ == "__main__":
    main()
