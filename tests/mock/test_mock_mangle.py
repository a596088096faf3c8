"""Claims about answers that break HTTP itself, on a raw socket."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import httpx
import pytest
from test_mock_wire import asked, read_to_end, read_until, tokens_in, truth_of

from harness.testing import MockServer


def unchunked(body: bytes) -> list[bytes]:
    """The payloads of whole chunks, in order."""
    pieces = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        pieces.append(rest[:length])
        body = rest[length + 2 :]
    return pieces


def test_a_reset_in_the_head_sends_a_part_of_it(mock: MockServer):
    with asked(mock, "reset;stage=head") as (sock, request_id):
        received, was_reset = read_to_end(sock)
    assert was_reset
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\n" not in received
    truth = truth_of(mock, request_id)
    assert (truth["status"], truth["end"], truth["completion_tokens"]) == (None, "reset", 0)


@pytest.mark.parametrize(("how", "is_reset"), [("reset", True), ("close", False)])
def test_a_cut_inside_a_chunk_breaks_what_its_size_announced(mock: MockServer, how: str, is_reset: bool):
    with asked(mock, f"cut;after=2;inside=true;how={how}") as (sock, request_id):
        received, was_reset = read_to_end(sock)
    assert was_reset is is_reset
    last = received.rpartition(b"\n\n\r\n")[2]
    size, _, begun = last.partition(b"\r\n")
    assert 0 < len(begun) < int(size, 16)
    truth = truth_of(mock, request_id)
    assert (truth["end"], truth["completion_tokens"], len(truth["chunk_ns"])) == (how, 2, 2)


@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_head_comes_byte_by_byte_before_a_whole_answer(mock: MockServer, stream: bool):
    asked_ns = time.monotonic_ns()
    with asked(mock, "slow_head;pause=0.001", stream=stream) as (sock, request_id):
        first = sock.recv(65536)
        received = first + read_until(sock, b"0\r\n\r\n")
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: mock\r\n\r\n")
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 200")
    assert len(first) < 20
    head, _, body = received.partition(b"\r\n\r\n")
    text = b"".join(unchunked(body))
    assert text.endswith(b"[DONE]\n\n") if stream else json.loads(text)
    truth = truth_of(mock, request_id)
    assert truth["end"] == "complete"
    assert truth["completion_tokens"] == 6
    # The library adds fields of its own, which the mock does not count.
    assert truth["headers_ns"] - asked_ns >= len(head) * 800_000


@pytest.mark.parametrize("by", [10, -10])
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_content_length_is_wrong_by_what_was_asked(mock: MockServer, by: int, stream: bool):
    with asked(mock, f"length;by={by}", stream=stream) as (sock, _):
        received, was_reset = read_to_end(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    announced = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert announced - len(body) == by
    assert not was_reset


def test_a_client_that_leaves_a_mangled_answer_frees_it(mock: MockServer):
    with asked(mock, "slow_head;pause=1") as (sock, request_id):
        assert sock.recv(1) == b"H"
    assert truth_of(mock, request_id)["end"] == "client_gone"


def test_a_split_event_is_cut_inside_a_character(mock: MockServer):
    with httpx.Client(base_url=mock.url, trust_env=False) as http:
        question = {"model": "m", "prompt": "x", "max_tokens": 40, "stream": True}
        with http.stream(
            "POST", "/completions", json=question, headers={"x-mock-fault": "split;pause=0.002"}
        ) as answer:
            pieces = list(answer.iter_raw())
    broken = [piece for piece in pieces if not _is_utf8(piece)]
    assert broken
    assert b"".join(pieces).decode().endswith("data: [DONE]\n\n")


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_merged_events_come_in_one_write(mock: MockServer):
    with asked(mock, "merge;events=4") as (sock, request_id):
        received = b""
        while b"0\r\n\r\n" not in received:
            received += sock.recv(65536)
    pieces = unchunked(received.partition(b"\r\n\r\n")[2])
    assert [piece.count(b"data: ") for piece in pieces] == [4, 4, 1]
    chunk_ns = truth_of(mock, request_id)["chunk_ns"]
    assert len(chunk_ns) == 6
    assert len(set(chunk_ns)) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_gzip_batches_events_and_is_gzip(mock: MockServer, stream: bool):
    message = {"role": "user", "content": "x"}
    question = {"model": "m", "messages": [message], "max_tokens": 6, "stream": stream}
    with (
        httpx.Client(base_url=mock.url, trust_env=False) as http,
        http.stream(
            "POST", "/chat/completions", json=question, headers={"x-mock-fault": "gzip;events=4"}
        ) as answer,
    ):
        assert answer.headers["content-encoding"] == "gzip"
        pieces = list(answer.iter_raw())
    inflate = zlib.decompressobj(wbits=31)
    texts = [inflate.decompress(piece) for piece in pieces]
    if stream:
        assert sum(text.count(b"data: ") for text in texts) == 9
        assert tokens_in(b"".join(texts)) == 6
    else:
        assert json.loads(gzip.decompress(b"".join(pieces)))["usage"]["completion_tokens"] == 6
