import itertools
import tempfile
from array import array
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import record
from hypothesis import given
from hypothesis import strategies as st

from harness import runlog
from harness.errors import ConfigError, RunLogError
from harness.record import Sample, Usage, WorkerLedger

START = datetime(2026, 11, 23, 5, 6, 7, tzinfo=UTC)


def ledger(worker: int = 0, **counts: int) -> WorkerLedger:
    full = {
        "planned": 10,
        "started": 8,
        "dropped": 1,
        "not_started": 1,
        "finished": 7,
        "cut_off": 1,
        "records": 9,
    }
    return WorkerLedger(worker=worker, **(full | counts))


def test_a_record_comes_back_as_it_was_written() -> None:
    written = record(
        seq=7,
        chunk_ns=array("q", [3, 3, 9]),
        usage=Usage(prompt=5, completion=3, cached=2, reasoning=1),
        tags={"team": "search"},
        retry_after_s=1.5,
        status=429,
    )
    row = pa.Table.from_batches([runlog.to_batch([written])]).to_pylist()[0]
    assert row["chunk_ns"] == [3, 3, 9]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (5, 3)
    assert (row["cached_tokens"], row["reasoning_tokens"], row["usage_source"]) == (2, 1, "server")
    assert dict(row["tags"]) == {"team": "search"}
    assert (row["seq"], row["retry_after_s"], row["status"]) == (7, 1.5, 429)


def test_a_stamp_never_taken_is_null_not_zero() -> None:
    row = runlog.to_batch([record(first_token_ns=None, usage=None)]).to_pylist()[0]
    assert row["first_token_ns"] is None
    assert row["prompt_tokens"] is None
    assert row["usage_source"] is None


@given(st.integers(min_value=0, max_value=40), st.data())
def test_a_log_cut_anywhere_gives_every_whole_batch(count: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = runlog.records_path(Path(folder), 0)
        messages: list[bytes] = []
        writer = runlog.Writer(path, rows=5, ship=messages.append)
        for seq in range(count):
            writer.extend([record(seq=seq)])
        writer.close()
        whole = path.read_bytes()
        cut = data.draw(st.integers(min_value=0, max_value=len(whole)))
        path.write_bytes(whole[:cut])
        table, torn_bytes = runlog.merge(Path(folder))
        assert table["seq"].to_pylist() == list(range(len(table)))
        assert len(table) == count or len(table) % 5 == 0
        ends = [0, len(runlog.SCHEMA.serialize()), *itertools.accumulate(map(len, messages))]
        assert torn_bytes == cut - max(end for end in ends if end <= cut)
        if cut == len(whole):
            assert (len(table), torn_bytes) == (count, 0)


def test_a_tail_gives_each_batch_once_as_the_log_grows(tmp_path: Path) -> None:
    path = runlog.records_path(tmp_path, 0)
    writer = runlog.Writer(path)
    tail = runlog.Tail(path)
    assert tail.poll() == []
    seen = []
    for seq in range(3):
        writer.extend([record(seq=seq)])
        writer.flush()
        seen += [batch["seq"].to_pylist() for batch in tail.poll()]
    writer.close()
    assert seen == [[0], [1], [2]]
    assert tail.poll() == []
    assert tail.torn_bytes == 0


def test_a_copy_shipped_message_by_message_is_the_same_log(tmp_path: Path) -> None:
    shipped: list[bytes] = []
    path = runlog.records_path(tmp_path, 0)
    writer = runlog.Writer(path, rows=2, ship=shipped.append)
    for seq in range(5):
        writer.extend([record(seq=seq)])
    writer.close()
    assert b"".join(shipped) == path.read_bytes()


def test_what_is_recorded_while_a_batch_is_shipped_is_written_once(tmp_path: Path) -> None:
    late = iter([record(seq=seq) for seq in range(5, 9)])
    path = runlog.records_path(tmp_path, 0)

    def ship(_message: bytes) -> None:
        writer.extend(itertools.islice(late, 1))

    writer = runlog.Writer(path, rows=2)
    writer._ship = ship
    writer.extend([record(seq=seq) for seq in range(5)])
    writer.close()
    table, torn_bytes = runlog.merge(tmp_path)
    assert sorted(table["seq"].to_pylist()) == list(range(9))
    assert (writer.count, torn_bytes) == (9, 0)


def test_merging_puts_workers_in_order_of_arrival(tmp_path: Path) -> None:
    for worker in (0, 1):
        writer = runlog.Writer(runlog.records_path(tmp_path, worker))
        for seq in (worker + 2, worker):
            writer.extend([record(seq=seq)])
        writer.close()
    runlog.merge(tmp_path)
    table = runlog.read_requests(tmp_path)
    assert table["seq"].to_pylist() == [0, 1, 2, 3]
    assert table["worker"].to_pylist() == [0, 1, 0, 1]
    assert table.schema.equals(runlog.MERGED_SCHEMA)


def test_a_log_of_an_earlier_version_lacks_columns_and_is_read_all_the_same(tmp_path: Path) -> None:
    batch = runlog.to_batch([record(seq=seq) for seq in range(3)]).drop_columns(["queued_ns"])
    with pa.ipc.new_stream(str(runlog.records_path(tmp_path, 0)), batch.schema) as stream:
        stream.write_batch(batch)
    table, torn_bytes = runlog.merge(tmp_path)
    assert (table["seq"].to_pylist(), torn_bytes) == ([0, 1, 2], 0)
    pq.write_table(table.drop_columns(["queued_ns"]), tmp_path / "requests.parquet")
    read = runlog.read_requests(tmp_path)
    assert read.schema.equals(runlog.MERGED_SCHEMA)
    assert read["queued_ns"].to_pylist() == [None, None, None]


def test_a_torn_last_sample_is_left_out(tmp_path: Path) -> None:
    whole = b'{"t_ns":1,"worker":0,"due":1,"started":1,"dropped":0,"finished":1,"in_flight":0,"cpu_s":0.1,'
    whole += b'"wall_s":1.0,"hub_lag_max_ns":0,"gc_pause_max_ns":0,"rss_bytes":1,"open_files":1}\n'
    runlog.samples_path(tmp_path, 0).write_bytes(whole + whole[:30])
    assert [type(sample) for sample in runlog.read_samples(tmp_path)] == [Sample]


def test_run_folders_of_one_second_do_not_collide(tmp_path: Path) -> None:
    first, second = (runlog.create(tmp_path, "mix", START) for _ in range(2))
    assert (first.name, second.name) == ("20261123T050607Z-mix", "20261123T050607Z-mix-2")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"is not a run folder: it has no run\.json"):
        runlog.read_run(tmp_path)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(RunLogError, match="cannot make the run folder"):
        runlog.create(tmp_path / "runs" / "below", "mix", START)


def test_books_that_balance_have_nothing_to_say() -> None:
    manifest = runlog.reconcile([ledger(0), ledger(1)], planned=20, rows=18, stop_reason="completed")
    assert manifest.imbalances == []
    assert (manifest.planned, manifest.started, manifest.dropped, manifest.lost) == (20, 16, 2, 0)


@pytest.mark.parametrize(
    ("counts", "planned", "rows", "says"),
    [
        ({"started": 7, "finished": 6}, 10, 9, "worker 0: planned 10 ≠ started 7"),
        ({"finished": 5}, 10, 9, "worker 0: started 8 ≠ finished 5"),
        ({}, 25, 9, "15 planned arrivals are lost with workers that never reported back"),
        ({}, 10, 8, "the workers wrote 9 records, the merged log holds 8"),
    ],
)
def test_each_sum_that_does_not_add_up_is_said(
    counts: dict[str, int], planned: int, rows: int, says: str
) -> None:
    manifest = runlog.reconcile([ledger(**counts)], planned=planned, rows=rows, stop_reason="completed")
    assert any(sentence.startswith(says) for sentence in manifest.imbalances)


def test_bytes_left_unread_unbalance_the_books() -> None:
    manifest = runlog.reconcile([ledger()], planned=10, rows=9, stop_reason="completed", torn_bytes=4)
    assert manifest.imbalances == ["4 bytes of unfinished batches stand at the logs' ends"]


def test_a_worker_killed_in_mid_run_keeps_what_it_had_recorded(tmp_path: Path) -> None:
    for worker, seqs in ((0, (0, 2)), (1, (1, 3, 3))):
        writer = runlog.Writer(runlog.records_path(tmp_path, worker))
        for index, seq in enumerate(seqs):
            writer.extend([record(seq=seq, index=index)])
        writer.close()
    table, _ = runlog.merge(tmp_path)
    reported = [ledger(0, planned=2, started=2, dropped=0, not_started=0, finished=2, cut_off=0, records=2)]
    left = runlog.orphans(table, reported)
    assert left == {1: (3, 2)}
    manifest = runlog.reconcile(reported, planned=10, rows=5, stop_reason="completed", orphans=left)
    assert (manifest.started, manifest.finished, manifest.lost) == (4, 4, 6)
    assert manifest.imbalances == [
        (
            "6 planned arrivals are lost with workers that never reported back; "
            "of the same workers, 2 arrivals are in the log"
        )
    ]


def test_a_log_is_known_to_be_written_until_its_writer_closes_it(tmp_path: Path) -> None:
    writer = runlog.Writer(runlog.records_path(tmp_path, 3))
    assert runlog.being_written(tmp_path) == [3]
    writer.close()
    assert runlog.being_written(tmp_path) == []


def test_a_folder_for_runs_is_made_where_there_is_none_and_left_empty(tmp_path: Path) -> None:
    runlog.check_root(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_for_runs_that_cannot_be_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--runs is '.*/file/runs': .*Not a directory.*: give a folder"):
        runlog.check_root(tmp_path / "file" / "runs")
