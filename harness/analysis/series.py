"""What charts show: distributions as curves of a few hundred points, and the run per interval of time.

Everything here is binned, so that a chart of a million requests is no larger than one of a thousand.
Times are seconds; the moments of a run count from its start, durations as measures.py defines them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow.compute as pc

from harness.analysis.measures import OWN, Floats, Mask, Measures, Window, judged
from harness.record import Sample

_STEPS_S = tuple(m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5))
_P99_N = 100
"""Fewest samples whose P99 is drawn: below, it would be their maximum under another name."""
_P50_N = 5


class Curve(msgspec.Struct, frozen=True):
    """The quantiles of one measure of one kind of traffic."""

    kind: str
    n: int
    slower: list[float]
    """Share of the samples above the value: 0.01 stands for P99. Falls from 1 to 1 / n."""
    seconds: list[float]


class Interval(msgspec.Struct, frozen=True):
    """What went on in one interval of the run; rates are per second of the interval."""

    start_s: float
    end_s: float
    due: float
    """Requests per second that the schedule wanted; 0 in a closed loop."""
    started: float
    ended: float
    in_flight: float
    """Mean number of requests between their first start and their last end."""
    tokens: float
    """Completion tokens per second, as they came."""
    errors: dict[str, float]
    """Requests per second by outcome; the outcomes of the whole run, where they are errors."""


class Spread(msgspec.Struct, frozen=True):
    """The quantiles of one measure over the requests due in one interval."""

    start_s: float
    end_s: float
    n: int
    p50_s: float | None
    """None where n is below 5."""
    p99_s: float | None
    """None where n is below 100."""


class Health(msgspec.Struct, frozen=True):
    """The worst of one worker in one interval."""

    t_s: float
    """End of the interval."""
    worker: str
    cpu: float
    """Share of one core."""
    hub_lag_s: float
    gc_pause_s: float
    rss_bytes: int


def curves(measures: Measures, name: str, window: Window, *, points: int = 240) -> list[Curve]:
    """The distribution of a measure in the window for each kind of traffic that has it, kinds in order.

    Args:
        measures: of the run.
        name: a measure whose unit is seconds, or `itl`; of requests that ended ok, but the instrument's
            own (`lateness`, `queued`) of all.
        window: requests that arrived in it count.
        points: at most this many a curve, evenly spaced on the scale of nines.
    """
    chosen = judged(measures, window)
    if name not in OWN:
        chosen &= measures.ok
    found = ((kind, _values(measures, name, chosen & (measures.kind == kind))) for kind in _kinds(measures))
    return [curve(kind, values, points=points) for kind, values in found if len(values)]


def curve(kind: str, values: Floats, *, points: int = 240) -> Curve:
    """The quantile curve of at least one value; the last point is the maximum."""
    n = len(values)
    slower = np.geomspace(1.0, 1.0 / n, min(points, n))
    # Nearest rank, as in stats.py: no interpolation invents a time that nobody waited. The small term
    # keeps the rounding of 1 - 1/n from moving a point one rank up.
    ranks = np.ceil((1.0 - slower) * n - 1e-6).astype(np.int64)
    ranks[-1] = n
    ordered = np.sort(values)
    return Curve(kind=kind, n=n, slower=slower.tolist(), seconds=ordered[np.maximum(ranks, 1) - 1].tolist())


def timeline(measures: Measures, *, most: int = 120) -> list[Interval]:
    """The whole run, warm-up and drain included, in at most `most` intervals of a round length."""
    run_s = end_s(measures)
    # Whole seconds where the run is long enough for it: below, a chart of rates shows noise.
    edges = _edges(run_s, max(run_s / most, min(1.0, run_s / 20)))
    if len(edges) < 2:
        return []
    width = np.diff(edges)
    rates = {
        "due": _count(measures.arrival_s[measures.open_loop], edges) / width,
        "started": _count(measures.started_s, edges) / width,
        "ended": _count(measures.ended_s[~measures.dropped], edges) / width,
        "in_flight": np.diff(_spent(measures, edges)) / width,
        "tokens": _tokens(measures, edges) / width,
    }
    errors = {outcome: _count(t, edges) / width for outcome, t in _errors(measures).items()}
    return [
        Interval(
            start_s=float(edges[at]),
            end_s=float(edges[at + 1]),
            errors={outcome: float(rate[at]) for outcome, rate in errors.items()},
            **{name: float(rate[at]) for name, rate in rates.items()},
        )
        for at in range(len(width))
    ]


def end_s(measures: Measures) -> float:
    """The last that is known of a run, in seconds from its start: of its drain, if it had one."""
    stamps = np.concatenate([measures.arrival_s, measures.started_s, measures.ended_s])
    return float(np.nanmax(stamps)) if not np.isnan(stamps).all() else 0.0


def spreads(measures: Measures, name: str, *, per_interval: int = 200, most: int = 60) -> list[Spread]:
    """P50 and P99 of a measure over time, by when the request was due, of requests that ended ok.

    Args:
        measures: of the run.
        name: a measure whose unit is seconds.
        per_interval: intervals are made long enough to hold about this many samples, so that their P99
            means something, but never so long that fewer than six cover the run.
        most: most intervals.
    """
    present = measures.ok & ~np.isnan(measures.of(name))
    t, values = measures.arrival_s[present], measures.of(name)[present]
    if not len(t):
        return []
    end_s = float(t.max())
    edges = _edges(end_s, min(end_s / 6, max(end_s / most, end_s * per_interval / len(t))))
    order = np.argsort(t, kind="stable")
    cuts = np.searchsorted(t[order], edges)
    cuts[-1:] = len(t)
    made = []
    for at, inside in enumerate(np.split(values[order], cuts[1:-1])[: len(edges) - 1]):
        n = len(inside)
        p50 = float(np.quantile(inside, 0.5, method="inverted_cdf")) if n >= _P50_N else None
        p99 = float(np.quantile(inside, 0.99, method="inverted_cdf")) if n >= _P99_N else None
        made.append(Spread(start_s=float(edges[at]), end_s=float(edges[at + 1]), n=n, p50_s=p50, p99_s=p99))
    return made


def health(samples: Sequence[Sample], *, most: int = 120, workers: int = 6) -> list[Health]:
    """Each worker's health over time, the worst of each interval; of many workers, the worst of all.

    Args:
        samples: of all workers.
        most: most intervals.
        workers: with more workers than this, one series (`worst of N`) stands for all.
    """
    if not samples:
        return []
    numbers = {sample.worker for sample in samples}
    end_s = max(sample.t_ns for sample in samples) / 1e9
    edges = _edges(end_s, max(1.0, end_s / most))
    worst: dict[tuple[str, int], Health] = {}
    for sample in samples:
        worker = f"worker {sample.worker}" if len(numbers) <= workers else f"worst of {len(numbers)}"
        # A sample speaks of the second before it, so one taken on an edge belongs to the interval it ends.
        at = int(np.clip(np.searchsorted(edges, sample.t_ns / 1e9) - 1, 0, max(0, len(edges) - 2)))
        this = Health(
            t_s=float(edges[at + 1]) if len(edges) > 1 else end_s,
            worker=worker,
            cpu=sample.cpu_s / sample.wall_s if sample.wall_s > 0 else 0.0,
            hub_lag_s=sample.hub_lag_max_ns / 1e9,
            gc_pause_s=sample.gc_pause_max_ns / 1e9,
            rss_bytes=sample.rss_bytes,
        )
        worst[worker, at] = _worse(this, worst.get((worker, at), this))
    return [worst[key] for key in sorted(worst)]


def _worse(one: Health, other: Health) -> Health:
    return Health(
        t_s=one.t_s,
        worker=one.worker,
        cpu=max(one.cpu, other.cpu),
        hub_lag_s=max(one.hub_lag_s, other.hub_lag_s),
        gc_pause_s=max(one.gc_pause_s, other.gc_pause_s),
        rss_bytes=max(one.rss_bytes, other.rss_bytes),
    )


# -- the parts --------------------------------------------------------------------------------------------


def _kinds(measures: Measures) -> list[str]:
    return sorted(set(measures.kind))


def _values(measures: Measures, name: str, chosen: Mask) -> Floats:
    values = measures.itl[chosen[measures.itl_owner]] if name == "itl" else measures.of(name)[chosen]
    return values[~np.isnan(values)]


def _edges(end_s: float, at_least_s: float) -> Floats:
    """Edges of equal intervals of 1, 2 or 5 times a power of ten seconds; the last one ends with the run."""
    if end_s <= 0:
        return np.empty(0)
    step = next((step for step in _STEPS_S if step >= at_least_s), _STEPS_S[-1])
    edges = np.append(np.arange(0.0, end_s, step), end_s)
    # A sliver at the end would show as a spike or a hole: it joins the interval before it.
    return np.delete(edges, -2) if len(edges) > 2 and edges[-1] - edges[-2] < step / 2 else edges


def _count(t: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    known = ~np.isnan(t)
    counts, _ = np.histogram(t[known], edges, weights=None if weights is None else weights[known])
    return counts.astype(np.float64)


def _spent(measures: Measures, edges: Floats) -> Floats:
    """Request-seconds spent under way before each edge; what never ended is under way to the last."""
    sent = ~np.isnan(measures.started_s)
    ended = np.where(np.isnan(measures.ended_s), edges[-1], measures.ended_s)
    return _since(measures.started_s[sent], edges) - _since(ended[sent], edges)


def _since(t: Floats, edges: Floats) -> Floats:
    """For each edge, the time since each of the events before it, summed."""
    ordered = np.sort(t)
    before = np.searchsorted(ordered, edges)
    elapsed: Floats = before * edges - np.concatenate([[0.0], np.cumsum(ordered)])[before]
    return elapsed


def _tokens(measures: Measures, edges: Floats) -> Floats:
    """Completion tokens in each interval: spread evenly over a stream's chunks, else at the answer's end.

    Where there is no usage (a stream that was cut), a chunk counts as one token.
    """
    requests = measures.requests
    tokens = requests["completion_tokens"].to_numpy().astype(np.float64)
    chunks = pc.list_value_length(requests["chunk_ns"]).to_numpy().astype(np.int64)
    stamps = pc.list_flatten(requests["chunk_ns"]).to_numpy() / 1e9
    a_chunk = np.where(np.isnan(tokens), 1.0, tokens / np.maximum(chunks, 1))
    whole = (chunks == 0) & ~np.isnan(tokens)
    return _count(stamps, edges, np.repeat(a_chunk, chunks)) + _count(
        measures.ended_s[whole], edges, tokens[whole]
    )


def _errors(measures: Measures) -> dict[str, Floats]:
    """By outcome, when the failed requests ended; a dropped one counts when it was due."""
    t = np.where(np.isnan(measures.ended_s), measures.arrival_s, measures.ended_s)
    outcomes = np.asarray(measures.requests["outcome"].to_pylist(), dtype=object)
    return {name: t[outcomes == name] for name in sorted(set(outcomes[measures.failed]))}
