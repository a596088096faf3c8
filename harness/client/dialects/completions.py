"""Text completions: POST /v1/completions as server-sent events, /v1/completions/stream as JSON lines."""

from __future__ import annotations

from typing import Any

import msgspec

from harness.client.dialects.base import Delta, Dialect, WireUsage, body_of, error_in, members, usage
from harness.workload.prompts import Request


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    reasoning_content: str | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


def prompt(request: Request) -> str:
    """The prompt as one text; messages are joined by blank lines, for want of a chat template."""
    if request.prompt is not None:
        return request.prompt
    return "\n\n".join(str(message.get("content") or "") for message in request.messages or ())


def encode(request: Request) -> bytes:
    """The JSON body of a completion request."""
    return _encode(body_of(request, "prompt", prompt(request), stream=request.stream))


def encode_lines(request: Request) -> bytes:
    """The JSON body of a request to the endpoint that always streams."""
    return _encode(body_of(request, "prompt", prompt(request), stream=True))


def decode(payload: bytes) -> Delta:
    """One chunk, or one whole body: they have the same shape."""
    answer = _decode(payload)
    reasoning = content = False
    finish_reason = None
    for choice in answer.choices or ():
        if choice.text:
            content = True
        if choice.reasoning_content:
            reasoning = True
        finish_reason = choice.finish_reason or finish_reason
    return Delta(
        bool(answer.choices),
        reasoning,
        content,
        finish_reason,
        None if answer.usage is None else usage(answer.usage),
        None if answer.choices and answer.error is None else error_in(payload, answer.error, answer.usage),
    )


_reads = members(_Answer)
COMPLETIONS = Dialect("completions", "/v1/completions", "sse", encode, decode, decode, _reads)
COMPLETIONS_LINES = Dialect(
    "completions-lines", "/v1/completions/stream", "lines", encode_lines, decode, decode, _reads
)
