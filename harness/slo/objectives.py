"""What a scenario or a command line asks for -> Objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.errors import ConfigError, together
from harness.slo.openslo import read_openslo
from harness.slo.thresholds import Objective, parse

__all__ = ["Objective", "load", "parse", "read_openslo"]


def load(items: Sequence[str], *, source: str, base: Path, given: Sequence[str] = ()) -> list[Objective]:
    """Read the objectives of a scenario or a command line.

    Args:
        items: threshold strings; what ends in .yaml or .yml is the path of an OpenSLO file.
        source: where the items stand, for messages.
        base: the folder that relative paths start from.
        given: those of the items that came by `--threshold`, which then is to blame.

    Raises:
        ConfigError: with source, key, value and remedy; all mistakes together.
    """
    objectives: list[Objective] = []
    mistakes: list[ConfigError] = []
    for position, item in enumerate(items):
        try:
            if item.strip().endswith((".yaml", ".yml")):
                objectives.extend(read_openslo(base / item.strip()))
            elif item in given:
                objectives.append(parse(item))
            else:
                objectives.append(parse(item, source=source, key=f"objectives[{position}]"))
        except ConfigError as mistake:
            mistakes.append(mistake)
    if mistakes:
        raise together(mistakes)
    return _named_apart(objectives)


def _named_apart(objectives: Sequence[Objective]) -> list[Objective]:
    """Number the names that occur more than once: `response p(99)`, `response p(99) (2)`."""
    seen: Counter[str] = Counter()
    apart = []
    for each in objectives:
        seen[each.name] += 1
        count = seen[each.name]
        apart.append(each if count == 1 else msgspec.structs.replace(each, name=f"{each.name} ({count})"))
    return apart
