"""What each device of the measuring path is worth: one small comparison each, as ratios inside one run.

    python benchmarks/pieces.py [gc] [buffers] [timer] [allocations] [stamps] [--json FILE]

Both sides of a comparison run in this process, in turn or at once, so that a noisy machine hits both.
Where there is a reference server, it has the first CPU, and this process the last.
"""

from __future__ import annotations

import locust  # noqa: F401 - isort: skip - it patches what the others use

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

import gevent
import msgspec
import pyarrow as pa
from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook
from master import record
from ratios import body_of, completions, machine, percentiles, reference_server, say, streams, truth_of

from harness import runlog
from harness.client.call import prepare
from harness.client.http1 import Connection
from harness.client.send import policy, sender
from harness.client.target import parse
from harness.clock import now_ns
from harness.record import Record
from harness.users.wait import Alarm
from harness.workload import scenario as scenarios
from harness.workload.prompts import workload
from harness.workload.scenario import Retries, Timeouts

LIVE_OBJECTS = 400_000
BATCH_ROWS = 512
WAITS = 400
REQUESTS = 5_000
STREAMS, STREAM_CHUNKS = 60, 100
BUSY_S = 0.005
"""The busy greenlet computes for this long, lets the others run, sleeps as long, and so on."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ours: str
    beside: str
    ratio: float | None
    """What the other costs, in ours; None where ours is nothing."""


def compared(what: str, ours: float, beside: float, form: str) -> Row:
    """A row of two figures of one form."""
    return Row(what, form.format(ours), form.format(beside), beside / ours if ours else None)


@contextmanager
def last_cpu() -> Iterator[None]:
    """This process stays on the last CPU of those that it may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# -- garbage collection -----------------------------------------------------------------------------------


def collection_ms() -> float:
    """The median pause of a full collection."""
    pauses_ms = []
    for _ in range(7):
        began_ns = now_ns()
        gc.collect()
        pauses_ms.append((now_ns() - began_ns) / 1e6)
    return median(pauses_ms)


def measure_gc() -> list[Row]:
    """A full collection among many live objects, looked at or frozen."""
    live = [[number] for number in range(LIVE_OBJECTS)]
    thawed_ms = collection_ms()
    gc.freeze()
    frozen_ms = collection_ms()
    gc.unfreeze()
    return [
        compared(
            f"full collection among {len(live):,} live objects: gc.freeze, without",
            frozen_ms,
            thawed_ms,
            "{:.4f} ms",
        )
    ]


# -- columnar buffers -------------------------------------------------------------------------------------


def per_record_us(turn: Callable[[Sequence[Record]], object], records: Sequence[Record]) -> float:
    """CPU time a record, the median of several batches."""
    times_us = []
    for _ in range(30):
        began_s = time.process_time()
        turn(records)
        times_us.append((time.process_time() - began_s) / len(records) * 1e6)
    return median(times_us)


def rows_to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """The naive way to the same table: a dict a row."""
    rows = []
    for each in records:
        row = msgspec.structs.asdict(each)
        usage = row.pop("usage")
        row |= {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "cached_tokens": usage.cached,
            "reasoning_tokens": usage.reasoning,
            "usage_source": usage.source,
        }
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, schema=runlog.SCHEMA)


def json_lines(records: Sequence[Record]) -> bytes:
    """The naive way to a file: a JSON line a row."""
    rows = (msgspec.structs.asdict(each) | {"usage": msgspec.structs.asdict(each.usage)} for each in records)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def tracked(make: Callable[[], object]) -> int:
    """How many objects that the collector must visit a value brings along."""
    gc.collect()
    before = len(gc.get_objects())
    kept = make()
    found = len(gc.get_objects()) - before
    del kept
    return found


def measure_buffers() -> list[Row]:
    """Records into Arrow batches by column, and by row; and what a record that waits costs the collector."""
    rows = []
    for name, streamed in (("completion", False), ("64-chunk stream", True)):
        records = [record(seq, streams=streamed) for seq in range(BATCH_ROWS)]
        if runlog.to_batch(records).to_pylist() != rows_to_batch(records).to_pylist():
            sys.exit("the two ways do not lead to the same table")
        ours_us = per_record_us(runlog.to_batch, records)
        dicts_us, lines_us = per_record_us(rows_to_batch, records), per_record_us(json_lines, records)
        rows += [
            compared(f"CPU, a {name}'s record: to_batch, dicts to Arrow", ours_us, dicts_us, "{:.1f} µs"),
            compared(f"CPU, a {name}'s record: to_batch, JSON lines", ours_us, lines_us, "{:.1f} µs"),
        ]
    ours = tracked(lambda: [record(seq, streams=False) for seq in range(BATCH_ROWS)]) / BATCH_ROWS
    beside = tracked(lambda: [dataclass_of(record(seq, streams=False)) for seq in range(BATCH_ROWS)])
    what = "objects the collector visits, a waiting record: Record, dataclass"
    rows.append(compared(what, round(ours, 1), beside / BATCH_ROWS, "{:.1f}"))
    return rows


_PlainUsage = dataclasses.make_dataclass("_PlainUsage", ["prompt", "completion", "cached", "reasoning"])
_PlainRecord = dataclasses.make_dataclass("_PlainRecord", list(Record.__struct_fields__))


def dataclass_of(each: Record) -> object:
    """The same record as a dataclass, as most tools keep theirs."""
    usage, fields = each.usage, msgspec.structs.asdict(each)
    assert usage is not None
    tokens = _PlainUsage(usage.prompt, usage.completion, usage.cached, usage.reasoning)
    return _PlainRecord(**{**fields, "usage": tokens})


# -- timer ------------------------------------------------------------------------------------------------


def measure_timer() -> list[Row]:
    """How late each way of waiting returns, in turn, for the same spans."""
    alarm, random = Alarm(), Random(3)
    late_us: dict[str, list[float]] = {"alarm": [], "sleep": []}
    for _ in range(WAITS):
        span_ns = random.randrange(500_000, 6_000_000)
        due_ns = now_ns() + span_ns
        alarm.sleep_until(due_ns)
        late_us["alarm"].append((now_ns() - due_ns) / 1e3)
        due_ns = now_ns() + span_ns
        gevent.sleep(span_ns / 1e9)
        late_us["sleep"].append((now_ns() - due_ns) / 1e3)
    alarm.close()
    pairs = zip(("P50", "P99"), percentiles(late_us["alarm"]), percentiles(late_us["sleep"]), strict=True)
    return [
        compared(f"lateness {name} of {WAITS} waits: Alarm, gevent.sleep", ours, beside, "{:.0f} µs")
        for name, ours, beside in pairs
    ]


# -- allocations ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a request leaves to the collector."""

    garbage: float
    """Objects in cycles, which only a collection frees."""
    young: float
    """Collections of the young generations, per 10,000 requests."""
    full: float
    """Full collections, per 10,000 requests."""
    peak_kib: float
    """Memory that a request holds at most, beyond what stood before."""
    cpu_us: float


def cost_of(once: Callable[[], object]) -> Cost:
    """Measure one way to send a request, many times over."""
    for _ in range(200):
        once()
    gc.collect()
    gc.disable()
    for _ in range(REQUESTS // 5):
        once()
    garbage = gc.collect() / (REQUESTS // 5)
    gc.enable()
    before, began_s = collections(), time.process_time()
    for _ in range(REQUESTS):
        once()
    cpu_us = (time.process_time() - began_s) / REQUESTS * 1e6
    young, full = ((now - then) / REQUESTS * 10_000 for now, then in zip(collections(), before, strict=True))
    return Cost(garbage, young, full, peak_kib(once), cpu_us)


def collections() -> tuple[int, int]:
    """How many young and how many full collections there have been."""
    *young, full = (generation["collections"] for generation in gc.get_stats())
    return sum(young), full


def peak_kib(once: Callable[[], object]) -> float:
    """The most that one request holds, in KiB: the median of some."""
    peaks = []
    tracemalloc.start()
    for _ in range(100):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        once()
        peaks.append((tracemalloc.get_traced_memory()[1] - before) / 1024)
    tracemalloc.stop()
    return median(peaks)


def measure_allocations() -> list[Row]:
    """A request prepared, sent and recorded, and the same one by Locust's fast client."""
    plain = completions(1)
    with reference_server("--no-truth") as url, last_cpu(), tempfile.TemporaryDirectory() as folder:
        target, requests = parse(url), workload(scenarios.from_builtins(plain))
        connection, rules = Connection(target), policy(Timeouts(), Retries(), Random(1))
        writer, numbers, send = runlog.Writer(Path(folder) / "records-0.arrows"), count(), sender(rules)

        def log(done: Record) -> None:
            writer.extend((done,))

        def ours() -> None:
            (request,) = requests(next(numbers))
            call = prepare(request, target)
            done = send(connection, call, None, 0, rules, log)
            assert done.outcome == "ok", done.error

        session, body = FastHttpSession(url, EventHook(), None), json.loads(body_of(plain, url))

        def beside() -> None:
            assert session.post("/v1/chat/completions", json=body).json()["choices"]

        mine, theirs = cost_of(ours), cost_of(beside)
        connection.close()
        writer.close()
    ways = "ours with its record, FastHttpSession"
    return [
        compared(f"cyclic garbage, objects a request: {ways}", mine.garbage, theirs.garbage, "{:.1f}"),
        compared(f"young collections per 10,000 requests: {ways}", mine.young, theirs.young, "{:.0f}"),
        compared(f"full collections per 10,000 requests: {ways}", mine.full, theirs.full, "{:.0f}"),
        compared(f"most memory held by a request: {ways}", mine.peak_kib, theirs.peak_kib, "{:.1f} KiB"),
        compared(f"CPU a request: {ways}", mine.cpu_us, theirs.cpu_us, "{:.0f} µs"),
    ]


# -- stamps -----------------------------------------------------------------------------------------------


def lags_us(records: Sequence[Record], truth: Sequence[Mapping[str, object]]) -> list[float]:
    """Of each chunk, our stamp minus the server's write."""
    written: dict[object, Sequence[int]] = {row["id"]: row["chunk_ns"] for row in truth}  # type: ignore[misc]
    lags = []
    for each in records:
        sent_ns = written[each.request_id]
        if each.outcome != "ok" or len(sent_ns) != len(each.chunk_ns):
            sys.exit(f"a stream was not whole: {each.outcome} {each.error}")
        lags += [(seen - sent) / 1e3 for seen, sent in zip(each.chunk_ns, sent_ns, strict=True)]
    return lags


def be_busy(stop: Sequence[bool]) -> None:
    """Compute half of the time, as a client that parses, tokenises or reports does."""
    while not stop:
        end_ns = now_ns() + int(BUSY_S * 1e9)
        while now_ns() < end_ns:
            pass
        gevent.sleep(BUSY_S)


def measure_stamps() -> list[Row]:
    """Streams beside a busy greenlet: half of them with the kernel's stamps, half with ours."""
    requests = workload(scenarios.from_builtins(streams(STREAMS, STREAM_CHUNKS)))
    records: dict[str, list[Record]] = {"kernel": [], "user": []}
    stop: list[bool] = []
    with reference_server("--ttft-ms", "300", "--itl-ms", "20") as url, last_cpu():
        target, rules = parse(url), policy(Timeouts(), Retries(), Random(1))
        send = sender(rules)

        def carry(seq: int, stamps: str) -> None:
            gevent.sleep(seq * 0.0003)  # so that the streams are not in step
            (request,) = requests(seq)
            connection, log = Connection(target, stamps=stamps), records[stamps].append
            send(connection, prepare(request, target), None, 0, rules, log)
            connection.close()

        each = [gevent.spawn(carry, seq, ("kernel", "user")[seq % 2]) for seq in range(STREAMS)]
        busy = gevent.spawn(be_busy, stop)
        gevent.joinall(each, raise_error=True)
        stop.append(True)
        busy.join()
        truth = truth_of(url)
    kernel, user = (percentiles(lags_us(records[name], truth)) for name in ("kernel", "user"))
    return [
        compared(f"lag {name} of a chunk's stamp, busy client: kernel's, ours", *both, "{:.0f} µs")
        for name, both in zip(("P50", "P99"), zip(kernel, user, strict=True), strict=True)
    ]


# -- telling ----------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], list[Row]]] = {
    "gc": measure_gc,
    "buffers": measure_buffers,
    "timer": measure_timer,
    "allocations": measure_allocations,
    "stamps": measure_stamps,
}


def main() -> None:
    """Read the flags, measure, tell."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    options = flags.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        flags.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    on, rows = machine(), []
    print("| measured: this way, that way | this | that | that : this |\n| --- | --- | --- | --- |")
    for name in options.parts or PARTS:
        say(name)
        for row in PARTS[name]():
            rows.append(row)
            ratio = "" if row.ratio is None else f"{row.ratio:.1f}" if row.ratio < 1000 else "> 1,000"
            print(f"| {row.what} | {row.ours} | {row.beside} | {ratio} |", flush=True)
    print(", ".join(f"{name} {value}" for name, value in on.items()), file=sys.stderr)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": on, "rows": [dataclasses.asdict(row) for row in rows]})
        )


if __name__ == "__main__":
    main()
