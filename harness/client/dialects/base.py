"""What the dialects have in common: the shapes of OpenAI's and DeepSeek's answers, decoded tolerantly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import inspect

from harness.record import Usage
from harness.workload.prompts import Request

FAILED_FINISHES = frozenset({"insufficient_system_resource", "aborted", "abort"})
"""Finish reasons that say, under HTTP 200, that the answer is not whole (DeepSeek; vLLM and SGLang)."""

END_MARKER = b"[DONE]"


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one stream event, or one whole body, says."""

    choices: bool = False
    """It has choices at all."""
    reasoning: bool = False
    """It carries reasoning text that is not empty."""
    content: bool = False
    """It carries answer text, or a part of a tool call, that is not empty."""
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    """The type or code of an in-band error, `unnamed` if it bears neither."""


class Dialect(msgspec.Struct, frozen=True):
    """One API: where it is, how a request is written, how an answer is read."""

    name: str
    path: str
    framing: Literal["sse", "lines"]
    encode: Callable[[Request], bytes]
    """The JSON body."""
    decode_event: Callable[[bytes], Delta]
    """One stream event. Raises what `UNREADABLE` names."""
    decode_body: Callable[[bytes], Delta]
    """One whole body. Raises what `UNREADABLE` names."""
    reads: frozenset[bytes]
    """The names of all members that the decoding looks at."""

    def streams(self, *, asked: bool) -> bool:
        """The answer comes as a stream, if asked for; line-delimited JSON knows no other way."""
        return asked or self.framing == "lines"


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`, with each vendor's names for cached and reasoning tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek."""
    cached_tokens: int | None = None
    """Together, Moonshot."""
    reasoning_tokens: int | None = None
    """SGLang."""
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: Any = None
    object: Any = None
    """`error` if the body itself is the error (vLLM, SGLang, Mistral)."""
    code: Any = None
    type: Any = None


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a server's bytes may raise: no JSON of the shape, no UTF-8, lists without end."""

_MOST = 2**63 - 1
"""Of what is counted, as much as a record holds."""

_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_NAME = re.compile(r"[A-Za-z][A-Za-z_.-]{0,39}")


def members(answer: type[msgspec.Struct]) -> frozenset[bytes]:
    """The names of all members that decoding such an answer looks at, an error's in its place included."""
    names: set[str] = set()

    def walk(kind: inspect.Type) -> None:
        if isinstance(kind, inspect.StructType):
            for field in kind.fields:
                names.add(field.encode_name)
                walk(field.type)
        elif isinstance(kind, inspect.UnionType):
            for each in kind.types:
                walk(each)
        elif isinstance(kind, inspect.ListType):
            walk(kind.item_type)

    for each in (answer, _ErrorBody):
        walk(inspect.type_info(each))
    return frozenset(name.encode() for name in names)


def usage(wire: WireUsage | None) -> Usage | None:
    """The record's token counts; None where the server gave none, or none that can be."""
    if wire is None:
        return None
    prompt, completion = wire.prompt_tokens, wire.completion_tokens
    cached, details = wire.prompt_cache_hit_tokens, wire.prompt_tokens_details
    if cached is None:
        cached = wire.cached_tokens if details is None else details.cached_tokens
    said = wire.completion_tokens_details
    reasoning = wire.reasoning_tokens if said is None else said.reasoning_tokens
    # One by one: a loop over them takes as long as all the rest.
    if (
        prompt is None
        or completion is None
        or not 0 <= prompt <= _MOST
        or not 0 <= completion <= _MOST
        or (cached is not None and not 0 <= cached <= _MOST)
        or (reasoning is not None and not 0 <= reasoning <= _MOST)
    ):
        return None
    return Usage(prompt, completion, cached, reasoning)


def error_name(error: Any) -> str | None:
    """The code or type of an `error` member, fit for a report; None if there is no error.

    Only short names without digits pass: a message or an id may bear payload, and has many values.
    """
    if not error:
        return None
    if isinstance(error, dict):
        for key in ("code", "type"):
            value = error.get(key)
            # LiteLLM writes a name it does not know as "None".
            if isinstance(value, str) and value != "None" and _NAME.fullmatch(value):
                return value
    return "unnamed"


def error_of(body: bytes) -> str | None:
    """The error that a body names, whatever else it may be; None if it names none."""
    try:
        said = _decode_error(body)
    except UNREADABLE:
        return None
    if said.object == "error" and said.error is None:
        return error_name({"code": said.code, "type": said.type})
    return error_name(said.error)


def error_in(payload: bytes, error: Any, counted: WireUsage | None) -> str | None:
    """The error that a payload without choices, or with an `error` member, names; None if it names none."""
    if error is not None:
        return error_name(error)
    return error_of(payload) if counted is None else None


def body_of(request: Request, name: str, asked: Any, *, stream: bool) -> dict[str, Any]:
    """The body: what is asked, by the dialect's name for it, then the fields that all dialects share.

    The parameters are given as they stand, but for `stream`.
    """
    fields = {name: asked, "model": request.model, "max_tokens": request.max_tokens}
    if request.parameters:
        fields.update(request.parameters)
    fields["stream"] = stream
    if stream:
        fields["stream_options"] = {"include_usage": True}
    return fields
