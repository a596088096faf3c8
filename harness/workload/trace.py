"""Trace files -> when requests arrived, with how many tokens.

format     time                        prompt           output            from
columns    `column`, in `unit`         `prompt_column`  `output_column`   a CSV or JSONL file of anybody's
mooncake   timestamp, ms               input_length     output_length     github.com/kvcache-ai/Mooncake
azure      TIMESTAMP, ISO 8601         ContextTokens    GeneratedTokens   github.com/Azure/AzurePublicDataset
burstgpt   Timestamp, s                Request tokens   Response tokens   github.com/HPMLL/BurstGPT
run-log    due_ns, or started_ns       prompt_tokens    completion_tokens requests.parquet of one of our runs
"""

from __future__ import annotations

import codecs
import csv
import math
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from harness.errors import ConfigError
from harness.workload.scenario import Replay

_MOST_TOKENS = 1_000_000_000
_READ_BYTES = 1 << 20
"""With many small reads, a thread that reads a long file keeps the event loop waiting for seconds: each lets
go of the interpreter for a shorter time than others take to wake up, and these wait for it anew."""
BLOCK_TOKENS = 512
"""Tokens that one of Mooncake's `hash_ids` stands for; the last block may be shorter."""


class Lengths(NamedTuple):
    """What a trace says of one request; 0 or empty where it says nothing."""

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Ids of the prompt's blocks of `BLOCK_TOKENS`: prompts that begin with the same ids share that text."""


class Trace(NamedTuple):
    """One trace, in order of time."""

    at_s: array[float]
    """Seconds from the first arrival, stretched by the scenario's `scale`."""
    prompt_tokens: array[int]
    output_tokens: array[int]
    blocks: list[tuple[int, ...]]

    def lengths(self, row: int) -> Lengths:
        """What it says of the request that arrived as number `row`, from 0."""
        return Lengths(self.prompt_tokens[row], self.output_tokens[row], self.blocks[row])


def read(replay: Replay) -> Trace:
    """Read a trace.

    Raises:
        ConfigError: it cannot be used, with file and line.
    """
    try:
        changed_ns = Path(replay.path).stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(replay.path, "", None, f"cannot be read: {error.strerror}") from error
    return _read(replay, changed_ns)


@lru_cache(maxsize=2)  # schedule, plan and prompts each ask for it: a long trace takes seconds to read
def _read(replay: Replay, _changed_ns: int) -> Trace:
    times, prompts, outputs = array("d"), array("q"), array("q")
    blocks: list[tuple[int, ...]] = []
    for time, lengths in _run_log(replay.path) if replay.format == "run-log" else _rows(replay):
        times.append(time)
        prompts.append(lengths.prompt_tokens)
        outputs.append(lengths.output_tokens)
        blocks.append(lengths.blocks)
    if not times:
        raise ConfigError(replay.path, "", None, "the trace holds no arrivals")
    order = sorted(range(len(times)), key=times.__getitem__)
    first = times[order[0]]
    per_second = _fields(replay).per_second
    return Trace(
        at_s=array("d", ((times[row] - first) / per_second * replay.scale for row in order)),
        prompt_tokens=array("q", (prompts[row] for row in order)),
        output_tokens=array("q", (outputs[row] for row in order)),
        blocks=[blocks[row] for row in order],
    )


# -- text formats ---------------------------------------------------------------------------------------


class _Fields(NamedTuple):
    """Where a format keeps what we want."""

    time: str
    per_second: float
    iso: bool = False
    prompt: str = ""
    output: str = ""
    blocks: str = ""

    @property
    def required(self) -> dict[str, str]:
        """The fields that every row must have, by the setting that names them."""
        named = {"column": self.time, "prompt_column": self.prompt, "output_column": self.output}
        return {setting: column for setting, column in named.items() if column}


_KNOWN = {
    "mooncake": _Fields("timestamp", 1e3, prompt="input_length", output="output_length", blocks="hash_ids"),
    "azure": _Fields("TIMESTAMP", 1.0, iso=True, prompt="ContextTokens", output="GeneratedTokens"),
    "burstgpt": _Fields("Timestamp", 1.0, prompt="Request tokens", output="Response tokens"),
    "run-log": _Fields("due_ns", 1e9),
}

_Row = Mapping[str, Any]


def _fields(replay: Replay) -> _Fields:
    return _KNOWN.get(replay.format) or _Fields(
        replay.column,
        1e3 if replay.unit == "ms" else 1.0,
        iso=replay.unit == "iso",
        prompt=replay.prompt_column or "",
        output=replay.output_column or "",
    )


def _rows(replay: Replay) -> Iterator[tuple[float, Lengths]]:
    fields = _fields(replay)
    required = fields.required
    time = _iso_time if fields.iso else _number
    rows = _csv_rows(replay.path) if replay.path.lower().endswith(".csv") else _jsonl_rows(replay.path)
    for line, row in _readable(rows, replay.path):
        source = f"{replay.path}:{line}"
        for setting, column in required.items():
            if row.get(column) in (None, ""):
                known = ", ".join(f"`{name}`" for name in row)
                remedy = f"is missing; set `arrivals.{setting}` to one of {known}"
                if replay.format != "columns":
                    remedy = f"is missing: is `arrivals.format: {replay.format}` right? The row has {known}"
                raise ConfigError(source, column, None, remedy)
        yield (
            time(source, fields.time, row[fields.time]),
            Lengths(
                _tokens(source, fields.prompt, row),
                _tokens(source, fields.output, row),
                _blocks(source, fields.blocks, row),
            ),
        )


def _number(source: str, column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(source, column, value, "must be a time in numbers, as `arrivals.unit` says")
    return number


def _iso_time(source: str, column: str, value: Any) -> float:
    """Unix time in seconds; a date without a zone is UTC. To the microsecond: 3.11 drops what is finer."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(source, column, value, "must be a date and time in ISO 8601") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(source: str, column: str, row: _Row) -> int:
    """A length; one of 0, as BurstGPT has for failed requests, becomes 1: nothing less can be asked for."""
    if not column:
        return 0
    value = row[column]
    try:
        tokens = float(value)
    except (TypeError, ValueError, OverflowError):
        tokens = math.nan
    if isinstance(value, bool) or not tokens.is_integer() or not 0 <= tokens <= _MOST_TOKENS:
        remedy = f"must be a whole number of tokens from 0 to {_MOST_TOKENS:,}"
        raise ConfigError(source, column, value, remedy)
    return max(1, int(tokens))


def _blocks(source: str, column: str, row: _Row) -> tuple[int, ...]:
    found = row.get(column, []) if column else []
    if not isinstance(found, list) or not all(type(each) is int for each in found):
        raise ConfigError(source, column, found, "must be a list of whole numbers")
    return tuple(found)


def _csv_rows(path: str) -> Iterator[tuple[int, _Row]]:
    with _opened(path) as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _jsonl_rows(path: str) -> Iterator[tuple[int, _Row]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}:{number}", "", None, f"is no JSON object: {error}") from error


def _readable(rows: Iterator[tuple[int, _Row]], path: str) -> Iterator[tuple[int, _Row]]:
    """The rows, as far as they can be read: what then keeps them from it is the file's fault."""
    line = 0
    try:
        for line, row in rows:
            yield line, row
    except UnicodeDecodeError as error:
        remedy = "is not UTF-8 text from there on: convert it; a packed file must be unpacked first"
        raise ConfigError(f"{path}:{line + 1}", "", None, remedy) from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{line + 1}", "", None, f"is no row of a CSV file: {error}") from error


@contextmanager
def _opened(path: str) -> Iterator[Iterator[str]]:
    """The lines of a text file."""
    try:
        # As bytes: a text file would read 8 KB at a time, whatever its buffer.
        with Path(path).open("rb", buffering=_READ_BYTES) as file:
            yield codecs.iterdecode(file, "utf-8-sig")
    except OSError as error:
        raise ConfigError(path, "", None, f"cannot be read: {error.strerror}") from error


# -- our own run log ------------------------------------------------------------------------------------

_COLUMNS = ["index", "turn", "attempt", "final", "due_ns", "started_ns", "prompt_tokens", "completion_tokens"]


def _run_log(path: str) -> Iterator[tuple[float, Lengths]]:
    """One arrival for the first request of each batch, and for the first turn of each session.

    It came when its first attempt was due, or started; its lengths are those that the server counted with the
    last. A request that was not answered has none.
    """
    import pyarrow as pa  # noqa: PLC0415 - only a replayed run log needs it
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    try:
        table = pq.read_table(path, columns=_COLUMNS)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(path, "", None, "is no requests.parquet of a run folder") from error
    at_ns = None
    # By batches: a call that takes seconds would keep all threads waiting.
    rows = chain.from_iterable(batch.to_pylist() for batch in table.to_batches(max_chunksize=10_000))
    for row in rows:  # which are in order of arrival, turn, index and attempt
        if row["index"] or row["turn"]:
            continue
        if row["attempt"] == 0:
            at_ns = row["due_ns"] if row["due_ns"] is not None else row["started_ns"]
        if row["final"] and at_ns is not None:
            yield float(at_ns), Lengths(row["prompt_tokens"] or 0, row["completion_tokens"] or 0, ())
