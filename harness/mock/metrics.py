"""`/metrics`: Prometheus text under vLLM's names, counted from the truth log.

Names, types, labels and buckets are those of vLLM's V1 engine (docs.vllm.ai: usage/metrics;
vllm/v1/metrics/loggers.py); `gpu_cache_usage_perc` and `time_per_output_token_seconds` are its older names,
which dashboards still use. Nothing is counted before somebody asks for it: the first scrape counts
what the truth log still holds, and from then on each request is counted when it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import msgspec

from harness.mock.truth import Entry

_NS = 1_000_000_000
_MOST_MODELS = 100
"""Label values; clients may name any model, and the rest is counted as `other`."""

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_GAP_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))

_HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "vllm:time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT_S),
    "vllm:inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _GAP_S),
    "vllm:time_per_output_token_seconds": ("Histogram of time per output token in seconds.", _GAP_S),
    "vllm:request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.",
        _GAP_S,
    ),
    "vllm:e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _REQUEST_S),
    "vllm:request_queue_time_seconds": ("Histogram of time spent in WAITING phase.", _REQUEST_S),
    "vllm:request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase.", _REQUEST_S),
    "vllm:request_decode_time_seconds": ("Histogram of time spent in DECODE phase.", _REQUEST_S),
    "vllm:request_inference_time_seconds": ("Histogram of time spent in RUNNING phase.", _REQUEST_S),
    "vllm:request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "vllm:request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
}
_COUNTERS: Mapping[str, str] = {
    "vllm:prompt_tokens_total": "Number of prefill tokens processed.",
    "vllm:generation_tokens_total": "Number of generation tokens processed.",
    "vllm:prefix_cache_queries_total": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits_total": "Prefix cache hits, in terms of number of cached tokens.",
}
_GAUGES: Mapping[str, str] = {
    "vllm:num_requests_running": "Number of requests in model execution batches.",
    "vllm:num_requests_waiting": "Number of requests waiting to be processed.",
    "vllm:kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "vllm:gpu_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
_SUCCESS = "vllm:request_success_total"


class Now(msgspec.Struct, frozen=True):
    """What holds at this moment."""

    running: int
    waiting: int = 0
    kv_usage: float = 0.0
    """The share of the KV cache in use, 0 to 1."""


class _Histogram(msgspec.Struct):
    """Counts of values by upper bounds, which belong to their buckets."""

    bounds: Sequence[float]
    counts: list[int]
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def take_in(self, other: _Histogram) -> None:
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class _Model(msgspec.Struct):
    """The figures of one model."""

    histograms: dict[str, _Histogram]
    counters: dict[str, int]
    finished: dict[str, int] = {}

    def take_in(self, other: _Model) -> None:
        for name, histogram in self.histograms.items():
            histogram.take_in(other.histograms[name])
        for mine, more in ((self.counters, other.counters), (self.finished, other.finished)):
            for name, count in more.items():
                mine[name] = mine.get(name, 0) + count


def _nothing() -> _Model:
    histograms = {
        name: _Histogram(bounds, [0] * (len(bounds) + 1)) for name, (_, bounds) in _HISTOGRAMS.items()
    }
    return _Model(histograms, dict.fromkeys(_COUNTERS, 0))


class Counts(msgspec.Struct, frozen=True):
    """What one process has counted, and what holds there now."""

    models: dict[str, _Model]
    now: Now


class Metrics:
    """All that is counted."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def observe(self, entry: Entry) -> None:
        """Count a request that has ended. What was refused is not one to vLLM."""
        if entry.status != 200 or not entry.model:
            return
        name = entry.model
        if name not in self._models and len(self._models) >= _MOST_MODELS:
            name = "other"
        _count(self._models.setdefault(name, _nothing()), entry)

    def counts(self, now: Now) -> Counts:
        """All of it, with the gauges."""
        return Counts(self._models, now)


def text(counts: Sequence[Counts], names: Sequence[str]) -> str:
    """The exposition.

    Counts of several processes add up, and so do their requests; of their KV caches' usage it is the mean,
    for each has a cache of the same size.

    Args:
        counts: of each process.
        names: models that are there from the start, as dashboards expect.
    """
    models = {name: _nothing() for name in names}
    for each in counts:
        for label, model in each.models.items():
            models.setdefault(label, _nothing()).take_in(model)
    lines = _gauges([each.now for each in counts], ",".join(names))
    for name, about in _COUNTERS.items():
        lines += _head(name, "counter", about)
        lines += [
            f"{name}{{{_labels(label)}}} {float(model.counters[name])}" for label, model in models.items()
        ]
    lines += _head(_SUCCESS, "counter", "Count of successfully processed requests.")
    for label, model in models.items():
        for reason, count in model.finished.items():
            lines.append(f'{_SUCCESS}{{{_labels(label)},finished_reason="{reason}"}} {float(count)}')
    for name, (about, _) in _HISTOGRAMS.items():
        lines += _head(name, "histogram", about)
        for label, model in models.items():
            lines += _buckets(name, _labels(label), model.histograms[name])
    return "\n".join(lines) + "\n"


def _gauges(now: Sequence[Now], served: str) -> list[str]:
    kv_usage = sum(each.kv_usage for each in now) / len(now)
    values = (sum(each.running for each in now), sum(each.waiting for each in now), kv_usage, kv_usage)
    lines: list[str] = []
    for (name, about), value in zip(_GAUGES.items(), values, strict=True):
        lines += _head(name, "gauge", about)
        # One engine serves all models: its state is told once, or sums over models would count it twice.
        lines.append(f"{name}{{{_labels(served)}}} {float(value)}")
    return lines


def _count(model: _Model, entry: Entry) -> None:
    counters, histograms = model.counters, model.histograms
    counters["vllm:prompt_tokens_total"] += entry.prompt_tokens
    counters["vllm:generation_tokens_total"] += entry.completion_tokens
    counters["vllm:prefix_cache_queries_total"] += entry.prompt_tokens
    counters["vllm:prefix_cache_hits_total"] += entry.cached_tokens
    histograms["vllm:request_prompt_tokens"].add(entry.prompt_tokens)
    histograms["vllm:request_generation_tokens"].add(entry.completion_tokens)
    reason = entry.finish_reason or ("abort" if entry.end != "complete" else "stop")
    model.finished[reason] = model.finished.get(reason, 0) + 1
    assert entry.ended_ns is not None
    whole_s = (entry.ended_ns - entry.arrived_ns) / _NS
    histograms["vllm:e2e_request_latency_seconds"].add(whole_s)
    for before, after in pairwise(entry.chunk_ns):
        gap_s = (after - before) / _NS
        histograms["vllm:inter_token_latency_seconds"].add(gap_s)
        histograms["vllm:time_per_output_token_seconds"].add(gap_s)
    # Of an answer that is not streamed, the first token is known by the end of its prefill.
    first_ns = entry.chunk_ns[0] if entry.chunk_ns else entry.prefill_end_ns
    if first_ns is None:
        return
    last_ns = entry.chunk_ns[-1] if entry.chunk_ns else entry.ended_ns
    first_s, decode_s = (first_ns - entry.arrived_ns) / _NS, (last_ns - first_ns) / _NS
    if entry.completion_tokens > 1:
        per_token_s = decode_s / (entry.completion_tokens - 1)
        histograms["vllm:request_time_per_output_token_seconds"].add(per_token_s)
    queue_s = _queued_s(entry)
    histograms["vllm:time_to_first_token_seconds"].add(first_s)
    histograms["vllm:request_queue_time_seconds"].add(queue_s)
    histograms["vllm:request_prefill_time_seconds"].add(first_s - queue_s)
    histograms["vllm:request_decode_time_seconds"].add(decode_s)
    histograms["vllm:request_inference_time_seconds"].add(first_s - queue_s + decode_s)


def _queued_s(entry: Entry) -> float:
    """How long a request waited for the engine; without an engine, not at all."""
    if entry.queued_ns is None or entry.dequeued_ns is None:
        return 0.0
    return (entry.dequeued_ns - entry.queued_ns) / _NS


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(model: str) -> str:
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'engine="0",model_name="{escaped}"'


def _buckets(name: str, labels: str, histogram: _Histogram) -> list[str]:
    cumulative = list(accumulate(histogram.counts))
    bounds = [*map(str, histogram.bounds), "+Inf"]
    lines = [
        f'{name}_bucket{{{labels},le="{bound}"}} {float(count)}'
        for bound, count in zip(bounds, cumulative, strict=True)
    ]
    return [
        *lines,
        f"{name}_count{{{labels}}} {float(cumulative[-1])}",
        f"{name}_sum{{{labels}}} {histogram.total}",
    ]
