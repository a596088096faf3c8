"""Anthropic's Messages API as DeepSeek offers it: content blocks in, content blocks out.

Errors have DeepSeek's shape, not Anthropic's, as they have there. The order of a stream's events
(docs.anthropic.com/en/api/messages-streaming):

    message_start, ping, ( content_block_start, content_block_delta …, content_block_stop ) …,
    message_delta, message_stop
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from harness.mock.api import JSON, SSE, call_id
from harness.mock.generation import Said, Tool, Wish, unescaped
from harness.mock.plan import Framing, Kind, Plan, Step
from harness.mock.questions import (
    MAX_TOKENS,
    Effort,
    Endpoint,
    Question,
    Refusal,
    Thinking,
    Unfit,
    called,
    check,
    check_model,
    check_user,
    count_tokens,
    refusing,
    stops,
    thinking_share,
)

_encode = msgspec.json.Encoder().encode


class _Block(msgspec.Struct):
    """One block of a turn's content."""

    type: str
    text: str = ""
    thinking: str | None = None
    id: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[dict[str, Any]] | None = None


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    input_schema: dict[str, Any] = {}
    description: str | None = None


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = True


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _OutputConfig(msgspec.Struct):
    effort: Effort | None = None


class _Body(msgspec.Struct):
    model: str
    max_tokens: int
    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: str | list[_Block] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: Annotated[list[_Tool], Meta(max_length=128)] | None = None
    tool_choice: _Choice | None = None
    thinking: Thinking | None = None
    output_config: _OutputConfig | None = None
    metadata: _Metadata | None = None


_read = msgspec.json.Decoder(_Body).decode
_CHOICES = {"any": "required", "tool": "named", "auto": "auto", "none": "none"}


# -- reading ----------------------------------------------------------------------------------------------


def read(body: bytes) -> Question | Refusal:
    """Understand a request's body."""
    return refusing(lambda: _question(_read(body)))


def _question(body: _Body) -> Question:
    check_model(body.model)
    check("max_tokens", body.max_tokens, 1, MAX_TOKENS)
    check("temperature", body.temperature, 0, 2.0)
    check("top_p", body.top_p, 0, 1.0)
    user_id = body.metadata.user_id if body.metadata else None
    check_user(user_id)
    share = thinking_share(
        body.model, body.thinking, body.output_config.effort if body.output_config else None
    )
    _check_turns(body.messages, thinks=share > 0)
    parts = [_encode(body.tools).decode()] if body.tools else []
    parts += [_text_of(body.system)] if body.system else []
    text = "\n".join((*parts, *(_text_of(message.content) for message in body.messages)))
    choice = body.tool_choice or _Choice("auto")
    return Question(
        endpoint=Endpoint.MESSAGES,
        model=body.model,
        text=text,
        prompt_tokens=count_tokens(text),
        max_tokens=body.max_tokens,
        stream=bool(body.stream),
        include_usage=True,
        user_id=user_id or "",
        thinks=share > 0,
        wish=Wish(
            thinking=share,
            calls=called(
                [Tool(tool.name, _encode(tool.input_schema)) for tool in body.tools or ()],
                _CHOICES[choice.type],
                named=choice.name,
                every=not choice.disable_parallel_tool_use,
                answered=bool(_ids(body.messages[-1], "tool_result")),
                thinks=share > 0,
            ),
            stop=stops(body.stop_sequences),
        ),
    )


def _text_of(content: str | list[_Block]) -> str:
    if isinstance(content, str):
        return content
    return "".join(map(_text_of_block, content))


def _text_of_block(block: _Block) -> str:
    inner = block.content
    if not isinstance(inner, str):
        inner = "".join(str(part.get("text", "")) for part in inner or ())
    given = _encode(block.input).decode() if block.input is not None else ""
    return block.text + (block.thinking or "") + given + inner


def _ids(message: _Message, kind: str) -> set[str | None]:
    """The ids of a turn's tool uses or tool results."""
    if isinstance(message.content, str):
        return set()
    return {
        block.id if kind == "tool_use" else block.tool_use_id
        for block in message.content
        if block.type == kind
    }


def _check_turns(messages: Sequence[_Message], *, thinks: bool) -> None:
    waiting: set[str | None] = set()
    for i, message in enumerate(messages):
        given = _ids(message, "tool_result")
        if waiting - given:
            raise Unfit(
                f"messages.{i - 1}: `tool_use` ids were found without `tool_result` blocks "
                "immediately after: " + ", ".join(sorted(map(str, waiting - given)))
            )
        if given - waiting:
            raise Unfit(
                f"messages.{i}: unexpected `tool_use_id` found in `tool_result` blocks: "
                + ", ".join(sorted(map(str, given - waiting)))
            )
        waiting = _ids(message, "tool_use")
        blocks = [] if isinstance(message.content, str) else message.content
        if waiting and thinks and not any(block.type == "thinking" for block in blocks):
            raise Unfit("The `content[].thinking` in the thinking mode must be passed back to the API.")
    if waiting:
        raise Unfit(
            f"messages.{len(messages) - 1}: `tool_use` ids were found without `tool_result` blocks "
            "immediately after: " + ", ".join(sorted(map(str, waiting)))
        )


# -- answering --------------------------------------------------------------------------------------------


class _Output(NamedTuple):
    """One block of the output."""

    block: dict[str, Any]
    """As it is when it is done."""
    empty: dict[str, Any]
    """What is said of it at its start."""
    delta: str
    """The type of its deltas."""
    field: str
    """Where its deltas carry their text."""
    tokens: Sequence[bytes]


def answer(
    question: Question,
    said: Said,
    *,
    request_id: str,
    cached_tokens: int,
    token_offsets_ns: Sequence[int],
) -> Plan:
    """Write the answer out; its finish reason is the message's `stop_reason`.

    Args:
        question: what was asked.
        said: what the answer says.
        request_id: names the answer.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache.
        token_offsets_ns: when each token is due, from the request's arrival.
    """
    reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(said.finish, "end_turn")
    if said.stopped_by is not None:
        reason = "stop_sequence"
    outputs = list(_outputs(question, said, request_id))
    usage = {
        "input_tokens": question.prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": said.tokens,
        "service_tier": "standard",
    }
    done = {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": question.model,
        "content": [output.block for output in outputs],
        "stop_reason": reason,
        "stop_sequence": said.stopped_by,
        "usage": usage,
    }
    if not question.stream:
        step = Step(token_offsets_ns[max(0, said.tokens - 1)], _encode(done), Kind.BODY)
        return Plan(200, JSON, [step], completion_tokens=said.tokens, finish_reason=reason)
    steps = list(_stream(outputs, done, token_offsets_ns))
    return Plan(200, SSE, steps, Framing.SSE, completion_tokens=said.tokens, finish_reason=reason)


def _outputs(question: Question, said: Said, request_id: str) -> Iterator[_Output]:
    if said.reasoning:
        block = {"type": "thinking", "thinking": _text(said.reasoning), "signature": request_id}
        empty = {**block, "thinking": "", "signature": ""}
        yield _Output(block, empty, "thinking_delta", "thinking", said.reasoning)
    if said.content or not (said.reasoning or said.calls):
        block = {"type": "text", "text": _text(said.content)}
        yield _Output(block, {**block, "text": ""}, "text_delta", "text", said.content)
    for i, call in enumerate(said.calls):
        whole = said.finish == "tool_calls" or i < len(said.calls) - 1
        given = msgspec.json.decode(_text(call.arguments)) if whole else {}
        used = {"type": "tool_use", "id": call_id(question, 0, i), "name": call.name, "input": given}
        yield _Output(used, {**used, "input": {}}, "input_json_delta", "partial_json", call.arguments)


def _stream(outputs: Sequence[_Output], done: dict[str, Any], due_ns: Sequence[int]) -> Iterator[Step]:
    due = iter(due_ns)
    at_ns = due_ns[0]
    begun = {"stop_reason": None, "stop_sequence": None, "usage": {**done["usage"], "output_tokens": 0}}
    yield _event(at_ns, Kind.FRAME, "message_start", message={**done, "content": [], **begun})
    yield _event(at_ns, Kind.FRAME, "ping")
    for index, (block, empty, delta, field, tokens) in enumerate(outputs):
        kind = Kind.FRAME
        if block["type"] == "tool_use":
            # The name is a token as well.
            kind, at_ns = Kind.TOKEN, next(due)
        yield _event(at_ns, kind, "content_block_start", index=index, content_block=empty)
        for token in tokens:
            at_ns = next(due)
            said = {"type": delta, field: unescaped(token)}
            yield _event(at_ns, Kind.TOKEN, "content_block_delta", index=index, delta=said)
        if block["type"] == "thinking":
            signed = {"type": "signature_delta", "signature": block["signature"]}
            yield _event(at_ns, Kind.FRAME, "content_block_delta", index=index, delta=signed)
        yield _event(at_ns, Kind.FRAME, "content_block_stop", index=index)
    stopped = {key: done[key] for key in ("stop_reason", "stop_sequence")}
    yield _event(at_ns, Kind.FRAME, "message_delta", delta=stopped, usage=done["usage"])
    yield _event(at_ns, Kind.FRAME, "message_stop")


def _event(at_ns: int, kind: Kind, name: str, **fields: Any) -> Step:
    payload = b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))
    return Step(at_ns, payload, kind)


def _text(tokens: Sequence[bytes]) -> str:
    return unescaped(b"".join(tokens))
