"""A latency profile of the mock that behaves like a recorded run: its two distributions, or its engine.

An engine's step takes base + sequence * decoding + kv_token * KV tokens + prefill_token * prompt tokens
(mock/engine.py). In a stream each gap between two tokens is such a step, and the other streams of the run
tell what the server was doing meanwhile; so the shares are found by least squares over all gaps. A share is
identified if its 95 % interval excludes zero, by a jackknife over 20 blocks of time (gaps within a block are
far from independent). If no share but the base is, the load did not show in the run (it was too light, or a
drop in a large service's sea), and the profile draws from distributions instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from harness.errors import ConfigError
from harness.record import Outcome

Floats = NDArray[np.float64]

_SHARES = ("base", "sequence", "kv_token", "prefill_token")
_BLOCKS = 20
_STREAMS_AT_LEAST = 30
_GAPS_AT_MOST = 300_000
_CLOSE = 0.05
"""Kolmogorov-Smirnov distance up to which a log-normal is taken to be the distribution."""
_QUANTILES = (0.0, *(round(0.05 * i, 2) for i in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)
_WHOLE_BATCH, _WHOLE_STEP = 256, 2048
"""vLLM's defaults: what the server takes at least, unless the run shows more."""
_ARRIVALS_AT_MOST = 5_000
_NEIGHBOURS = 500
"""Streams before one that are searched for one that was under way all the while."""


class Distribution(msgspec.Struct, frozen=True):
    """How long something took, in seconds, as a distribution of the mock's profiles."""

    n: int
    mean_s: float
    kind: str
    """`fixed`, `lognormal`, or `quantiles` where neither is close."""
    parameters: Mapping[str, float | Sequence[tuple[float, float]]]


class Share(msgspec.Struct, frozen=True):
    """One share of a step's time, with its 95 % interval, in seconds."""

    value_s: float
    low_s: float
    high_s: float


class Fit(msgspec.Struct, frozen=True):
    """A profile, and how it was found."""

    streams: int
    gaps: int
    ttft: Distribution
    """Of the whole time to the first token; with an engine, of what its steps do not explain."""
    itl: Distribution
    engine: Mapping[str, Share] | None
    """The identified shares of a step's time, by name; None if the load did not show."""
    explained: float
    """The share of the gaps' variance that the engine explains."""
    jitter: float
    """Sigma of the logarithm of gap over step time."""
    peak_batch: int
    """Most streams that were being decoded at once."""
    peak_prefill: int
    """Most prompt tokens whose first answers came at once: a step takes so many, or is taken to."""
    output_tokens: int
    models: Sequence[str]


class _Streams(msgspec.Struct, frozen=True):
    """Finished streams with two tokens or more, in order of first tokens. Times in seconds."""

    sent_s: Floats
    first_s: Floats
    last_s: Floats
    prompt: Floats
    computed: Floats
    """Prompt tokens that no cache held."""
    lengths: NDArray[np.int64]
    stamps_s: Floats
    """All chunks, stream after stream."""


class _Load(msgspec.Struct, frozen=True):
    """What the server was doing, for each of some moments: the terms of a step's time."""

    decoding: Floats
    kv_tokens: Floats


def fit(table: pa.Table, source: str) -> Fit:
    """Find the profile.

    Args:
        table: of `runlog.SCHEMA`.
        source: where it comes from, for the blame.

    Raises:
        ConfigError: the run has too few finished streams.
    """
    streams = _streams(table)
    if len(streams.lengths) < _STREAMS_AT_LEAST:
        remedy = f"fit a run of at least {_STREAMS_AT_LEAST} finished streams of two tokens or more"
        raise ConfigError(source, "streams", len(streams.lengths), remedy)
    gap_s, terms, when_s = _gaps(streams)
    kept = slice(None, None, max(1, math.ceil(len(gap_s) / _GAPS_AT_MOST)))
    shares = _shares(terms[kept], gap_s[kept], when_s[kept])
    ttft_s = streams.first_s - streams.sent_s
    itl = distribution(gap_s)
    explained = jitter = 0.0
    identified = shares if set(shares) - {"base"} else None
    if identified is not None:
        predicted_s = _predict(identified, terms)
        explained = 1.0 - float(np.var(gap_s - predicted_s) / np.var(gap_s))
        jitter = _spread(gap_s, predicted_s)
        ttft_s = _unexplained(identified, streams)
    return Fit(
        streams=len(streams.lengths),
        gaps=len(gap_s),
        ttft=distribution(ttft_s),
        itl=itl,
        engine=identified,
        explained=explained,
        jitter=jitter,
        peak_batch=int(terms[:, 1].max()),
        peak_prefill=int(terms[:, 3].max()),
        output_tokens=int(np.median(streams.lengths)),
        models=sorted(set(table.column("model").to_pylist())),
    )


def distribution(values_s: Floats) -> Distribution:
    """The simplest distribution that is close to these durations."""
    n, mean_s = len(values_s), float(values_s.mean())
    low, middle, high = np.quantile(values_s, [0.01, 0.5, 0.99])
    if high - low <= 0.01 * middle or high == 0.0:
        return Distribution(n, mean_s, "fixed", {"value": float(middle)})
    if values_s.min() > 0.0:
        logs = np.log(values_s)
        mu, sigma = float(logs.mean()), float(logs.std())
        if sigma <= 5 and stats.kstest(logs, stats.norm(mu, sigma).cdf).statistic <= _CLOSE:
            return Distribution(n, mean_s, "lognormal", {"median": math.exp(mu), "sigma": sigma})
    found = np.quantile(values_s, _QUANTILES)
    points = [(share, max(0.0, float(value))) for share, value in zip(_QUANTILES, found, strict=True)]
    return Distribution(n, mean_s, "quantiles", {"points": points})


# -- what was going on ------------------------------------------------------------------------------------


def _streams(table: pa.Table) -> _Streams:
    finished = pc.and_(
        pc.equal(table.column("outcome"), str(Outcome.OK)),
        pc.greater(pc.list_value_length(table.column("chunk_ns")), 1),
    )
    known = pc.and_(pc.is_valid(table.column("sent_ns")), pc.is_valid(table.column("prompt_tokens")))
    rows = table.filter(pc.and_(finished, known)).sort_by("first_token_ns")
    lengths = pc.list_value_length(rows.column("chunk_ns")).to_numpy().astype(np.int64)
    stamps_s = pc.list_flatten(rows.column("chunk_ns")).to_numpy() / 1e9
    ends = np.cumsum(lengths)
    prompt = rows.column("prompt_tokens").to_numpy().astype(np.float64)
    cached = pc.fill_null(rows.column("cached_tokens"), 0).to_numpy().astype(np.float64)
    return _Streams(
        sent_s=rows.column("sent_ns").to_numpy() / 1e9,
        first_s=stamps_s[ends - lengths],
        last_s=stamps_s[ends - 1],
        prompt=prompt,
        computed=np.maximum(prompt - cached, 1.0),
        lengths=lengths,
        stamps_s=stamps_s,
    )


def _gaps(streams: _Streams) -> tuple[Floats, Floats, Floats]:
    """All gaps, the terms of their steps' times (columns as `_SHARES`), and when they were."""
    inside = _inside(streams)
    start_s, end_s = streams.stamps_s[:-1][inside], streams.stamps_s[1:][inside]
    gap_s = end_s - start_s
    middle_s = start_s + gap_s / 2
    load = _load(streams, middle_s)
    # First tokens of the same step come at the same time as this gap's end, give or take the network. The
    # tolerance must not depend on the gap: long gaps would find more of them by chance alone.
    tolerance_s = float(np.median(gap_s)) / 4
    computed = np.concatenate(([0.0], np.cumsum(streams.computed)))
    before = computed[np.searchsorted(streams.first_s, end_s - tolerance_s)]
    prefilled = computed[np.searchsorted(streams.first_s, end_s + tolerance_s)] - before
    terms = np.column_stack([np.ones(len(gap_s)), load.decoding, load.kv_tokens, prefilled])
    return gap_s, terms, middle_s


def _inside(streams: _Streams) -> NDArray[np.bool_]:
    """Which of the differences between successive stamps are gaps of one stream."""
    owner = np.repeat(np.arange(len(streams.lengths)), streams.lengths)
    inside: NDArray[np.bool_] = owner[1:] == owner[:-1]
    return inside


def _load(streams: _Streams, at_s: Floats) -> _Load:
    began = np.searchsorted(streams.first_s, at_s, side="right")
    ended_s = np.sort(streams.last_s)
    ended = np.searchsorted(ended_s, at_s, side="right")
    order = np.argsort(streams.last_s)
    whole = (streams.prompt + streams.lengths)[order]
    told = np.searchsorted(np.sort(streams.stamps_s), at_s, side="right")
    prompts = np.concatenate(([0.0], np.cumsum(streams.prompt)))[began]
    gone = np.concatenate(([0.0], np.cumsum(whole)))[ended]
    return _Load((began - ended).astype(np.float64), (prompts + told - gone).astype(np.float64))


# -- least squares ------------------------------------------------------------------------------------------


def _shares(terms: Floats, gap_s: Floats, when_s: Floats) -> dict[str, Share]:
    """The shares that are identified, and the base."""
    blocks = np.minimum(
        (_BLOCKS * (when_s - when_s.min()) / max(float(np.ptp(when_s)), 1e-9)).astype(np.int64), _BLOCKS - 1
    )
    # Scaled to a maximum of one, so that the equations are well conditioned.
    scale = np.maximum(terms.max(axis=0), 1.0)
    scaled = terms / scale
    squares = np.array([scaled[blocks == i].T @ scaled[blocks == i] for i in range(_BLOCKS)])
    products = np.array([scaled[blocks == i].T @ gap_s[blocks == i] for i in range(_BLOCKS)])
    columns = [i for i in range(len(_SHARES)) if np.ptp(terms[:, i]) > 0 or i == 0]
    while True:
        value, error = _jackknife(squares, products, columns)
        low, high = value - error, value + error
        # The base needs no proof, but it cannot be negative.
        doubtful = [i for i, column in enumerate(columns) if (low if column else value)[i] <= 0]
        if not doubtful:
            return {
                _SHARES[column]: Share(*(float(x[i] / scale[column]) for x in (value, low, high)))
                for i, column in enumerate(columns)
            }
        columns.pop(min(doubtful, key=lambda i: value[i] / error[i] if error[i] else 0.0))


def _jackknife(squares: Floats, products: Floats, columns: Sequence[int]) -> tuple[Floats, Floats]:
    """Least squares, and half the width of the 95 % interval by leaving out one block after the other."""
    square = squares[:, columns][:, :, columns]
    product = products[:, columns]

    def solved(left: Floats, right: Floats) -> Floats:
        return np.linalg.lstsq(left, right, rcond=None)[0].astype(np.float64)

    value = solved(square.sum(axis=0), product.sum(axis=0))
    without = np.array(
        [
            solved(square.sum(axis=0) - one, product.sum(axis=0) - other)
            for one, other in zip(square, product, strict=True)
        ]
    )
    width = math.sqrt(len(without) - 1) * float(stats.t.ppf(0.975, len(without) - 1))
    error: Floats = without.std(axis=0).astype(np.float64) * width
    return value, error


def _predict(shares: Mapping[str, Share], terms: Floats) -> Floats:
    values = np.array([shares[name].value_s if name in shares else 0.0 for name in _SHARES])
    predicted: Floats = np.maximum(terms @ values, 1e-6)
    return predicted


def _spread(gap_s: Floats, predicted_s: Floats) -> float:
    """Sigma of the ratio's logarithm, by the median absolute deviation: lumps on the wire do not count."""
    some = gap_s > 0
    logs = np.log(gap_s[some] / predicted_s[some])
    return min(2.0, float(stats.median_abs_deviation(logs, scale="normal")))


def _unexplained(shares: Mapping[str, Share], streams: _Streams) -> Floats:
    """The part of each time to first token that the engine's steps do not explain: network, gateway, queue.

    The step that computed a prompt began when the one before it ended, at the latest tokens of another
    stream, and the request came during the one before: at its middle, on average. What differs by no more
    than a step is the luck of that moment, and the median is taken.
    """
    every = max(1, len(streams.lengths) // _ARRIVALS_AT_MOST)
    left_s = np.array([_before_its_step(shares, streams, i) for i in range(0, len(streams.lengths), every)])
    left_s = np.maximum(left_s[~np.isnan(left_s)], 0.0)
    gap_s = np.diff(streams.stamps_s)[_inside(streams)]
    low_s, middle_s, high_s = np.quantile(left_s, [0.25, 0.5, 0.75])
    # The mean step that an arrival finds is longer than the mean step: long ones are found more often.
    found_s = float((gap_s**2).mean() / gap_s.mean())
    return np.full(len(left_s), middle_s) if high_s - low_s <= found_s else left_s


def _before_its_step(shares: Mapping[str, Share], streams: _Streams, i: int) -> float:
    """From the sending of a request to the middle of the step that it found; NaN if nothing tells."""
    sent_s, first_s = streams.sent_s[i], streams.first_s[i]
    earlier = slice(max(0, i - _NEIGHBOURS), i)
    beside = np.flatnonzero((streams.first_s[earlier] < sent_s) & (streams.last_s[earlier] > first_s))
    if len(beside):
        other = earlier.start + int(beside[-1])
        end = int(streams.lengths[: other + 1].sum())
        stamps_s = streams.stamps_s[end - int(streams.lengths[other]) : end]
        at = int(np.abs(stamps_s - first_s).argmin())
        return float((stamps_s[at - 1] + stamps_s[at - 2]) / 2 - sent_s) if at >= 2 else math.nan
    if (streams.last_s[earlier] > sent_s).any():
        return math.nan
    alone = np.array([[1.0, 0.0, 0.0, streams.computed[i]]])
    return float(first_s - sent_s - _predict(shares, alone)[0])


# -- the file -----------------------------------------------------------------------------------------------


def profile_text(found: Fit, run: str) -> str:
    """The profile as a YAML file for `harness mock --profile`, with what it rests on.

    Args:
        found: by `fit`.
        run: the run's name, for the description.
    """
    models = ", ".join(found.models)
    lines = [
        f"# Fitted to the run {run} ({models}): {found.streams:,} finished streams; {found.gaps:,} gaps",
        f"# between tokens, of {found.itl.mean_s * 1e3:.4g} ms on average.",
    ]
    if found.engine is None:
        lines += [
            "# How gaps depend on load is not identifiable from this run: no share of a step's time but the",
            "# base had a 95 % interval above zero. The distributions below take no notice of load.",
        ]
    else:
        lines.append(f"# The engine explains {found.explained:.0%} of the gaps' variance. 95 % intervals:")
        lines += [
            f"#   {name:13} {_duration(share.low_s)} to {_duration(share.high_s)}"
            for name, share in found.engine.items()
        ]
        left = [name for name in _SHARES if name not in found.engine]
        if left:
            lines.append(f"# Not identifiable from this run, and left at zero: {', '.join(left)}.")
        lines.append("# Queue and KV blocks cannot be told from outside: no limits.")
    lines += [f"description: fitted to {run}", f"ttft: {_flow(found.ttft)}"]
    if found.engine is None:
        lines.append(f"itl: {_flow(found.itl)}")
    else:
        step = ", ".join(f"{name}: {_duration(share.value_s)}" for name, share in found.engine.items())
        lines += [
            "engine:",
            f"  step: {{{step}}}",
            f"  jitter: {found.jitter:.3f}",
            f"  batch: {max(_WHOLE_BATCH, found.peak_batch)}",
            f"  step_tokens: {max(_WHOLE_STEP, 2 ** math.ceil(math.log2(max(1, found.peak_prefill))))}",
        ]
    return "\n".join([*lines, f"output_tokens: {found.output_tokens}", ""])


def _flow(found: Distribution) -> str:
    match found.parameters:
        case {"value": float(value)}:
            inner = f"value: {_duration(value)}"
        case {"median": float(median), "sigma": float(sigma)}:
            inner = f"median: {_duration(median)}, sigma: {sigma:.4f}"
        case {"points": list(points)}:
            inner = "points: [" + ", ".join(f"[{share:g}, {_duration(at)}]" for share, at in points) + "]"
        case _:
            raise AssertionError(found)
    return f"{{distribution: {found.kind}, {inner}}}"


def _duration(seconds: float) -> str:
    """Four digits in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.4g}{unit}"
    return f"{max(seconds, 0.0) * 1e9:.4g}ns"
