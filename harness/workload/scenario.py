"""The typed form of one scenario file.

Durations are written with their unit (`30s`, `500ms`, `2m`) and held as float seconds in fields that
end in `_s`; shares are numbers from 0 to 1. An unknown key is an error that suggests the nearest one.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from harness.errors import ConfigError, together
from harness.workload import blame

_NAME = "write letters, digits, `.`, `_` and `-`, beginning with a letter or a digit: `chat-load`"
PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Seconds(float):
    """A duration; in files a string with its unit: `250ms`, `30s`, `5m`, `1h`."""

    __slots__ = ()


def _seconds(default: float, name: str) -> Seconds:
    # A factory, because msgspec cannot encode a default of a custom type into its JSON Schema.
    field: Seconds = msgspec.field(default_factory=lambda: Seconds(default), name=name)
    return field


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """What all parts of a scenario have in common: unknown keys are mistakes."""


# -- how many tokens ----------------------------------------------------------------------------------


class Fixed(_Section, tag_field="distribution", tag="fixed", frozen=True):
    """Always the same number of tokens."""

    tokens: PositiveInt
    """How many."""


class Uniform(_Section, tag_field="distribution", tag="uniform", frozen=True):
    """Any whole number from `low` to `high`, both included, equally likely."""

    low: PositiveInt
    """The fewest tokens."""
    high: PositiveInt
    """The most tokens."""


class Normal(_Section, tag_field="distribution", tag="normal", frozen=True):
    """Normal, rounded, and clipped to [low, high]."""

    mean: PositiveFloat
    """In tokens, before clipping."""
    stdev: Annotated[float, Meta(ge=0)]
    """In tokens, before clipping."""
    low: PositiveInt = 1
    """The fewest tokens."""
    high: PositiveInt = 1_000_000
    """The most tokens."""


class LogNormal(_Section, tag_field="distribution", tag="lognormal", frozen=True):
    """Log-normal by its median and the sigma of its logarithm, rounded, clipped to [low, high]."""

    median: PositiveFloat
    """In tokens, before clipping."""
    sigma: Annotated[float, Meta(ge=0)]
    """Standard deviation of the logarithm: at 0.5, one in six is above 1.6 medians."""
    low: PositiveInt = 1
    """The fewest tokens."""
    high: PositiveInt = 1_000_000
    """The most tokens."""


Length = Fixed | Uniform | Normal | LogNormal
Turns = PositiveInt | Uniform | Normal | LogNormal
"""A plain number, or a distribution read as turns instead of tokens."""


# -- what is asked --------------------------------------------------------------------------------------


class Synthetic(_Section, tag_field="source", tag="synthetic", frozen=True):
    """Seeded text of exactly the drawn number of tokens by the offline tokenizer."""

    tokens: Length = Fixed(tokens=64)
    """Length of the prompt, the chat template not counted."""
    shared_prefix_ratio: Share = 0.0
    """Share of each prompt's tokens that is one prefix common to the entry's prompts (cache hits)."""


class Dataset(_Section, tag_field="source", tag="jsonl", frozen=True):
    """Prompts read from a JSONL file: objects with `prompt` or `messages`, optionally `max_tokens`."""

    path: str
    """The file; relative to the scenario file."""
    order: Literal["sequential", "shuffled"] = "sequential"
    """`sequential`: request i takes row i; `shuffled`: in one seeded order. Rows are used again after
    the last."""


Prompt = Synthetic | Dataset


class Parameters(_Section, frozen=True):
    """Sampling parameters, sent as they stand; what is not set is not sent."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """From 0 to 2."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Above 0, up to 1."""
    frequency_penalty: float | None = None
    """As the API defines it."""
    presence_penalty: float | None = None
    """As the API defines it."""
    stop: tuple[str, ...] | None = None
    """Texts that end the answer."""
    seed: int | None = None
    """The server's sampling seed; the harness's own is the scenario's `seed`."""
    extra: dict[str, Any] = {}
    """Anything else, merged into the request's body: `{thinking: {type: disabled}}`."""


class Traffic(_Section, frozen=True):
    """One entry of the traffic mix."""

    kind: Literal["completion", "stream", "batch"]
    """`completion`: one answer in one piece; `stream`: an answer in chunks; `batch`: `size` completions
    at once."""
    weight: Annotated[float, Meta(ge=0)] = 1.0
    """Its share of the arrivals, relative to the other entries'."""
    dialect: Literal["chat", "completions", "completions-lines"] | None = None
    """`chat`: /v1/chat/completions; `completions`: /v1/completions; `completions-lines`: one JSON
    object a line from /v1/completions/stream. Left out: the scenario's."""
    model: str | None = None
    """Left out: drawn from the scenario's `models`."""
    prompt: Prompt = Synthetic()
    """Where prompts come from."""
    output: Length = Fixed(tokens=16)
    """Sent as `max_tokens`."""
    parameters: Parameters = Parameters()
    """Sampling parameters."""
    size: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Prompts per batch (kind `batch` only): sent at once over one HTTP/2 connection."""
    turns: Turns = 1
    """Turns of a session: a number, or a length distribution read as turns. Each arrival starts a
    session, which keeps its virtual user; every turn sends the whole conversation so far."""
    think_time_s: Seconds = _seconds(0, "think_time")
    """Pause between an answer and the session's next turn, which is due at its end."""
    users: PositiveInt | None = None
    """Virtual users for this entry; left out: its share, by weight, of `max_in_flight`."""
    tags: dict[str, str] = {}
    """Kept with each record, for grouping."""


# -- when -----------------------------------------------------------------------------------------------


class Closed(_Section, tag_field="process", tag="closed", frozen=True):
    """Closed model: each of `users` sends, waits for the answer, thinks, and sends again."""

    users: PositiveInt
    """How many virtual users."""
    think_time_s: Seconds = _seconds(0, "think_time")
    """Pause between an answer and the next request."""


class Constant(_Section, tag_field="process", tag="constant", frozen=True):
    """Evenly spaced arrivals: arrival i is due at i / rate."""

    rate: PositiveFloat
    """Arrivals per second."""


class Poisson(_Section, tag_field="process", tag="poisson", frozen=True):
    """Independent exponential gaps with mean 1 / rate."""

    rate: PositiveFloat
    """Arrivals per second."""


class Gamma(_Section, tag_field="process", tag="gamma", frozen=True):
    """Gamma-distributed gaps: burstier than Poisson where `cv` > 1, steadier where < 1."""

    rate: PositiveFloat
    """Arrivals per second."""
    cv: Annotated[float, Meta(ge=0.01, le=100)]
    """Coefficient of variation of the gaps."""


class Ramp(_Section, tag_field="process", tag="ramp", frozen=True):
    """Poisson arrivals whose rate goes linearly from `start` to `end` over the duration."""

    start: Annotated[float, Meta(ge=0)]
    """Arrivals per second at the start."""
    end: Annotated[float, Meta(ge=0)]
    """Arrivals per second at the end."""


class Step(_Section, frozen=True):
    """One level of a staircase."""

    rate: Annotated[float, Meta(ge=0)]
    """Arrivals per second."""
    for_s: Seconds = msgspec.field(name="for")
    """How long this level lasts."""


class Steps(_Section, tag_field="process", tag="steps", frozen=True):
    """Poisson arrivals at one rate after the other."""

    steps: Annotated[tuple[Step, ...], Meta(min_length=1)]
    """The levels, in order."""


class Sine(_Section, tag_field="process", tag="sine", frozen=True):
    """Poisson arrivals whose rate swings about `rate`, upwards first: a day in little."""

    rate: PositiveFloat
    """Arrivals per second, on average over a period."""
    amplitude: Share
    """Share of the rate by which it swings: 0.5 goes from half the rate to one and a half times."""
    period_s: Seconds = msgspec.field(name="period")
    """How long one swing takes."""


class Replay(_Section, tag_field="process", tag="replay", frozen=True):
    """Arrivals at the times of a trace file, from its first one on, with its lengths where it has them."""

    path: str
    """The trace; relative to the scenario file."""
    format: Literal["columns", "mooncake", "azure", "burstgpt", "run-log"] = "columns"
    """`columns`: the fields named below, of a CSV or JSONL file; the others are traces whose fields are
    known."""
    column: str = "timestamp"
    """The field that holds the time (format `columns` only)."""
    unit: Literal["s", "ms", "iso"] = "s"
    """What the times are in: seconds, milliseconds, or ISO 8601 dates (format `columns` only)."""
    prompt_column: str | None = None
    """The field that holds the prompt's tokens (format `columns` only)."""
    output_column: str | None = None
    """The field that holds the answer's tokens (format `columns` only)."""
    scale: PositiveFloat = 1.0
    """Time is stretched by this: 0.5 replays twice as fast."""


Arrivals = Closed | Constant | Poisson | Gamma | Ramp | Steps | Sine | Replay


class Burst(_Section, frozen=True):
    """Extra arrivals on top of an open process."""

    at_s: Seconds = msgspec.field(name="at")
    """When the first of them is due, from the run's start."""
    count: PositiveInt
    """How many."""
    over_s: Seconds = _seconds(0, "over")
    """They are evenly spaced over this long; `0s`: all at once."""


class Timeouts(_Section, frozen=True):
    """How long the client waits."""

    connect_s: Seconds = _seconds(5, "connect")
    """For the connection to stand, TLS included."""
    idle_s: Seconds = _seconds(60, "idle")
    """Longest silence once the request is sent: to the first byte, and between two chunks. Keep-alive
    comments and blank lines are no progress: they do not end the silence."""
    total_s: Seconds = _seconds(600, "total")
    """For one attempt, from its start to the end of the answer."""


class Retries(_Section, frozen=True):
    """Retry policy: exponential backoff with full jitter; each attempt is a record of its own."""

    attempts: PositiveInt = 1
    """Attempts in all; 1 is no retry."""
    backoff_s: Seconds = _seconds(0.5, "backoff")
    """Longest wait before the second attempt; it doubles with each further one."""
    backoff_max_s: Seconds = _seconds(20, "backoff_max")
    """The doubling stops here."""
    statuses: tuple[Annotated[int, Meta(ge=400, le=599)], ...] = (408, 409, 429, 500, 502, 503, 504)
    """HTTP statuses after which to try again."""
    outcomes: tuple[Literal["connect_error", "timeout", "stalled", "cut"], ...] = ("connect_error",)
    """Outcomes after which to try again."""
    honour_retry_after: bool = True
    """Wait as long as the server's Retry-After says."""


class Budgets(_Section, frozen=True):
    """How far the instrument may stray before its run is INVALID (docs/definitions.md says why so far)."""

    lateness_s: Seconds = _seconds(0.025, "lateness")
    """P99 of how long after its due time an arrival was dispatched."""
    lateness_of_threshold: Share = 0.05
    """The same as a share of the tightest limit on a time from due: the lower one counts."""
    dropped_share: Share = 0.01
    """Arrivals that were dropped, or waited for an idle virtual user for longer than an arrival may be
    late, if the server does not explain them."""
    achieved_share: Share = 0.99
    """At least so many of the planned arrivals must be dispatched in the window."""
    client_error_share: Share = 0.0
    """Attempts that failed for want of the client's own files, ports or buffers."""
    cpu_share: Share = 0.9
    """Of one core, that a worker may use over any `cpu_span`."""
    cpu_span_s: Seconds = _seconds(5, "cpu_span")
    """See `cpu_share`; a judged window of this length must also hold samples of every worker."""
    hub_lag_s: Seconds = _seconds(0.1, "hub_lag")
    """Longest time that a worker's event loop may be away."""
    hub_lag_of_threshold: Share = 0.2
    """The same as a share of the tightest limit on a time: the lower one counts ..."""
    hub_lag_floor_s: Seconds = _seconds(0.02, "hub_lag_floor")
    """... but not below this."""
    hub_lag_p99_s: Seconds = _seconds(0.025, "hub_lag_p99")
    """P99 of how long an event at a random moment waits for the event loop."""
    read_lag_s: Seconds = _seconds(0.1, "read_lag")
    """Longest time that bytes may lie in the kernel unread; lowered by the tightest limit as `hub_lag` is."""
    gc_pause_s: Seconds = _seconds(0.05, "gc_pause")
    """Longest garbage collection."""
    files_share: Share = 0.9
    """Of the open files that the system allows a worker."""
    in_flight_share: Share = 0.1
    """How far the arrivals in flight that the workers counted may differ from what the records say;
    as many as arrive within the lateness allowed, and at least one, come on top."""
    clock_step_s: Seconds = _seconds(0.05, "clock_step")
    """How far the wall clock may jump against the monotonic clock between two samples."""
    lump_share: Share = 0.5
    """Streams that arrive in lumps, of those with `lump_chunks` chunks or more."""
    lump_chunks: PositiveInt = 8
    """A stream of at least so many chunks came in lumps if there were so many to a socket read, on
    average, ..."""
    lump_reads: PositiveInt = 2
    """... or if all were in at most so many reads, ..."""
    lump_spread: Share = 0.05
    """... or if all came within this share of its service time ..."""
    lump_gap_s: Seconds = _seconds(0.0005, "lump_gap")
    """... and closer together than this, on average; ..."""
    lump_service_s: Seconds = _seconds(0.1, "lump_service")
    """... provided that it took at least this long."""


class Mock(_Section, frozen=True):
    """How the bundled mock behaves when it is the target."""

    profile: str = "demo"
    """Name or path of a latency profile."""
    faults: str | None = None
    """Path of a faults file."""


class Scenario(_Section, frozen=True):
    """One load test: what to send, when, to whom, and what must hold."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", extra={"rule": _NAME})] = "default"
    """Part of the run folder's name: letters, digits, `.`, `_` and `-`."""
    description: str = ""
    """For people; shown in reports."""
    target: str = "mock"
    """`mock`, or the API's base URL. The key comes from the environment, never from here."""
    dialect: Literal["chat", "completions", "completions-lines"] = "chat"
    """The API that entries use which do not say."""
    models: dict[str, PositiveFloat] = msgspec.field(default_factory=lambda: {"deepseek-flash": 1.0})
    """Model names and their relative weights."""
    traffic: Annotated[tuple[Traffic, ...], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: (Traffic(kind="completion"),)
    )
    """The mix: each arrival is of one entry, as often as its weight says."""
    arrivals: Arrivals = Poisson(rate=10)
    """When requests are sent."""
    bursts: tuple[Burst, ...] = ()
    """Extra arrivals on top of an open process."""
    duration_s: Seconds | None = msgspec.field(default=None, name="duration")
    """How long arrivals go on, warm-up included; left out: until `count`, or the end of the trace."""
    count: PositiveInt | None = None
    """End after this many arrivals."""
    warm_up_s: Seconds = _seconds(0, "warm_up")
    """Requests due before this are sent but not judged."""
    window: Literal["auto"] | tuple[Seconds, Seconds] = "auto"
    """The part of the run that is judged. `auto`: from `warm_up` to the end of the arrivals;
    `[10s, 50s]`: requests due from the one to the other."""
    steady_state: Literal["none", "mser5"] = "none"
    """`mser5`: also cut off the requests after the warm-up that came before the steady state, as MSER-5
    finds it."""
    max_in_flight: PositiveInt = 100
    """Virtual users allocated before the start: the most arrivals under way at once."""
    patience_s: Seconds = _seconds(0, "patience")
    """How long an arrival may wait for an idle virtual user before it is dropped."""
    drain_s: Seconds = _seconds(30, "drain")
    """How long requests under way may go on once a run is ended early, by Ctrl-C say. After the last arrival
    all are awaited: `timeouts` bound them."""
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    """How long the client waits."""
    retries: Retries = msgspec.field(default_factory=Retries)
    """Whether failed requests are tried again."""
    seed: Annotated[int, Meta(ge=0)] = 1
    """Same seed and scenario: byte-identical requests and the same schedule."""
    objectives: tuple[str, ...] = ("response: p(99) < 500ms", "errors: rate < 0.1%")
    """Threshold strings (docs/objectives.md), or the path of an OpenSLO file."""
    budgets: Budgets = msgspec.field(default_factory=Budgets)
    """How far the instrument may stray before its run is INVALID."""
    mock: Mock = Mock()
    """The bundled mock, where that is the target."""
    telemetry: bool = True
    """Make spans and metrics from the records."""


# -- from files, and back -------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h)", re.ASCII)
_LOOSE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\.?", re.ASCII)
_SPELLED = dict.fromkeys(("", "sec", "second"), "s") | dict.fromkeys(("min", "minute"), "m")
_SPELLED |= dict.fromkeys(("hr", "hour"), "h") | dict.fromkeys(("msec", "millisecond"), "ms")
"""Units as people write them, without a plural's s."""
_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
_DURATION_REMEDY = "a duration is text with its unit: `250ms`, `30s`, `2m` or `1h`"
_OWN_FILE = "to change it, make a file of your own by `harness scenario check SCENARIO > mine.yaml`"
_OWN_KEYS = frozenset({"model", "messages", "prompt", "max_tokens", "stream", "stream_options"})


def load(path: Path | None = None) -> Scenario:
    """Read a scenario file; None reads the shipped default, a bare name (`smoke`) a shipped example.

    Paths inside the file are resolved against its folder.

    Raises:
        ConfigError: with file, key, value and remedy; all mistakes that can be told at once together.
    """
    file = shipped("default") if path is None else path
    if not file.exists() and not file.suffix and file.name == str(file):
        file = shipped(file.name)
    scenario = blame.convert(blame.read_yaml(file), Scenario, str(file), _from_text)
    resolved, missing = _resolve(scenario, file)
    if found := [*_found(scenario, str(file)), *missing]:
        raise together(found)
    return resolved


def shipped(name: str) -> Path:
    """The path of a scenario that comes with the harness.

    Raises:
        ConfigError: there is none of that name; the remedy lists those that there are.
    """
    here = Path(__file__).resolve()
    # Installed, the examples lie inside the package; in a checkout, beside it.
    folder = next(each / "scenarios" for each in here.parents[1:3] if (each / "scenarios").is_dir())
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(each.stem for each in folder.glob("*.yaml"))
        remedy = f"no such file or shipped scenario. {blame.nearest(name, names)}Shipped: {', '.join(names)}"
        raise ConfigError("scenario", "", name, remedy)
    return path


def to_builtins(scenario: Scenario) -> dict[str, Any]:
    """The whole scenario, defaults filled in, as plain values fit for JSON; durations as text."""
    return msgspec.json.decode(msgspec.json.encode(scenario, enc_hook=_to_text), type=dict[str, Any])


def from_builtins(plain: Mapping[str, Any]) -> Scenario:
    """The inverse of `to_builtins`; files that it names need not exist here.

    Raises:
        ConfigError: as `load`.
    """
    blame.screen(plain, "scenario")
    scenario = blame.convert(plain, Scenario, "scenario", _from_text)
    check(scenario, "scenario")
    return scenario


def digests(scenario: Scenario) -> dict[str, str]:
    """SHA-256 of each trace and data set that a scenario names, by path; empty where it cannot be read."""
    paths = [entry.prompt.path for entry in scenario.traffic if isinstance(entry.prompt, Dataset)]
    if isinstance(scenario.arrivals, Replay):
        paths.append(scenario.arrivals.path)
    return {path: _digest(path) for path in paths}


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def seconds(text: str) -> Seconds:
    """Parse a duration: a number and `ms`, `s`, `m` or `h`.

    Raises:
        ValueError: it is none; the message is the remedy.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        meant = _LOOSE.fullmatch(text.strip().lower())
        unit = _SPELLED.get(meant[2].removesuffix("s")) if meant else None
        question = f"did you mean `{meant[1]}{unit}`? " if meant and unit else ""
        raise ValueError(question + _DURATION_REMEDY)
    number, unit = float(match[1]), match[2]
    return Seconds(number / 1000 if unit == "ms" else number * _PER_UNIT[unit])


def override(
    scenario: Scenario,
    *,
    target: str | None = None,
    rate: float | None = None,
    users: int | None = None,
    duration: str | None = None,
    count: int | None = None,
    seed: int | None = None,
    thresholds: Sequence[str] = (),
) -> Scenario:
    """Apply the command line's flags; None leaves a value as it is.

    `users` sets the closed model's users or, in an open model, `max_in_flight`. A threshold replaces
    the objective with the same left side (`response: p(99)`), or is added; the path of an OpenSLO file is
    added, resolved against the working folder.

    Raises:
        ConfigError: whose source is the flag.
    """
    given: dict[str, Any] = {}
    if target is not None:
        given["target"] = target
    if rate is not None:
        given["arrivals"] = _at_rate(scenario.arrivals, rate)
    if users is not None:
        _positive("--users", users)
        if isinstance(scenario.arrivals, Closed):
            given["arrivals"] = replace(scenario.arrivals, users=users)
        else:
            given["max_in_flight"] = users
    if duration is not None:
        try:
            given["duration_s"] = seconds(duration)
        except ValueError as error:
            raise ConfigError("--duration", "", duration, str(error)) from error
    if count is not None:
        given["count"] = _positive("--count", count)
    if seed is not None:
        if seed < 0:
            raise ConfigError("--seed", "", seed, "must be a whole number >= 0")
        given["seed"] = seed
    if thresholds:
        given["objectives"] = _with_thresholds(scenario.objectives, thresholds)
    changed = replace(scenario, **given)
    flags = {"target": target, "rate": rate, "users": users, "duration": duration, "count": count}
    source = " ".join(f"--{name}" for name, value in flags.items() if value is not None) or "scenario"
    if found := [
        ConfigError(source, key, value, remedy if key in flags else f"{remedy}; {_OWN_FILE}")
        for key, value, remedy in _mistakes(changed)
    ]:
        raise together(found)
    return changed


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise ConfigError(flag, "", value, "must be a whole number >= 1")
    return value


def _at_rate(arrivals: Arrivals, rate: float) -> Arrivals:
    if not 0 < rate < float("inf"):
        raise ConfigError("--rate", "", rate, "must be a number of arrivals per second > 0")
    if isinstance(arrivals, Constant | Poisson | Gamma | Sine):
        return replace(arrivals, rate=rate)
    remedies = {
        Closed: "the closed model has no rate: give --users, or set `arrivals.process: poisson`",
        Ramp: "a ramp has two rates: change `arrivals.start` and `arrivals.end` in the scenario file",
        Steps: "steps have rates of their own: change `arrivals.steps` in the scenario file",
        Replay: "a trace has times of its own: change `arrivals.scale` in the scenario file",
    }
    raise ConfigError("--rate", "", rate, remedies[type(arrivals)])


def _with_thresholds(objectives: Sequence[str], thresholds: Sequence[str]) -> tuple[str, ...]:
    for threshold in thresholds:
        if not threshold.strip():
            raise ConfigError("--threshold", "", threshold, "write one like `ttft: p(99) < 500ms`")
    thresholds = [str(Path(each).resolve()) if _is_path(each) else each for each in thresholds]
    measured = {_left_side(threshold) for threshold in thresholds}
    kept = [each for each in objectives if _left_side(each) not in measured]
    return (*kept, *thresholds)


def _left_side(objective: str) -> str:
    return "".join(re.split("[<>]", objective)[0].split())


def _from_text(type_: type, value: Any) -> Seconds:
    assert type_ is Seconds
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or number:
        return seconds(str(value))
    raise ValueError(_DURATION_REMEDY)


def _to_text(value: Any) -> str:
    assert isinstance(value, Seconds)
    text = format(Decimal(repr(float(value))), "f")  # repr round-trips; Decimal keeps exponents out
    return text.removesuffix(".0") + "s"


# -- what no single key shows ---------------------------------------------------------------------------


def check(scenario: Scenario, source: str) -> None:
    """Find the mistakes that lie between keys.

    Raises:
        ConfigError: with `source`; all such mistakes together.
    """
    if found := _found(scenario, source):
        raise together(found)


def _found(scenario: Scenario, source: str) -> list[ConfigError]:
    return [ConfigError(source, *mistake) for mistake in _mistakes(scenario)]


Mistake = tuple[str, object, str]


def _mistakes(scenario: Scenario) -> Iterator[Mistake]:
    yield from _target_mistakes(scenario.target)
    if not scenario.models:
        yield "models", {}, "name at least one model: `models: {deepseek-flash: 1}`"
    if not any(entry.weight for entry in scenario.traffic):
        yield "traffic", "all of weight 0", "give at least one entry a `weight` above 0"
    for position, entry in enumerate(scenario.traffic):
        yield from _entry_mistakes(scenario, entry, f"traffic[{position}]")
    yield from _length_of_run_mistakes(scenario)
    yield from _arrival_mistakes(scenario)
    yield from _window_mistakes(scenario)
    yield from _user_mistakes(scenario)
    for name, value in (
        ("timeouts.connect", scenario.timeouts.connect_s),
        ("timeouts.idle", scenario.timeouts.idle_s),
        ("timeouts.total", scenario.timeouts.total_s),
        ("budgets.cpu_span", scenario.budgets.cpu_span_s),
    ):
        if value <= 0:
            yield name, _to_text(value), "must be longer than 0s"
    if scenario.retries.backoff_max_s < scenario.retries.backoff_s:
        backoff_max = _to_text(scenario.retries.backoff_max_s)
        yield "retries.backoff_max", backoff_max, "must not be shorter than `retries.backoff`"
    for position, objective in enumerate(scenario.objectives):
        if not objective.strip():
            yield f"objectives[{position}]", objective, "write one like `ttft: p(99) < 500ms`"


def _target_mistakes(target: str) -> Iterator[Mistake]:
    if target == "mock":
        return
    remedy = "write `mock`, or the API's base URL: `https://api.deepseek.com`"
    try:
        url = urlsplit(target)
        valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        # What is before an @ may be a password.
        yield (
            "target",
            None if "@" in target else target,
            (blame.meant_url(target) or blame.nearest(target, ["mock"])) + remedy,
        )
        return
    secret = any(blame.is_secret(name) for name, _ in parse_qsl(url.query))
    if url.username is not None or secret:  # the value is kept out of the message
        remedy = "holds a credential; take it out and put the key into the environment: HARNESS_API_KEY"
        yield "target", None, remedy


def _entry_mistakes(scenario: Scenario, entry: Traffic, key: str) -> Iterator[Mistake]:
    dialect = entry.dialect or scenario.dialect
    if dialect == "completions-lines" and entry.kind != "stream":
        remedy = f"`completions-lines` only streams; kind `{entry.kind}` takes `chat` or `completions`"
        yield f"{key}.dialect", dialect, remedy
    if entry.size != 8 and entry.kind != "batch":
        yield f"{key}.size", entry.size, f"only kind `batch` has a size; this is `{entry.kind}`"
    if entry.model is not None and not entry.model.strip():
        yield f"{key}.model", entry.model, "name a model, or leave the key out"
    if entry.turns != 1 and (entry.kind == "batch" or isinstance(entry.prompt, Dataset)):
        yield (
            f"{key}.turns",
            None,
            "sessions have synthetic prompts, and are of kind `completion` or `stream`",
        )
    if entry.turns == 1 and entry.think_time_s:
        yield f"{key}.think_time", _to_text(entry.think_time_s), "one turn has no next one: set `turns`"
    if not isinstance(entry.turns, int):
        yield from _range_mistakes(entry.turns, f"{key}.turns")
    yield from _range_mistakes(entry.output, f"{key}.output")
    if isinstance(entry.prompt, Synthetic):
        yield from _range_mistakes(entry.prompt.tokens, f"{key}.prompt.tokens")
    for name in entry.parameters.extra:
        if name in _OWN_KEYS:
            remedy = "the harness sets this itself: see `models`, `prompt`, `output` and `kind`"
            yield f"{key}.parameters.extra.{name}", entry.parameters.extra[name], remedy


def _range_mistakes(length: Length, key: str) -> Iterator[Mistake]:
    if not isinstance(length, Fixed) and length.low > length.high:
        yield f"{key}.low", length.low, f"must not be above `high`, which is {length.high}"


def _length_of_run_mistakes(scenario: Scenario) -> Iterator[Mistake]:
    arrivals, duration_s = scenario.arrivals, scenario.duration_s
    if duration_s is not None and duration_s <= 0:
        yield "duration", "0s", "must be longer than 0s"
    if isinstance(arrivals, Ramp):
        if duration_s is None:
            yield "duration", None, "a ramp needs one: write `duration: 60s`"
        if arrivals.start == arrivals.end == 0:
            yield "arrivals.end", 0.0, "a ramp from 0 to 0 has no arrivals: raise one of them"
    elif isinstance(arrivals, Steps):
        yield from _step_mistakes(arrivals, duration_s)
    elif duration_s is None and scenario.count is None and not isinstance(arrivals, Replay):
        yield "duration", None, "when does it end? Write `duration: 30s`, or `count: 1000`"
    end_s = _end_s(scenario)
    if end_s is not None and scenario.warm_up_s >= end_s:
        remedy = f"must be shorter than the duration, which is {_to_text(end_s)}"
        yield "warm_up", _to_text(scenario.warm_up_s), remedy


def _end_s(scenario: Scenario) -> Seconds | None:
    """When the arrivals end by the clock, if they do."""
    if scenario.duration_s is None and isinstance(scenario.arrivals, Steps):
        return Seconds(sum(step.for_s for step in scenario.arrivals.steps))
    return scenario.duration_s


def _arrival_mistakes(scenario: Scenario) -> Iterator[Mistake]:
    arrivals, end_s = scenario.arrivals, _end_s(scenario)
    if isinstance(arrivals, Sine) and arrivals.period_s <= 0:
        yield "arrivals.period", "0s", "must be longer than 0s"
    if isinstance(arrivals, Replay) and arrivals.format != "columns":
        plain = Replay(path=arrivals.path)
        for name in ("column", "unit", "prompt_column", "output_column"):
            if getattr(arrivals, name) != getattr(plain, name):
                remedy = f"only format `columns` has one; those of `{arrivals.format}` are known"
                yield f"arrivals.{name}", getattr(arrivals, name), remedy
    if scenario.bursts and isinstance(arrivals, Closed):
        yield "bursts", None, "a closed model has no schedule to add to: use an open `arrivals.process`"
    for position, burst in enumerate(scenario.bursts):
        if end_s is not None and burst.at_s + burst.over_s > end_s:
            remedy = f"the burst must end before the arrivals do, at {_to_text(end_s)}"
            yield f"bursts[{position}].at", _to_text(burst.at_s), remedy


def _window_mistakes(scenario: Scenario) -> Iterator[Mistake]:
    if scenario.window == "auto":
        return
    low_s, high_s = scenario.window
    shown, end_s = f"[{_to_text(low_s)}, {_to_text(high_s)}]", _end_s(scenario)
    if low_s >= high_s:
        yield "window", shown, "must end after it begins"
    if low_s < scenario.warm_up_s:
        yield "window", shown, f"must not begin in the warm-up, which takes {_to_text(scenario.warm_up_s)}"
    if end_s is not None and high_s > end_s:
        yield "window", shown, f"must not end after the arrivals do, at {_to_text(end_s)}"
    if scenario.steady_state != "none":
        yield "steady_state", scenario.steady_state, "the window is fixed: leave one of the two out"


def _step_mistakes(arrivals: Steps, duration_s: Seconds | None) -> Iterator[Mistake]:
    for position, step in enumerate(arrivals.steps):
        if step.for_s <= 0:
            yield f"arrivals.steps[{position}].for", "0s", "must be longer than 0s"
    if not any(step.rate for step in arrivals.steps):
        yield "arrivals.steps", "all of rate 0", "give at least one step a `rate` above 0"
    total_s = sum(step.for_s for step in arrivals.steps)
    if duration_s is not None and duration_s > total_s:
        remedy = f"the steps last {_to_text(Seconds(total_s))} in all: leave `duration` out, or add a step"
        yield "duration", _to_text(duration_s), remedy


def _user_mistakes(scenario: Scenario) -> Iterator[Mistake]:
    closed = isinstance(scenario.arrivals, Closed)
    key = "arrivals.users" if closed else "max_in_flight"
    most = scenario.arrivals.users if isinstance(scenario.arrivals, Closed) else scenario.max_in_flight
    wanted = sum(entry.users or 0 for entry in scenario.traffic)
    if wanted > most:
        yield key, most, f"the traffic entries ask for {wanted} users: raise it, or lower their `users`"


def _resolve(scenario: Scenario, file: Path) -> tuple[Scenario, list[ConfigError]]:
    """Make the paths inside the scenario absolute, and tell which of the files do not exist."""
    missing: list[ConfigError] = []

    def existing(key: str, path: str) -> str:
        found = (file.parent / Path(path).expanduser()).resolve()
        if not found.is_file():
            missing.append(ConfigError(str(file), key, path, f"there is no file {found}"))
        return str(found)

    def entries() -> Iterable[Traffic]:
        for position, entry in enumerate(scenario.traffic):
            if isinstance(entry.prompt, Dataset):
                path = existing(f"traffic[{position}].prompt.path", entry.prompt.path)
                yield replace(entry, prompt=replace(entry.prompt, path=path))
            else:
                yield entry

    arrivals, mock = scenario.arrivals, scenario.mock
    if isinstance(arrivals, Replay):
        arrivals = replace(arrivals, path=existing("arrivals.path", arrivals.path))
    if mock.faults is not None:
        mock = replace(mock, faults=existing("mock.faults", mock.faults))
    if _is_path(mock.profile):
        mock = replace(mock, profile=existing("mock.profile", mock.profile))
    objectives = tuple(
        existing(f"objectives[{position}]", each) if _is_path(each) else each
        for position, each in enumerate(scenario.objectives)
    )
    traffic = tuple(entries())
    resolved = replace(scenario, traffic=traffic, arrivals=arrivals, mock=mock, objectives=objectives)
    return resolved, missing


def _is_path(text: str) -> bool:
    return text.strip().endswith((".yaml", ".yml", ".json", ".toml"))


# -- for editors ----------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The scenario file's JSON Schema (draft 2020-12); the docstrings above are its descriptions."""
    pattern = f"^{_DURATION.pattern}$".replace("(?:", "(")
    duration = {"type": "string", "pattern": pattern, "examples": ["250ms", "30s", "2m", "1h"]}
    found = msgspec.json.schema(Scenario, schema_hook=lambda _: dict(duration))
    docstrings = _field_docstrings()
    for name, definition in found["$defs"].items():
        struct = globals()[name]
        for field in msgspec.structs.fields(struct):
            described = definition["properties"][field.encode_name]
            if (name, field.name) in docstrings:
                described["description"] = docstrings[name, field.name]
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
                described["default"] = msgspec.to_builtins(default, enc_hook=_to_text)
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Scenario", **found}
    return msgspec.json.decode(msgspec.json.encode(found), type=dict[str, Any])  # tuples become lists


def _field_docstrings() -> dict[tuple[str, str], str]:
    """The string that stands below each field of this file, by class and field name."""
    found: dict[tuple[str, str], str] = {}
    for struct in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if not isinstance(struct, ast.ClassDef):
            continue
        for field, below in zip(struct.body, struct.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[struct.name, name] = " ".join(text.split())
    return found
