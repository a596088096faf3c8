"""Rate limits by token bucket: requests and tokens a minute, each key of its own.

    level(t) = min(limit, level(t0) + (t - t0) * limit / 60)
    a request takes 1 and its tokens, or is refused and takes nothing

The bucket holds a minute's worth and starts full, so that a minute's worth may come at once.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from harness.mock.flavours import ratelimit_headers

_PerMinute = Annotated[int, Meta(ge=1)]
_Resource = Literal["requests", "tokens"]
_ROUNDING_S = 1e-9


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may ask for; None is no limit."""

    requests_per_minute: _PerMinute | None = None
    tokens_per_minute: _PerMinute | None = None
    """Prompt tokens and the most tokens that the answer may have."""
    flavour: Literal["deepseek", "openai"] = "openai"
    """Whose error body; only OpenAI's answers tell the limits in headers."""


class Grant(NamedTuple):
    """What became of one request's asking."""

    wait_s: float
    """0 if it may go on; else how long until it might."""
    headers: list[tuple[str, str]]


class Buckets:
    """The state of all keys' limits, advanced by the times that it is asked at.

    Args:
        limits: of each key.
    """

    def __init__(self, limits: Limits) -> None:
        asked: list[tuple[_Resource, int | None]] = [
            ("requests", limits.requests_per_minute),
            ("tokens", limits.tokens_per_minute),
        ]
        self._limits = [(resource, limit) for resource, limit in asked if limit is not None]
        self._told = limits.flavour == "openai"
        self._levels: dict[str, tuple[float, list[float]]] = {}

    def take(self, key: str, *, tokens: int, now_s: float) -> Grant:
        """Ask for one request of so many tokens; what is refused takes nothing."""
        before_s, levels = self._levels.get(key, (now_s, [float(limit) for _, limit in self._limits]))
        passed_s = now_s - before_s
        levels = [
            min(limit, level + passed_s * limit / 60)
            for level, (_, limit) in zip(levels, self._limits, strict=True)
        ]
        # More than the bucket can ever hold is let through once it is full, or it would wait for ever.
        costs = [1.0 if resource == "requests" else float(tokens) for resource, _ in self._limits]
        wait_s = max(
            (
                (min(cost, limit) - level) * 60 / limit
                for cost, level, (_, limit) in zip(costs, levels, self._limits, strict=True)
            ),
            default=0.0,
        )
        if wait_s < _ROUNDING_S:
            wait_s = 0.0
            levels = [level - cost for level, cost in zip(levels, costs, strict=True)]
        self._levels[key] = (now_s, levels)
        return Grant(wait_s, self._headers(levels))

    def _headers(self, levels: list[float]) -> list[tuple[str, str]]:
        if not self._told:
            return []
        headers = []
        for level, (resource, limit) in zip(levels, self._limits, strict=True):
            reset_s = (limit - level) * 60 / limit
            headers += ratelimit_headers(resource, limit=limit, remaining=int(level), reset_s=reset_s)
        return headers
