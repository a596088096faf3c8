"""What an answer said: bytes and stamps in, tokens, usage and faults out. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from harness.client.call import Call
from harness.client.dialects import Delta
from harness.client.dialects.base import END_MARKER, FAILED_FINISHES, UNREADABLE, error_of
from harness.client.exchange import Exchange, is_noise
from harness.client.pattern import Pattern, Stride, pattern_of, shapes_help
from harness.client.sse import Event, EventStream, KeepAlive, Lines
from harness.record import Outcome, Usage

_START_BYTES = 8_192
_LESSONS = 8
"""So many pieces of a stream may teach a shape. What others then differ in, no shape leaves out."""
_SINGLY = 8
"""After a text that nobody knows, so many pieces are looked at one by one: others may be new, too."""
_LONGEST_WAIT_S = 86_400.0
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


Said = tuple[Outcome, str, str | None, Usage | None]
"""What an answer said: how it ended, what was wrong if anything was; its finish reason; usage."""

_OK = Outcome.OK  # looking up a member costs more than a call in Python 3.11


class Stream:
    """What a streamed answer said so far: its exchange's digester, which reads events and lets them go."""

    __slots__ = (
        "_decode",
        "_expected",
        "_framer",
        "_inflate",
        "_lessons",
        "_marked",
        "_reads",
        "_start",
        "_usual",
        "choices",
        "chunk_ns",
        "done",
        "error",
        "finish_reason",
        "first_content_ns",
        "first_event_ns",
        "first_token_ns",
        "kept_alive",
        "outcome",
        "usage",
    )

    def __init__(self, call: Call) -> None:
        self.choices = self.done = False
        self.kept_alive = False
        """Keep-alives came before the first event."""
        self.first_event_ns: int | None = None
        self.first_token_ns: int | None = None
        self.first_content_ns: int | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.outcome: Outcome | None = None
        self.error = ""
        self.chunk_ns: list[int] = []
        self._inflate: Callable[[bytes], bytes] | None = None
        self._start = b""
        """What came before the first event: an error may stand there in place of a stream."""
        self._usual: Pattern | None = None
        """How most pieces of this stream look."""
        self._expected: Pattern | None = None
        """The same, if its next byte begins a new event, by all that has been read."""
        self._lessons = _LESSONS
        self._decode = call.dialect.decode_event
        self._reads = call.dialect.reads
        self._marked = call.dialect.framing == "sse"
        """The stream ends with a marker; a stream of lines, with a finish reason."""
        self._framer: EventStream | Lines = EventStream() if self._marked else Lines()

    def read(self, exchange: Exchange) -> None:
        """Take in the pieces of a stream that have gathered."""
        if self._inflate is None:
            self._inflate = _inflater(exchange) or self._unreadable()
        inflate, plain = self._inflate, self._inflate is _as_is
        usual = self._usual if plain and self._framer.between else None
        pieces, stamps, at, leap_at = exchange.pieces, exchange.stamps, 0, 0
        while at < len(pieces):
            if usual is not None and at >= leap_at:
                known = usual.leads(pieces[at:])
                self.chunk_ns += stamps[at : at + known]
                at += known
                leap_at = at + _SINGLY
                continue
            piece, stamp_ns = pieces[at], stamps[at]
            at += 1
            if usual is not None and usual.matches(piece):
                self.chunk_ns.append(stamp_ns)
                continue
            try:
                self._read_piece(piece if plain else inflate(piece), stamp_ns)
            except zlib.error:
                self._fault(Outcome.MALFORMED, "broken compression")
                return
            usual = self._usual if plain and self._framer.between else None
        self._expected = usual

    @property
    def latest_ns(self) -> int:
        """The stamp of the last token; 0 before the first."""
        return self.chunk_ns[-1] if self.chunk_ns else 0

    def stride(self, exchange: Exchange) -> Stride | None:
        """What may take the chunks to come, once all pieces are read; None if none looks like another."""
        if self._usual is None:
            return None
        exchange.digest()
        return None if self._expected is None else Stride(self._expected, self.chunk_ns)

    def _read_piece(self, piece: bytes, stamp_ns: int) -> None:
        if self.first_event_ns is None and len(self._start) < _START_BYTES:
            self._start += piece
        whole = self._framer.between
        events = self._framer.feed(piece, stamp_ns)
        for event in events:
            if isinstance(event, KeepAlive):
                self.kept_alive |= self.first_event_ns is None
                continue
            delta = self._take(event)
            if whole and delta is not None and len(events) == 1 and self._framer.between:
                self._learn(piece, event, delta)

    def _learn(self, piece: bytes, event: Event, delta: Delta) -> None:
        """Others may look as this piece did; its shape is asked for where more than texts may differ."""
        asks = self._lessons > 0 and (self._usual is not None or shapes_help())
        pattern = pattern_of(piece, event, delta, self._reads if asks else None)
        if pattern is not None:
            if pattern.shape is None and self._usual is not None:  # a shape stands for itself
                pattern = msgspec.structs.replace(pattern, shape=self._usual.shape)
            self._usual = pattern
            self._lessons -= asks

    def end(self, exchange: Exchange) -> None:
        """The stream is over: what is still missing?"""
        for event in self._framer.close(exchange.ended_ns or 0):
            if type(event) is Event:
                self._take(event)
        if exchange.outcome is not None or self.outcome is not None:
            return
        if self.first_event_ns is None and not self.done:
            self._fault(*self._no_stream(exchange))
        elif self._marked and not self.done:
            self._fault(Outcome.CUT, "stream ended without [DONE]")
        elif not self.choices:
            self._fault(Outcome.MALFORMED, "no choices")
        elif self.finish_reason is None:
            self._fault(Outcome.CUT, "stream ended without a finish reason")

    def _no_stream(self, exchange: Exchange) -> tuple[Outcome, str]:
        named = error_of(self._start)
        if named is not None:
            return Outcome.IN_BAND_ERROR, f"error body: {named}"
        if self.kept_alive and is_noise(self._start):
            return Outcome.CUT, "stream ended before its first event"
        return Outcome.MALFORMED, f"no stream but {_media_type(exchange)}"

    def _take(self, event: Event) -> Delta | None:
        payload, stamp_ns = event.payload, event.stamp_ns
        if payload == END_MARKER and self._marked:
            self.done = True
            return None
        if self.first_event_ns is None:
            self.first_event_ns = stamp_ns
        try:
            delta = self._decode(payload)
        except UNREADABLE:
            named = error_of(payload)
            if named is None:
                self._fault(Outcome.MALFORMED, "event is not the dialect's JSON")
            else:
                self._fault(Outcome.IN_BAND_ERROR, f"error event: {named}")
            return None
        if delta.content or delta.reasoning:
            self.chunk_ns.append(stamp_ns)
            if self.first_token_ns is None:
                self.first_token_ns = stamp_ns
            if delta.content and self.first_content_ns is None:
                self.first_content_ns = stamp_ns
        if delta.choices:
            self.choices = True
        if delta.usage is not None:
            self.usage = delta.usage
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
        outcome, error = _fault_of(delta, "error event: ")
        if outcome is not None:
            self._fault(outcome, error)
        if event.name == b"error" and delta.error is None:
            self._fault(Outcome.IN_BAND_ERROR, "error event: unnamed")
        return delta

    @property
    def said(self) -> Said:
        """What the record wants of it."""
        return self.outcome or _OK, self.error, self.finish_reason, self.usage

    def _unreadable(self) -> Callable[[bytes], bytes]:
        self._fault(Outcome.MALFORMED, "unknown content-encoding")
        return _as_is

    def _fault(self, outcome: Outcome, error: str) -> None:
        """The first fault names the outcome."""
        if self.outcome is None:
            self.outcome, self.error = outcome, error


def read_body(exchange: Exchange, decode: Callable[[bytes], Delta]) -> Said:
    """A whole body that came under a status that promises an answer."""
    body = b"".join(exchange.pieces)
    try:
        if b"content-encoding" in exchange.headers:
            inflate = _inflater(exchange)
            if inflate is None:
                return Outcome.MALFORMED, "unknown content-encoding", None, None
            body = inflate(body)
        delta = decode(body)
    except zlib.error:
        return Outcome.MALFORMED, "broken compression", None, None
    except UNREADABLE:
        return Outcome.MALFORMED, f"not the dialect's JSON but {_media_type(exchange)}", None, None
    outcome, error = _fault_of(delta, "error body: ")
    if outcome is None:
        outcome, error = (_OK, "") if delta.choices else (Outcome.MALFORMED, "no choices")
    return outcome, error, delta.finish_reason, delta.usage


def _fault_of(delta: Delta, prefix: str) -> tuple[Outcome | None, str]:
    """What one event, or a whole body, says against its answer."""
    if delta.finish_reason in FAILED_FINISHES:
        return Outcome.IN_BAND_ERROR, f"finish reason {delta.finish_reason}"
    if delta.error is not None:
        return Outcome.IN_BAND_ERROR, prefix + delta.error
    return None, ""


def _inflater(exchange: Exchange) -> Callable[[bytes], bytes] | None:
    """How to undo the content encoding, which we asked not to be used; None if we can't."""
    value = exchange.headers.get(b"content-encoding")
    if value is None:
        return _as_is
    encoding = value.strip().lower()
    if encoding in {b"", b"identity"}:
        return _as_is
    if encoding in {b"gzip", b"x-gzip", b"deflate"}:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress
    return None


def held_ns(exchange: Exchange, stream: Stream | None) -> int:
    """How long the server kept the client waiting by keep-alives: from the headers to the first event.

    Args:
        exchange: what the wire saw.
        stream: the answer, if it is a stream.
    """
    if exchange.headers_ns is None:
        return 0
    if stream is not None:
        first_ns = stream.first_event_ns or exchange.ended_ns
        return (first_ns or 0) - exchange.headers_ns if stream.kept_alive else 0
    if exchange.pieces and not exchange.pieces[0].isspace():
        return 0
    kept_alive = False
    for piece, stamp_ns in zip(exchange.pieces, exchange.stamps, strict=True):
        if not piece.isspace():
            return stamp_ns - exchange.headers_ns if kept_alive else 0
        kept_alive = True
    return (exchange.ended_ns or 0) - exchange.headers_ns if kept_alive else 0


def status_fault(exchange: Exchange) -> tuple[Outcome, str] | None:
    """What the status says against the answer, with the error that the body names."""
    status = exchange.status
    if status is None or status == 200:
        return None
    if status >= 400:
        named = error_of(b"".join(exchange.pieces))
        outcome = Outcome.REFUSED_BY_SERVER if status == 429 else Outcome.HTTP_ERROR
        return outcome, f"HTTP {status}" if named in {None, "unnamed"} else f"HTTP {status} {named}"
    if status >= 300:
        return Outcome.MALFORMED, f"HTTP {status}: redirects are not followed"
    if status in {204, 205}:
        return Outcome.MALFORMED, f"HTTP {status}: no answer"
    return None


def retry_after_s(value: bytes | None, wall_now: datetime | None = None) -> float | None:
    """Retry-After in seconds, from seconds or an HTTP date (RFC 9110 section 10.2.3).

    Args:
        value: the header's value; None if there was none.
        wall_now: the present, for a date; None reads the clock.

    Returns:
        None also for what nobody can mean, or waits for.
    """
    text = (value or b"").decode("latin-1").strip()
    if not text:
        return None
    if text.replace(".", "", 1).isdecimal():
        asked_s = float(text)
        return asked_s if asked_s <= _LONGEST_WAIT_S else None
    try:
        at = parsedate_to_datetime(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        asked_s = (at - (wall_now or datetime.now(UTC))).total_seconds()
    except (ValueError, OverflowError):
        return None
    return max(asked_s, 0.0) if asked_s <= _LONGEST_WAIT_S else None


def _media_type(exchange: Exchange) -> str:
    """The content type's name, if it is one of those expected here."""
    value = (exchange.header(b"content-type") or b"").split(b";")[0].strip().lower()
    known = {b"text/html", b"text/plain", b"application/json", b"text/event-stream"}
    return value.decode() if value in known else "something else"


def _as_is(piece: Any) -> Any:
    return piece
