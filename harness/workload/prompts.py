"""Seeded prompt sources with exact token lengths -> Request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Request(msgspec.Struct, frozen=True, gc=False):
    """What one request asks; the dialects turn it into HTTP."""

    seq: int
    """The arrival it belongs to."""
    index: int
    """Position within the arrival's batch; 0 outside batches."""
    id: str
    """Unique within the run, sent as `x-request-id`."""
    session: str
    turn: int
    kind: str
    dialect: str
    model: str
    prompt: str | None
    """Text for the completion dialects; None when `messages` is set."""
    messages: tuple[Mapping[str, Any], ...] | None
    """Chat messages; None when `prompt` is set."""
    max_tokens: int
    stream: bool
    parameters: Mapping[str, Any]
    """Sampling parameters as they go into the body."""
    prompt_tokens: int
    """Of the prompt, by the offline tokenizer: an estimate, chat template not counted."""
    tags: Mapping[str, str]
