"""The typed form of one scenario file.

Durations are written with their unit (`30s`, `500ms`, `2m`) and held as float seconds in fields that
end in `_s`; shares are numbers from 0 to 1. An unknown key is an error that suggests the nearest one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Seconds(float):
    """A duration; in files a string with its unit: `250ms`, `30s`, `5m`, `1h`."""

    __slots__ = ()


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """What all parts of a scenario have in common: unknown keys are mistakes."""


# -- how many tokens ----------------------------------------------------------------------------------


class Fixed(_Section, tag_field="distribution", tag="fixed", frozen=True):
    """Always the same number of tokens."""

    tokens: PositiveInt


class Uniform(_Section, tag_field="distribution", tag="uniform", frozen=True):
    """Any whole number from `low` to `high`, both included, equally likely."""

    low: PositiveInt
    high: PositiveInt


class Normal(_Section, tag_field="distribution", tag="normal", frozen=True):
    """Normal, rounded, and clipped to [low, high]."""

    mean: PositiveFloat
    stdev: Annotated[float, Meta(ge=0)]
    low: PositiveInt = 1
    high: PositiveInt = 1_000_000


class LogNormal(_Section, tag_field="distribution", tag="lognormal", frozen=True):
    """Log-normal by its median and the sigma of its logarithm, rounded, clipped to [low, high]."""

    median: PositiveFloat
    sigma: Annotated[float, Meta(ge=0)]
    low: PositiveInt = 1
    high: PositiveInt = 1_000_000


Length = Fixed | Uniform | Normal | LogNormal


# -- what is asked --------------------------------------------------------------------------------------


class Synthetic(_Section, tag_field="source", tag="synthetic", frozen=True):
    """Seeded text of exactly the drawn number of tokens by the offline tokenizer."""

    tokens: Length = Fixed(tokens=64)
    shared_prefix_ratio: Share = 0.0
    """Share of each prompt's tokens that is one prefix common to the entry's prompts (cache hits)."""


class Dataset(_Section, tag_field="source", tag="jsonl", frozen=True):
    """Prompts read from a JSONL file: objects with `prompt` or `messages`, optionally `max_tokens`."""

    path: str
    order: Literal["sequential", "shuffled"] = "sequential"


Prompt = Synthetic | Dataset


class Parameters(_Section, frozen=True):
    """Sampling parameters, sent as they stand; what is not set is not sent."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    extra: dict[str, Any] = {}
    """Anything else, merged into the request's body: `{thinking: {type: disabled}}`."""


class Traffic(_Section, frozen=True):
    """One entry of the traffic mix."""

    kind: Literal["completion", "stream", "batch"]
    weight: Annotated[float, Meta(ge=0)] = 1.0
    """Its share of the arrivals, relative to the other entries'."""
    dialect: Literal["chat", "completions", "completions-lines"] | None = None
    """`chat`: /v1/chat/completions; `completions`: /v1/completions; `completions-lines`: one JSON
    object a line from /v1/completions/stream. None: the scenario's."""
    model: str | None = None
    """None: drawn from the scenario's `models`."""
    prompt: Prompt = Synthetic()
    output: Length = Fixed(tokens=16)
    """Sent as `max_tokens`."""
    parameters: Parameters = Parameters()
    size: PositiveInt = 8
    """Prompts per batch (kind `batch` only): sent at once over one HTTP/2 connection."""
    users: PositiveInt | None = None
    """Virtual users for this entry; None: its share, by weight, of `max_in_flight`."""
    tags: dict[str, str] = {}


# -- when -----------------------------------------------------------------------------------------------


class Closed(_Section, tag_field="process", tag="closed", frozen=True):
    """Closed model: each of `users` sends, waits for the answer, thinks, and sends again."""

    users: PositiveInt
    think_time_s: Seconds = msgspec.field(default=Seconds(0), name="think_time")


class Constant(_Section, tag_field="process", tag="constant", frozen=True):
    """Evenly spaced arrivals: arrival i is due at i / rate."""

    rate: PositiveFloat
    """Arrivals per second."""


class Poisson(_Section, tag_field="process", tag="poisson", frozen=True):
    """Independent exponential gaps with mean 1 / rate."""

    rate: PositiveFloat


class Gamma(_Section, tag_field="process", tag="gamma", frozen=True):
    """Gamma-distributed gaps: burstier than Poisson where `cv` > 1, steadier where < 1."""

    rate: PositiveFloat
    cv: PositiveFloat
    """Coefficient of variation of the gaps."""


class Ramp(_Section, tag_field="process", tag="ramp", frozen=True):
    """Poisson arrivals whose rate goes linearly from `start` to `end` over the duration."""

    start: Annotated[float, Meta(ge=0)]
    end: Annotated[float, Meta(ge=0)]


class Step(_Section, frozen=True):
    """One level of a staircase."""

    rate: Annotated[float, Meta(ge=0)]
    for_s: Seconds = msgspec.field(name="for")


class Steps(_Section, tag_field="process", tag="steps", frozen=True):
    """Poisson arrivals at one rate after the other."""

    steps: Annotated[tuple[Step, ...], Meta(min_length=1)]


class Replay(_Section, tag_field="process", tag="replay", frozen=True):
    """Arrivals at the timestamps of a trace file (JSONL or CSV), from its first one on."""

    path: str
    column: str = "timestamp"
    """The field that holds the time."""
    unit: Literal["s", "ms"] = "s"
    scale: PositiveFloat = 1.0
    """Time is stretched by this: 0.5 replays twice as fast."""


Arrivals = Closed | Constant | Poisson | Gamma | Ramp | Steps | Replay


class Timeouts(_Section, frozen=True):
    """How long the client waits."""

    connect_s: Seconds = msgspec.field(default=Seconds(5), name="connect")
    idle_s: Seconds = msgspec.field(default=Seconds(60), name="idle")
    """Longest silence once the request is sent: also between two chunks. Keep-alives count as noise,
    not as progress: they do not reset it... the total does not wait for anybody."""
    total_s: Seconds = msgspec.field(default=Seconds(600), name="total")


class Retries(_Section, frozen=True):
    """Retry policy: exponential backoff with full jitter; each attempt is a record of its own."""

    attempts: PositiveInt = 1
    """Attempts in all; 1 is no retry."""
    backoff_s: Seconds = msgspec.field(default=Seconds(0.5), name="backoff")
    backoff_max_s: Seconds = msgspec.field(default=Seconds(20), name="backoff_max")
    statuses: tuple[int, ...] = (408, 409, 429, 500, 502, 503, 504)
    outcomes: tuple[Literal["connect_error", "timeout", "stalled", "cut"], ...] = ("connect_error",)
    honour_retry_after: bool = True


class Mock(_Section, frozen=True):
    """How the bundled mock behaves when it is the target."""

    profile: str = "demo"
    """Name or path of a latency profile."""
    faults: str | None = None
    """Path of a faults file."""


class Scenario(_Section, frozen=True):
    """One load test: what to send, when, to whom, and what must hold."""

    name: str = "default"
    description: str = ""
    target: str = "mock"
    """`mock`, or the API's base URL. The key comes from the environment, never from here."""
    dialect: Literal["chat", "completions", "completions-lines"] = "chat"
    models: dict[str, PositiveFloat] = msgspec.field(default_factory=lambda: {"deepseek-flash": 1.0})
    """Model names and their relative weights."""
    traffic: Annotated[tuple[Traffic, ...], Meta(min_length=1)] = (Traffic(kind="completion"),)
    arrivals: Arrivals = Poisson(rate=10)
    duration_s: Seconds | None = msgspec.field(default=None, name="duration")
    """How long arrivals go on, warm-up included; None: until `count`, or the end of the trace."""
    count: PositiveInt | None = None
    """End after this many arrivals."""
    warm_up_s: Seconds = msgspec.field(default=Seconds(0), name="warm_up")
    """Requests due before this are sent but not judged."""
    max_in_flight: PositiveInt = 100
    """Virtual users allocated before the start: the most arrivals under way at once."""
    patience_s: Seconds = msgspec.field(default=Seconds(0), name="patience")
    """How long an arrival may wait for an idle virtual user before it is dropped."""
    drain_s: Seconds = msgspec.field(default=Seconds(30), name="drain")
    """How long requests under way may go on after the last arrival."""
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    seed: int = 1
    objectives: tuple[str, ...] = ("response: p(99) < 500ms", "errors: rate < 0.1%")
    """Threshold strings (docs/objectives.md), or the path of an OpenSLO file."""
    mock: Mock = Mock()
    telemetry: bool = True
    """Make spans and metrics from the records."""
