"""Which part of a prompt the server has seen before: a prefix cache in units of 64 tokens, as DeepSeek's."""

from __future__ import annotations

from collections import OrderedDict

UNIT_TOKENS = 64
"""Source: api-docs.deepseek.com/guides/kv_cache."""


class PrefixCache:
    """Remembers the prefixes of prompts, the least recently used dropped first.

    Args:
        capacity: how many units are kept.
        unit_tokens: the size of a unit.
    """

    def __init__(self, capacity: int = 100_000, unit_tokens: int = UNIT_TOKENS) -> None:
        self._unit_tokens = unit_tokens
        self._capacity = capacity
        self._seen: OrderedDict[int, None] = OrderedDict()

    def match(self, text: str, tokens: int, *, user_id: str = "") -> int:
        """Tokens of the prompt that were cached: whole units from its start. The prompt is then cached."""
        unit_tokens = self._unit_tokens
        width = max(1, len(text) * unit_tokens // tokens)
        cached, missed = 0, False
        key = hash(user_id)
        for unit in range(tokens // unit_tokens):
            key = hash((key, text[unit * width : (unit + 1) * width]))
            missed = missed or key not in self._seen
            cached += 0 if missed else unit_tokens
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)
        return cached
