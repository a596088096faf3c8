"""The API's surface without any I/O: request bytes to a question, question to a `Plan`.

Shapes follow the OpenAI chat and completions API with DeepSeek's additions (usage with cache hits and
misses, usage on the finish chunk unless `include_usage` asks for a chunk of its own).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from harness.mock.plan import AROUND, END_MARKER, Framing, Kind, Plan, Step

Headers = list[tuple[str, str]]

_PLAIN = "every request leaves one record of what was really sent and when so that clients can be judged"
_AWKWARD = (" naïve", " 你好", " 🙂", "\n", ' "quoted"', " back\\slash", " data:", " [DONE]", " {", "}")
_TOKENS = tuple(
    msgspec.json.encode(word)[1:-1] for word in (*(" " + word for word in _PLAIN.split()), *_AWKWARD)
)
"""The answer's vocabulary, already escaped for JSON: plain words, and every sort of text that careless
clients trip over. An answer runs through it in a circle from a place that its request id chooses."""

_CHARACTERS_PER_TOKEN = 10 / 3
"""DeepSeek's rule of thumb for English (api-docs.deepseek.com/quick_start/token_usage): 0.3 tokens each."""


class Endpoint(Enum):
    """The generating endpoints."""

    CHAT = "/chat/completions"
    COMPLETIONS = "/completions"
    LINES = "/completions/stream"


class Question(NamedTuple):
    """What a request asks for."""

    endpoint: Endpoint
    model: str
    text: str
    """All that is to be read before the answer, for counting and for the prefix cache."""
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    user_id: str


class Refusal(NamedTuple):
    """Why a request gets no answer."""

    status: int
    message: str


# -- reading ----------------------------------------------------------------------------------------------


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


_Limit = Annotated[int, Meta(ge=1, le=393_216)]


class _Body(msgspec.Struct, kw_only=True):
    model: str
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user_id: str | None = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]


class _CompletionBody(_Body, kw_only=True):
    prompt: str | Annotated[list[str | int], Meta(min_length=1)]


_read_chat = msgspec.json.Decoder(_ChatBody).decode
_read_completion = msgspec.json.Decoder(_CompletionBody).decode


def read(endpoint: Endpoint, body: bytes) -> Question | Refusal:
    """Understand a request's body: 400 for what is not JSON, 422 for what is not a question."""
    try:
        if endpoint is Endpoint.CHAT:
            chat = _read_chat(body)
            text = "\n".join(map(_text_of, chat.messages))
            return _question(endpoint, chat, text, _count(text))
        completion = _read_completion(body)
    except msgspec.ValidationError as error:
        return Refusal(422, f"Failed to deserialize the JSON body into the target type: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(400, f"The body is not valid JSON: {error}")
    prompt = completion.prompt
    if isinstance(prompt, str):
        return _question(endpoint, completion, prompt, _count(prompt))
    if all(isinstance(token, int) for token in prompt):
        return _question(endpoint, completion, repr(prompt), len(prompt))
    if len(prompt) == 1:
        text = str(prompt[0])
        return _question(endpoint, completion, text, _count(text))
    return Refusal(422, "`prompt` must be one text, or the token ids of one text")


def _text_of(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text", "")) for part in message.content or ())


def _count(text: str) -> int:
    return max(1, math.ceil(len(text) / _CHARACTERS_PER_TOKEN))


def _question(endpoint: Endpoint, body: _Body, text: str, prompt_tokens: int) -> Question:
    options = body.stream_options
    return Question(
        endpoint=endpoint,
        model=body.model,
        text=text,
        prompt_tokens=prompt_tokens,
        max_tokens=body.max_tokens or body.max_completion_tokens,
        stream=bool(body.stream) or endpoint is Endpoint.LINES,
        include_usage=options is not None and options.include_usage,
        user_id=body.user_id or "",
    )


# -- answering --------------------------------------------------------------------------------------------


class _Head(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class _CachedTokens(msgspec.Struct):
    cached_tokens: int


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    prompt_tokens_details: _CachedTokens


_encode = msgspec.json.Encoder().encode


def answer(
    question: Question,
    *,
    request_id: str,
    created: int,
    cached_tokens: int,
    token_offsets_ns: Sequence[int],
    fingerprint: str,
) -> Plan:
    """Write the answer out.

    Args:
        question: what was asked.
        request_id: names the answer, and chooses its words.
        created: Unix time in seconds.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache.
        token_offsets_ns: when each token is due, from the request's arrival; as many as the answer has.
        fingerprint: the `system_fingerprint`.
    """
    count = len(token_offsets_ns)
    start = zlib.crc32(request_id.encode())
    words = [_TOKENS[(start + i) % len(_TOKENS)] for i in range(count)]
    finish = "stop" if question.max_tokens is None else "length"
    chat = question.endpoint is Endpoint.CHAT
    name = "chat.completion" if chat else "text_completion"
    if chat and question.stream:
        name = "chat.completion.chunk"
    identity = _Head(
        ("chatcmpl-" if chat else "cmpl-") + request_id, name, created, question.model, fingerprint
    )
    head = _encode(identity)[:-1] + b',"choices":['
    tail = b'],"usage":' + _encode(_usage(question.prompt_tokens, cached_tokens, count)) + b"}"
    finish_json = b'"finish_reason":"' + finish.encode() + b'"}'
    if not question.stream:
        text = b'"' + b"".join(words) + b'"'
        content = b'"message":{"role":"assistant","content":' + text + b"}" if chat else b'"text":' + text
        body = b"".join((head, b'{"index":0,', content, b',"logprobs":null,', finish_json, tail))
        step = Step(token_offsets_ns[-1], body, Kind.BODY)
        return Plan(200, _JSON, [step], completion_tokens=count, finish_reason=finish)

    framing = Framing.LINES if question.endpoint is Endpoint.LINES else Framing.SSE
    before, after = AROUND[framing]
    open_ = before + head + (b'{"index":0,"delta":{"content":"' if chat else b'{"index":0,"text":"')
    close = b'"}' if chat else b'"'
    null = b',"logprobs":null,"finish_reason":null}]}' + after
    if question.include_usage:
        null = b',"logprobs":null,"finish_reason":null}],"usage":null}' + after
    steps = [
        Step(at_ns, b"".join((open_, word, close, null)), Kind.TOKEN)
        for at_ns, word in zip(token_offsets_ns, words, strict=True)
    ]
    first_ns, last_ns = token_offsets_ns[0], token_offsets_ns[-1]
    if chat:
        role = before + head + b'{"index":0,"delta":{"role":"assistant","content":""}' + null
        steps.insert(0, Step(first_ns, role, Kind.FRAME))
    final = open_ + close + b',"logprobs":null,' + finish_json
    if question.include_usage and framing is Framing.SSE:
        steps.append(Step(last_ns, final + b'],"usage":null}' + after, Kind.FRAME))
        steps.append(Step(last_ns, before + head + tail + after, Kind.FRAME))
    else:
        steps.append(Step(last_ns, final + tail + after, Kind.FRAME))
    if framing is Framing.SSE:
        steps.append(Step(last_ns, END_MARKER, Kind.FRAME))
    headers = _LINES if framing is Framing.LINES else _SSE
    return Plan(200, headers, steps, framing, completion_tokens=count, finish_reason=finish)


def _usage(prompt: int, cached: int, completion: int) -> _Usage:
    return _Usage(prompt, completion, prompt + completion, cached, prompt - cached, _CachedTokens(cached))


_JSON: Headers = [("content-type", "application/json")]
_SSE: Headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
_LINES: Headers = [("content-type", "application/x-ndjson"), ("cache-control", "no-cache")]


def json_plan(value: object, *, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Plan:
    """A plain JSON answer, due at once."""
    return Plan(status, [*_JSON, *headers], [Step(0, _encode(value), Kind.BODY)])


def models(names: Sequence[str]) -> Plan:
    """The list of models."""
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "deepseek"} for name in names]
    return json_plan({"object": "list", "data": listed})


# -- refusing ---------------------------------------------------------------------------------------------

ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "Invalid Format"),
    401: ("authentication_error", "Authentication Fails, Your api key is invalid"),
    402: ("unknown_error", "Insufficient Balance"),
    403: ("permission_error", "You do not have access to this resource"),
    404: ("invalid_request_error", "Not Found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    408: ("timeout_error", "Request Timeout"),
    409: ("conflict_error", "Conflict"),
    413: ("invalid_request_error", "Request Entity Too Large"),
    422: ("invalid_request_error", "Invalid Parameters"),
    429: ("rate_limit_error", "Rate Limit Reached"),
    500: ("server_error", "Server Error"),
    502: ("server_error", "Bad Gateway"),
    503: ("server_error", "Server Overloaded"),
    504: ("server_error", "Gateway Timeout"),
}
"""Status to error type and message: DeepSeek's error page where it lists the status, else in its manner."""


def error_object(status: int, message: str | None = None) -> dict[str, Any]:
    """The body of an error answer, OpenAI's shape as DeepSeek uses it."""
    kind, text = ERRORS[status]
    code = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message or text, "type": kind, "param": None, "code": code}}


def refusal(status: int, message: str | None = None, *, headers: Sequence[tuple[str, str]] = ()) -> Plan:
    """An error answer, due at once."""
    return json_plan(error_object(status, message), status=status, headers=headers)
