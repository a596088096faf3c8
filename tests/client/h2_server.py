"""An HTTP/2 server on gevent and h2, for the client's tests: a script answers each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from gevent.server import StreamServer
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from scripted import CHAT_BODY


class H2Peer:
    """The server's side of one connection."""

    def __init__(self, sock, settings: dict[SettingCodes, int]) -> None:
        self.sock = sock
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.settings = settings
        self.heads: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.open = 0
        self.most_open = 0
        self.window = gevent.event.Event()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def serve(self, answer: Callable[[H2Peer, int], None]) -> None:
        self.h2.initiate_connection()
        self.h2.update_settings(self.settings)
        self.flush()
        while piece := self.sock.recv(65_536):
            for event in self.h2.receive_data(piece):
                self.take(event, answer)
            self.flush()

    def take(self, event, answer) -> None:
        stream = getattr(event, "stream_id", 0)
        if isinstance(event, RequestReceived):
            self.heads[stream] = dict(event.headers)
            self.bodies[stream] = b""
            self.open += 1
            self.most_open = max(self.open, self.most_open)
        elif isinstance(event, DataReceived):
            self.bodies[stream] += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, StreamEnded):
            gevent.spawn(answer, self, stream)
        elif isinstance(event, StreamReset):
            self.resets[stream] = event.error_code
            self.open -= 1
        elif isinstance(event, WindowUpdated):
            self.window.set()

    def head(self, stream: int, status: str = "200", **fields: str) -> None:
        self.h2.send_headers(stream, [(":status", status), *fields.items()])
        self.flush()

    def body(self, stream: int, piece: bytes, *, end: bool = False) -> None:
        while piece:
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(piece))
            if size == 0:
                self.window.clear()
                self.window.wait()
                continue
            self.h2.send_data(stream, piece[:size])
            piece = piece[size:]
            self.flush()
        if end:
            self.open -= 1
            self.h2.end_stream(stream)
            self.flush()

    def reset(self, stream: int, code: ErrorCodes) -> None:
        self.open -= 1
        self.h2.reset_stream(stream, code)
        self.flush()

    def go_away(self, last_stream: int) -> None:
        """GOAWAY, but go on serving the streams under way: h2 itself can't."""
        self.sock.sendall(
            b"\0\0\x08\x07\0\0\0\0\0"
            + last_stream.to_bytes(4, "big")
            + int(ErrorCodes.NO_ERROR).to_bytes(4, "big")
        )


def whole(peer: H2Peer, stream: int, body: bytes = CHAT_BODY) -> None:
    """Answer at once."""
    peer.head(stream)
    peer.body(stream, body, end=True)


class ServedH2:
    def __init__(self, url: str) -> None:
        self.url = url
        self.peers: list[H2Peer] = []


@contextmanager
def serving_h2(
    answer: Callable[[H2Peer, int], None] = whole, *, settings=None, ssl_context=None
) -> Iterator[ServedH2]:
    scheme = "http" if ssl_context is None else "https"

    def handle(sock, _address) -> None:
        peer = H2Peer(sock, settings or {})
        served.peers.append(peer)
        try:
            peer.serve(answer)
        except (OSError, ProtocolError):
            pass
        finally:
            sock.close()

    tls = {} if ssl_context is None else {"ssl_context": ssl_context}
    server = StreamServer(("127.0.0.1", 0), handle, **tls)
    server.start()
    served = ServedH2(f"{scheme}://127.0.0.1:{server.server_port}")
    try:
        yield served
    finally:
        server.stop(timeout=1)
