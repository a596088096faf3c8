"""The Responses API: items in, items out, streamed as numbered events without an end marker.

Stateless, as at DeepSeek: nothing is stored, so a response cannot refer to an earlier one. The order of a
stream's events (platform.openai.com/docs/api-reference/responses-streaming), for each item of the output:

    created, in_progress, ( output_item.added, [content_part.added], delta …, done, [content_part.done],
    output_item.done ) …, completed or incomplete
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
    Unfit,
    called,
    check,
    check_model,
    check_user,
    count_tokens,
    refusing,
    thinking_share,
)

_encode = msgspec.json.Encoder().encode


class _Item(msgspec.Struct):
    """One item of the input: a message, a call, a tool's answer, reasoning."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    arguments: str = ""
    output: str | list[dict[str, Any]] = ""


class _Tool(msgspec.Struct):
    type: Literal["function"]
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _Named(msgspec.Struct):
    type: Literal["function"]
    name: str


class _Format(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Reasoning(msgspec.Struct):
    effort: Effort | None = None


class _Body(msgspec.Struct):
    model: str
    input: str | Annotated[list[_Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: Annotated[list[_Tool], Meta(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | _Named = "auto"
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None


_read = msgspec.json.Decoder(_Body).decode


# -- reading ----------------------------------------------------------------------------------------------


def read(body: bytes) -> Question | Refusal:
    """Understand a request's body."""
    return refusing(lambda: _question(_read(body)))


def _question(body: _Body) -> Question:
    check_model(body.model)
    check("max_output_tokens", body.max_output_tokens, 1, MAX_TOKENS)
    check("temperature", body.temperature, 0, 2.0)
    check("top_p", body.top_p, 0, 1.0, above=True)
    check_user(body.user)
    if body.previous_response_id is not None:
        raise Unfit("`previous_response_id` is not supported: responses are not stored")
    items = [] if isinstance(body.input, str) else body.input
    _check_calls(items)
    said = body.input if isinstance(body.input, str) else "\n".join(map(_text_of, items))
    text = "\n".join(
        part
        for part in (_encode(body.tools).decode() if body.tools else "", body.instructions or "", said)
        if part
    )
    share = thinking_share(body.model, None, body.reasoning.effort if body.reasoning else None)
    form = body.text.format if body.text else None
    json = form is not None and form.type != "text"
    named = body.tool_choice.name if isinstance(body.tool_choice, _Named) else None
    return Question(
        endpoint=Endpoint.RESPONSES,
        model=body.model,
        text=text,
        prompt_tokens=count_tokens(text),
        max_tokens=body.max_output_tokens,
        stream=bool(body.stream),
        include_usage=True,
        user_id=body.user or "",
        thinks=share > 0,
        wish=Wish(
            thinking=share,
            calls=called(
                [Tool(tool.name, _encode(tool.parameters or {})) for tool in body.tools],
                "named" if named is not None else str(body.tool_choice),
                named=named,
                every=bool(body.parallel_tool_calls),
                answered=bool(items) and items[-1].type == "function_call_output",
                thinks=share > 0,
            ),
            json=json,
            schema=_encode(form.schema) if json and form is not None and form.schema else None,
        ),
        repeats=_encode(
            {
                "instructions": body.instructions,
                "max_output_tokens": body.max_output_tokens,
                "metadata": body.metadata or {},
                "parallel_tool_calls": bool(body.parallel_tool_calls),
                "previous_response_id": None,
                "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
                "store": False,
                "temperature": 1.0 if body.temperature is None else body.temperature,
                "text": {"format": {"type": form.type if form else "text"}},
                "tool_choice": body.tool_choice,
                "tools": body.tools,
                "top_p": 1.0 if body.top_p is None else body.top_p,
                "truncation": "disabled",
                "user": body.user,
            }
        ),
    )


def _text_of(item: _Item) -> str:
    return item.arguments + "".join(_joined(part) for part in (item.content, item.output))


def _joined(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or ())


def _check_calls(items: Sequence[_Item]) -> None:
    waiting: set[str | None] = set()
    for item in items:
        if item.type == "function_call":
            waiting.add(item.call_id)
        elif item.type == "function_call_output":
            if item.call_id not in waiting:
                raise Unfit(f"No tool call found for function call output with call_id {item.call_id}.")
            waiting.discard(item.call_id)
    if waiting:
        raise Unfit(f"No tool output found for function call {min(map(str, waiting))}.")


# -- answering --------------------------------------------------------------------------------------------


class _Output(NamedTuple):
    """One item of the output."""

    item: dict[str, Any]
    """As it is when it is done."""
    tokens: Sequence[bytes]
    part: dict[str, Any] | None
    """Its content, for items that have content."""


def answer(
    question: Question,
    said: Said,
    *,
    request_id: str,
    created: int,
    cached_tokens: int,
    token_offsets_ns: Sequence[int],
) -> Plan:
    """Write the answer out; its finish reason is the response's status.

    Args:
        question: what was asked.
        said: what the answer says.
        request_id: names the answer.
        created: Unix time in seconds.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache.
        token_offsets_ns: when each token is due, from the request's arrival.
    """
    status = "incomplete" if said.finish == "length" else "completed"
    outputs = list(_outputs(question, said, request_id, status))
    begun = {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": question.model,
        "output": [],
        "usage": None,
        **msgspec.json.decode(question.repeats),
    }
    done = {
        **begun,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [output.item for output in outputs],
        "usage": _usage(question, said, cached_tokens),
    }
    if not question.stream:
        step = Step(token_offsets_ns[max(0, said.tokens - 1)], _encode(done), Kind.BODY)
        return Plan(200, JSON, [step], completion_tokens=said.tokens, finish_reason=status)
    steps = _stream(outputs, begun, done, token_offsets_ns)
    return Plan(200, SSE, steps, Framing.SSE, completion_tokens=said.tokens, finish_reason=status)


def _outputs(question: Question, said: Said, request_id: str, status: str) -> Iterator[_Output]:
    reasoning = bool(said.reasoning)
    if reasoning:
        part: dict[str, Any] = {"type": "reasoning_text", "text": _text(said.reasoning)}
        cut_short = status == "incomplete" and not (said.content or said.calls)
        item = {"id": f"rs_{request_id}", "type": "reasoning", "summary": [], "content": [part]}
        yield _Output({**item, "status": status if cut_short else "completed"}, said.reasoning, part)
    if said.content or not (reasoning or said.calls):
        text = _text(said.content)
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "content": [part]}
        yield _Output({**item, "status": status}, said.content, part)
    for i, call in enumerate(said.calls):
        last = i == len(said.calls) - 1
        item = {
            "id": f"fc_{i}_{request_id}",
            "type": "function_call",
            "call_id": call_id(question, 0, i),
            "name": call.name,
            "arguments": _text(call.arguments),
            "status": status if last else "completed",
        }
        yield _Output(item, call.arguments, None)


def _stream(
    outputs: Sequence[_Output], begun: dict[str, Any], done: dict[str, Any], due_ns: Sequence[int]
) -> list[Step]:
    steps: list[Step] = []
    due = iter(due_ns)

    def write(at_ns: int, kind: Kind, name: str, /, **fields: Any) -> None:
        event = {"type": f"response.{name}", "sequence_number": len(steps), **fields}
        payload = b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event))
        steps.append(Step(at_ns, payload, kind))

    at_ns = due_ns[0]
    write(at_ns, Kind.FRAME, "created", response=begun)
    write(at_ns, Kind.FRAME, "in_progress", response=begun)
    for index, (item, tokens, part) in enumerate(outputs):
        empty = {**item, "status": "in_progress"}
        where = {"item_id": item["id"], "output_index": index}
        if part is None:
            # The name is a token as well.
            at_ns = next(due)
            write(at_ns, Kind.TOKEN, "output_item.added", output_index=index, item={**empty, "arguments": ""})
            name, told = "function_call_arguments", {"arguments": item["arguments"], "name": item["name"]}
            extra: dict[str, Any] = {}
        else:
            write(at_ns, Kind.FRAME, "output_item.added", output_index=index, item={**empty, "content": []})
            where["content_index"] = 0
            write(at_ns, Kind.FRAME, "content_part.added", **where, part={**part, "text": ""})
            name, told = part["type"], {"text": part["text"]}
            extra = {"logprobs": []} if name == "output_text" else {}
        for token in tokens:
            at_ns = next(due)
            write(at_ns, Kind.TOKEN, f"{name}.delta", **where, delta=unescaped(token), **extra)
        write(at_ns, Kind.FRAME, f"{name}.done", **where, **told, **extra)
        if part is not None:
            write(at_ns, Kind.FRAME, "content_part.done", **where, part=part)
        write(at_ns, Kind.FRAME, "output_item.done", output_index=index, item=item)
    write(at_ns, Kind.FRAME, done["status"], response=done)
    return steps


def _text(tokens: Sequence[bytes]) -> str:
    return unescaped(b"".join(tokens))


def _usage(question: Question, said: Said, cached: int) -> dict[str, Any]:
    return {
        "input_tokens": question.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": said.tokens,
        "output_tokens_details": {"reasoning_tokens": len(said.reasoning)},
        "total_tokens": question.prompt_tokens + said.tokens,
    }
