"""Turn a YAML file into a typed value, or say which key is wrong and what to write instead."""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect

from harness.errors import ConfigError, together

T = TypeVar("T")

_SECRET = re.compile(
    r"(api|access|auth|bearer|secret|private)[_-]?(key|token)|x-api-key|authorization|bearer|token"
    r"|passw(or)?d|secret|credentials?",
    re.IGNORECASE,
)
_COMPLAINT = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = "missing required"
_FIELD = re.compile(rf"Object (?P<fault>contains unknown|{_MISSING}) field `(?P<name>.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
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

_HOST = re.compile(
    r"(?P<name>localhost|[\w-]+(?:\.[\w-]+)+|[\w-]+(?=:))(?P<port>:\d+)?(?:/[^@?#\s]*)?", re.ASCII
)

Step = str | int


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: YAML says it is an error, PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping with unique text keys, finite numbers and no secrets.

    Raises:
        ConfigError: the file is missing, is not YAML (with line and column), or holds what it must not.
    """
    source = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            source, "", None, f"cannot be read ({error.strerror}): give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(source, "", None, "is not UTF-8 text: save it as UTF-8") from error
    try:
        raw = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(source, "", None, f"is not valid YAML: {where}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date such as 2024-13-01
        raise ConfigError(source, "", None, f"is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(source, "", raw, "must be a mapping of keys to values at the top level")
    screen(raw, source)
    return raw


def screen(raw: Any, source: str, path: tuple[Step, ...] = ()) -> None:
    """Refuse what no key may hold: secrets, names that are not text, numbers that are not finite.

    Raises:
        ConfigError: with the first such key. A secret's value is not in it.
    """
    if len(path) > 50:  # an alias inside its own anchor never ends
        raise ConfigError(source, dotted(path[:3]), None, "is nested too deeply")
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(source, dotted(path), raw, "must be a finite number")
    if isinstance(raw, list):
        for position, item in enumerate(raw):
            screen(item, source, (*path, position))
    if not isinstance(raw, dict):
        return
    for key, value in raw.items():
        if not isinstance(key, str):
            raise ConfigError(source, dotted(path), key, f'keys are text: write "{key}" in quotes')
        if is_secret(key):
            remedy = "secrets do not belong into files; put the key into the environment: HARNESS_API_KEY"
            raise ConfigError(source, dotted((*path, key)), None, remedy)
        screen(value, source, (*path, key))


def is_secret(name: str) -> bool:
    """The name is one that keys and passwords go by."""
    return _SECRET.fullmatch(name) is not None


def convert(
    raw: Mapping[str, Any], type_: type[T], source: str, dec_hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Give plain values the struct's form, as `msgspec.convert` does.

    Raises:
        ConfigError: with the dotted key at fault, its value, and the names or values allowed there. msgspec
            tells one mistake at a time: each is taken out for the next one to show, where it can be.
    """

    def complaint(changed: Any) -> str:
        try:
            msgspec.convert(changed, type_, dec_hook=dec_hook)
        except msgspec.ValidationError as error:
            return str(error)
        return ""

    found: list[ConfigError] = []
    gone: set[tuple[Step, ...]] = set()
    left: Any = raw
    while message := complaint(left):
        what, path = _located(message, left, complaint)
        field = _FIELD.fullmatch(what)
        missing = field is not None and field["fault"] == _MISSING
        if not (missing and any(path == each[:-1] for each in gone)):  # else it is what we took out
            found.append(_blame(what, path, left, inspect.type_info(type_), source))
        out = (*path, field["name"]) if field and not missing else path
        while out and isinstance(out[-1], int):  # without one of its entries, a list's others change places
            out = out[:-1]
        if not out:
            break
        gone.add(out)
        left = copy.deepcopy(left)
        del _walk(left, out[:-1])[out[-1]]
    if found:
        raise together(found)
    return msgspec.convert(raw, type_, dec_hook=dec_hook)


def dotted(path: Sequence[Step]) -> str:
    """A key as people write it: `traffic[1].prompt.tokens.low`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def meant_url(text: str) -> str:
    """A question that names the URL that was meant, where a host was given; empty if none was."""
    host = _HOST.fullmatch(text)
    if host is None:
        return ""
    name, port = host["name"], host["port"]
    near = port not in {None, ":443"} or name == "localhost" or name.replace(".", "").isdigit()
    return f"did you mean `{'http' if near else 'https'}://{text}`? "


def nearest(name: str, known: Sequence[str]) -> str:
    """A question that names the nearest known word; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`? " if close else ""


def _located(message: str, raw: Any, complaint_of: Callable[[Any], str]) -> tuple[str, tuple[Step, ...]]:
    """What msgspec complains of, and where: `Expected ... - at `$.traffic[0].weight``."""
    complaint = _COMPLAINT.fullmatch(message)
    assert complaint is not None
    path: list[Step] = []
    for name, position in _STEP.findall(complaint["path"] or ""):
        if position == "...":  # msgspec does not say which entry of a mapping it means
            path.append(_culprit(raw, path, lambda changed: complaint_of(changed) == message))
        else:
            path.append(name or int(position))
    return complaint["what"], tuple(path)


def _blame(what: str, path: Sequence[Step], raw: Any, root: inspect.Type, source: str) -> ConfigError:
    """The ConfigError for one complaint."""
    value = _walk(raw, path)
    if field := _FIELD.fullmatch(what):
        key = dotted([*path, field["name"]])
        if field["fault"] == _MISSING:
            options = _tags(root, raw, path, field["name"]) or _options_of(root, raw, path, field["name"])
            remedy = f"is missing; it is one of {_listed(options)}" if options else "is missing"
            return ConfigError(source, key, None, remedy)
        known = _keys(root, raw, path)
        remedy = f"unknown key; {nearest(field['name'], known)}known here: {_listed(known)}"
        return ConfigError(source, key, value.get(field["name"]), remedy)
    if what.startswith("Invalid "):
        options = _tags(root, raw, path[:-1], str(path[-1])) or _literals(_type_at(root, raw, path))
        remedy = f"{nearest(str(value), options)}it is one of {_listed(options)}"
        return ConfigError(source, dotted(path), value, remedy)
    if "matching regex" in what:
        return ConfigError(source, dotted(path), value, _rule(root, raw, path))
    what = _TYPES.sub(lambda types: " or ".join(_PLAIN[name] for name in types[1].split(" | ")), what)
    return ConfigError(source, dotted(path), value, what[:1].lower() + what[1:])


def _culprit(raw: Any, path: Sequence[Step], fails: Callable[[Any], bool]) -> str:
    """The key of the mapping at a path whose entry fails also when it is the only one there."""
    for key, value in _walk(raw, path).items():
        alone = copy.deepcopy(raw)
        mapping = _walk(alone, path)
        mapping.clear()
        mapping[key] = value
        if fails(alone):
            return str(key)
    raise AssertionError("msgspec complains of an entry that there is not")


def _walk(raw: Any, path: Sequence[Step]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def _type_at(root: inspect.Type, raw: Any, path: Sequence[Step]) -> inspect.Type:
    """The declared type at a path; of a tagged union, the member that the plain values name."""
    found = _member(root, raw)
    for step in path:
        raw = raw[step]
        if isinstance(found, inspect.StructType):
            found = next(field.type for field in found.fields if field.encode_name == step)
        elif isinstance(found, inspect.DictType):
            found = found.value_type
        elif isinstance(found, inspect.VarTupleType):
            found = found.item_type
        found = _member(found, raw)
    return found


def _member(found: inspect.Type, raw: Any) -> inspect.Type:
    if isinstance(found, inspect.Metadata):
        found = found.type
    if not isinstance(found, inspect.UnionType):
        return found
    members = [each for each in found.types if not isinstance(each, inspect.NoneType)]
    for each in members:
        if not isinstance(each, inspect.StructType) or not isinstance(raw, dict):
            continue
        if each.tag_field and raw.get(each.tag_field) == each.tag:
            return each
    return members[0] if len(members) == 1 else found


def _keys(root: inspect.Type, raw: Any, path: Sequence[Step]) -> list[str]:
    struct = _type_at(root, raw, path)
    assert isinstance(struct, inspect.StructType)
    tag = [struct.tag_field] if struct.tag_field else []
    return tag + [field.encode_name for field in struct.fields]


def _rule(root: inspect.Type, raw: Any, path: Sequence[Step]) -> str:
    """What a pattern asks for, in words: its field's `Meta(extra={"rule": ...})`."""
    struct = _type_at(root, raw, path[:-1])
    assert isinstance(struct, inspect.StructType)
    declared = next(field.type for field in struct.fields if field.encode_name == path[-1])
    assert isinstance(declared, inspect.Metadata)
    assert declared.extra is not None
    return str(declared.extra["rule"])


def _tags(root: inspect.Type, raw: Any, path: Sequence[Step], name: str) -> list[str]:
    """The values that the tag field `name` may have in the mapping at `path`; none if it is no tag."""
    found = _type_at(root, raw, path)
    members = found.types if isinstance(found, inspect.UnionType) else (found,)
    return [str(m.tag) for m in members if isinstance(m, inspect.StructType) and m.tag_field == name]


def _options_of(root: inspect.Type, raw: Any, path: Sequence[Step], name: str) -> list[str]:
    struct = _type_at(root, raw, path)
    assert isinstance(struct, inspect.StructType)
    return _literals(next(field.type for field in struct.fields if field.encode_name == name))


def _literals(found: inspect.Type) -> list[str]:
    if isinstance(found, inspect.UnionType):
        return [name for each in found.types for name in _literals(each)]
    return [str(value) for value in found.values] if isinstance(found, inspect.LiteralType) else []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
