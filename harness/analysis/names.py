"""What can be measured and judged, by name: plain values, so that reading an objective loads no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.record import Kind

ERRORS = "errors"
"""The measure of the criteria that ask for no more than a good outcome."""


@dataclass(frozen=True)
class Measure:
    """What one name means."""

    unit: str
    origin: Literal["due", "start", "none"]
    """The instant it counts from; `none` for what lies between two later events."""
    meaning: str
    streams_only: bool = False
    """Only requests whose kind streams have it."""
    higher_is_better: bool = False
    may_lack: bool = False
    """A good answer may have no such value (TPOT of one token): then it says nothing of the request.
    Where False, an answer without the value is one where the awaited event never came: bad."""


MEASURES: dict[str, Measure] = {
    "response": Measure("s", "due", "due to end of the last attempt"),
    "service": Measure("s", "start", "start to end of the final attempt"),
    "lateness": Measure("s", "due", "due to start of the first attempt"),
    "queued": Measure("s", "none", "wait for an idle virtual user", may_lack=True),
    "connect": Measure("s", "start", "start to connection, TLS included", may_lack=True),
    "held": Measure("s", "none", "headers to first event while the server sent keep-alives", may_lack=True),
    "ttft": Measure("s", "due", "due to first token", streams_only=True),
    "ttft_from_start": Measure("s", "start", "start to first token", streams_only=True),
    "first_event": Measure("s", "due", "due to first event, be it empty", streams_only=True),
    "first_event_from_start": Measure("s", "start", "start to first event", streams_only=True),
    "first_content": Measure("s", "due", "due to first answer content", streams_only=True),
    "first_content_from_start": Measure("s", "start", "start to first answer content", streams_only=True),
    "itl_longest": Measure("s", "none", "longest gap between chunks", streams_only=True, may_lack=True),
    "tpot": Measure("s", "none", "mean time a token after the first", streams_only=True, may_lack=True),
    "tokens_per_s": Measure(
        "tokens/s", "start", "completion tokens over service time", higher_is_better=True, may_lack=True
    ),
}
"""By name. `itl`, all gaps of all streams, is not one a request and stands beside them."""

OWN = frozenset({"lateness", "queued"})
"""What is the instrument's, not the server's: of all that started, and no objective speaks of it."""

KINDS = tuple(kind.value for kind in Kind)
STREAMING_KINDS = tuple(kind for kind in KINDS if kind != Kind.COMPLETION)
"""The kinds that may have what only streams have."""

FROM_START = {
    "response": "service",
    "ttft": "ttft_from_start",
    "first_event": "first_event_from_start",
    "first_content": "first_content_from_start",
}
"""The same measure as the server alone is responsible for it."""
