"""What a request asks: its body to a `Question`, or to a `Refusal` in the words of the API. Pure.

Shapes follow the OpenAI chat and completions API with DeepSeek's additions. What is refused, and in which
words, is as DeepSeek does it (api-docs.deepseek.com, and error bodies quoted in public issue reports).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from harness.mock.generation import PLAIN, Tool, Wish, escaped

_encode = msgspec.json.Encoder().encode
_CHARACTERS_PER_TOKEN = 10 / 3
"""DeepSeek's rule of thumb for English (api-docs.deepseek.com/quick_start/token_usage): 0.3 tokens each."""


_THINKERS = ("deepseek-flash", "deepseek-v4")
"""Models that think unless told not to, by the beginnings of their names (…/guides/thinking_mode)."""
_EFFORTS = {
    "none": 0.0,
    "minimal": 0.125,
    "low": 0.125,
    "medium": 0.25,
    "high": 0.25,
    "xhigh": 0.25,
    "max": 0.5,
    "ultra": 0.5,
}
"""Effort to the share of an answer that is reasoning. DeepSeek documents which efforts are the same
(…/guides/thinking_mode); the shares are ours."""
_RETIRED = frozenset({"deepseek-chat", "deepseek-reasoner"})
"""Names that DeepSeek stopped serving on 2026-07-24."""
MAX_TOKENS = 393_216
_USER_ID_BYTES = 512


class Endpoint(Enum):
    """The generating endpoints."""

    CHAT = "/chat/completions"
    COMPLETIONS = "/completions"
    LINES = "/completions/stream"
    FIM = "/beta/completions"
    RESPONSES = "/responses"
    MESSAGES = "/anthropic/v1/messages"


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
    n: int = 1
    """Choices."""
    wish: Wish = PLAIN
    thinks: bool = False
    logprobs: int | None = None
    """How many alternatives to list for each token; None: no log probabilities."""
    repeats: bytes = b""
    """What the answer repeats of the request, as JSON text: completions their prompt (`echo`), responses
    the members of the request."""


class Refusal(NamedTuple):
    """Why a request gets no answer."""

    status: int
    message: str


# -- reading ----------------------------------------------------------------------------------------------


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Function(msgspec.Struct):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    parameters: dict[str, Any] | None = None
    description: str | None = None


class _Tool(msgspec.Struct):
    type: Literal["function"]
    function: _Function


class _Named(msgspec.Struct):
    name: str


class _NamedChoice(msgspec.Struct):
    type: Literal["function"]
    function: _Named


class _Called(msgspec.Struct):
    id: str


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[_Called] | None = None
    tool_call_id: str | None = None


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any] = {}


class _ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class Thinking(msgspec.Struct):
    """Whether the model is to think."""

    type: Literal["enabled", "disabled", "adaptive"]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


class _Body(msgspec.Struct, kw_only=True):
    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    user_id: str | None = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    tools: Annotated[list[_Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None


class _CompletionBody(_Body, kw_only=True):
    prompt: str | Annotated[list[str | int], Meta(min_length=1)]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


_read_chat = msgspec.json.Decoder(_ChatBody).decode
_read_completion = msgspec.json.Decoder(_CompletionBody).decode


class Unfit(Exception):  # noqa: N818 - the mistake is the client's: it becomes a Refusal
    """A request that is well formed, and cannot be answered.

    Args:
        message: in the provider's words.
    """


def read(endpoint: Endpoint, body: bytes) -> Question | Refusal:
    """Understand a chat or completion request: 400 for no JSON or bad values, 422 for what is no question."""
    return refusing(lambda: _chat(body) if endpoint is Endpoint.CHAT else _completion(endpoint, body))


def refusing(reader: Callable[[], Question]) -> Question | Refusal:
    """Turn the ways in which reading fails into refusals."""
    try:
        return reader()
    except msgspec.ValidationError as error:
        return Refusal(422, f"Failed to deserialize the JSON body into the target type: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(400, f"The body is not valid JSON: {error}")
    except Unfit as unfit:
        return Refusal(400, str(unfit))


def _chat(body: bytes) -> Question:
    chat = _read_chat(body)
    share = thinking_share(chat.model, chat.thinking, chat.reasoning_effort)
    _check_ranges(chat)
    _check_turns(chat.messages, thinks=share > 0)
    text = "\n".join(map(_text_of, chat.messages))
    if chat.tools:
        text = f"{_encode(chat.tools).decode()}\n{text}"
    wish = PLAIN
    if share or chat.tools or chat.response_format or chat.stop is not None or chat.tool_choice:
        wish = _chat_wish(chat, share, text)
    alternatives = None
    if chat.logprobs:
        alternatives = chat.top_logprobs or 0
    if chat.top_logprobs is not None:
        if not chat.logprobs:
            raise Unfit("`logprobs` must be set to true when `top_logprobs` is set")
        check("top_logprobs", chat.top_logprobs, 0, 20)
    return _question(
        Endpoint.CHAT, chat, text, count_tokens(text), wish=wish, thinks=share > 0, alternatives=alternatives
    )


def _completion(endpoint: Endpoint, body: bytes) -> Question:
    completion = _read_completion(body)
    _check_ranges(completion)
    check("logprobs", completion.logprobs, 0, 20)
    prompt = completion.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        text = f"{prompt}\n{completion.suffix}" if completion.suffix else prompt
        tokens, repeated = count_tokens(text), prompt
    elif all(isinstance(token, int) for token in prompt):
        text, tokens, repeated = repr(prompt), len(prompt), ""
    else:
        raise Unfit("`prompt` must be one text, or the token ids of one text")
    if completion.echo and completion.suffix:
        raise Unfit("`echo` cannot be used with `suffix`")
    return _question(
        endpoint,
        completion,
        text,
        tokens,
        wish=PLAIN if completion.stop is None else Wish(stop=stops(completion.stop)),
        alternatives=completion.logprobs,
        repeats=escaped(repeated) if completion.echo else b"",
    )


def _text_of(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text", "")) for part in message.content or ())


def count_tokens(text: str) -> int:
    """How many tokens a text has, by the rule of thumb."""
    return max(1, math.ceil(len(text) / _CHARACTERS_PER_TOKEN))


def _question(
    endpoint: Endpoint,
    body: _Body,
    text: str,
    prompt_tokens: int,
    *,
    wish: Wish,
    alternatives: int | None,
    thinks: bool = False,
    repeats: bytes = b"",
) -> Question:
    options = body.stream_options
    # By place: by name takes twice as long, for each request.
    return Question(
        endpoint,
        body.model,
        text,
        prompt_tokens,
        body.max_tokens or body.max_completion_tokens,
        bool(body.stream) or endpoint is Endpoint.LINES,
        options is not None and options.include_usage,
        body.user_id or "",
        body.n or 1,
        wish,
        thinks,
        alternatives,
        repeats,
    )


def _chat_wish(chat: _ChatBody, share: float, text: str) -> Wish:
    form = chat.response_format
    json = form is not None and form.type != "text"
    if form is not None and form.type == "json_object" and "json" not in text.lower():
        raise Unfit(
            "Prompt must contain the word 'json' in some form to use 'response_format' of type 'json_object'."
        )
    choice = chat.tool_choice
    named = choice.function.name if isinstance(choice, _NamedChoice) else None
    tools = [Tool(tool.function.name, _encode(tool.function.parameters or {})) for tool in chat.tools or ()]
    return Wish(
        thinking=share,
        calls=called(
            tools,
            "named" if named is not None else str(choice or "auto"),
            named=named,
            every=bool(chat.parallel_tool_calls),
            answered=chat.messages[-1].role == "tool",
            thinks=share > 0,
        ),
        json=json,
        schema=_encode(form.json_schema.schema) if json and form is not None and form.json_schema else None,
        stop=stops(chat.stop),
    )


def called(
    tools: Sequence[Tool], choice: str, *, named: str | None, every: bool, answered: bool, thinks: bool
) -> tuple[Tool, ...]:
    """Which tools an answer calls.

    Args:
        tools: those on offer.
        choice: `none`, `auto` (calls, unless tools have just answered), `required` or `named`.
        named: the one to call.
        every: each tool once, rather than the first.
        answered: the newest turn is a tool's answer.
        thinks: the model thinks before it answers.

    Raises:
        Unfit: the choice makes no sense.
    """
    if choice in {"required", "named"}:
        if thinks:
            raise Unfit("Thinking mode does not support this tool_choice")
        if not tools:
            raise Unfit("'tool_choice' is only allowed when 'tools' are specified.")
    if choice == "named":
        found = tuple(tool for tool in tools if tool.name == named)
        if not found:
            raise Unfit(f"Tool choice '{named}' not found in 'tools' parameter.")
        return found[:1]
    if choice == "none" or (choice == "auto" and answered):
        return ()
    return tuple(tools) if every else tuple(tools[:1])


def thinking_share(model: str, thinking: Thinking | None, effort: str | None) -> float:
    """The share of an answer that is reasoning: the model's default, unless the request says."""
    if thinking is not None and thinking.type == "disabled":
        return 0.0
    if thinking is None and effort is None and not model.startswith(_THINKERS):
        return 0.0
    return _EFFORTS[effort or "high"]


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop sequences.

    Raises:
        Unfit: there are too many, or empty ones.
    """
    listed = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(listed) > 16 or "" in listed:
        raise Unfit("Invalid stop value, it must be up to 16 sequences that are not empty")
    return listed


def check_model(model: str) -> None:
    """Refuse names that are no longer served, as DeepSeek words it.

    Raises:
        Unfit: this one is not.
    """
    if model in _RETIRED:
        raise Unfit(
            f"The supported API model names are deepseek-v4-pro or deepseek-flash, but you passed {model}."
        )


def check(name: str, value: float | None, least: float, most: float, *, above: bool = False) -> None:
    """Refuse a number out of its range, as DeepSeek words it.

    Raises:
        Unfit: it is.
    """
    if value is None or (least <= value <= most and not (above and value == least)):
        return
    raise Unfit(f"Invalid {name} value, the valid range of {name} is {'(' if above else '['}{least}, {most}]")


def check_user(user_id: str | None) -> None:
    """Refuse a name that is too long.

    Raises:
        Unfit: it is.
    """
    if user_id is not None and len(user_id.encode()) > _USER_ID_BYTES:
        raise Unfit(f"Invalid user_id value, it must have up to {_USER_ID_BYTES} bytes")


_RANGES = (
    ("max_tokens", 1, MAX_TOKENS),
    ("max_completion_tokens", 1, MAX_TOKENS),
    ("temperature", 0, 2.0),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("n", 1, 128),
)


def _check_ranges(body: _Body) -> None:
    """Refuse what chat and completions both refuse.

    Raises:
        Unfit: something is out of its range.
    """
    check_model(body.model)
    for name, least, most in _RANGES:
        if getattr(body, name) is not None:
            check(name, getattr(body, name), least, most)
    check("top_p", body.top_p, 0, 1.0, above=True)
    if body.n is not None:
        check("n * max_tokens", body.n * (body.max_tokens or body.max_completion_tokens or 1), 1, MAX_TOKENS)
    check_user(body.user_id)


def _check_turns(messages: Sequence[_Message], *, thinks: bool) -> None:
    waiting: set[str] = set()
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise Unfit(
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
                )
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            break
        if message.tool_calls:
            if thinks and message.reasoning_content is UNSET:
                raise Unfit("The `reasoning_content` in the thinking mode must be passed back to the API.")
            waiting = {call.id for call in message.tool_calls}
    if waiting:
        raise Unfit(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. (insufficient tool messages following tool_calls message)"
        )
