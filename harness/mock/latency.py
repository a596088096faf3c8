"""How long an answer takes: a profile, of two distributions or of an engine under load (mock/engine.py).

Seeded draws from the distributions:

    token i is due at   ttft + itl_1 + … + itl_i      (i = 0 … n-1, from the request's arrival)

A whole (non-streamed) answer is due with its last token. The draws depend on the seed and the request's
id alone, so they repeat whatever the order in which requests arrive.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta

from harness.errors import ConfigError
from harness.mock import blame

_BUILT_IN = Path(__file__).with_name("profiles")
_NS = 1_000_000_000


class Seconds(float):
    """A duration in seconds; in files a string with its unit: `4ms`, `1.5s`, `2m`."""

    __slots__ = ()


class Fixed(msgspec.Struct, frozen=True, tag_field="distribution", tag="fixed", forbid_unknown_fields=True):
    """Always the same duration."""

    value_s: Seconds = msgspec.field(name="value")


class Uniform(
    msgspec.Struct, frozen=True, tag_field="distribution", tag="uniform", forbid_unknown_fields=True
):
    """Any duration from `low` to `high`, equally likely."""

    low_s: Seconds = msgspec.field(name="low")
    high_s: Seconds = msgspec.field(name="high")


class LogNormal(
    msgspec.Struct, frozen=True, tag_field="distribution", tag="lognormal", forbid_unknown_fields=True
):
    """Log-normal by its median and the sigma of its natural logarithm: P99 is median * exp(2.326 sigma)."""

    median_s: Seconds = msgspec.field(name="median")
    sigma: Annotated[float, Meta(ge=0, le=5)]


class Quantiles(
    msgspec.Struct, frozen=True, tag_field="distribution", tag="quantiles", forbid_unknown_fields=True
):
    """By points of its cumulative distribution, straight lines between them."""

    points: Annotated[list[tuple[Annotated[float, Meta(ge=0, le=1)], Seconds]], Meta(min_length=2)]
    """Share and duration, both rising, from the share 0 to the share 1."""


Distribution = Fixed | Uniform | LogNormal | Quantiles


_Positive = Annotated[int, Meta(ge=1)]


class StepTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a step of an engine takes, as a sum of shares (mock/engine.py)."""

    base_s: Seconds = msgspec.field(name="base", default=Seconds(0))
    sequence_s: Seconds = msgspec.field(name="sequence", default=Seconds(0))
    """For each sequence that decodes."""
    kv_token_s: Seconds = msgspec.field(name="kv_token", default=Seconds(0))
    """For each token in the KV cache of the step's sequences."""
    prefill_token_s: Seconds = msgspec.field(name="prefill_token", default=Seconds(0))
    """For each prompt token that the step computes."""


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server whose latency comes from its load: the `engine` section of a profile."""

    step: StepTime
    jitter: Annotated[float, Meta(ge=0, le=2)] = 0.0
    """Sigma of the log-normal factor, of mean 1, on each step's time."""
    batch: _Positive = 256
    """Most sequences at a time."""
    step_tokens: _Positive = 2048
    """Most tokens in a step, decoded or of prompts: longer prompts are computed in chunks."""
    kv_blocks: _Positive | None = None
    """None: no limit."""
    block_tokens: _Positive = 16
    queue: Annotated[int, Meta(ge=0)] | None = None
    """Most requests that wait; None: no limit."""
    queue_status: Literal[429, 503] = 503
    """What a request beyond the queue gets."""
    concurrency: _Positive | None = None
    """Most requests in flight, running or waiting, for the whole account; beyond it 429."""
    prefix_unit: _Positive = 64
    """Tokens: the prefix cache finds whole units."""
    prefix_tokens: Annotated[int, Meta(ge=0)] = 6_400_000
    """Capacity of the prefix cache; 0: there is none."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast the mock answers."""

    ttft: Distribution
    """From the request's arrival to its first token; with an engine, on top of its times (0 by default)."""
    itl: Distribution
    """Each gap between two tokens, drawn anew; with an engine, on top of its times (0 by default)."""
    engine: Engine | None = None
    output_tokens: Annotated[int, Meta(ge=1, le=393_216)] = 64
    """Length of an answer whose request sets no limit."""
    description: str = ""
    name: str = ""
    """The file's name without its suffix, unless given."""


def token_offsets_ns(profile: Profile, *, seed: int, request_id: str, tokens: int) -> list[int]:
    """When each of an answer's tokens is due, in nanoseconds from the request's arrival; never decreasing.

    Args:
        profile: the two distributions.
        seed: the mock's seed.
        request_id: what tells this request from the others.
        tokens: how many tokens the answer has; at least 1.
    """
    if isinstance(profile.ttft, Fixed) and isinstance(profile.itl, Fixed):
        first, gap = round(profile.ttft.value_s * _NS), round(profile.itl.value_s * _NS)
        return [first + i * gap for i in range(tokens)]
    rng = random.Random(f"{seed}/{request_id}")
    offsets = [round(draw_s(profile.ttft, rng) * _NS)]
    for _ in range(tokens - 1):
        offsets.append(offsets[-1] + round(draw_s(profile.itl, rng) * _NS))
    return offsets


def draw_s(distribution: Distribution, rng: random.Random) -> float:
    """One duration in seconds."""
    match distribution:
        case Fixed(value_s=value_s):
            return value_s
        case Uniform(low_s=low_s, high_s=high_s):
            return rng.uniform(low_s, high_s)
        case LogNormal(median_s=median_s, sigma=sigma):
            return median_s * math.exp(sigma * rng.gauss(0.0, 1.0))
        case Quantiles(points=points):
            share = rng.random()
            after = bisect_right(points, share, key=itemgetter(0))
            (low, low_s), (high, high_s) = points[after - 1], points[after]
            return low_s + (high_s - low_s) * (share - low) / (high - low)


def built_in_profiles() -> list[str]:
    """The names of the profiles that come with the mock."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.yaml"))


def load_profile(name_or_path: str) -> Profile:
    """Read a built-in profile by name, or a YAML file by path (anything with a `/` or a suffix).

    Raises:
        ConfigError: no such profile or file, or a mistake in it, with file, key, value and remedy.
    """
    if "/" in name_or_path or Path(name_or_path).suffix:
        path = Path(name_or_path)
    else:
        path = _BUILT_IN / f"{name_or_path}.yaml"
        if not path.exists():
            known = ", ".join(built_in_profiles())
            raise ConfigError("--profile", "", name_or_path, f"choose one of {known}, or the path of a file")
    plain = read_yaml(path)
    if isinstance(plain, dict) and "engine" in plain:
        nothing = {"distribution": "fixed", "value": "0s"}
        plain = {"ttft": nothing, "itl": nothing, **plain}
    profile = convert(plain, Profile, str(path))
    for key in ("ttft", "itl"):
        _check(getattr(profile, key), str(path), key)
    if profile.engine is not None and not any(msgspec.structs.astuple(profile.engine.step)):
        raise ConfigError(str(path), "engine.step", None, "a step must take longer than nothing: give `base`")
    return msgspec.structs.replace(profile, name=profile.name or path.stem)


def _check(distribution: Distribution, source: str, key: str) -> None:
    if isinstance(distribution, Uniform) and distribution.low_s > distribution.high_s:
        raise ConfigError(
            source, f"{key}.low", distribution.low_s, f"must not exceed {key}.high ({distribution.high_s} s)"
        )
    if isinstance(distribution, Quantiles):
        shares, durations = zip(*distribution.points, strict=True)
        rising = list(shares) == sorted(set(shares)) and list(durations) == sorted(durations)
        if not rising or (shares[0], shares[-1]) != (0, 1):
            raise ConfigError(
                source, f"{key}.points", None, "write rising shares from 0 to 1, with rising durations"
            )


# -- YAML files of the mock, with blame ---------------------------------------------------------------

_Value = TypeVar("_Value")
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ns|us|ms|s|m)", re.ASCII)
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def read_yaml(path: Path) -> Any:
    """A YAML file's plain values.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), "", None, f"cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(str(path), "", None, f"is not YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", None, f"is not YAML: {error}") from error


def convert(plain: Any, kind: type[_Value], source: str) -> _Value:
    """Check plain values against a typed form.

    Raises:
        ConfigError: for the first mistake, with its key, its value and what was expected.
    """
    return blame.convert(plain, kind, source, dec_hook=_duration)


def _duration(kind: type, value: object) -> object:
    if kind is not Seconds:
        raise NotImplementedError(kind)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a duration with its unit: `4ms`, `1.5s`, `2m`")
    return Seconds(float(match.group(1)) * _UNIT_S[match.group(2)])
