"""What the API answers: a `Question` to a `Plan`, and refusals as its error bodies. Pure.

Shapes follow the OpenAI chat and completions API with DeepSeek's additions: usage with cache hits and
misses, usage on the finish chunk unless `include_usage` asks for a chunk of its own; reasoning.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from harness.mock import logprobs
from harness.mock.generation import Said, escaped, length, say, unescaped
from harness.mock.plan import AROUND, END_MARKER, Events, Framing, Kind, Plan, Run, Step
from harness.mock.questions import Endpoint, Question

Headers = list[tuple[str, str]]


# -- answering --------------------------------------------------------------------------------------------


class _Head(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class _CachedTokens(msgspec.Struct):
    cached_tokens: int


class _ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int


class _Usage(msgspec.Struct, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    prompt_tokens_details: _CachedTokens
    completion_tokens_details: _ReasoningTokens | None = None
    """Only where the model thinks."""


_encode = msgspec.json.Encoder().encode


def compose(question: Question, *, request_id: str, default_tokens: int) -> tuple[Said, ...]:
    """What the answer's choices say.

    Args:
        question: what was asked.
        request_id: chooses the words.
        default_tokens: how many tokens a choice has if the request sets no limit.
    """
    start = zlib.crc32(request_id.encode())
    limit = question.max_tokens
    return tuple(
        [
            say(question.wish, start=start + 11 * choice, limit=limit, default=default_tokens)
            for choice in range(question.n)
        ]
    )


def answer(
    question: Question,
    said: Sequence[Said],
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
        said: what its choices say.
        request_id: names the answer.
        created: Unix time in seconds.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache.
        token_offsets_ns: when each token is due, from the request's arrival: `generation.length(said)` of
            them, as the choices are written side by side.
        fingerprint: the `system_fingerprint`.
    """
    chat = question.endpoint is Endpoint.CHAT
    name = "chat.completion" if chat else "text_completion"
    if chat and question.stream:
        name = "chat.completion.chunk"
    identity = _Head(
        ("chatcmpl-" if chat else "cmpl-") + request_id, name, created, question.model, fingerprint
    )
    head = _encode(identity)[:-1] + b',"choices":['
    count = sum([choice.tokens for choice in said])
    tail = b'],"usage":' + _encode(_usage(question, cached_tokens, count, said)) + b"}"
    if not question.stream:
        choices = b",".join([_whole(question, i, choice) for i, choice in enumerate(said)])
        last_ns = token_offsets_ns[length(said) - 1]
        step = Step(last_ns, head + choices + tail, Kind.BODY)
        return Plan(200, JSON, [step], completion_tokens=count, finish_reason=said[0].finish)

    framing = Framing.LINES if question.endpoint is Endpoint.LINES else Framing.SSE
    before, after = AROUND[framing]
    apart = question.include_usage and framing is Framing.SSE
    close = (b'],"usage":null}' if question.include_usage else b"]}") + after
    frame = _Frame(before + head, close, token_offsets_ns)
    write = _chat_events if chat else _text_events
    written = [write(question, i, choice, frame) for i, choice in enumerate(said)]
    events = written[0]
    if len(said) > 1:
        # Choices are written side by side; what is due at once stays in the choices' order.
        events = Events(sorted((step for each in written for step in each), key=_due), [], (), [])
        events = Events(events.before[:-1], [], (), events.before[-1:])
    last = events.after[-1]
    after_all = [*events.after[:-1], last._replace(payload=last.payload.removesuffix(close) + tail + after)]
    if apart:
        after_all = [*events.after, Step(last.at_ns, before + head + tail + after, Kind.FRAME)]
    if framing is Framing.SSE:
        after_all.append(Step(last.at_ns, END_MARKER, Kind.FRAME))
    steps = Events(events.before, events.runs, events.due_ns, after_all)
    headers = LINES if framing is Framing.LINES else SSE
    return Plan(200, headers, steps, framing, completion_tokens=count, finish_reason=said[0].finish)


class _Frame(NamedTuple):
    """What is around each event's choice, and when the events are due."""

    open: bytes
    close: bytes
    due_ns: Sequence[int]


def call_id(question: Question, choice: int, call: int) -> str:
    """What a tool call is called."""
    return f"call_{choice:02}_{call:02}_{zlib.crc32(question.text.encode()):08x}"


def _due(step: Step) -> int:
    return step.at_ns


def _whole(question: Question, index: int, said: Said) -> bytes:
    """One choice of an answer that is not streamed."""
    text = b"".join(said.content)
    if question.endpoint is Endpoint.CHAT:
        content = b'"message":{"role":"assistant","content":"' + text + b'"'
        if question.thinks:
            content += b',"reasoning_content":"' + b"".join(said.reasoning) + b'"'
        if said.calls:
            calls = (
                _named(question, index, i, call.name, b"".join(call.arguments))
                for i, call in enumerate(said.calls)
            )
            content += b',"tool_calls":[' + b",".join(calls) + b"]"
        content += b"}"
    else:
        content = b'"text":"' + question.repeats + text + b'"'
    scores = b"null"
    if question.logprobs is not None:
        offset = len(unescaped(question.repeats)) if question.repeats else 0
        scores = _scores(question, said.content, said.reasoning, offset)
    ending = b',"finish_reason":"' + said.finish.encode() + b'"}'
    return b"".join((b'{"index":%d,' % index, content, b',"logprobs":', scores, ending))


def _named(question: Question, index: int, call: int, name: str, arguments: bytes) -> bytes:
    """A tool call with its id and its name."""
    return b'{"index":%d,"id":"%b","type":"function","function":{"name":"%b","arguments":"%b"}}' % (
        call,
        call_id(question, index, call).encode(),
        escaped(name),
        arguments,
    )


def _scores(question: Question, content: Sequence[bytes], reasoning: Sequence[bytes], offset: int) -> bytes:
    """The log probabilities of some tokens, if they are asked for."""
    top = question.logprobs
    if top is None:
        return b"null"
    if question.endpoint is not Endpoint.CHAT:
        return logprobs.legacy(content, top, offset)
    scores = b'{"content":' + (logprobs.chat(content, top) if content else b"null")
    if question.thinks:
        scores += b',"reasoning_content":' + (logprobs.chat(reasoning, top) if reasoning else b"null")
    return scores + b"}"


def _chat_events(question: Question, index: int, said: Said, frame: _Frame) -> Events:
    """One choice of a chat stream, from its role to its finish reason."""
    thinks, scored = question.thinks, question.logprobs is not None
    open_ = frame.open + b'{"index":%d,"delta":{' % index
    null = b'},"logprobs":null,"finish_reason":null}' + frame.close
    content_open = open_ + (b'"reasoning_content":null,"content":"' if thinks else b'"content":"')
    reasoning_open = open_ + b'"content":null,"reasoning_content":"'
    role = b'"role":"assistant",'
    role += b'"content":null,"reasoning_content":""' if thinks else b'"content":""'
    end = b'"' + null
    runs = []
    if scored:
        for token in said.reasoning:
            scores = _scored(b'"}', _scores(question, (), (token,), 0), frame)
            runs.append(Run(reasoning_open, (token,), scores))
        for token in said.content:
            scores = _scored(b'"}', _scores(question, (token,), (), 0), frame)
            runs.append(Run(content_open, (token,), scores))
    else:
        runs += [Run(reasoning_open, said.reasoning, end), Run(content_open, said.content, end)]
    for i, call in enumerate(said.calls):
        opened = b'"tool_calls":[' + _named(question, index, i, call.name, b"") + b"]"
        runs.append(Run(open_, (opened,), null))
        part = open_ + b'"tool_calls":[{"index":%d,"function":{"arguments":"' % i
        runs.append(Run(part, call.arguments, b'"}}]' + null))
    ending = b'"},"logprobs":null,"finish_reason":"' + said.finish.encode() + b'"}'
    due_ns, count = frame.due_ns, said.tokens
    return Events(
        [Step(due_ns[0], open_ + role + null, Kind.FRAME)],
        runs,
        due_ns,
        [Step(due_ns[max(0, count - 1)], content_open + ending + frame.close, Kind.FRAME)],
    )


def _text_events(question: Question, index: int, said: Said, frame: _Frame) -> Events:
    """One choice of a completion stream, up to its finish reason."""
    open_ = frame.open + b'{"index":%d,"text":"' % index
    end = b'","logprobs":null,"finish_reason":null}' + frame.close
    due_ns, before, runs = frame.due_ns, [], [Run(open_, said.content, end)]
    characters = 0
    if question.repeats:
        before.append(Step(due_ns[0], open_ + question.repeats + end, Kind.FRAME))
        characters = len(unescaped(question.repeats))
    if question.logprobs is not None:
        runs = []
        for token in said.content:
            scores = _scored(b'"', _scores(question, (token,), (), characters), frame)
            runs.append(Run(open_, (token,), scores))
            characters += len(unescaped(token))
    ending = b'","logprobs":null,"finish_reason":"' + said.finish.encode() + b'"}'
    last_ns = due_ns[max(0, len(said.content) - 1)]
    return Events(before, runs, due_ns, [Step(last_ns, open_ + ending + frame.close, Kind.FRAME)])


def _scored(end: bytes, scores: bytes, frame: _Frame) -> bytes:
    return b"".join((end, b',"logprobs":', scores, b',"finish_reason":null}', frame.close))


def _usage(question: Question, cached: int, completion: int, said: Sequence[Said]) -> _Usage:
    prompt = question.prompt_tokens
    usage = _Usage(prompt, completion, prompt + completion, cached, prompt - cached, _CachedTokens(cached))
    if question.thinks:
        usage.completion_tokens_details = _ReasoningTokens(sum(len(choice.reasoning) for choice in said))
    return usage


JSON: Headers = [("content-type", "application/json")]
SSE: Headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
LINES: Headers = [("content-type", "application/x-ndjson"), ("cache-control", "no-cache")]


def json_plan(value: object, *, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Plan:
    """A plain JSON answer, due at once."""
    return Plan(status, [*JSON, *headers], [Step(0, _encode(value), Kind.BODY)])


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
