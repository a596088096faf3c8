"""Claims about the way of a log from a worker to its master."""

from pathlib import Path
from typing import Any

import aside
from hypothesis import given
from hypothesis import strategies as st

from harness.clock import FakeClock

freight = aside.module("freight")


@given(st.lists(st.binary(max_size=8), max_size=12), st.randoms(use_true_random=False))
def test_pieces_in_any_order_and_number_of_copies_make_the_same_file(
    pieces: list[bytes], random: Any
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        sent: list[dict[str, Any]] = []
        outbox = freight.Outbox(sent.append, FakeClock())
        for piece in pieces:
            outbox.put("records-3.arrows", piece)
        arriving = sent * 2
        random.shuffle(arriving)
        inbox = freight.Inbox(Path(name))
        for message in arriving:
            outbox.acknowledge(inbox.take(message))
        path = Path(name) / "records-3.arrows"
        assert (path.read_bytes() if path.exists() else b"") == b"".join(pieces)
        assert outbox.empty


def test_what_a_start_that_was_called_off_has_left_of_a_log_goes(tmp_path: Path) -> None:
    """`harness run` has one folder for all starts of its web UI: after an end mark nobody would read on."""
    for pieces in ([b"schema", b"end"], [b"schema", b"batch", b"end"]):
        inbox = freight.Inbox(tmp_path)
        for n, piece in enumerate(pieces):
            inbox.take({"n": n, "file": "records-0.arrows", "piece": piece})
    assert (tmp_path / "records-0.arrows").read_bytes() == b"schemabatchend"


def test_a_piece_without_an_answer_is_sent_again_only_after_its_time() -> None:
    sent: list[dict[str, Any]] = []
    clock = FakeClock()
    outbox = freight.Outbox(sent.append, clock)
    outbox.put("samples-0.jsonl", b"{}")
    outbox.resend()
    assert len(sent) == 1
    clock.advance(3)
    outbox.resend()
    assert [message["n"] for message in sent] == [0, 0]
    outbox.acknowledge(0)
    clock.advance(3)
    outbox.resend()
    assert len(sent) == 2


def test_a_worker_cannot_write_outside_its_own_log(tmp_path: Path) -> None:
    inbox = freight.Inbox(tmp_path / "run")
    (tmp_path / "run").mkdir()
    for n, file in enumerate(["../evil", "run.json", "records-1.arrows/../../x"]):
        inbox.take({"n": n, "file": file, "piece": b"x"})
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"]
