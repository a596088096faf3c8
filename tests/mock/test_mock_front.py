"""Claims about the mock's front door, on a raw socket."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from harness.testing import MockServer, mock_server


@contextlib.contextmanager
def connected(mock: MockServer) -> Iterator[socket.socket]:
    address = urlsplit(mock.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
        yield sock


def chat(request_id: str, *, stream: bool = False, tokens: int = 3, version: str = "1.1") -> bytes:
    question = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens}
    body = json.dumps({**question, "stream": stream}).encode()
    head = f"POST /chat/completions HTTP/{version}\r\nhost: mock\r\nx-request-id: {request_id}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def read_until(sock: socket.socket, mark: bytes, count: int = 1) -> bytes:
    received = b""
    while received.count(mark) < count:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return received


def read_by_the_way(sock: socket.socket) -> Iterator[bytes]:
    """A stream's pieces, not looked at but for the end."""
    tail = b""
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        piece = sock.recv(65536)
        assert piece
        tail = tail[-8:] + piece
        yield piece


def read_to_end(sock: socket.socket) -> bytes:
    received = b""
    while piece := sock.recv(65536):
        received += piece
    return received


def test_requests_sent_ahead_are_answered_in_turn(mock: MockServer):
    with connected(mock) as sock:
        sock.sendall(chat("ahead-1", stream=True) + chat("ahead-2") + chat("ahead-3", stream=True))
        received = read_until(sock, b"0\r\n\r\n", count=2)
    heads = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [head[head.index(b"ahead-") :][:7] for head in heads] == [b"ahead-1", b"ahead-2", b"ahead-3"]


def test_a_request_that_comes_byte_by_byte_is_answered(mock: MockServer):
    with connected(mock) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in chat("slow-client"):
            sock.sendall(bytes([byte]))
        received = read_until(sock, b'"usage"')
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    entry = mock.truth_of("slow-client")
    assert entry["first_byte_ns"] < entry["arrived_ns"]


def test_a_client_of_http_1_0_reads_a_stream_to_the_end_of_its_connection(mock: MockServer):
    with connected(mock) as sock:
        sock.sendall(chat("old-client", stream=True, version="1.0"))
        received = read_to_end(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.endswith(b"data: [DONE]\n\n")
    assert mock.truth_of("old-client")["end"] == "complete"


def test_what_is_no_http_is_refused_and_its_connection_closed(mock: MockServer):
    with connected(mock) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        received = read_to_end(sock)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert received.endswith(b"no request line\n")


def test_a_client_that_asks_before_it_sends_a_body_is_let():
    with mock_server() as mock, connected(mock) as sock:
        head, _, body = chat("polite").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_until(sock, b'"usage"').startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_reads_slowly_gets_every_byte(mock: MockServer):
    with connected(mock) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.sendall(chat("slow-reader", stream=True, tokens=20_000))
        time.sleep(0.5)  # the mock's writes meet a full socket meanwhile
        received = b"".join(read_by_the_way(sock))
    assert received.count(b'"delta":{"content":"') == 20_001  # the last is empty
    assert mock.truth_of("slow-reader")["end"] == "complete"


def test_a_connection_that_asks_to_be_closed_is(mock: MockServer):
    with connected(mock) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: mock\r\nconnection: close\r\n\r\n")
        head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["status"] == "ok"
