"""HTTP/1.1, the fast path: one connection a virtual user, llhttp on the bytes, one stamp a read."""

from __future__ import annotations

import ssl
import sys

import msgspec
from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from harness.client.call import Call
from harness.client.exchange import DIGEST_BYTES, HEADER_LENGTHS, Exchange, deadlines
from harness.client.pattern import Stride
from harness.client.target import Target
from harness.client.transport import STAMPS, WALL, Transport, UnreachableError, cause, connect, tls_context
from harness.clock import now_ns
from harness.record import Outcome

MAX_HEAD_BYTES = 65_536
_SHORT_STRIDE_BYTES = 2_048
"""A stride that took less cost more to begin than it saved."""
_STALE_AFTER_NS = 1_000_000_000
_STEADY_NS = 10_000_000 if sys.platform == "linux" else 0
"""A connection that has been used again, and rested no longer, is not asked whether it is still open: that
takes 0.9 µs. Should the peer have closed it since, the transport will know, on Linux (`unheard_bytes`)."""


class _SurplusError(Exception):
    """Bytes after the end of the answer."""


class _Head(msgspec.Struct, frozen=True):
    """The head of an answer that came in one read with its body, and left the connection open.

    What llhttp made of these bytes it would make of them again: telling them apart takes 0.2 µs, parsing
    them 2.
    """

    text: bytes
    length: int
    """Of the whole answer."""
    headers: dict[bytes, bytes]


class Connection:
    """A keep-alive connection for one request at a time; it reconnects as needed.

    Args:
        target: whom to connect to.
        tls: a context to share among connections; None makes one for https.
        stamps: `kernel` or `user`.
        stale_after_ns: a connection that was idle for this long, and is gone before a byte of the
            answer came, was closed by the server while idle: the request is sent once more on a new
            one. One that was in steady use is not: there, a lost connection is the server's fault
            and becomes an outcome, unless it was lost before it was used.
    """

    wire = "http/1.1"

    __slots__ = (  # as Transport
        "__weakref__",
        "_asked",
        "_complete",
        "_deadlines",
        "_ended_ns",
        "_exchange",
        "_idle_ns",
        "_informational",
        "_keep_alive",
        "_parser",
        "_reused",
        "_stale_after_ns",
        "_stamp_ns",
        "_stamps",
        "_stride",
        "_stride_at",
        "_tls",
        "_transport",
        "_usual",
        "stale_retries",
        "target",
    )

    def __init__(
        self,
        target: Target,
        *,
        tls: ssl.SSLContext | None = None,
        stamps: str = STAMPS,
        stale_after_ns: int = _STALE_AFTER_NS,
    ) -> None:
        self.target = target
        self.stale_retries = 0
        """How often a request was sent again because its connection had gone while idle."""
        self._tls = tls or (tls_context(self.wire) if target.scheme == "https" else None)
        self._stamps = stamps
        self._stale_after_ns = stale_after_ns
        self._ended_ns = 0
        self._idle_ns = 0
        self._reused = self._asked = False
        # Both are set anew when it connects.
        self._deadlines = deadlines(WALL.refresh)
        self._parser = HttpResponseParser(self)
        self._transport: Transport | None = None
        self._exchange: Exchange | None = None
        self._stamp_ns = 0
        self._informational = False
        self._complete = False
        self._keep_alive = False
        self._usual: _Head | None = None
        self._stride: Stride | None = None
        """Takes the reads of a stream before they come here, as long as all look alike."""
        self._stride_at = 0
        """No stride before so many bytes: the last one was too short to be worth its while."""

    def exchange(self, exchange: Exchange, call: Call) -> None:
        """Send a request and wait for the end of its answer, or of the hope for one.

        Remote faults are noted on the exchange. What is thrown into the greenlet passes through.
        """
        while True:
            transport = self._usable(exchange)
            if transport is None:
                return
            self._exchange = exchange
            self._complete = self._informational = False
            self._stride_at = 0
            if exchange.check_ns < self._deadlines.first_ns:  # noqa: PLR1730 - a call of min, for each request
                self._deadlines.first_ns = exchange.check_ns
            exchange.bytes_out += len(call.http1)
            if transport.write(call.http1):
                exchange.sent_ns = transport.floor_ns = now_ns()
            exchange.wait()
            if exchange.outcome is None or not self._was_stale(exchange):
                return
            self.stale_retries += 1
            exchange.reopen()

    def under_way(self) -> tuple[Exchange, ...]:
        """The exchange that has begun and not ended, if any."""
        return () if self._exchange is None else (self._exchange,)

    def give_up(self, exchange: Exchange, outcome: Outcome, text: str) -> None:
        """End the exchange: a deadline of its has passed."""
        if exchange is self._exchange:
            self._break_stride()
            self._end(exchange, now_ns(), outcome, text)

    def drop(self, exchange: Exchange) -> None:  # noqa: ARG002  # as Mux.drop
        """Give up whatever is under way."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next exchange opens a new one."""
        self._break_stride()
        self._deadlines.forget(self)
        self._exchange = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # -- in the user's greenlet

    def _usable(self, exchange: Exchange) -> Transport | None:
        """The open connection, or a new one; None if none came about."""
        transport = self._transport
        if transport is not None and transport.open:
            self._idle_ns = exchange.started_ns - self._ended_ns
            self._asked = not self._reused or self._idle_ns > _STEADY_NS
            if not self._asked or transport.alive():
                self._reused = exchange.reused = True
                return transport
        bounds = exchange.limits
        left_ns = exchange.started_ns + bounds.total_ns - now_ns()
        try:
            self._transport = transport = connect(
                self.target.host,
                self.target.port,
                self,
                timeout_ns=min(bounds.connect_ns, left_ns),
                tls=self._tls,
                protocol=self.wire,
                stamps=self._stamps,
            )
        except UnreachableError as failure:
            exchange.finish(now_ns(), failure.outcome, failure.text)
            return None
        self._deadlines.forget(self)
        self._deadlines = deadlines(WALL.refresh)
        self._deadlines.watch(self)
        exchange.connected_ns = now_ns()
        self._parser = HttpResponseParser(self)
        self._usual = None
        self._reused = False
        return transport

    def _was_stale(self, exchange: Exchange) -> bool:
        if not exchange.reused or exchange.outcome is not Outcome.CUT or exchange.bytes_in:
            return False
        assert self._transport is not None
        unheard = self._transport.unheard_bytes >= exchange.bytes_out
        return self._idle_ns >= self._stale_after_ns or (not self._asked and unheard)

    # -- in the hub: what the transport tells

    def on_bytes(self, piece: bytes, stamp_ns: int) -> None:
        """Feed the parser; end the exchange with the message."""
        if self._stride is not None:  # asked here, for it seldom is
            self._break_stride()
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        usual = self._usual
        if (
            usual is not None
            and len(piece) == usual.length
            and exchange.bytes_in == 0
            and piece.startswith(usual.text)
        ):
            exchange.bytes_in = len(piece)
            exchange.status, exchange.headers, exchange.headers_ns = 200, usual.headers, stamp_ns
            exchange.pieces, exchange.stamps = [piece[len(usual.text) :]], [stamp_ns]
            self._end(exchange, stamp_ns)
            return
        self._stamp_ns = stamp_ns
        exchange.bytes_in += len(piece)
        before = len(exchange.pieces)
        try:
            self._parser.feed_data(piece)
        except (HttpParserError, HttpParserUpgrade) as error:
            if isinstance(error, HttpParserCallbackError) and not isinstance(
                error.__context__, _SurplusError
            ):
                raise
            if not self._complete:
                self._end(exchange, stamp_ns, Outcome.MALFORMED, "not HTTP/1.1")
                return
            self._keep_alive = False
        if self._complete:
            if self._keep_alive and exchange.bytes_in == len(piece):
                self._usual = _head_of(piece, exchange)
            self._end(exchange, stamp_ns)
        elif exchange.headers_ns is None and exchange.bytes_in > MAX_HEAD_BYTES:
            self._end(exchange, stamp_ns, Outcome.MALFORMED, "response head too long")
        elif exchange.digester is not None:
            pieces = exchange.pieces
            if (
                exchange.bytes_in >= self._stride_at
                and len(pieces) > before
                and _ends_chunk(piece, pieces[-1])
            ):
                assert self._transport is not None
                self._stride = self._transport.taker = exchange.digester.stride(exchange)
            if exchange.bytes_in >= exchange.digest_at:
                exchange.digest()

    def _break_stride(self) -> None:
        """Whatever comes now is parsed; what had been taken is added."""
        if self._stride is None:
            return
        assert self._exchange is not None
        assert self._transport is not None
        self._exchange.bytes_in += self._stride.bytes_in
        if self._stride.bytes_in < _SHORT_STRIDE_BYTES:
            self._stride_at = self._exchange.bytes_in + DIGEST_BYTES
        self._stride = self._transport.taker = None

    def on_end(self, error: OSError | None, stamp_ns: int) -> None:
        """The connection is gone: a fault, unless idle or the end marks the end of the body."""
        self._break_stride()
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.bytes_in == 0:
            where = "before the response"
        elif exchange.headers_ns is None:
            where = "in the response head"
        elif error is None and not _delimited(exchange):
            self._keep_alive = False
            self._end(exchange, stamp_ns)
            return
        else:
            where = "in mid-answer"
        self._end(exchange, stamp_ns, Outcome.CUT, f"connection {cause(error)} {where}")

    def on_drained(self) -> None:
        """A long request is with the kernel at last."""
        if self._exchange is not None and self._transport is not None:
            self._exchange.sent_ns = self._transport.floor_ns = now_ns()

    def on_bug(self, bug: Exception) -> None:
        """Our own mistake: raised in the waiting greenlet."""
        exchange = self._exchange
        self.close()
        if exchange is not None:
            exchange.crash(bug)

    def _end(
        self, exchange: Exchange, stamp_ns: int, outcome: Outcome | None = None, error: str = ""
    ) -> None:
        transport = self._transport
        assert transport is not None
        self._exchange = None
        self._ended_ns = stamp_ns
        if outcome is not None or not self._keep_alive or not transport.drained:
            transport.close()
        exchange.finish(stamp_ns, outcome, error)

    # -- in the hub: what the parser tells

    def on_message_begin(self) -> None:
        """A message where none is due ends the connection's use."""
        if self._complete:
            raise _SurplusError

    def on_header(self, name: bytes, value: bytes) -> None:
        """One response header, or trailer."""
        if len(name) in HEADER_LENGTHS and self._exchange is not None:
            self._exchange.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """The head is whole: status, and the stamp of its read."""
        exchange = self._exchange
        assert exchange is not None
        status = self._parser.get_status_code()
        if status < 200:
            self._informational = True
            exchange.headers.clear()
            return
        exchange.status = status
        exchange.headers_ns = self._stamp_ns
        exchange.begin_body()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body; it is only put by, parsing comes after the stamps of others."""
        exchange = self._exchange
        assert exchange is not None
        exchange.pieces.append(piece)
        exchange.stamps.append(self._stamp_ns)

    def on_message_complete(self) -> None:
        """The end of the answer; not of a 1xx response, which only precedes it."""
        if self._informational:
            self._informational = False
            return
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()


def _head_of(piece: bytes, exchange: Exchange) -> _Head | None:
    """The head of a whole answer, where it alone says how long the answer is."""
    if exchange.status != 200 or exchange.header(b"transfer-encoding") is not None:
        return None
    head = piece[: len(piece) - sum(map(len, exchange.pieces))]
    if not head.endswith(b"\r\n\r\n"):  # line ends followed the body, which llhttp passes over
        return None
    return _Head(head, len(piece), exchange.headers)


def _ends_chunk(read: bytes, data: bytes) -> bool:
    """A read ends where a chunk does, by the last data in it; not all that do are told.

    Of the framing, only a chunk's end has a line feed before its CRLF, the last one of its data; unless that
    CRLF is data too. The end of the whole answer, which looks the same, is told before.
    """
    return read.endswith(b"\n\r\n") and not data.endswith(b"\r\n")


def _delimited(exchange: Exchange) -> bool:
    """The head said how long the body is, so the connection's end is not its end."""
    return exchange.header(b"content-length") is not None or exchange.header(b"transfer-encoding") is not None
