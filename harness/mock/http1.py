"""HTTP/1.1 (RFC 9112) as a server reads and writes it: bytes in, requests out. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

MAX_HEAD_BYTES = 65_536
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TOKEN = re.compile(_NAME).fullmatch
_FIELDS = re.compile(rf"(?:{_NAME}:[^\r\n]*(?:\r\n(?!\Z)|\Z))*").fullmatch
"""All in one go: a match for each costs a request two microseconds."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]+(.*)").fullmatch
_DIGITS = re.compile("[0-9]{1,18}").fullmatch
_HEX = re.compile(b"[0-9A-Fa-f]{1,16}").fullmatch
"""Of more digits Python makes no number, beyond some thousands."""
_BODILESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}

Headers = Sequence[tuple[str, str]]


class BadRequestError(Exception):
    """Bytes that are no request.

    Args:
        reason: what is wrong with them.
        status: what they are answered by.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Request(msgspec.Struct, gc=False):
    """One request."""

    method: str
    path: str
    """Percent-decoded."""
    query_string: str
    http_version: str
    """`1.1` or `1.0`."""
    headers: dict[str, str]
    """Names in lower case; values of one name joined by commas."""
    keep_alive: bool
    """The client would send another after it."""
    length: int | None
    """Of the body; None where it comes in chunks."""
    body: bytes = b""
    first_byte_ns: int = 0
    """The stamp of the read that brought its first byte."""


class Reader:
    """Cuts a connection's bytes into requests."""

    def __init__(self) -> None:
        self.foreign = False
        """The connection is not ours to read: it begins as HTTP/2 does, or asks to become a WebSocket."""
        self._unread: bytes | bytearray = b""
        self._first_byte_ns = self._stamp_ns = 0
        self._request: Request | None = None
        """Its body is still to come."""
        self._told = False
        self._at = 0
        self._pieces: list[bytes] = []

    @property
    def unread(self) -> bytes:
        """What has come and is no part of a request given out."""
        return bytes(self._unread)

    @property
    def awaits_continue(self) -> bool:
        """Whether the client sends the body only once it is asked for; true once."""
        request = self._request
        if request is None or self._told or request.headers.get("expect", "").lower() != "100-continue":
            return False
        self._told = True
        return True

    def feed(self, piece: bytes, stamp_ns: int) -> None:
        """Take in what one read brought."""
        self._stamp_ns = stamp_ns
        if not self._unread:
            self._first_byte_ns, self._unread = stamp_ns, piece
            return
        if isinstance(self._unread, bytes):
            self._unread = bytearray(self._unread)  # a long body comes in many reads
        self._unread += piece

    def next(self) -> Request | None:
        """The next whole request; None if it is still to come.

        Raises:
            BadRequestError: none will.
        """
        request = self._request or self._read_head()
        if request is None:
            return None
        body = self._dechunked() if request.length is None else self._counted(request.length)
        if body is None:
            return None
        self._unread = self._unread[self._at :]
        request.body, request.first_byte_ns = body, self._first_byte_ns
        self._first_byte_ns = self._stamp_ns
        self._request, self._told = None, False
        return request

    def _read_head(self) -> Request | None:
        unread = self._unread
        start = 2 if unread[:2] == b"\r\n" else 0  # RFC 9112, section 2.2: an empty line before is ignored
        end = unread.find(b"\r\n\r\n", start)
        if end < 0:
            if len(unread) > MAX_HEAD_BYTES:
                raise BadRequestError("the head is too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return None
        request = _parsed(unread[start:end].decode("latin-1"))
        if request is None or request.headers.get("upgrade", "").lower() == "websocket":
            self.foreign = True
            return None
        self._request, self._at = request, end + 4
        return request

    def _counted(self, length: int) -> bytes | None:
        start, end = self._at, self._at + length
        if len(self._unread) < end:
            return None
        self._at = end
        return bytes(self._unread[start:end])

    def _dechunked(self) -> bytes | None:
        unread = self._unread
        while (end := unread.find(b"\r\n", self._at)) >= 0:
            size = bytes(unread[self._at : end]).split(b";")[0].strip()
            if not _HEX(size):
                raise BadRequestError("a chunk's size is no number")
            count = int(size, 16)
            start, after = end + 2, end + 2 + count
            if not count:
                return self._without_trailers(start)
            if len(unread) < after + 2:
                return None
            if unread[after : after + 2] != b"\r\n":
                raise BadRequestError("a chunk is longer than its size")
            self._pieces.append(bytes(unread[start:after]))
            self._at = after + 2
        return None

    def _without_trailers(self, start: int) -> bytes | None:
        """The body, once the trailers have come, which nobody wants."""
        if self._unread[start : start + 2] == b"\r\n":
            end = start
        else:
            end = self._unread.find(b"\r\n\r\n", start)
            if end < 0:
                return None
            end += 2
        self._at = end + 2
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _parsed(text: str) -> Request | None:
    """The head of a request; None if it is the beginning of HTTP/2."""
    first, _, fields = text.partition("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not _TOKEN(words[0]) or not words[2].startswith("HTTP/"):
        raise BadRequestError("no request line")
    method, target, version = words
    if version == "HTTP/2.0" and method == "PRI":
        return None
    if version not in {"HTTP/1.1", "HTTP/1.0"}:
        raise BadRequestError("not a version of HTTP/1", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers = _fields(fields)
    is_1_1 = version == "HTTP/1.1"
    if is_1_1 and "host" not in headers:
        raise BadRequestError("no `host`")
    path, query_string = _place(target)
    coding, announced = headers.get("transfer-encoding"), headers.get("content-length")
    # RFC 9112, section 6.3: who says both may be smuggling a request past somebody.
    if coding is not None and (coding.lower() != "chunked" or announced is not None):
        raise BadRequestError("`transfer-encoding` is not `chunked` alone")
    if announced is not None and not _DIGITS(announced):
        raise BadRequestError("`content-length` is no number")
    connection = headers.get("connection")
    return Request(
        method,
        path,
        query_string,
        version[5:],
        headers,
        is_1_1 if connection is None else _stays(connection.lower(), by_default=is_1_1),
        int(announced or 0) if coding is None else None,
    )


def _fields(text: str) -> dict[str, str]:
    if not _FIELDS(text):
        raise BadRequestError("a header field has no name")
    pairs = [line.split(":", 1) for line in text.split("\r\n")] if text else []
    headers = {name.lower(): value.strip(" \t") for name, value in pairs}
    if len(headers) < len(pairs):
        headers = {
            name: ", ".join([value.strip(" \t") for other, value in pairs if other.lower() == name])
            for name in headers
        }
    return headers


@lru_cache(maxsize=256)
def _place(target: str) -> tuple[str, str]:
    """Path, decoded, and query string of a request's target; a proxy's client sends a whole URL."""
    if not target.startswith("/"):
        found = _URL(target)
        if found is None:
            raise BadRequestError("the target is no path")
        target = found[1] if found[1].startswith("/") else "/" + found[1]
    path, _, query_string = target.partition("?")
    return unquote(path), query_string


def _stays(connection: str, *, by_default: bool) -> bool:
    options = {option.strip() for option in connection.split(",")}
    return "close" not in options and (by_default or "keep-alive" in options)


# -- writing ----------------------------------------------------------------------------------------------


def whole(status: int, headers: Headers, body: bytes, *, to: Request | None, second: int) -> bytes:
    """A whole answer.

    Args:
        status: of the answer.
        headers: all but those that the framing needs; a length of theirs is left as it is, right or wrong.
        body: what is answered.
        to: the request; None for one that could not be read, after which nothing more is.
        second: Unix time.
    """
    if status in _BODILESS:
        return _head(status, headers, "", to, second)
    framing = "" if _has_length(headers) else f"content-length: {len(body)}\r\n"
    head = _head(status, headers, framing, to, second)
    return head if to is not None and to.method == "HEAD" else head + body


class Opening(NamedTuple):
    """How an answer in pieces begins."""

    head: bytes
    chunked: bool
    """Each piece is to be a chunk."""
    last: bool
    """The connection ends with the answer."""


def opening(status: int, headers: Headers, *, to: Request, second: int) -> Opening:
    """Begin an answer in pieces, by arguments as for `whole`.

    To a client of HTTP/1.0, which knows no chunks, the connection's end is the answer's.
    """
    bounded = status in _BODILESS or _has_length(headers)
    chunked = not bounded and to.http_version == "1.1"
    if not bounded and not chunked:
        to.keep_alive = False
    framing = "transfer-encoding: chunked\r\n" if chunked else ""
    return Opening(_head(status, headers, framing, to, second), chunked, not to.keep_alive)


def chunk(payload: bytes) -> bytes:
    """One piece of an answer."""
    return b"%X\r\n%b\r\n" % (len(payload), payload)


def _head(status: int, headers: Headers, framing: str, to: Request | None, second: int) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    manner = ""
    if to is None or not to.keep_alive:
        manner = "connection: close\r\n"
    elif to.http_version == "1.0":
        manner = "connection: keep-alive\r\n"
    head = f"HTTP/1.1 {_line(status)}\r\n{lines}{framing}{manner}date: {_date(second)}\r\n\r\n"
    return head.encode("latin-1")


def _has_length(headers: Headers) -> bool:
    return "content-length" in [name for name, _ in headers]


@lru_cache
def _line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} "  # A gateway's own, as 520.


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
