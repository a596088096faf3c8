"""What the endpoints beside chat have in common: a request as a value, and the answer made of it.

Their latency is the profile's, as for chat: `due(n)` says when each of n tokens is due, and each module
says what it counts as a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from harness.mock.plan import Kind, Plan, Step
from harness.mock.questions import Refusal

_Body = TypeVar("_Body")


class Asked(NamedTuple):
    """A request."""

    body: bytes
    content_type: str
    origin: str
    """Scheme and authority by which the client reached the mock: `http://127.0.0.1:8000`."""
    created: int
    """Unix time in seconds."""
    due: Callable[[int], Sequence[int]]
    """When each of so many tokens is due, in nanoseconds from the request's arrival."""


class Made(NamedTuple):
    """An answer, and what the truth log says of it."""

    plan: Plan
    model: str
    prompt_tokens: int
    stream: bool = False
    generated: int = 0
    """Tokens that an engine has to generate for it, where the plan has fewer: pieces of a picture."""


Make = Callable[[Asked], Made | Refusal]


def read(decode: Callable[[bytes], _Body], body: bytes) -> _Body | Refusal:
    """Decode a JSON body: 400 for what is not JSON, 422 for what has other fields than it should."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        return Refusal(422, f"Failed to deserialize the JSON body into the target type: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(400, f"The body is not valid JSON: {error}")


def whole(
    body: bytes, *, at_ns: int, content_type: str = "application/json", completion_tokens: int = 0
) -> Plan:
    """An answer that is not streamed."""
    headers = [("content-type", content_type)]
    return Plan(200, headers, [Step(at_ns, body, Kind.BODY)], completion_tokens=completion_tokens)


def event(value: object, *, name: str = "") -> bytes:
    """One server-sent event."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + msgspec.json.encode(value) + b"\n\n"
