"""A server that does to each connection what a script says: the faults of the wire, byte by byte."""

from __future__ import annotations

import random
import re
import socket as names
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent import socket
from gevent.server import StreamServer

from harness.client import target
from harness.client.call import Call, prepare
from harness.client.http1 import Connection
from harness.client.send import Policy, Wire, policy, sender
from harness.clock import now_ns
from harness.record import Record
from harness.workload.prompts import Request
from harness.workload.scenario import Retries, Seconds, Timeouts

CHAT_BODY = (
    b'{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_cache_hit_tokens":4,'
    b'"completion_tokens_details":{"reasoning_tokens":1}}}'
)


class Peer:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.requests: list[bytes] = []

    def read_request(self) -> bytes:
        """One whole request; empty if the client has gone."""
        while b"\r\n\r\n" not in self.buffer:
            piece = self.sock.recv(65_536)
            if not piece:
                return b""
            self.buffer += piece
        head, _, rest = self.buffer.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])
        while len(rest) < length:
            rest += self.sock.recv(65_536)
        request, self.buffer = head + b"\r\n\r\n" + rest[:length], rest[length:]
        self.requests.append(request)
        return request

    def send(self, piece: bytes) -> None:
        self.sock.sendall(piece)

    def reset(self) -> None:
        """RST instead of FIN."""
        self.sock.setsockopt(names.SOL_SOCKET, names.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def until_gone(self) -> None:
        """Wait for the client to close."""
        while self.sock.recv(65_536):
            pass


Script = Callable[[Peer], None]


class Served:
    def __init__(self, url: str) -> None:
        self.url = url
        self.peers: list[Peer] = []


@contextmanager
def serving(*scripts: Script, ssl_context=None) -> Iterator[Served]:
    """Serve connection i by script i, and all further ones by the last."""
    scheme = "http" if ssl_context is None else "https"

    def handle(sock, _address) -> None:
        peer = Peer(sock)
        served.peers.append(peer)
        try:
            scripts[min(len(served.peers), len(scripts)) - 1](peer)
        except OSError:
            pass
        finally:
            sock.close()

    tls = {} if ssl_context is None else {"ssl_context": ssl_context}
    server = StreamServer(("127.0.0.1", 0), handle, **tls)
    server.start()
    served = Served(f"{scheme}://127.0.0.1:{server.server_port}")
    try:
        yield served
    finally:
        server.stop(timeout=1)


def http(status: str, body: bytes, *fields: bytes) -> bytes:
    """A whole response with Content-Length."""
    head = [b"HTTP/1.1 " + status.encode(), *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """A streamed response."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(chunk(piece) for piece in pieces)
    return head + body + (b"0\r\n\r\n" if end else b"")


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def event(content: str = "", *, reasoning: str | None = None, finish: str | None = None) -> bytes:
    """One chat chunk as a server-sent event."""
    thought = "" if reasoning is None else f',"reasoning_content":"{reasoning}"'
    reason = "null" if finish is None else f'"{finish}"'
    delta = f'{{"content":"{content}"{thought}}}'
    return f'data: {{"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}\n\n'.encode()


DONE = b"data: [DONE]\n\n"


def answers(response: bytes) -> Script:
    """Answer every request with these bytes."""

    def script(peer: Peer) -> None:
        while peer.read_request():
            peer.send(response)

    return script


def request(*, stream: bool = False, dialect: str = "chat", seq: int = 0, **changes) -> Request:
    fields = {
        "seq": seq,
        "index": 0,
        "id": f"r-{seq}",
        "session": "s",
        "turn": 0,
        "kind": "stream" if stream else "completion",
        "dialect": dialect,
        "model": "m",
        "prompt": "hello",
        "messages": None,
        "max_tokens": 4,
        "stream": stream,
        "parameters": {},
        "prompt_tokens": 2,
        "tags": {"a": "b"},
    }
    return Request(**{**fields, **changes})


def patient(
    *, connect: float = 5, idle: float = 5, total: float = 10, retries: Retries | None = None, sleep=None
) -> Policy:
    timeouts = Timeouts(connect_s=Seconds(connect), idle_s=Seconds(idle), total_s=Seconds(total))
    sleep = sleep or unheard
    return policy(timeouts, retries or Retries(), random.Random(7), sleep)


def unheard(_: object) -> None:
    """Who doesn't listen: the log, or the sleep, of a test that looks at neither."""


def call_to(url: str, *, key: str = "", **of_request) -> Call:
    return prepare(request(**of_request), target.parse(url, key=key))


def attempt(url_or_wire: str | Wire, *, rules: Policy | None = None, log=None, **of_request) -> Record:
    """Send one request, over a connection of its own if given a URL; the final record."""
    owned = isinstance(url_or_wire, str)
    wire = Connection(target.parse(url_or_wire)) if owned else url_or_wire
    try:
        rules = rules or patient()
        call = prepare(request(**of_request), wire.target)
        return sender(rules)(wire, call, None, now_ns(), rules, log or unheard)
    finally:
        if owned:
            wire.close()
