"""Claims about the mock's front door, on a raw socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness.mock.app import Behaviour, Mock
from harness.mock.front import Front, Reply
from harness.mock.latency import load_profile
from harness.mock.playback import Playback
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


def await_end(mock: MockServer) -> None:
    """Return once it is gone: a second signal in the midst of its end would be its death."""
    os.waitid(os.P_PID, mock.pid, os.WEXITED | os.WNOWAIT)


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


def test_a_fault_leaves_the_answer_before_it_whole(mock: MockServer):
    with connected(mock) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow = b"x-mock-fault: slow_head;pause=0.0001\r\nconnection: close\r\nhost:"
        sock.sendall(chat("before", stream=True, tokens=20_000) + chat("after").replace(b"host:", slow))
        while mock.health()["in_flight"]:
            time.sleep(0.01)
        time.sleep(0.1)  # the fault would strike by now
        received = read_to_end(sock)
    assert b"data: [DONE]\n\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" in received


def test_a_connection_that_asks_to_be_closed_is(mock: MockServer):
    with connected(mock) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: mock\r\nconnection: close\r\n\r\n")
        head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["status"] == "ok"


def test_a_status_that_http_does_not_know_is_sent_without_words(mock: MockServer):
    fault = b"x-mock-fault: html;code=520\r\nhost:"
    with connected(mock) as sock:
        sock.sendall(chat("gateway").replace(b"host:", fault))
        assert read_until(sock, b"</html>").startswith(b"HTTP/1.1 520 \r\n")


def test_a_mock_that_is_told_to_end_waits_for_a_client_that_reads_slowly():
    with mock_server() as mock, connected(mock) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.sendall(chat("slow-reader", stream=True, tokens=20_000))
        read_until(sock, b"data: ")
        while mock.health()["in_flight"]:  # it holds what the socket does not take
            time.sleep(0.01)
        os.kill(mock.pid, signal.SIGTERM)
        time.sleep(0.2)
        assert b"".join(read_by_the_way(sock)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await_end(mock)


def test_an_answer_after_which_the_mock_ends_says_that_it_is_the_last():
    with mock_server() as mock, connected(mock) as sock:
        sock.sendall(chat("last").replace(b"host:", b"x-mock-fault: status;code=503;delay=0.3\r\nhost:"))
        while not mock.health()["in_flight"]:
            time.sleep(0.01)
        os.kill(mock.pid, signal.SIGTERM)
        assert b"connection: close\r\n" in read_to_end(sock)
        await_end(mock)


def test_a_client_that_does_not_wait_for_the_mock_to_be_ready_is_answered(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "harness.mock", "--port", str(port), "--profile", "fast"]
    late = chat("early", stream=True).replace(b"host:", b"x-mock-fault: keepalive;seconds=0.01\r\nhost:")
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log) as process:
        deadline_s = time.monotonic() + 10
        try:
            while True:
                try:
                    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline_s
            with sock:
                sock.sendall(late)
                assert b"HTTP/1.1 200 OK\r\n" in read_until(sock, b"\r\n\r\n")
        finally:
            process.terminate()


def test_a_client_that_keeps_its_http2_connection_cannot_keep_the_mock():
    with mock_server(drain_s=0.1) as mock, connected(mock) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        assert sock.recv(9)
        os.kill(mock.pid, signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            read_to_end(sock)
        await_end(mock)


# -- in this process ---------------------------------------------------------------------------------------


class Mistaken:
    """An application with a mistake: before its answer, or in the middle of it."""

    def answer(self, scope: Any, proto: Any, _body: bytes, *, first_byte_ns: int, arrived_ns: int) -> None:
        del first_byte_ns, arrived_ns
        if scope.path == "/stream":
            stream = proto.response_stream(200, [])
            stream.send_bytes(b"half")
        raise RuntimeError(f"a mistake at {scope.path}")


@contextlib.asynccontextmanager
async def front_of(application: Any, elsewhere: int = 1) -> AsyncIterator[int]:
    """A front door's port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    front = Front(application, "127.0.0.1", port, elsewhere)
    front.open()
    yield port
    front.close()


def asked(port: int, raw: bytes) -> bytes:
    """All that comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(raw)
        return read_to_end(sock)


def test_a_mistake_of_the_mocks_own_is_answered_and_told(capsys: pytest.CaptureFixture[str]):
    async def twice() -> bytes:
        async with front_of(Mistaken()) as port:
            last = b"GET /b HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n"
            return await asyncio.to_thread(asked, port, b"GET /a HTTP/1.1\r\nhost: m\r\n\r\n" + last)

    received = asyncio.run(twice())
    assert received.count(b"HTTP/1.1 500 Internal Server Error\r\n") == 2
    assert "RuntimeError: a mistake at /b" in capsys.readouterr().err


def test_a_stream_that_a_mistake_ends_does_not_look_whole():
    async def once() -> bytes:
        async with front_of(Mistaken()) as port:
            return await asyncio.to_thread(asked, port, b"GET /stream HTTP/1.1\r\nhost: m\r\n\r\n")

    assert asyncio.run(once()).endswith(b"\r\n4\r\nhalf\r\n")


def test_what_has_answered_is_let_go_without_collecting_garbage():
    late = b"x-mock-fault: keepalive;seconds=0.001\r\nhost:"
    delayed = b"x-mock-fault: status;code=503;delay=9\r\nhost:"

    async def some() -> list[object]:
        mock = Mock(Behaviour(profile=load_profile("fast")))
        mock.start(asyncio.get_running_loop())
        async with front_of(mock) as port:
            for raw in (chat("whole", version="1.0"), chat("stream", stream=True, version="1.0")):
                await asyncio.to_thread(asked, port, raw.replace(b"host:", late))
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(chat("leaves").replace(b"host:", delayed))
            while not mock.in_flight:  # noqa: ASYNC110 - of another's making
                await asyncio.sleep(0)
            writer.close()
            while mock.in_flight:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [found for found in gc.get_objects() if isinstance(found, Reply | Playback)]

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(some()) == []
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_a_relay_comes_from_where_no_client_does():
    """Faults find their connection by the peer's address, of which there must not be two."""

    async def peer() -> tuple[str, int]:
        behind = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            behind.set_result(writer.get_extra_info("peername"))
            writer.close()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            elsewhere = server.sockets[0].getsockname()[1]
            async with front_of(Mistaken(), elsewhere) as port:
                assert not await asyncio.to_thread(asked, port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        found: tuple[str, int] = await behind
        return found

    assert asyncio.run(peer())[0] == "127.0.0.2"
