"""One request made ready to send, ahead of its due time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, repeat

import msgspec

from harness import __version__
from harness.client.dialects import DIALECTS, Dialect
from harness.client.target import Target
from harness.errors import ConfigError
from harness.workload.prompts import Request

USER_AGENT = f"llm-load-harness/{__version__}"
_ACCEPT = {"sse": "text/event-stream", "lines": "application/x-ndjson, application/json"}


def random_ids(digits: int) -> Iterator[str]:
    """Random hexadecimal ids without end, for `traceparent`.

    Cut from blocks of the kernel's randomness: a system call for each id would take 0.5 µs a request.
    The first block is drawn with the first id, so that forked workers do not share one.
    """
    size = digits // 2
    return chain.from_iterable(os.urandom(128 * size).hex(" ", size).split() for _ in repeat(None))


_TRACE_DIGITS, _SPAN_DIGITS = 32, 16
_ids = random_ids(_TRACE_DIGITS + _SPAN_DIGITS)


class Call(msgspec.Struct, frozen=True, gc=False):
    """One attempt of a request, in bytes."""

    request: Request
    dialect: Dialect
    target: Target
    streams: bool
    trace_id: str
    """32 hexadecimal digits, one a request."""
    span_id: str
    """16 hexadecimal digits, one an attempt."""
    body: bytes
    http1: bytes
    """The whole HTTP/1.1 request; `traceparent` is the last field of its head."""

    def again(self) -> Call:
        """The next attempt of the same request."""
        span_id = next(_ids)[_TRACE_DIGITS:]
        before, after, rest = self.http1.partition(b"-01\r\n\r\n")
        http1 = b"".join((before[:-_SPAN_DIGITS], span_id.encode(), after, rest))
        return msgspec.structs.replace(self, span_id=span_id, http1=http1)

    def fields(self) -> list[tuple[str, str]]:
        """The header fields over HTTP/2."""
        return [
            (":method", "POST"),
            (":scheme", self.target.scheme),
            (":authority", self.target.authority),
            (":path", self.target.base_path + self.dialect.path),
            *_fields(self.target, self.dialect, self.streams),
            ("content-length", str(len(self.body))),
            ("x-request-id", self.request.id),
            ("traceparent", f"00-{self.trace_id}-{self.span_id}-01"),
        ]


def prepare(request: Request, target: Target) -> Call:
    """Encode a request's first attempt and mint its ids. Meant to be done before the request is due.

    Raises:
        ConfigError: the request's dialect is unknown.
    """
    dialect, streams, head = _sort(target, request.dialect, request.stream)
    ids = next(_ids)
    trace_id, span_id = ids[:_TRACE_DIGITS], ids[_TRACE_DIGITS:]
    body = dialect.encode(request)
    head = (
        f"{head}{len(body)}\r\nx-request-id: {request.id}\r\ntraceparent: 00-{trace_id}-{span_id}-01\r\n\r\n"
    )
    return Call(request, dialect, target, streams, trace_id, span_id, body, head.encode() + body)


def _fields(target: Target, dialect: Dialect, streams: bool) -> list[tuple[str, str]]:
    """The fields that are the same for all requests of one sort."""
    fields = [
        ("user-agent", USER_AGENT),
        ("content-type", "application/json"),
        ("accept", _ACCEPT[dialect.framing] if streams else "application/json"),
        ("accept-encoding", "identity"),
    ]
    if target.key:
        fields.append(("authorization", f"Bearer {target.key}"))
    return fields


@lru_cache(maxsize=64)
def _sort(target: Target, name: str, stream: bool) -> tuple[Dialect, bool, str]:
    """What requests of one sort share: dialect, whether the answer streams, and the HTTP/1.1 head.

    The head goes up to the value of content-length; ASCII.
    """
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise ConfigError("request", "dialect", name, f"use one of {', '.join(DIALECTS)}")
    streams = dialect.streams(asked=stream)
    lines = [f"POST {target.base_path}{dialect.path} HTTP/1.1", f"host: {target.authority}"]
    lines += [f"{name}: {value}" for name, value in _fields(target, dialect, streams)]
    return dialect, streams, "\r\n".join(lines) + "\r\ncontent-length: "
