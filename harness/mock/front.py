"""The mock's front door for plain HTTP/1.1: from the socket to the plan and back in one thread.

    socket ──► http1.Reader ──► Mock.answer ──► Reply ──► socket
                    └── HTTP/2, WebSocket ──► relay ──► the library's door

What the library does with its thread beside Python's costs as much as the answer, and lets no one say when
bytes were really written. Here a stamp is taken, and the system call follows.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
import time
import traceback
from collections.abc import Coroutine
from typing import Any, Protocol, cast

import msgspec

from harness.mock import http1
from harness.mock.pacer import now_ns

_READ_BYTES = 65_536
_WRITE_BYTES = 1 << 20
_ACCEPTS = 64
_AGAIN_S = 0.1
"""Before connections are accepted again, when no descriptor was left for one."""
_RELAY_S = 1.0
"""By then the library listens again."""
_FROM = ("127.0.0.2", 0) if sys.platform == "linux" else None
"""Where a relay comes from: a fault looks for its connection by the peer's address, and of the ports of
127.0.0.1 the kernel may give a relay one that a client has as well."""
_LINGER_0 = struct.pack("ii", 1, 0)
_PLAIN = [("content-type", "text/plain")]
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Application(Protocol):
    """Who answers."""

    def answer(
        self, scope: Any, proto: Any, body: bytes, *, first_byte_ns: int, arrived_ns: int
    ) -> Coroutine[Any, Any, None] | None:
        """Answer a `Scope` into a `Reply` at once, or give what will: both could be the library's."""


class Scope(msgspec.Struct, gc=False):
    """What an application is told of a request, as RSGI has it."""

    method: str
    path: str
    query_string: str
    http_version: str
    headers: dict[str, str]
    client: str
    """The peer's address, `host:port`."""
    server: str
    proto: str = "http"
    scheme: str = "http"
    authority: str | None = None


class Front:
    """Accepts connections, and reads what comes.

    Args:
        application: answers.
        host: where to listen.
        port: likewise; shared with the socket that reserves it.
        elsewhere: the library's port on the loopback, for what is not plain HTTP/1.1.
    """

    def __init__(self, application: Application, host: str, port: int, elsewhere: int) -> None:
        self.application = application
        self.elsewhere = elsewhere
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self.working: set[asyncio.Task[None]] = set()
        """What answers, or begins to relay, at present."""
        self.relaying: set[_Half] = set()
        self._address = (host, port)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Listen."""
        listener = self._listener = socket.socket(self._family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setblocking(False)
        listener.bind(self._address)
        listener.listen(4096)
        self.loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Refuse connections from now on; those there are end with the answer under way."""
        if self._listener is not None:
            self.loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for connection in list(self.connections):
            connection.finish()

    def cut_off(self) -> None:
        """End all relays, whatever they carry."""
        for half in list(self.relaying):
            half.transport.abort()

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        for _ in range(_ACCEPTS):
            try:
                accepted, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self.loop.remove_reader(listener)
                    self.loop.call_later(_AGAIN_S, self._listen_again, listener)
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections.add(_Connection(self, accepted, peer))

    def _listen_again(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self.loop.add_reader(listener, self._accept)

    def work(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something in the background."""
        task = self.loop.create_task(work)
        self.working.add(task)
        task.add_done_callback(self.working.discard)
        return task


class _Connection:
    """One client's: a request at a time."""

    __slots__ = (
        "_client",
        "_closing",
        "_front",
        "_reader",
        "_reply",
        "_server",
        "_serving",
        "_socket",
        "_unsent",
        "open",
    )

    def __init__(self, front: Front, accepted: socket.socket, peer: Any) -> None:
        self.open = True
        self._front = front
        self._socket = accepted
        self._reader = http1.Reader()
        self._client = _told(peer)
        self._server = _told(accepted.getsockname())
        self._reply: Reply | None = None
        self._unsent = bytearray()
        self._closing = self._serving = False
        front.loop.add_reader(accepted, self._on_readable)

    def write(self, payload: bytes) -> None:
        """Hand bytes to the kernel now, as many as it takes; the rest follows by itself."""
        if not self.open or self._unsent:
            self._unsent += payload
            return
        try:
            taken = self._socket.send(payload)
        except BlockingIOError:
            taken = 0
        except OSError:  # Reading will tell, unless nothing is left to read.
            self._front.loop.call_soon(self._lost)
            return
        if taken < len(payload):
            self._unsent += payload[taken:]
            self._front.loop.add_writer(self._socket, self._on_writable)

    def answered(self, *, last: bool) -> None:
        """The reply has ended; go on with the next request, or close."""
        self._reply = None
        self._closing = self._closing or last
        if not self._serving:
            # Not at once: the caller may be about to write down that it ended.
            self._front.loop.call_soon(self._serve)

    def finish(self) -> None:
        """Close after the answer under way."""
        self._closing = True
        if self._reply is None:
            self._close()
        else:
            self._reply.announce_end()

    def _on_readable(self) -> None:
        try:
            piece = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._lost()
            return
        self._reader.feed(piece, now_ns())
        if self._reply is None:
            self._serve()

    def _serve(self) -> None:
        """Answer what has come; what comes during an answer waits until the kernel has all of that.

        A fault would else meet what is left of the answer before.
        """
        while self.open and self._reply is None and not self._unsent:
            if self._closing:
                self._close()
                return
            try:
                request = self._reader.next()
            except http1.BadRequestError as error:
                self._refuse(error)
                return
            if request is None:
                self._wait_for_more()
                return
            self._serving = True
            try:
                self._answer(request)
            finally:
                self._serving = False

    def _answer(self, request: http1.Request) -> None:
        reply = self._reply = Reply(self, request, self._front.loop)
        scope = Scope(
            request.method,
            request.path,
            request.query_string,
            request.http_version,
            request.headers,
            self._client,
            self._server,
        )
        try:
            work = self._front.application.answer(
                scope, reply, request.body, first_byte_ns=request.first_byte_ns, arrived_ns=now_ns()
            )
        except Exception as error:  # noqa: BLE001 - whatever it is: no client is to wait for ever
            self._failed(reply, error)
            return
        if work is not None:
            self._front.work(work).add_done_callback(lambda task: self._worked(reply, task))

    def _worked(self, reply: Reply, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(reply, error)

    def _failed(self, reply: Reply, error: BaseException) -> None:
        """A mistake of the mock's own: stderr has it, and the client 500, or less than a whole answer."""
        traceback.print_exception(error)
        if self._reply is not reply:
            return  # It is answered.
        if reply.begun:
            self._lost()
        else:
            reply.response_bytes(500, _PLAIN, b"the mock failed: its stderr says how\n")

    def _refuse(self, error: http1.BadRequestError) -> None:
        self.write(http1.whole(error.status, _PLAIN, f"{error}\n".encode(), to=None, second=int(time.time())))
        self._closing = True
        self._close()

    def _wait_for_more(self) -> None:
        if self._reader.foreign:
            self._leave()
            self._front.work(_relayed(self._front, self._socket, self._reader.unread))
        elif self._reader.awaits_continue:
            self.write(http1.CONTINUE)

    def _on_writable(self) -> None:
        try:
            with memoryview(self._unsent) as unsent:
                taken = self._socket.send(unsent[:_WRITE_BYTES])
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        del self._unsent[:taken]
        if not self._unsent:
            self._front.loop.remove_writer(self._socket)
            self._serve()

    def _close(self) -> None:
        if self.open and not self._unsent:
            self._leave()
            self._socket.close()

    def _lost(self) -> None:
        """The client is gone, or there is nothing more to say to it."""
        if not self.open:
            return
        self._leave()
        self._socket.close()
        if self._reply is not None:
            reply, self._reply = self._reply, None  # They hold one another.
            reply.leave()

    def _leave(self) -> None:
        """Have nothing more to do with the socket."""
        self.open = False
        self._front.connections.discard(self)
        self._front.loop.remove_reader(self._socket)
        if self._unsent:
            self._front.loop.remove_writer(self._socket)


class Reply:
    """The answer to one request, given as RSGI has it.

    Args:
        connection: takes it.
        request: what is answered.
        loop: where the client's leaving is waited for.
    """

    begun = False
    """Its head is out, and more is to come."""

    def __init__(
        self, connection: _Connection, request: http1.Request, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._connection = connection
        self._request = request
        self._loop = loop
        self._gone: asyncio.Future[None] | None = None

    def client_disconnect(self) -> asyncio.Future[None]:
        """Done once the client is gone."""
        if self._gone is None:
            self._gone = self._loop.create_future()
            if not self._connection.open:
                self._gone.set_result(None)
        return self._gone

    def leave(self) -> None:
        """The client is gone."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def announce_end(self) -> None:
        """Have the answer say that it is its connection's last, unless its head is out."""
        self._request.keep_alive = False

    def response_empty(self, status: int, headers: http1.Headers) -> None:
        """An answer without a body."""
        self.response_bytes(status, headers, b"")

    def response_bytes(self, status: int, headers: http1.Headers, body: bytes) -> None:
        """A whole answer."""
        request = self._request
        self._connection.write(http1.whole(status, headers, body, to=request, second=int(time.time())))
        self._connection.answered(last=not request.keep_alive)

    def response_stream(self, status: int, headers: http1.Headers) -> Stream:
        """An answer in pieces."""
        opening = http1.opening(status, headers, to=self._request, second=int(time.time()))
        self.begun = True
        self._connection.write(opening.head)
        return Stream(self._connection, opening)


class Stream:
    """An answer in pieces: it ends when this is let go, as the library's do.

    Args:
        connection: takes it.
        opening: how it began.
    """

    __slots__ = ("_connection", "_opening")

    def __init__(self, connection: _Connection, opening: http1.Opening) -> None:
        self._connection = connection
        self._opening = opening

    def send_bytes(self, piece: bytes) -> None:
        """One of them."""
        self._connection.write(http1.chunk(piece) if self._opening.chunked else piece)

    def __del__(self) -> None:
        if self._opening.chunked:
            self._connection.write(http1.LAST_CHUNK)
        self._connection.answered(last=self._opening.last)


# -- what is not plain HTTP/1.1 ---------------------------------------------------------------------------


async def _relayed(front: Front, client: socket.socket, first: bytes) -> None:
    """Tie a client's connection to one of the library's, to which `first` has come already."""
    loop, deadline = asyncio.get_running_loop(), time.monotonic() + _RELAY_S
    while True:
        try:
            _, inner = await loop.create_connection(
                lambda: _Half(front.relaying), "127.0.0.1", front.elsewhere, local_addr=_FROM
            )
            break
        except OSError:
            if time.monotonic() > deadline:
                client.close()
                return
            await asyncio.sleep(0.005)
    inner.transport.write(first)
    await loop.connect_accepted_socket(lambda: _Half(front.relaying, inner), client)


class _Half(asyncio.Protocol):
    """One end of a relay: what comes here goes out there, and so does the end, be it FIN or RST.

    Args:
        relaying: has it while it is connected.
        twin: the other end, if there is one yet.
    """

    transport: asyncio.Transport

    def __init__(self, relaying: set[_Half], twin: _Half | None = None) -> None:
        self.relaying = relaying
        self.twin = twin
        self.early = b""
        """What came before there was a twin."""

    @property
    def unsent(self) -> bool:
        """Whether something is still to go out here."""
        return self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's
        self.relaying.add(self)
        if self.twin is not None:
            self.twin.twin = self
            self.transport.write(self.twin.early)
            if self.twin.transport.is_closing():
                self.transport.close()

    def data_received(self, piece: bytes) -> None:
        if self.twin is None:
            self.early += piece
        else:
            self.twin.transport.write(piece)

    def pause_writing(self) -> None:
        if self.twin is not None:
            self.twin.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.twin is not None:
            self.twin.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.relaying.discard(self)
        if self.twin is None:
            return
        transport = self.twin.transport
        if isinstance(error, ConnectionResetError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            transport.abort()
        else:
            transport.close()


def _told(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
