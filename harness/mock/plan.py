"""An answer as a plain value: which bytes go out when, and how it ends."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple


class Kind(Enum):
    """What a step carries."""

    TOKEN = "token"  # noqa: S105 - the other sort of token
    """One event with one non-empty token."""
    BODY = "body"
    """A whole answer that is not streamed, or a part of one."""
    FRAME = "frame"
    """Anything else of a stream: role, finish reason, usage, end marker, keep-alive, error."""


class Step(NamedTuple):
    """Bytes handed to the transport at once."""

    at_ns: int
    """When they are due, from the request's arrival."""
    payload: bytes
    kind: Kind


class Framing(Enum):
    """How the body is cut into pieces."""

    WHOLE = "whole"
    SSE = "sse"
    LINES = "lines"


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


class Plan(NamedTuple):
    """One answer."""

    status: int | None
    """None: not even the response's head is sent."""
    headers: list[tuple[str, str]]
    steps: list[Step]
    framing: Framing = Framing.WHOLE
    ending: Ending = Ending.COMPLETE
    hang_s: float | None = None
    """How long `Ending.HANG` lasts before the socket is closed; None: until the client gives up."""
    completion_tokens: int = 0
    """Tokens that the steps carry."""
    finish_reason: str | None = None


END_MARKER = b"data: [DONE]\n\n"


AROUND = {Framing.WHOLE: (b"", b""), Framing.SSE: (b"data: ", b"\n\n"), Framing.LINES: (b"", b"\n")}
"""What goes before and after each JSON text on the wire."""
