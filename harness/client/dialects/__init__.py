"""Per API, a pair of pure functions: encode(Request) -> HTTP request, decode(event) -> Delta."""

from __future__ import annotations

from harness.client.dialects.base import Delta, Dialect
from harness.client.dialects.chat import CHAT
from harness.client.dialects.completions import COMPLETIONS, COMPLETIONS_LINES

DIALECTS: dict[str, Dialect] = {each.name: each for each in (CHAT, COMPLETIONS, COMPLETIONS_LINES)}

__all__ = ["DIALECTS", "Delta", "Dialect"]
