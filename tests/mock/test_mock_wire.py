"""Claims about faults as they look on a raw socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from harness.testing import MockServer


@contextlib.contextmanager
def asked(mock: MockServer, fault: str, *, stream: bool = True) -> Iterator[tuple[socket.socket, str]]:
    """A raw HTTP/1.1 connection on which a chat of six tokens was just asked for."""
    request_id = uuid.uuid4().hex
    question = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 6,
        "stream": stream,
    }
    body = json.dumps(question).encode()
    head = (
        f"POST /chat/completions HTTP/1.1\r\nhost: mock\r\ncontent-type: application/json\r\n"
        f"x-request-id: {request_id}\r\nx-mock-fault: {fault}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(mock.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
        sock.sendall(head.encode() + body)
        yield sock, request_id


def read_to_end(sock: socket.socket) -> tuple[bytes, bool]:
    """All bytes until the connection ends, and whether it was reset."""
    received = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return received, True
        if not piece:
            return received, False
        received += piece


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


def tokens_in(received: bytes) -> int:
    return received.count(b'"delta":{"content":"') - received.count(b'"delta":{"content":""}')


def truth_of(mock: MockServer, request_id: str) -> dict:
    deadline = time.monotonic() + 5
    while True:
        try:
            return mock.truth_of(request_id)
        except KeyError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(("how", "is_reset"), [("reset", True), ("close", False)])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cut_stream_breaks_after_its_tokens_without_end(
    mock: MockServer, how: str, is_reset: bool, after: int
):
    with asked(mock, f"cut;after={after};how={how}") as (sock, request_id):
        received, was_reset = read_to_end(sock)
    assert was_reset is is_reset
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert tokens_in(received) == after
    assert b"[DONE]\n" not in received
    assert not received.endswith(b"0\r\n\r\n")
    truth = truth_of(mock, request_id)
    assert truth["end"] == how
    assert truth["completion_tokens"] == after


@pytest.mark.parametrize(("how", "is_reset"), [("reset", True), ("close", False)])
def test_a_cut_whole_answer_breaks_in_its_body(mock: MockServer, how: str, is_reset: bool):
    with asked(mock, f"cut;how={how}", stream=False) as (sock, request_id):
        received, was_reset = read_to_end(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    announced = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert was_reset is is_reset
    assert 0 < len(body) < announced
    assert truth_of(mock, request_id)["end"] == how


@pytest.mark.parametrize("stream", [True, False])
def test_a_reset_comes_before_any_byte(mock: MockServer, stream: bool):
    with asked(mock, "reset", stream=stream) as (sock, request_id):
        assert read_to_end(sock) == (b"", True)
    truth = truth_of(mock, request_id)
    assert truth["status"] is None
    assert truth["end"] == "reset"


def test_a_hang_says_nothing_until_it_closes(mock: MockServer):
    asked_ns = time.monotonic_ns()
    with asked(mock, "hang;seconds=0.2") as (sock, request_id):
        assert read_to_end(sock) == (b"", False)
    assert time.monotonic_ns() - asked_ns >= 200_000_000
    assert truth_of(mock, request_id)["end"] == "close"


def test_a_hang_without_limit_ends_when_the_client_gives_up(mock: MockServer):
    with asked(mock, "hang") as (sock, request_id):
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert truth_of(mock, request_id)["end"] == "client_gone"


def test_a_client_that_leaves_before_the_answer_was_sent_no_status(mock: MockServer):
    with asked(mock, "status;code=504;delay=60", stream=False) as (_, request_id):
        pass
    truth = truth_of(mock, request_id)
    assert truth["end"] == "client_gone"
    assert truth["status"] is None


def test_a_stall_keeps_the_socket_open_and_goes_on(mock: MockServer):
    with asked(mock, "stall;after=2;seconds=0.2") as (sock, request_id):
        received = read_until(sock, b"[DONE]\n\n")
    assert tokens_in(received) == 6
    chunk_ns = truth_of(mock, request_id)["chunk_ns"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(chunk_ns)]
    assert gaps[1] == max(gaps) >= 190_000_000


def test_a_stream_without_end_marker_ends_cleanly(mock: MockServer):
    with asked(mock, "no_done") as (sock, request_id):
        received = read_until(sock, b"0\r\n\r\n")
    assert b"data: [DONE]\n" not in received
    assert tokens_in(received) == 6
    assert truth_of(mock, request_id)["end"] == "complete"


def test_an_error_event_stands_in_a_200_stream(mock: MockServer):
    with asked(mock, "error_event;after=2") as (sock, request_id):
        received = read_until(sock, b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    assert tokens_in(received) == 2
    assert b'data: {"error":' in received
    assert truth_of(mock, request_id)["fault"] == "error_event;after=2"


def test_a_malformed_event_stands_among_good_ones(mock: MockServer):
    with asked(mock, "malformed;after=2") as (sock, request_id):
        received = read_until(sock, b"0\r\n\r\n")
    texts = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
    broken = [text for text in texts if not _is_json(text)]
    assert len(broken) == 1
    assert truth_of(mock, request_id)["completion_tokens"] == 5


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("stream", "sign"), [(True, b": keep-alive\n\n"), (False, b"\n")])
def test_keepalives_come_one_by_one_before_the_first_token(mock: MockServer, stream: bool, sign: bytes):
    with asked(mock, "keepalive;seconds=0.15;every=0.05", stream=stream) as (sock, request_id):
        received = read_until(sock, b"0\r\n\r\n")
    body = received.partition(b"\r\n\r\n")[2]
    piece = b"%X\r\n%s\r\n" % (len(sign), sign)
    assert body.startswith(piece * 3)
    truth = truth_of(mock, request_id)
    first_ns = truth["chunk_ns"][0] if stream else truth["ended_ns"]
    assert first_ns - truth["arrived_ns"] >= 150_000_000


def test_another_finish_reason_is_told_and_logged(mock: MockServer):
    with asked(mock, "finish") as (sock, request_id):
        received = read_until(sock, b"0\r\n\r\n")
    assert b'"finish_reason":"insufficient_system_resource"' in received
    assert truth_of(mock, request_id)["finish_reason"] == "insufficient_system_resource"


def test_a_connection_lives_on_after_faults_above_http(mock: MockServer):
    with asked(mock, "status;code=503") as (sock, _):
        received = read_until(sock, b'"}}')
        assert received.startswith(b"HTTP/1.1 503")
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: mock\r\n\r\n")
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 200")


def test_breaking_one_connection_leaves_the_others_alone(mock: MockServer):
    with asked(mock, "stall;after=1;seconds=0.2") as (steady, _), asked(mock, "cut;after=1") as (broken, _):
        assert read_to_end(broken)[1]
        assert tokens_in(read_until(steady, b"[DONE]\n\n")) == 6
