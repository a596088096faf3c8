"""Which request meets which fault: by chance and seed, by number, or by the clock.

The clock of `at` starts with the first request to a generating endpoint, so that a script means the same
however long the load generator took to start.
"""

from __future__ import annotations

import math
import mmap
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from harness.errors import ConfigError
from harness.mock import blame
from harness.mock.faults import Fault, Refuse, Wait, parse
from harness.mock.latency import Seconds, convert, read_yaml
from harness.mock.limits import Limits


class ScriptClock:
    """Seconds since the first request to any of the processes that were forked with this clock."""

    def __init__(self) -> None:
        self._shared = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._zero_ns = 0

    def start(self, now_ns: int) -> None:
        """A request came: the first of all starts the clock."""
        if self._zero_ns:
            return
        if not self._shared[0]:
            self._shared[0] = now_ns
        self._zero_ns = self._shared[0]

    def elapsed_s(self, now_ns: int) -> float | None:
        """What it shows; None before the first request."""
        zero_ns = self._shared[0]
        return (now_ns - zero_ns) / 1e9 if zero_ns else None


class Window(NamedTuple):
    """A part of the script's clock, in seconds: [start, end)."""

    start_s: float
    end_s: float
    """Infinite where it has no end."""


class Rule(msgspec.Struct, frozen=True):
    """A fault, and the requests that meet it."""

    spelling: str
    fault: Fault
    probability: float
    requests: frozenset[int]
    at: Window | None = None

    def left_s(self, elapsed_s: float) -> float:
        """How long its time goes on; 0 without one, or with one that does not end."""
        if self.at is None or math.isinf(self.at.end_s):
            return 0.0
        return max(0.0, self.at.end_s - elapsed_s)


class Script(msgspec.Struct, frozen=True):
    """All that a faults file says."""

    rules: tuple[Rule, ...] = ()
    limits: Limits | None = None


class _RuleText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fault: str
    probability: Annotated[float, Meta(ge=0, le=1)] | None = None
    requests: list[Annotated[int, Meta(ge=1)]] = []
    at: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    faults: list[_RuleText] = []
    limits: Limits | None = None


def load_script(path: Path) -> Script:
    """Read a faults file.

    Each entry of its list `faults` has a `fault` and a `probability`, or the numbers of the `requests`
    that meet it, counted from 1 in order of arrival; or a time `at` (`60s..80s`), alone or to confine one of
    the others. `limits` are token buckets (limits.py).

    Raises:
        ConfigError: with file, key, value and remedy.
    """
    source = str(path)
    file = blame.convert(read_yaml(path), _File, source)
    return Script(
        tuple(_rule(text, f"faults[{i}]", source) for i, text in enumerate(file.faults)), file.limits
    )


def load_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a faults file; raises as `load_script` does."""
    return load_script(path).rules


def _rule(text: _RuleText, key: str, source: str) -> Rule:
    fault = parse(text.fault, source, f"{key}.fault")
    at = None if text.at is None else _window(text.at, f"{key}.at", source)
    if not text.probability and not text.requests and at is None:
        raise ConfigError(
            source, key, text.fault, "give it a `probability`, a list of `requests`, or a time `at: 60s..80s`"
        )
    if isinstance(fault, Refuse | Wait) and (at is None or text.requests or text.probability is not None):
        raise ConfigError(source, key, text.fault, "give it a time `at: 60s..80s`, and nothing else")
    # A time alone is meant for every request in it.
    by_time_alone = at is not None and not text.requests and text.probability is None
    probability = 1.0 if by_time_alone else text.probability or 0.0
    return Rule(text.fault, fault, probability, frozenset(text.requests), at)


def _window(text: str, key: str, source: str) -> Window:
    start, dots, end = (part.strip() for part in text.partition(".."))
    mistake = ConfigError(
        source, key, text, "write a time with units, from the first request: `60s..80s`, `2m..`"
    )
    if not dots or not start:
        raise mistake
    try:
        window = Window(convert(start, Seconds, source), convert(end, Seconds, source) if end else math.inf)
    except ConfigError as error:
        raise mistake from error
    if window.start_s >= window.end_s:
        raise ConfigError(source, key, text, "must end later than it starts")
    return window


def choose(
    rules: Sequence[Rule], *, seed: int, request_id: str, number: int, elapsed_s: float = 0.0
) -> Rule | None:
    """The first rule that this request meets.

    Chance depends on the seed and the request's id alone, so it repeats whatever the order of arrival.

    Args:
        rules: in order.
        seed: of chance.
        request_id: of this request.
        number: counts requests in order of arrival, from 1.
        elapsed_s: since the first request.
    """
    if not rules:
        return None
    rng = random.Random(f"{seed}/{request_id}/faults")
    for rule in rules:
        # One draw a rule, used or not: adding `requests` to one rule must not move the others' draws.
        chance = rng.random()
        if rule.at is not None and not rule.at.start_s <= elapsed_s < rule.at.end_s:
            continue
        if isinstance(rule.fault, Refuse):
            continue  # It meets connections, not requests: server.py sees to it.
        if number in rule.requests or chance < rule.probability:
            return rule
    return None
