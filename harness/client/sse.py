"""Sans-IO framing of streamed answers: bytes in, events out, for any split of the bytes.

    text/event-stream   EventStream   https://html.spec.whatwg.org/multipage/server-sent-events.html
    JSON a line         Lines

No JSON is parsed here. An event bears the stamp of the read that completed it.
"""

from __future__ import annotations

import msgspec

_BOM = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event with a payload."""

    payload: bytes
    """The data lines, joined with LF."""
    stamp_ns: int
    name: bytes = b"message"
    last_id: bytes = b""


class KeepAlive(msgspec.Struct, frozen=True, gc=False):
    """A comment, a blank line of its own or an event without payload: a sign of life, not an answer."""

    stamp_ns: int
    comment: bytes = b""


class _LineSplitter:
    """Cuts bytes into lines that end in LF, CR or CRLF; a CR ends its line at once."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._swallow_lf = False

    @property
    def empty(self) -> bool:
        """No line is under way and no LF is to be swallowed."""
        return not self._rest and not self._swallow_lf

    def feed(self, piece: bytes) -> list[bytes]:
        if self._swallow_lf and piece:
            self._swallow_lf = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if b"\n" not in piece and b"\r" not in piece:
            if piece:
                self._rest.append(piece)
            return []
        if self._rest:
            piece = b"".join((*self._rest, piece))
            self._rest.clear()
        self._swallow_lf = piece.endswith(b"\r")
        lines = piece.splitlines()
        if not piece.endswith((b"\n", b"\r")):
            self._rest.append(lines.pop())
        return lines

    def close(self) -> bytes:
        """What came after the last line end."""
        rest = b"".join(self._rest)
        self._rest.clear()
        return rest


class EventStream:
    """An incremental parser of `text/event-stream`, by the WHATWG's rules."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        """The reconnection time the server asked for."""
        self._lines = _LineSplitter()
        self._start: bytes | None = b""
        self._payload: list[bytes] = []
        self._name = b""
        self._last_id = b""
        self._commented = False
        self._between = False

    @property
    def between(self) -> bool:
        """The next byte begins a new event: nothing of one is under way."""
        return self._between

    def feed(self, piece: bytes, stamp_ns: int = 0) -> list[Event | KeepAlive]:
        """The events that this piece completes, in order, each with the piece's stamp."""
        # The usual piece by far: one event in one `data: ` line. Told apart at C speed.
        if (
            self._between
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2
            and b"\r" not in piece
        ):
            self._commented = False
            return [Event(piece[6:-2], stamp_ns, b"message", self._last_id)]
        if self._start is not None:
            piece = self._skip_bom(piece)
        events: list[Event | KeepAlive] = []
        for line in self._lines.feed(piece):
            event = self._field(line, stamp_ns) if line else self._dispatch(stamp_ns)
            if event is not None:
                events.append(event)
        self._between = self._start is None and self._lines.empty and not self._payload and not self._name
        return events

    def close(self, stamp_ns: int = 0) -> list[Event | KeepAlive]:  # noqa: ARG002  # as Lines.close
        """The end of the stream: an unfinished event is discarded, as the standard says."""
        return []

    def _skip_bom(self, piece: bytes) -> bytes:
        start = (self._start or b"") + piece
        if len(start) < 3 and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _field(self, line: bytes, stamp_ns: int) -> KeepAlive | None:
        name, _, value = line.partition(b":")
        if not name and line.startswith(b":"):
            self._commented = True
            return KeepAlive(stamp_ns, value.removeprefix(b" "))
        value = value.removeprefix(b" ")
        if name == b"data":
            self._payload.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"id" and b"\0" not in value:
            self._last_id = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self, stamp_ns: int) -> Event | KeepAlive | None:
        """A blank line: end of an event, or of a comment, or a sign of life by itself."""
        name, payload, commented = self._name, self._payload, self._commented
        self._name, self._commented = b"", False
        if payload:
            self._payload = []
            return Event(b"\n".join(payload), stamp_ns, name or b"message", self._last_id)
        return None if commented else KeepAlive(stamp_ns)


class Lines:
    """An incremental parser of line-delimited JSON: each line that is not blank is an event."""

    def __init__(self) -> None:
        self._lines = _LineSplitter()

    @property
    def between(self) -> bool:
        """The next byte begins a new line."""
        return self._lines.empty

    def feed(self, piece: bytes, stamp_ns: int = 0) -> list[Event | KeepAlive]:
        """The lines that this piece completes, in order, each with the piece's stamp."""
        return [
            Event(line, stamp_ns) if line.strip() else KeepAlive(stamp_ns) for line in self._lines.feed(piece)
        ]

    def close(self, stamp_ns: int = 0) -> list[Event | KeepAlive]:
        """The end of the stream: a last line need not be terminated."""
        line = self._lines.close()
        return [Event(line, stamp_ns)] if line.strip() else []
