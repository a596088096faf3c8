"""Chat completions: POST /v1/chat/completions, streamed as server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec

from harness.client.dialects.base import Delta, Dialect, WireUsage, body_of, error_in, members, usage
from harness.workload.prompts import Request


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: list[Any] | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None
    """Mistral's reasoning models speak in parts."""
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's and others' name for `reasoning_content`."""
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Groq(msgspec.Struct, gc=False):
    usage: WireUsage | None = None
    error: Any = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None
    x_groq: _Groq | None = None
    """Groq's usage where none was asked for, and why it stopped early."""


_decode = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


def encode(request: Request) -> bytes:
    """The JSON body of a chat request; a plain prompt becomes one user message."""
    messages = request.messages
    if messages is None:
        messages = ({"role": "user", "content": request.prompt or ""},)
    return _encode(body_of(request, "messages", messages, stream=request.stream))


def decode(payload: bytes) -> Delta:
    """One chunk, or one whole body: they differ only in `delta` and `message`."""
    answer = _decode(payload)
    reasoning = content = False
    finish_reason = None
    for choice in answer.choices or ():
        said = choice.delta or choice.message
        if said is not None:
            if said.content or said.tool_calls or said.refusal:
                if type(said.content) is list:
                    content = content or any(part.text for part in said.content)
                    reasoning = reasoning or any(part.thinking for part in said.content)
                else:
                    content = True
            if said.reasoning_content or said.reasoning:
                reasoning = True
        finish_reason = choice.finish_reason or finish_reason
    counted, error = answer.usage, answer.error
    if finish_reason is not None and answer.x_groq is not None:
        counted, error = counted or answer.x_groq.usage, error or answer.x_groq.error
    return Delta(
        bool(answer.choices),
        reasoning,
        content,
        finish_reason,
        None if counted is None else usage(counted),
        None if answer.choices and error is None else error_in(payload, error, counted),
    )


CHAT = Dialect("chat", "/v1/chat/completions", "sse", encode, decode, decode, members(_Answer))
