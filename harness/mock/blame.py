"""Plain values -> a typed form, or which key is wrong and what to write there instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from harness.errors import ConfigError

T = TypeVar("T")

_COMPLAINT = re.compile(r"(?P<what>.*?)(?: - at (?P<of_key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_PLAIN = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}
_TYPES = re.compile(rf"`((?:{'|'.join(_PLAIN)})(?: \| (?:{'|'.join(_PLAIN)}))*)`")


def convert(
    plain: Any,
    kind: type[T],
    source: str,
    *,
    strict: bool = True,
    dec_hook: Callable[[type, Any], Any] | None = None,
) -> T:
    """Check plain values against a typed form, as `msgspec.convert` does.

    Args:
        plain: of a file, or (not `strict`) all text.
        kind: a struct.
        source: where the values stand, for the blame.
        strict: text is no number.
        dec_hook: makes values of types of one's own; the text of its ValueError is the remedy.

    Raises:
        ConfigError: with the key at fault, its value, and what may stand there.
    """
    try:
        return msgspec.convert(plain, kind, strict=strict, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        raise _blame(str(error), plain, inspect.type_info(kind), source) from error


def nearest(name: str, known: Sequence[str]) -> str:
    """A question that names the nearest known word, and a list of all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean `{close[0]}`? " if close else "") + f"known here: {listed(known)}"


def listed(names: Sequence[str]) -> str:
    """Names in backquotes; `nothing` if there are none."""
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _blame(message: str, plain: Any, root: inspect.Type, source: str) -> ConfigError:
    complaint = _COMPLAINT.fullmatch(message)
    assert complaint is not None
    steps = [name or int(position) for name, position in _STEP.findall(complaint["path"] or "")]
    value, declared = plain, root
    for step in steps:
        inside, value = value, value.get(step) if isinstance(value, dict) else value[step]
        if (tags := _tags(declared, step)) is not None:
            choice = nearest(value, tags) if isinstance(value, str) else f"it is one of {listed(tags)}"
            return ConfigError(source, _spelled(steps), value, choice)
        declared = _below(declared, step, inside)
    key = _spelled(steps)
    what = complaint["what"]
    if complaint["of_key"]:
        return ConfigError(source, key, value, "keys are text")
    if field := _FIELD.fullmatch(what):
        inner = f"{key}.{field['name']}".removeprefix(".")
        if field["fault"] == "missing required":
            return ConfigError(source, inner, None, "is missing")
        struct = _meant(declared, value)
        assert isinstance(struct, inspect.StructType)
        known = [each.encode_name for each in struct.fields]
        return ConfigError(source, inner, value[field["name"]], f"unknown; {nearest(field['name'], known)}")
    if isinstance(literal := _bare(declared), inspect.LiteralType):
        return ConfigError(source, key, value, f"it is one of {listed(list(map(str, literal.values)))}")
    if isinstance(declared, inspect.Metadata) and declared.extra and "matching regex" in what:
        return ConfigError(source, key, value, declared.extra["rule"])
    what = _TYPES.sub(lambda types: " or ".join(_PLAIN[name] for name in types[1].split(" | ")), what)
    return ConfigError(source, key, value, what[:1].lower() + what[1:])


def _spelled(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _below(declared: inspect.Type, step: str | int, value: Any) -> inspect.Type:
    """The declared type of a value's field, or of a list's items."""
    outer = _meant(declared, value)
    if isinstance(outer, inspect.StructType):
        return next(field.type for field in outer.fields if field.encode_name == step)
    if isinstance(outer, inspect.TupleType):
        assert isinstance(step, int)
        return outer.item_types[step]
    assert isinstance(outer, inspect.ListType)
    return outer.item_type


def _tags(declared: inspect.Type, step: str | int) -> list[str] | None:
    """What may stand in the field that tells structs apart; None for any other."""
    structs = [each for each in _members(declared) if isinstance(each, inspect.StructType)]
    if not structs or structs[0].tag_field != step:
        return None
    return [str(each.tag) for each in structs]


def _meant(declared: inspect.Type, value: Any) -> inspect.Type:
    """Of several structs the one that the value says it is."""
    for each in _members(declared):
        if not isinstance(each, inspect.StructType) or not isinstance(value, dict):
            continue
        if each.tag_field is not None and value.get(each.tag_field) == each.tag:
            return each
    return _bare(declared)


def _members(declared: inspect.Type) -> Sequence[inspect.Type]:
    if isinstance(declared, inspect.Metadata):
        declared = declared.type
    return declared.types if isinstance(declared, inspect.UnionType) else [declared]


def _bare(declared: inspect.Type) -> inspect.Type:
    """Without `None`, and without what is said beside the type."""
    if isinstance(declared, inspect.Metadata):
        declared = declared.type
    if not isinstance(declared, inspect.UnionType):
        return declared
    members = [each for each in declared.types if not isinstance(each, inspect.NoneType)]
    return _bare(members[0])
