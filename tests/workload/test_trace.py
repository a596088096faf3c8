"""Claims about trace files: each format's times and lengths, and how a bad row is blamed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from factories import dropped, ms, record, stream, table

from harness.errors import ConfigError
from harness.record import Usage
from harness.workload.scenario import Replay
from harness.workload.trace import Lengths, read


def trace(folder: Path, name: str, text: str, **settings) -> Replay:
    (folder / name).write_text(text, encoding="utf-8")
    return Replay(path=str(folder / name), **settings)


TIMES = [
    ("t.csv", "timestamp\n10\n10.5\n12\n", {}, [0, 0.5, 2]),
    ("t.csv", "\ufeffwhen,n\r\n1000,1\r\n1500,2\r\n", {"column": "when", "unit": "ms"}, [0, 0.5]),
    ("t.jsonl", '{"timestamp": 3}\n\n{"timestamp": 5, "n": 1}\n', {}, [0, 2]),
    ("t.jsonl", '{"timestamp": 3}\n{"timestamp": 5}\n', {"scale": 0.5}, [0, 1]),
    ("t.jsonl", '{"timestamp": 9}\n{"timestamp": 7}\n{"timestamp": "8"}\n', {}, [0, 1, 2]),
    ("t.jsonl", '{"timestamp": 7}\n{"timestamp": 7}', {}, [0, 0]),
    ("t.csv", "timestamp\n2024-02-28T23:59:59Z\n2024-02-29 00:00:01\n", {"unit": "iso"}, [0, 2]),
]


@pytest.mark.parametrize(("name", "text", "settings", "expected"), TIMES)
def test_times_count_from_the_first_one_in_order_and_stretched(tmp_path, name, text, settings, expected):
    assert list(read(trace(tmp_path, name, text, **settings)).at_s) == expected


# The first rows of the published files, as they are.
MOONCAKE = """\
{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2, 3]}
{"timestamp": 27482, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14, 15]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
"""


@pytest.mark.parametrize(
    ("format_", "text", "times", "lengths"),
    [
        (
            "mooncake",
            MOONCAKE,
            [0, 27.482],
            [Lengths(6755, 500, (0, 1, 2, 3)), Lengths(7319, 490, (0, 14, 15))],
        ),
        ("azure", AZURE, [0, 4.314579], [Lengths(374, 44, ()), Lengths(396, 109, ())]),
        ("azure", AZURE_2024, [0, 0.007405], [Lengths(2162, 5, ()), Lengths(2399, 6, ())]),
        # An answer of no tokens cannot be asked for.
        ("burstgpt", BURSTGPT, [0, 40], [Lengths(472, 18, ()), Lengths(1087, 1, ())]),
    ],
)
def test_published_traces_give_times_and_lengths(tmp_path, format_, text, times, lengths):
    name = "t.jsonl" if format_ == "mooncake" else "t.csv"
    found = read(trace(tmp_path, name, text, format=format_))
    assert list(found.at_s) == pytest.approx(times, abs=1e-6)
    assert [found.lengths(row) for row in range(len(times))] == lengths


def test_lengths_stay_with_their_times_where_rows_are_out_of_order(tmp_path):
    text = "timestamp,in,out\n9,90,9\n7,70,7\n8,80,8\n"
    found = read(trace(tmp_path, "t.csv", text, prompt_column="in", output_column="out"))
    assert [found.lengths(row)[:2] for row in range(3)] == [(70, 7), (80, 8), (90, 9)]


def test_without_named_columns_a_trace_says_nothing_of_lengths(tmp_path):
    assert read(trace(tmp_path, "t.csv", "timestamp,n\n1,5\n")).lengths(0) == Lengths(0, 0, ())


def test_our_own_run_log_is_a_trace(tmp_path):
    rows = [
        record(seq=0, due_ns=ms(5000), usage=Usage(prompt=11, completion=3)),
        record(seq=1, due_ns=ms(6000), usage=Usage(prompt=12, completion=4), kind="batch"),
        record(seq=1, due_ns=ms(6000), index=1, kind="batch"),
        dropped(seq=2, due_ns=ms(6500)),
        stream(seq=3, due_ns=ms(7000), usage=Usage(prompt=13, completion=5)),
        stream(seq=3, due_ns=ms(9000), turn=1),
        record(seq=4, due_ns=None, started_ns=ms(8000), usage=None),
    ]
    pq.write_table(table(rows), tmp_path / "requests.parquet")
    found = read(Replay(path=str(tmp_path / "requests.parquet"), format="run-log", scale=2))
    assert list(found.at_s) == [0, 2, 3, 4, 6]
    assert [found.lengths(row)[:2] for row in range(5)] == [(11, 3), (12, 4), (0, 0), (13, 5), (0, 0)]


def test_a_file_that_is_no_run_log_is_blamed(tmp_path):
    with pytest.raises(ConfigError, match=r"is no requests\.parquet"):
        read(trace(tmp_path, "requests.parquet", "timestamp\n1\n", format="run-log"))
    pq.write_table(table([record()]).select(["seq", "due_ns"]), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"is no requests\.parquet"):
        read(Replay(path=str(tmp_path / "other.parquet"), format="run-log"))


@pytest.mark.parametrize(
    ("name", "text", "settings", "blamed"),
    [
        ("t.csv", "when\n1\n", {}, (":2", "set `arrivals.column` to one of `when`")),
        ("t.csv", "timestamp,n\n1,1\nsoon,2\n", {}, (":3", "a time in numbers")),
        ("t.csv", "timestamp\nnan\n", {}, (":2", "a time in numbers")),
        ("t.csv", "timestamp\nsoon\n", {"unit": "iso"}, (":2", "in ISO 8601")),
        ("t.csv", "timestamp,n\n1,2\n2,\n", {"prompt_column": "n"}, (":3", "set `arrivals.prompt_column`")),
        ("t.csv", "timestamp,n\n1,-2\n", {"output_column": "n"}, (":2", "a whole number of tokens")),
        ("t.csv", "timestamp,n\n1,2.5\n", {"output_column": "n"}, (":2", "a whole number of tokens")),
        ("t.jsonl", '{"timestamp": 1}\n{"time": 1}\n', {}, (":2", "is missing")),
        ("t.jsonl", '{"timestamp": 1}\n{"timestamp"\n', {}, (":2", "is no JSON object")),
        ("t.jsonl", "[1]\n", {}, (":1", "is no JSON object")),
        ("t.jsonl", '{"timestamp": true}\n', {}, (":1", "a time in numbers")),
        ("t.jsonl", '{"timestamp": [1]}\n', {}, (":1", "a time in numbers")),
        ("t.csv", "timestamp\n1\n", {"format": "azure"}, (":2", "is `arrivals.format: azure` right?")),
        (
            "t.jsonl",
            '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}',
            {"format": "mooncake"},
            (":1", "a list of whole numbers"),
        ),
        ("t.csv", "timestamp\n", {}, ("", "holds no arrivals")),
        ("t.jsonl", "", {}, ("", "holds no arrivals")),
    ],
)
def test_a_bad_trace_is_blamed_by_file_and_line(tmp_path, name, text, settings, blamed):
    line, remedy = blamed
    replay = trace(tmp_path, name, text, **settings)
    with pytest.raises(ConfigError) as caught:
        read(replay)
    assert caught.value.source == f"{replay.path}{line}"
    assert remedy in caught.value.remedy


def test_a_trace_that_is_gone_is_blamed(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(Replay(path=str(tmp_path / "gone.csv")))


def test_a_trace_that_has_changed_is_read_again(tmp_path):
    replay = trace(tmp_path, "t.csv", "timestamp\n1\n")
    assert len(read(replay).at_s) == 1
    trace(tmp_path, "t.csv", "timestamp\n1\n2\n")
    later_ns = Path(replay.path).stat().st_mtime_ns + 1_000_000_000
    os.utime(replay.path, ns=(later_ns, later_ns))
    assert len(read(replay).at_s) == 2
