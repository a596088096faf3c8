"""Claims about the framing of streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.client.sse import Event, EventStream, KeepAlive, Lines

LINE_ENDS = ("\n", "\r", "\r\n")


def parse(*pieces: bytes) -> list[tuple]:
    parser = EventStream()
    return [shown(e) for p in pieces for e in parser.feed(p)] + [shown(e) for e in parser.close()]


def shown(event: Event | KeepAlive) -> tuple:
    if isinstance(event, KeepAlive):
        return ("keep-alive", event.comment)
    return (event.name, event.payload, event.last_id)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"message", b"a", b"")]),
        (b"data:a\n\n", [(b"message", b"a", b"")]),
        (b"data:  a\n\n", [(b"message", b" a", b"")]),
        (b"data: a\ndata: b\n\n", [(b"message", b"a\nb", b"")]),
        (b"data\n\n", [(b"message", b"", b"")]),
        (b"data:\ndata:\n\n", [(b"message", b"\n", b"")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [(b"error", b"a", b""), (b"message", b"b", b"")]),
        (b"id: 7\ndata: a\n\ndata: b\n\n", [(b"message", b"a", b"7"), (b"message", b"b", b"7")]),
        (b"id: a\0b\ndata: a\n\n", [(b"message", b"a", b"")]),
        (b'data: {"a": "b: c"}\n\n', [(b"message", b'{"a": "b: c"}', b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"message", b"a", b"")]),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"unknown: a\n: keep-alive\n\n", [("keep-alive", b"keep-alive")]),
        (b": keep-alive\n\n", [("keep-alive", b"keep-alive")]),
        (b"\n\n", [("keep-alive", b""), ("keep-alive", b"")]),
        (b"event: ping\n\n", [("keep-alive", b"")]),
    ],
)
def test_the_standards_examples_are_read_as_it_says(stream, events):
    assert parse(stream) == events


@pytest.mark.parametrize("end", LINE_ENDS)
def test_all_three_line_ends_mean_the_same(end):
    stream = "data: a\ndata: b\n\n: c\n\ndata: d\n\n".replace("\n", end).encode()
    assert parse(stream) == parse(b"data: a\ndata: b\n\n: c\n\ndata: d\n\n")


def test_retry_is_kept_only_if_it_is_a_number():
    parser = EventStream()
    parser.feed(b"retry: 1500\n\n")
    parser.feed(b"retry: soon\n\n")
    assert parser.retry_ms == 1500


lines = st.one_of(
    st.sampled_from(
        [b"", b"data", b"data: ", b"data: {}", b"data: [DONE]", b": ka", b"event: x", b"id: 1", b"retry: 5"]
    ),
    st.text(alphabet="da:\u00e9\u4e16 \ufeff", max_size=8).map(str.encode),
)
streams = st.lists(st.tuples(lines, st.sampled_from([e.encode() for e in LINE_ENDS])), max_size=12).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in pairwise(edges)]


@given(streams, st.lists(st.integers(0, 500), max_size=8))
def test_any_split_of_the_bytes_yields_the_same_events(stream, cuts):
    assert parse(*split(stream, cuts)) == parse(stream)


@given(streams)
def test_bytes_one_by_one_yield_the_same_events(stream):
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == parse(stream)


@given(st.lists(st.binary(max_size=20).filter(lambda b: not {10, 13} & set(b)), min_size=1, max_size=9))
def test_whole_events_in_pieces_of_their_own_keep_their_payload(payloads):
    pieces = [b"data: " + payload + b"\n\n" for payload in payloads]
    assert [payload for _, payload, _ in parse(*pieces)] == payloads


def test_an_event_bears_the_stamp_of_the_piece_that_completed_it():
    parser = EventStream()
    assert parser.feed(b"data: a\n", 1) == []
    assert [e.stamp_ns for e in parser.feed(b"\ndata: b\n\ndata: c", 2)] == [2, 2]
    assert [e.stamp_ns for e in parser.feed(b"\n\n", 3)] == [3]


@given(st.lists(st.sampled_from([b'{"a":1}', b"", b" ", b"[2]"]), max_size=8), st.lists(st.integers(0, 99)))
def test_any_split_of_json_lines_yields_the_same_lines(written, cuts):
    stream = b"\n".join(written)
    parser = Lines()
    events = [e for p in split(stream, cuts) for e in parser.feed(p)] + parser.close()
    assert [e.payload for e in events if isinstance(e, Event)] == [w for w in written if w.strip()]


def test_a_blank_line_between_json_lines_is_a_sign_of_life():
    assert [shown(e) for e in Lines().feed(b"\n{}\n")] == [("keep-alive", b""), (b"message", b"{}", b"")]
