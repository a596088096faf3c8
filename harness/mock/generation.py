"""What the mock says: the tokens of an answer, chosen by what was wished for and by the request's id alone.

    reasoning   a share of the tokens (thinking), before anything else
    calls       each a name (one token) and arguments that fit the tool's schema (one token a fragment)
    content     words, or JSON; ended by a stop sequence

Tokens are kept as they stand inside a JSON string, already escaped: most answers never need them otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

_PLAIN = "every request leaves one record of what was really sent and when so that clients can be judged"
_SMILE = " \U0001f642"
_AWKWARD = (" naïve", " 你好", _SMILE, "\n", ' "quoted"', " back\\slash", " data:", " [DONE]", " {", "}")
_FRAGMENT = 4
"""Characters of a token of JSON."""
_DEEPEST = 4
"""Below this an object has only the properties that it must have: schemas may refer to themselves."""
_MOST = 1_000
"""Characters of a text, items of the outermost list."""

_encode = msgspec.json.Encoder().encode


def escaped(text: str) -> bytes:
    """A text as it stands inside a JSON string."""
    return _encode(text)[1:-1]


def unescaped(token: bytes) -> str:
    """The text that a token stands for."""
    text: str = msgspec.json.decode(b'"' + token + b'"')
    return text


VOCABULARY = tuple(escaped(word) for word in (*(" " + word for word in _PLAIN.split()), *_AWKWARD))
"""Plain words, and every sort of text that careless clients trip over. An answer runs through it in a
circle from a place that its request id chooses."""
_CIRCLE = VOCABULARY * 20
_LONG = len(_CIRCLE)


class Tool(NamedTuple):
    """A function that may be called."""

    name: str
    schema: bytes
    """The JSON schema of its arguments, as JSON text."""


class Wish(NamedTuple):
    """What an answer is to consist of."""

    thinking: float = 0.0
    """The share of its tokens that are reasoning."""
    calls: tuple[Tool, ...] = ()
    """The tools to call, each once, instead of saying anything."""
    json: bool = False
    """Say a JSON object."""
    schema: bytes | None = None
    """The JSON schema that it is to fit; None: any."""
    stop: tuple[str, ...] = ()
    """Sequences that end the content, without being a part of it."""


PLAIN = Wish()


class Call(NamedTuple):
    """One tool call."""

    name: str
    arguments: Sequence[bytes]


class Said(NamedTuple):
    """What one choice says."""

    reasoning: Sequence[bytes]
    content: Sequence[bytes]
    calls: Sequence[Call]
    finish: str
    """`stop`, `length` or `tool_calls`."""
    stopped_by: str | None = None
    """The stop sequence that ended it."""

    @property
    def tokens(self) -> int:
        """How many tokens it has, each one event of a stream."""
        said = len(self.reasoning) + len(self.content)
        return said + sum(1 + len(call.arguments) for call in self.calls) if self.calls else said


def say(wish: Wish, *, start: int, limit: int | None, default: int) -> Said:
    """One choice of an answer.

    Args:
        wish: what it is to consist of.
        start: where in the vocabulary it starts.
        limit: the most tokens that it may have; words fill it.
        default: how many tokens words have if there is no limit.
    """
    words = default if limit is None else limit
    if wish is PLAIN:
        return Said((), _words(start, words), (), "stop" if limit is None else "length")
    reasoning = _words(start + 7, int(words * wish.thinking))
    left = words - len(reasoning)
    if wish.calls:
        return _calls(wish.calls, reasoning, None if limit is None else left)
    if wish.json:
        whole = _object(start, left) if wish.schema is None else fragments(wish.schema)
        content = whole if limit is None else whole[:left]
        said = Said(reasoning, content, (), "stop" if len(content) == len(whole) > 1 else "length")
    else:
        said = Said(reasoning, _words(start, left), (), "stop" if limit is None else "length")
    return _stopped(said, wish.stop) if wish.stop else said


def length(said: Sequence[Said]) -> int:
    """For how many tokens' time the choices take, side by side; at least one."""
    return max(1, *[choice.tokens for choice in said])


def _words(start: int, count: int) -> Sequence[bytes]:
    size = len(VOCABULARY)
    start %= size
    if start + count <= _LONG:
        return _CIRCLE[start : start + count]
    return (VOCABULARY * ((start + count) // size + 1))[start : start + count]


def _object(start: int, tokens: int) -> list[bytes]:
    """A JSON object of that many tokens, at least two."""
    inner = [escaped(word.decode()) for word in _words(start, tokens - 2)]
    return [escaped('{"answer":"'), *inner, escaped('"}')]


def _calls(tools: Sequence[Tool], reasoning: Sequence[bytes], left: int | None) -> Said:
    calls: list[Call] = []
    for tool in tools:
        arguments = fragments(tool.schema)
        if left is not None:
            if left < 1 + len(arguments):
                # Cut off by the limit: no call without a name, so that clients see a call with half its JSON.
                cut = [*calls, Call(tool.name, arguments[: left - 1])] if left > 0 else calls
                return Said(reasoning, (), cut, "length")
            left -= 1 + len(arguments)
        calls.append(Call(tool.name, arguments))
    return Said(reasoning, (), calls, "tool_calls")


def _stopped(said: Said, stops: Sequence[str]) -> Said:
    words = [unescaped(token) for token in said.content]
    text = "".join(words)
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return said
    left, stop = min(found)
    kept = []
    for word in words:
        if not left:
            break
        kept.append(escaped(word[:left]))
        left -= len(word[:left])
    return said._replace(content=kept, finish="stop", stopped_by=stop)


# -- JSON that fits a schema ------------------------------------------------------------------------------


@lru_cache(maxsize=1000)
def fragments(schema: bytes) -> tuple[bytes, ...]:
    """JSON text that fits a JSON schema, in tokens."""
    plain = msgspec.json.decode(schema)
    text = _encode(example(plain, plain)).decode()
    return tuple(escaped(text[i : i + _FRAGMENT]) for i in range(0, len(text), _FRAGMENT))


def example(schema: Any, root: Any, depth: int = 0) -> Any:
    """A value that fits a JSON schema of the kinds that tools have; any value for one that makes no sense.

    Args:
        schema: the schema.
        root: what its references, `#/…`, refer to.
        depth: how deep in the value this is.
    """
    if not isinstance(schema, Mapping) or depth > 4 * _DEEPEST:
        return "text"
    if "const" in schema:
        return schema["const"]
    if "$ref" in schema:
        return example(_resolved(str(schema["$ref"]), root), root, depth + 1)
    if choices := _of(schema, "enum", list, []):
        return choices[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if choices := _of(schema, key, list, []):
            return example(_plainest(choices), root, depth + 1)
    match _kind(schema):
        case "object":
            properties, required = _of(schema, "properties", dict, {}), _of(schema, "required", list, [])
            kept = [name for name in properties if depth < _DEEPEST or name in required]
            return {name: example(properties[name], root, depth + 1) for name in kept}
        case "array":
            count = _of(schema, "minItems", int, 0 if depth >= _DEEPEST else 1)
            # The deeper the fewer: lists in lists multiply.
            return [example(schema.get("items"), root, depth + 1)] * min(count, _MOST // 4**depth)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            least, most = _of(schema, "minLength", int, 0), _of(schema, "maxLength", int, _MOST)
            return "text".ljust(min(least, _MOST), "t")[:most]


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return str(kind[0] if isinstance(kind, list) and kind else kind)


def _number(schema: Mapping[str, Any]) -> float:
    """The least multiple of the step above the lower bound, if the upper bound allows, else the bound."""
    step = abs(_of(schema, "multipleOf", (int, float), 1)) or 1
    least = _of(schema, "exclusiveMinimum", (int, float), _of(schema, "minimum", (int, float), 0))
    most = _of(schema, "exclusiveMaximum", (int, float), _of(schema, "maximum", (int, float), None))
    number: float = (least // step + 1) * step
    if most is None or number < most:
        return number
    bounded: float = min(least, most) if "minimum" in schema else most - step
    return bounded


def _resolved(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            root = root.get(part) if isinstance(root, Mapping) else None
    return root


def _plainest(schemas: Sequence[Any]) -> Any:
    """Of alternatives, one that is no reference if there is one: that is where recursion ends."""
    return next((each for each in schemas if isinstance(each, Mapping) and "$ref" not in each), schemas[0])


def _of(schema: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    value = schema.get(key, default)
    return value if isinstance(value, kind) else default
