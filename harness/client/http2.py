"""HTTP/2: many streams on one connection, framed by h2, on the same stamped transport as HTTP/1.1.

    Mux ──► the present _Link ──► Transport      a link that got GOAWAY finishes its streams by itself,
             _Stream, _Stream, ...               while the Mux makes a new one for what comes next

Bytes are taken from h2 and handed to the transport without a switch between: frames can't swap.
"""

from __future__ import annotations

import ssl
from collections import deque
from typing import TYPE_CHECKING

import gevent
from gevent.event import AsyncResult
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from h2.settings import SettingCodes

from harness.client.call import Call
from harness.client.exchange import Deadlines, Exchange, deadlines
from harness.client.target import Target
from harness.client.transport import STAMPS, WALL, Transport, UnreachableError, cause, connect, tls_context
from harness.clock import now_ns
from harness.record import Outcome

if TYPE_CHECKING:
    from hyperframe.frame import DataFrame, Frame, GoAwayFrame

_STREAM_WINDOW = 1 << 20
_CONNECTION_WINDOW = 1 << 24
_DEFAULT_WINDOW = 65_535


class Mux:
    """One HTTP/2 connection shared by many greenlets; it reconnects as needed.

    `http://` targets are spoken to in h2c with prior knowledge, `https://` ones after ALPN. At most
    as many streams are open as the server allows; the rest wait, and their `sent_ns` shows it.
    """

    wire = "h2"

    def __init__(
        self,
        target: Target,
        *,
        tls: ssl.SSLContext | None = None,
        stamps: str = STAMPS,
    ) -> None:
        self.target = target
        self._tls = tls or (tls_context(self.wire) if target.scheme == "https" else None)
        self._stamps = stamps
        self._link: _Link | None = None
        self._connecting: AsyncResult | None = None
        self._links: dict[Exchange, _Link] = {}

    def exchange(self, exchange: Exchange, call: Call) -> None:
        """Send a request on a stream of its own and wait for the end of its answer, or of the hope for one.

        Remote faults are noted on the exchange. What is thrown into the greenlet passes through.
        """
        link = self._usable_link(exchange)
        if link is None:
            return
        self._links[exchange] = link
        try:
            link.open(exchange, call.fields(), call.body)
            exchange.wait()
        finally:
            link.cancel(exchange)
            del self._links[exchange]

    def drop(self, exchange: Exchange) -> None:
        """Give one stream up; the others go on."""
        link = self._links.get(exchange)
        if link is not None:
            link.cancel(exchange)

    def close(self) -> None:
        """Close the connection, which cuts what is under way; the next exchange opens a new one."""
        if self._link is not None:
            self._link.cut()
        self._link = None

    def _usable_link(self, exchange: Exchange) -> _Link | None:
        """The open link; else a new one, which greenlets that come meanwhile wait for and share."""
        waited = False
        while self._link is None or not self._link.usable:
            waited = True
            failure = self._connect(exchange) if self._connecting is None else self._connecting.get()
            if failure is not None:
                exchange.finish(now_ns(), failure.outcome, failure.text)
                return None
        if waited:
            exchange.connected_ns = now_ns()
        else:
            exchange.reused = True
        return self._link

    def _connect(self, exchange: Exchange) -> UnreachableError | None:
        result = self._connecting = AsyncResult()
        failure: UnreachableError | None = None
        link = _Link()
        bounds = exchange.limits
        left_ns = min(bounds.connect_ns, exchange.started_ns + bounds.total_ns - now_ns())
        try:
            link.connect(self.target, left_ns, tls=self._tls, stamps=self._stamps)
            self._link = link
        except UnreachableError as error:
            failure = error
            link.close()
        except BaseException:  # a kill: another greenlet that waits for the link tries itself
            link.close()
            raise
        finally:
            self._connecting = None
            result.set(failure)
        return failure


class _Protocol(H2Connection):
    """h2 with two manners of RFC 9113 that it lacks.

    Streams under way outlive GOAWAY (section 6.8), and data that contradict their content-length end
    their own stream alone (section 8.1.1).
    """

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]

    def _receive_data_frame(self, frame: DataFrame) -> tuple[list[Frame], list[Event]]:
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
            self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return [], [_WrongLength(frame.stream_id, frame.data)]


class _WrongLength(Event):
    """These data contradict their stream's content-length: it has been reset."""

    def __init__(self, stream_id: int, data: bytes) -> None:
        self.stream_id = stream_id
        self.data = data


class _Stream:
    """One request on a link."""

    __slots__ = ("ended", "exchange", "fields", "id", "unsent")

    def __init__(self, exchange: Exchange, fields: list[tuple[str, str]], body: bytes) -> None:
        self.id = 0
        self.exchange = exchange
        self.fields = fields
        self.unsent = memoryview(body)
        self.ended = False
        """END_STREAM is on its way."""


class _Link:
    """One HTTP/2 connection from its preface to its end."""

    def __init__(self) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            # What we send is right by construction; checking each field again costs more than the rest.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = _Protocol(config)
        self._transport: Transport | None = None
        self._deadlines: Deadlines = deadlines(WALL.refresh)
        self._streams: dict[int, _Stream] = {}
        self._by_exchange: dict[Exchange, _Stream] = {}
        self._queue: deque[_Stream] = deque()
        self._to_stamp: list[_Stream] = []
        self._greeted = AsyncResult()
        self._going_away = False

    @property
    def usable(self) -> bool:
        """New streams may be opened."""
        return self._transport is not None and self._transport.open and not self._going_away

    def connect(self, target: Target, timeout_ns: int, *, tls: ssl.SSLContext | None, stamps: str) -> None:
        """Connect and wait for the server's SETTINGS: they say how many streams it takes.

        Raises:
            UnreachableError: with the outcome and its text.
        """
        began_ns = now_ns()
        self._deadlines.watch(self)
        self._transport = connect(
            target.host,
            target.port,
            self,
            timeout_ns=timeout_ns,
            tls=tls,
            protocol=Mux.wire,
            stamps=stamps,
        )
        self._h2.initiate_connection()
        self._h2.update_settings(
            {SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW, SettingCodes.ENABLE_PUSH: 0}
        )
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self._flush()
        left_ns = max(timeout_ns - (now_ns() - began_ns), 0)
        try:
            problem = self._greeted.get(timeout=left_ns / 1e9)
        except gevent.Timeout:
            raise UnreachableError(Outcome.TIMEOUT, "connect timeout") from None
        if problem is not None:
            raise UnreachableError(Outcome.CONNECT_ERROR, problem)

    def open(self, exchange: Exchange, fields: list[tuple[str, str]], body: bytes) -> None:
        """Queue a request; it is sent as soon as the server's limit of streams allows."""
        stream = _Stream(exchange, fields, body)
        self._by_exchange[exchange] = stream
        self._deadlines.first_ns = min(self._deadlines.first_ns, exchange.check_ns)
        self._queue.append(stream)
        self._admit()
        self._flush()

    def under_way(self) -> tuple[Exchange, ...]:
        """The exchanges that have begun and not ended."""
        return tuple(self._by_exchange)

    def give_up(self, exchange: Exchange, outcome: Outcome, text: str) -> None:
        """End one of them: a deadline of its has passed."""
        stream = self._by_exchange.get(exchange)
        if stream is not None:
            self._finish(stream, now_ns(), outcome, text)
            self._go_on()

    def cancel(self, exchange: Exchange) -> None:
        """Tell the server to stop, if it has not finished."""
        stream = self._by_exchange.get(exchange)
        if stream is not None:
            self._remove(stream)
            self._reset(stream)
            self._go_on()

    def cut(self) -> None:
        """Close the connection, and end what is under way."""
        self._fail_all(Outcome.CUT, "connection closed by us", now_ns())

    def close(self) -> None:
        """Close the connection. Streams under way are the caller's concern."""
        self._deadlines.forget(self)
        if self._transport is not None:
            self._transport.close()

    # -- what the transport tells

    def on_bytes(self, piece: bytes, stamp_ns: int) -> None:
        """Feed h2; hand its events to the streams; answer."""
        # To h2, an HTTP/1.1 status line is the start of a frame of 4.7 MB, which it would wait for.
        if not self._greeted.ready() and piece.startswith(b"HTTP/"):
            self._fail_all(Outcome.MALFORMED, "not HTTP/2", stamp_ns)
            return
        try:
            events = self._h2.receive_data(piece)
        except ProtocolError:
            self._flush()
            self._fail_all(Outcome.MALFORMED, "not HTTP/2", stamp_ns)
            return
        for event in events:
            self._take(event, stamp_ns)
        self._go_on()

    def on_end(self, error: OSError | None, stamp_ns: int) -> None:
        """The connection is gone, and all its streams with it."""
        self._fail_all(Outcome.CUT, f"connection {cause(error)}", stamp_ns)

    def on_drained(self) -> None:
        """What was written is with the kernel."""
        self._stamp_sent()

    def on_bug(self, bug: Exception) -> None:
        """Our own mistake: raised in the waiting greenlets."""
        self.close()
        self._greeted.set("client bug")
        for stream in tuple(self._by_exchange.values()):
            self._remove(stream)
            stream.exchange.crash(bug)

    # -- what h2 tells

    def _take(self, event: Event, stamp_ns: int) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._greeted.set(None)
            self._pump_all()
        elif isinstance(event, WindowUpdated):
            self._pump_all()
        elif isinstance(event, ConnectionTerminated):
            self._go_away(event, stamp_ns)
        elif isinstance(event, ResponseReceived):
            self._take_head(event, stamp_ns)
        elif isinstance(event, DataReceived):
            self._take_body(event, stamp_ns)
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                self._finish(stream, stamp_ns)
        elif isinstance(event, StreamReset):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                self._was_reset(stream, event, stamp_ns)
        elif isinstance(event, _WrongLength):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.ended = True
                self._put_by(stream, event.data, stamp_ns)
                self._finish(stream, stamp_ns, Outcome.MALFORMED, "wrong content-length")

    def _take_head(self, event: ResponseReceived, stamp_ns: int) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is None:
            return
        exchange = stream.exchange
        exchange.headers_ns = max(stamp_ns, exchange.sent_ns or 0)
        for name, value in event.headers or ():
            if name != b":status":
                exchange.headers.setdefault(bytes(name), bytes(value))
            elif len(value) == 3 and value.isdigit():
                exchange.status = int(value)
            else:  # which h2 lets pass
                self._finish(stream, stamp_ns, Outcome.MALFORMED, "the status is no number")
                return
        exchange.begin_body()

    def _take_body(self, event: DataReceived, stamp_ns: int) -> None:
        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None and event.data:
            self._put_by(stream, event.data, stamp_ns)

    def _put_by(self, stream: _Stream, piece: bytes, stamp_ns: int) -> None:
        exchange = stream.exchange
        exchange.pieces.append(piece)
        exchange.stamps.append(max(stamp_ns, exchange.sent_ns or 0))
        exchange.bytes_in += len(piece)
        if exchange.bytes_in >= exchange.digest_at:
            exchange.digest()

    def _was_reset(self, stream: _Stream, event: StreamReset, stamp_ns: int) -> None:
        stream.ended = True
        if event.error_code == ErrorCodes.REFUSED_STREAM:
            self._finish(stream, stamp_ns, Outcome.REFUSED_BY_SERVER, "stream refused")
            return
        try:
            name = ErrorCodes(event.error_code or 0).name.lower().replace("_", " ")
        except ValueError:
            name = "unknown code"
        where = "before the response" if stream.exchange.headers_ns is None else "in mid-answer"
        self._finish(stream, stamp_ns, Outcome.CUT, f"stream reset ({name}) {where}")

    def _go_away(self, event: ConnectionTerminated, stamp_ns: int) -> None:
        """No new streams; those the server has not seen are refused, the others go on."""
        self._going_away = True
        self._greeted.set("server goes away")
        for stream in tuple(self._by_exchange.values()):
            if not stream.id or stream.id > (event.last_stream_id or 0):
                stream.ended = True
                self._finish(stream, stamp_ns, Outcome.REFUSED_BY_SERVER, "server goes away")

    # -- sending

    def _go_on(self) -> None:
        """Send what may be sent now; a link that may not be used again ends with its last stream."""
        self._admit()
        self._flush()
        if self._going_away and not self._by_exchange:
            self.close()

    def _admit(self) -> None:
        """Open queued streams, as many as the server allows."""
        while self._queue and not self._going_away:
            if self._h2.open_outbound_streams >= self._h2.remote_settings.max_concurrent_streams:
                return
            stream = self._queue.popleft()
            stream.id = self._h2.get_next_available_stream_id()
            self._streams[stream.id] = stream
            self._h2.send_headers(stream.id, stream.fields)
            self._pump(stream)

    def _pump_all(self) -> None:
        for stream in tuple(self._streams.values()):
            self._pump(stream)

    def _pump(self, stream: _Stream) -> None:
        """Send as much of the body as the windows allow."""
        while not stream.ended:
            window = self._h2.local_flow_control_window(stream.id)
            size = min(window, self._h2.max_outbound_frame_size, len(stream.unsent))
            if size <= 0 and stream.unsent:
                return
            stream.ended = size == len(stream.unsent)
            self._h2.send_data(stream.id, stream.unsent[:size].tobytes(), end_stream=stream.ended)
            stream.unsent = stream.unsent[size:]
            stream.exchange.bytes_out += size
            if stream.ended:
                self._to_stamp.append(stream)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or not transport.open:
            return
        octets = self._h2.data_to_send()
        if octets:
            transport.write(octets)
        if self._to_stamp and transport.drained:
            self._stamp_sent()

    def _stamp_sent(self) -> None:
        now = now_ns()
        for stream in self._to_stamp:
            if stream.exchange.ended_ns is None:
                stream.exchange.sent_ns = now
        self._to_stamp.clear()

    # -- ending

    def _finish(self, stream: _Stream, stamp_ns: int, outcome: Outcome | None = None, text: str = "") -> None:
        exchange = stream.exchange
        self._remove(stream)
        if outcome is not None or not stream.ended:
            self._reset(stream)
        exchange.finish(max(stamp_ns, exchange.sent_ns or 0), outcome, text)

    def _fail_all(self, outcome: Outcome, text: str, stamp_ns: int) -> None:
        self.close()
        self._greeted.set("the server does not speak HTTP/2" if outcome is Outcome.MALFORMED else text)
        for stream in tuple(self._by_exchange.values()):
            self._remove(stream)
            where = "before the response" if stream.exchange.headers_ns is None else "in mid-answer"
            stream.exchange.finish(stamp_ns, outcome, f"{text} {where}")

    def _remove(self, stream: _Stream) -> None:
        self._by_exchange.pop(stream.exchange, None)
        self._streams.pop(stream.id, None)
        if not stream.id and stream in self._queue:
            self._queue.remove(stream)

    def _reset(self, stream: _Stream) -> None:
        """RST_STREAM, unless the stream was never opened or is closed on both sides."""
        if not stream.id or self._transport is None or not self._transport.open:
            return
        try:
            self._h2.reset_stream(stream.id, ErrorCodes.CANCEL)
        except ProtocolError:
            return
