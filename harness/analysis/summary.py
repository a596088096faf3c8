"""Everything a report prints about a run, computed once from the records."""

from __future__ import annotations

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One number as it may be printed: with its unit, its n and, where there is one, its interval."""

    value: float | None
    """None where n is too small to say (P99.9 of 200 samples)."""
    unit: str
    """`s`, `1/s`, `1`, `tokens/s`, ..."""
    n: int
    low: float | None = None
    """Lower end of the two-sided 95 % interval."""
    high: float | None = None
    note: str = ""
    """Why the value is None, or what to mind about it."""


class Distribution(msgspec.Struct, frozen=True):
    """One measure's distribution over the judged requests (or gaps)."""

    measure: str
    """Name in measures.py: response, service, ttft, itl, ..."""
    unit: str
    n: int
    minimum: float | None
    mean: float | None
    quantiles: dict[str, Figure]
    """By name: p50, p90, p95, p99, p99.9."""
    maximum: float | None


class Group(msgspec.Struct, frozen=True):
    """What is said of one kind of traffic, or of all (`kind` = "all")."""

    kind: str
    requests: int
    """Requests (final attempts) judged, dropped ones included."""
    outcomes: dict[str, int]
    statuses: dict[str, int]
    """HTTP status as text, `none` where no answer came."""
    errors: dict[str, int]
    """The error texts and how often, most frequent first."""
    rate: Figure
    """Requests that ended per second of the window."""
    goodput: Figure
    """Requests per second that meet every objective."""
    error_rate: Figure
    """Share of requests that are errors, after retries."""
    first_attempt_error_rate: Figure
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated_usage: int
    """Requests whose token counts are estimates."""
    tokens_per_s: Figure
    """Completion tokens per second of the window."""
    distributions: dict[str, Distribution]
    """By measure; only the measures that this kind has."""


class BatchSummary(msgspec.Struct, frozen=True):
    """Whole batches: from due to all done."""

    batches: int
    size: float
    """Mean requests a batch."""
    all_done: Distribution
    """Response time of a batch: its slowest request's."""
    slowest_ratio: Distribution
    """Slowest request's service time over the batch's median one."""


class Slow(msgspec.Struct, frozen=True):
    """One of the slowest or failed requests, for people to follow up."""

    seq: int
    request_id: str
    kind: str
    outcome: str
    error: str
    status: int | None
    due_s: float | None
    response_s: float | None
    service_s: float | None
    ttft_s: float | None
    trace_id: str


class Summary(msgspec.Struct, frozen=True):
    """One run in numbers."""

    window_s: tuple[float, float]
    """The judged part of the run: requests due in it, in seconds from the start."""
    planned_rate: float | None
    """Arrivals per second that the schedule held in the window; None in a closed loop."""
    arrivals: Figure
    """Arrivals per second really started in the window."""
    in_flight_mean: Figure
    total: Group
    kinds: list[Group]
    batch: BatchSummary | None
    slowest: list[Slow]
    failed: list[Slow]
