"""The run folder: an append-only, crash-safe log of records, merged and reconciled at the end.

    runs/<start>-<name>/
      run.json                 Run, written first
      records-<worker>.arrows  Arrow IPC stream, one batch about once a second; readable after kill -9
      samples-<worker>.jsonl   the worker's own health, once a second
      end.json                 End, once all workers have drained: what follows the log may stop
      ledger-<worker>.json     WorkerLedger, once the worker has drained
      requests.parquet         all records, merged; the table that everything else is computed from
      manifest.json            Manifest: the books, balanced or not
      scenario.yaml            the whole scenario as it was run: `harness run` takes it; and the reports

Whole files are written aside and renamed, so that a reader sees all of a file or none.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.errors import ConfigError, RunLogError
from harness.record import End, Manifest, Record, Run, Sample, TelemetryLedger, WorkerLedger

_END_BYTES = 8
"""Of the end-of-stream mark: a continuation marker, and a length of zero."""

_MESSAGE_BYTES = 1 << 18
"""More than most batches have."""

_I64, _TEXT = pa.int64(), pa.string()

SCHEMA = pa.schema(
    [
        pa.field("seq", _I64, nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("attempt", pa.int16(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),
        pa.field("request_id", _TEXT, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("dialect", _TEXT, nullable=False),
        pa.field("model", _TEXT, nullable=False),
        pa.field("session", _TEXT, nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("trace_id", _TEXT, nullable=False),
        pa.field("span_id", _TEXT, nullable=False),
        pa.field("due_ns", _I64),
        pa.field("started_ns", _I64),
        pa.field("connected_ns", _I64),
        pa.field("sent_ns", _I64),
        pa.field("headers_ns", _I64),
        pa.field("first_event_ns", _I64),
        pa.field("first_token_ns", _I64),
        pa.field("first_content_ns", _I64),
        pa.field("chunk_ns", pa.list_(_I64), nullable=False),
        pa.field("ended_ns", _I64),
        pa.field("held_ns", _I64, nullable=False),
        pa.field("status", pa.int16()),
        pa.field("outcome", _TEXT, nullable=False),
        pa.field("error", _TEXT, nullable=False),
        pa.field("finish_reason", _TEXT),
        pa.field("prompt_tokens", _I64),
        pa.field("completion_tokens", _I64),
        pa.field("cached_tokens", _I64),
        pa.field("reasoning_tokens", _I64),
        pa.field("usage_source", _TEXT),
        pa.field("retry_after_s", pa.float64()),
        pa.field("reused_connection", pa.bool_(), nullable=False),
        pa.field("wire", _TEXT, nullable=False),
        pa.field("bytes_in", _I64, nullable=False),
        pa.field("bytes_out", _I64, nullable=False),
        pa.field("tags", pa.map_(_TEXT, _TEXT), nullable=False),
        pa.field("queued_ns", _I64),
    ]
)
"""One row a Record. `usage` is flattened; everything else bears the Record's own name."""

MERGED_SCHEMA = SCHEMA.append(pa.field("worker", pa.int32(), nullable=False))

_FIELDS = Record.__struct_fields__
_TYPES: dict[str, pa.DataType] = {field.name: field.type for field in SCHEMA}
_PLAIN = [name for name in _FIELDS if name not in {"session", "usage", "chunk_ns", "tags"}]
_USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "usage_source")
"""The columns of `Usage`, in its own order."""
_NO_USAGE = (None,) * len(_USAGE)


def to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Turn records into one Arrow batch of `SCHEMA`: about 1.5 µs a record, off the socket path."""
    astuple = msgspec.structs.astuple
    flat: list[Any] = []
    for record in records:
        flat += astuple(record)
    # Sliced, as lists: of a tuple, Arrow makes a column in twice the time.
    columns = {name: flat[place :: len(_FIELDS)] for place, name in enumerate(_FIELDS)}
    arrays = {name: _array(name, columns[name]) for name in _PLAIN}
    same = columns["session"] == columns["request_id"]  # as where no session has a second turn
    arrays["session"] = arrays["request_id"] if same else _array("session", columns["session"])
    usages: list[Any] = []
    for usage in columns["usage"]:
        usages += _NO_USAGE if usage is None else astuple(usage)
    for place, name in enumerate(_USAGE):
        arrays[name] = _array(name, usages[place :: len(_USAGE)])
    arrays["chunk_ns"] = _stamps(columns["chunk_ns"])
    arrays["tags"] = _tags(columns["tags"])
    return pa.RecordBatch.from_arrays([arrays[name] for name in _TYPES], schema=SCHEMA)


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    """One column. In many all values are equal, which is quicker told than converted."""
    first, count = values[0], len(values)
    if values[-1] == first and values.count(first) == count:
        return _repeated(name, first, count)
    return pa.array(values, _TYPES[name])


@lru_cache(maxsize=256)
def _repeated(name: str, value: Any, count: int) -> pa.Array:
    """A column of equal values, which the next batch is likely to have again."""
    return pa.repeat(pa.scalar(value, _TYPES[name]), count)


@lru_cache(maxsize=256)
def _empty(name: str, count: int) -> pa.Array:
    """A column of lists, or of maps, that hold nothing."""
    return pa.array([()] * count, _TYPES[name])


def _stamps(chunks: Sequence[Sequence[int]]) -> pa.Array:
    if not any(chunks):
        return _empty("chunk_ns", len(chunks))
    stamps = array("q", chain.from_iterable(chunks))
    return pa.ListArray.from_arrays(
        _offsets(chunks), pa.Array.from_buffers(_I64, len(stamps), [None, pa.py_buffer(stamps)])
    )


def _tags(tags: Sequence[Mapping[str, str]]) -> pa.Array:
    if not any(tags):
        return _empty("tags", len(tags))
    keys = list(chain.from_iterable(tags))
    values = [value for each in tags for value in each.values()]
    return pa.MapArray.from_arrays(_offsets(tags), pa.array(keys, _TEXT), pa.array(values, _TEXT))


def _offsets(values: Sequence[Sized]) -> pa.Array:
    """Where each of these begins among all their items, and where the last one ends."""
    offsets = array("i", accumulate(map(len, values), initial=0))
    return pa.Array.from_buffers(pa.int32(), len(offsets), [None, pa.py_buffer(offsets)])


class _Tee:
    """The file sink of a writer, which also hands each whole message on."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pending.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        """Write what has gathered in one call, so that a kill tears at most the last message.

        Raises:
            OSError: it does not fit; the file is as it was before.
        """
        message = b"".join(self._pending)
        self._pending.clear()
        end = self._file.tell()
        rest = memoryview(message)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)  # whatever follows a torn message would be lost with it
            self._file.seek(end)
            raise
        return message


class Writer:
    """Appends records to one worker's log, a batch at a time.

    Args:
        path: the `records-<worker>.arrows` file.
        rows: a batch is written when this many records have gathered.
        ship: given the bytes of each message after they are in the file (another host's copy).
    """

    def __init__(self, path: Path, *, rows: int = 512, ship: Callable[[bytes], None] | None = None) -> None:
        self.count = 0
        self._rows = rows
        self._ship = ship
        self._records: list[Record] = []
        self._file = path.open("wb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # until it is closed, or its process is gone
        self._tee = _Tee(self._file)
        # Not zstd: it sets up a context for each of some 60 buffers, 0.6 ms a batch; lz4 a fifth of that.
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        # A batch comes in a hundred pieces: put together here, they cost one call of Python's.
        self._buffer = pa.BufferedOutputStream(pa.PythonFile(self._tee, "w"), _MESSAGE_BYTES)
        self._stream = pa.ipc.new_stream(self._buffer, SCHEMA, options=options)
        self._push()

    def extend(self, records: Iterable[Record]) -> None:
        """Take records; they reach the file with the next batch.

        Raises:
            OSError: as `flush`.
        """
        self._records += records
        # Batches of one size have many columns in common, which are then made once.
        while len(self._records) >= self._rows:
            self._write(self._rows)

    def flush(self) -> None:
        """Write what has gathered. Called about once a second.

        Raises:
            OSError: there is no room for it; the records are kept for the next time.
        """
        while self._records:
            self._write(min(len(self._records), self._rows))

    def _write(self, count: int) -> None:
        """Write the first records as one batch."""
        self._stream.write_batch(to_batch(self._records[:count]))
        self._push(count)

    def close(self) -> None:
        """Flush and end the stream; the file is closed even if that fails, as `flush` may."""
        try:
            self.flush()
            self._stream.close()
            self._push()
        finally:
            self._file.close()

    def _push(self, count: int = 0) -> None:
        """Write one message, which holds the first so many records."""
        self._buffer.flush()
        message = self._tee.take()
        self.count += count
        del self._records[:count]  # before others get their turn, which shipping may give them
        if self._ship is not None:
            self._ship(message)


class Tail:
    """Reads a worker's log while it grows: each `poll` gives the batches that are whole by now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._schema: pa.Schema | None = None

    def poll(self) -> list[pa.RecordBatch]:
        """The batches completed since the last poll. A torn message stays for the next one."""
        batches: list[pa.RecordBatch] = []
        with self.path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while self.offset < size:
                file.seek(self.offset)
                try:
                    message = pa.ipc.MessageReader.open_stream(file).read_next_message()
                    if message.type == "schema":
                        self._schema = pa.ipc.read_schema(message)
                    else:
                        batches.append(_completed(pa.ipc.read_record_batch(message, self._schema)))
                except StopIteration:  # the end-of-stream mark, or a torn one
                    self.offset += _END_BYTES if size - self.offset >= _END_BYTES else 0
                    break
                except (pa.ArrowInvalid, OSError):
                    break
                self.offset = file.tell()
        return batches

    @property
    def torn_bytes(self) -> int:
        """Bytes after the last whole message."""
        return self.path.stat().st_size - self.offset


def _completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch as of `SCHEMA`: a log of an earlier version lacks the columns that have been added since."""
    for place, field in enumerate(SCHEMA):
        if field.name not in batch.schema.names:
            batch = batch.add_column(place, field, pa.nulls(len(batch), field.type))
    return batch


def check_root(root: Path, source: str = "--runs") -> None:
    """See that run folders can be made below `root`, which is made if it is not there.

    Raises:
        ConfigError: they cannot; `source` says where the path was given.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        remedy = f"no run folder can be made there ({error.strerror}): give a folder that you may write to"
        raise ConfigError(source, "", str(root), remedy) from error


def create(root: Path, name: str, start: datetime) -> Path:
    """Make a fresh run folder `<start>-<name>` below `root`; a number is added if it exists."""
    stem = f"{start.astimezone(UTC):%Y%m%dT%H%M%SZ}-{name}"
    for attempt in range(1, 1000):
        folder = root / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunLogError(f"cannot make the run folder {folder}: {error.strerror}") from error
        return folder
    raise RunLogError(f"cannot make a run folder below {root}: {stem} exists a thousand times")


_Value = TypeVar("_Value")


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, aside and then renamed."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, aside and then renamed."""
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    aside.replace(path)


def _read_json(path: Path, kind: type[_Value]) -> _Value:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise RunLogError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except msgspec.DecodeError as error:
        raise RunLogError(f"{path} cannot be read: {error}") from error


def records_path(folder: Path, worker: int) -> Path:
    """Where a worker appends its records."""
    return folder / f"records-{worker}.arrows"


def samples_path(folder: Path, worker: int) -> Path:
    """Where a worker appends its samples."""
    return folder / f"samples-{worker}.jsonl"


def ledger_path(folder: Path, worker: int) -> Path:
    """Where a worker leaves its books."""
    return folder / f"ledger-{worker}.json"


def read_run(folder: Path) -> Run:
    """The run's header.

    Raises:
        RunLogError: the folder is not a run folder, or its header is broken.
    """
    return _read_json(folder / "run.json", Run)


def read_end(folder: Path) -> End | None:
    """What the engine said at the end; None while the run goes on, or if it was killed."""
    path = folder / "end.json"
    return _read_json(path, End) if path.exists() else None


def read_manifest(folder: Path) -> Manifest:
    """The run's books.

    Raises:
        RunLogError: the run was not merged yet.
    """
    return _read_json(folder / "manifest.json", Manifest)


def read_requests(folder: Path) -> pa.Table:
    """All records of a merged run, of `MERGED_SCHEMA`.

    Raises:
        RunLogError: the run was not merged yet, or the file is broken.
    """
    path = folder / "requests.parquet"
    try:
        return pq.read_table(path, schema=MERGED_SCHEMA)
    except FileNotFoundError:
        raise RunLogError(f"{folder} holds no requests.parquet: the run was not merged") from None
    except pa.ArrowInvalid as error:
        raise RunLogError(f"{path} cannot be read: {error}") from error


def read_samples(folder: Path) -> list[Sample]:
    """All workers' samples in order of time; a torn last line is left out."""
    samples: list[Sample] = []
    for path in sorted(folder.glob("samples-*.jsonl")):
        samples.extend(_whole_lines(path))
    return sorted(samples, key=lambda sample: sample.t_ns)


def _whole_lines(path: Path) -> Iterator[Sample]:
    decoder = msgspec.json.Decoder(Sample)
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield decoder.decode(line)


def workers_of(folder: Path) -> list[int]:
    """The workers that left a log, in order."""
    return sorted(int(path.stem.partition("-")[2]) for path in folder.glob("records-*.arrows"))


def being_written(folder: Path) -> list[int]:
    """The workers of this machine that still write their logs."""
    writing = []
    for worker in workers_of(folder):
        with records_path(folder, worker).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                writing.append(worker)
    return writing


def merge(folder: Path) -> tuple[pa.Table, int]:
    """Merge the workers' logs into requests.parquet, in order of arrival; return it and the torn bytes."""
    tables, torn = [], 0
    for worker in workers_of(folder):
        tail = Tail(records_path(folder, worker))
        batches = tail.poll()
        torn += tail.torn_bytes
        table = pa.Table.from_batches(batches, SCHEMA)
        column = pa.repeat(pa.scalar(worker, pa.int32()), len(table))
        tables.append(table.append_column(MERGED_SCHEMA.field("worker"), column))
    merged = pa.concat_tables(tables) if tables else MERGED_SCHEMA.empty_table()
    merged = merged.sort_by([(key, "ascending") for key in ("seq", "turn", "index", "attempt")])
    path = folder / "requests.parquet"
    aside = path.with_name(path.name + ".part")
    pq.write_table(merged, aside, compression="zstd")
    aside.replace(path)
    return merged, torn


def orphans(table: pa.Table, ledgers: Iterable[WorkerLedger]) -> dict[int, tuple[int, int]]:
    """Of each worker that left a log but no books: its rows, and the arrivals they belong to."""
    reported = {ledger.worker for ledger in ledgers}
    left = {}
    for worker in pc.unique(table["worker"]).to_pylist():
        if worker not in reported:
            seqs = table.filter(pc.equal(table["worker"], worker))["seq"]
            left[worker] = (len(seqs), len(pc.unique(seqs)))
    return left


def repeated(table: pa.Table) -> int:
    """Records of attempts that another record stands for too: something was sent twice."""
    keys = ["seq", "turn", "index", "attempt"]
    return len(table) - len(table.group_by(keys).aggregate([]))


def read_ledgers(folder: Path) -> list[WorkerLedger]:
    """The books of the workers that drained."""
    return [_read_json(path, WorkerLedger) for path in sorted(folder.glob("ledger-*.json"))]


def reconcile(
    ledgers: Iterable[WorkerLedger],
    *,
    planned: int,
    rows: int,
    stop_reason: str,
    torn_bytes: int = 0,
    orphans: Mapping[int, tuple[int, int]] = MappingProxyType({}),
    repeated: int = 0,
    faults: Sequence[str] = (),
) -> Manifest:
    """Add the workers' books up and say what does not balance.

    Args:
        ledgers: what the workers reported; a lost worker is missing here.
        planned: arrivals of the whole schedule; in a closed loop, those claimed.
        rows: records found in the merged log.
        stop_reason: see `Manifest.stop_reason`.
        torn_bytes: what was left unread at the logs' ends.
        orphans: for each worker that left a log but no books, its rows and the arrivals they belong to.
        repeated: records of attempts that another record stands for too.
        faults: see `End.faults`.
    """
    workers = sorted(ledgers, key=lambda ledger: ledger.worker)
    total = {
        name: sum(getattr(ledger, name) for ledger in workers)
        for name in ("planned", "started", "dropped", "not_started", "finished", "cut_off", "records")
    }
    orphan_rows = sum(rows for rows, _ in orphans.values())
    recorded = sum(arrivals for _, arrivals in orphans.values())
    lost = planned - total["planned"] - recorded
    imbalances = [*faults]
    for ledger in workers:
        if ledger.planned != ledger.started + ledger.dropped + ledger.not_started:
            imbalances.append(
                f"worker {ledger.worker}: planned {ledger.planned} ≠ started {ledger.started} + "
                f"dropped {ledger.dropped} + not started {ledger.not_started}"
            )
        if ledger.not_started < 0:
            imbalances.append(f"worker {ledger.worker}: more arrivals were started than were planned")
        if ledger.started != ledger.finished + ledger.cut_off:
            imbalances.append(
                f"worker {ledger.worker}: started {ledger.started} ≠ finished {ledger.finished} + "
                f"cut off {ledger.cut_off}"
            )
    if repeated:
        imbalances.append(f"{repeated} records stand for what others stand for: it was sent twice")
    if lost < 0:
        imbalances.append(f"the workers account for {-lost} arrivals that were not planned")
    elif lost or recorded:
        imbalances.append(
            f"{lost} planned arrivals are lost with workers that never reported back; "
            f"of the same workers, {recorded} arrivals are in the log"
        )
    if total["records"] + orphan_rows != rows:
        imbalances.append(
            f"the workers wrote {total['records'] + orphan_rows} records, the merged log holds {rows}"
        )
    if torn_bytes:
        imbalances.append(f"{torn_bytes} bytes of unfinished batches stand at the logs' ends")
    return Manifest(
        planned=planned,
        started=total["started"] + recorded,
        dropped=total["dropped"],
        not_started=total["not_started"],
        lost=lost,
        finished=total["finished"] + recorded,
        cut_off=total["cut_off"],
        records=rows,
        workers=workers,
        stop_reason=stop_reason,
        imbalances=imbalances,
        torn_bytes=torn_bytes,
    )


def read_telemetry(folder: Path) -> TelemetryLedger | None:
    """What became of the run's spans; None if telemetry was off or has not ended."""
    path = folder / "telemetry.json"
    return _read_json(path, TelemetryLedger) if path.exists() else None
