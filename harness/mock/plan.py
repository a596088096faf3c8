"""An answer as a plain value: which bytes go out when, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cached_property
from typing import NamedTuple, overload


class Kind(Enum):
    """What a step carries."""

    TOKEN = "token"  # noqa: S105 - the other sort of token
    """One event with one non-empty token."""
    BODY = "body"
    """A whole answer that is not streamed, or a part of one."""
    FRAME = "frame"
    """Anything else of a stream: role, finish reason, usage, end marker, keep-alive, error."""
    HEAD = "head"
    """The response's head, or its last byte, where we write it ourselves."""


class Step(NamedTuple):
    """Bytes handed to the transport at once."""

    at_ns: int
    """When they are due, from the request's arrival."""
    payload: bytes
    kind: Kind
    tokens: int = 1
    """How many tokens a TOKEN step completes: more than one only where a fault writes events together."""
    awaits: int = 0
    """How many tokens an engine must have generated before (`drive.gated`): `at_ns` then counts from the last
    of them. 0: it waits for none."""


class Run(NamedTuple):
    """Tokens in events that differ in nothing else."""

    open: bytes
    tokens: Sequence[bytes]
    close: bytes


@dataclass(frozen=True)
class Events(Sequence[Step]):
    """A stream's steps, each made when its turn comes.

    The chunks of a thousand streams, made in advance, take long to make and much memory.
    """

    before: list[Step]
    runs: list[Run]
    due_ns: Sequence[int]
    """When the runs' tokens are due: at least as many as there are."""
    after: list[Step]

    def __len__(self) -> int:
        return len(self.before) + sum(len(run.tokens) for run in self.runs) + len(self.after)

    def __iter__(self) -> Iterator[Step]:
        yield from self.before
        due_ns, join, token_kind = iter(self.due_ns), b"".join, Kind.TOKEN
        for open_, tokens, close in self.runs:
            # Tokens first: a run that is over takes no due time from the next.
            for token, at_ns in zip(tokens, due_ns, strict=False):
                yield Step(at_ns, join((open_, token, close)), token_kind)
        yield from self.after

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        return self._made[index]

    @cached_property
    def _made(self) -> list[Step]:
        return list(self)


class Framing(Enum):
    """How the body is cut into pieces."""

    WHOLE = "whole"
    SSE = "sse"
    LINES = "lines"
    BYTES = "bytes"
    """Pieces of a body that is not text, such as sound."""


class Ending(StrEnum):
    """What becomes of the connection after the last step."""

    COMPLETE = "complete"
    """The answer is ended as HTTP wants it."""
    RESET = "reset"
    """TCP reset in the middle of the answer."""
    CLOSE = "close"
    """TCP end of stream in the middle of the answer."""
    HANG = "hang"
    """Nothing more is sent and the socket stays open."""


class Mangling(NamedTuple):
    """What is done to an answer's very bytes, below what an HTTP library would write."""

    pause_s: float = 0.0
    """Each byte of the head comes that long after the one before it."""
    cut_in_head: bool = False
    """The connection breaks in the middle of the head."""
    cut_in_chunk: bool = False
    """The connection breaks in the middle of the last step's chunk."""
    length_off_by: int | None = None
    """The body comes with a Content-Length that is wrong by so many bytes."""
    stream_alone: bool = False
    """HTTP/2: the answer's stream is reset, and its connection goes on."""
    below: bool = False
    """The bytes are the library's own and torn on their way to the socket (`below.py`), as they must be where
    they are not plain HTTP/1.1."""


class Plan(NamedTuple):
    """One answer."""

    status: int | None
    """None: not even the response's head is sent."""
    headers: list[tuple[str, str]]
    steps: Sequence[Step]
    framing: Framing = Framing.WHOLE
    ending: Ending = Ending.COMPLETE
    hang_s: float | None = None
    """How long `Ending.HANG` lasts before the socket is closed; None: until the client gives up."""
    completion_tokens: int = 0
    """Tokens that the steps carry."""
    finish_reason: str | None = None
    mangling: Mangling | None = None
    """Written to the socket by ourselves (`mangle.render`), or below the library."""
    stretch: float = 1.0
    """An engine's tokens come this many times as late after the request's arrival."""


END_MARKER = b"data: [DONE]\n\n"


AROUND = {
    Framing.WHOLE: (b"", b""),
    Framing.SSE: (b"data: ", b"\n\n"),
    Framing.LINES: (b"", b"\n"),
    Framing.BYTES: (b"", b""),
}
"""What goes before and after each JSON text on the wire."""
