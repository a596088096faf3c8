"""Claims about the exposition, on its own."""

from __future__ import annotations

from array import array

import pytest

from harness.mock.metrics import Metrics, Now, text
from harness.mock.truth import Entry

MS = 1_000_000


def entry(*, stream: bool) -> Entry:
    """A request of three tokens: 300 ms in the queue, 100 ms for its prompt, 50 ms a further token."""
    made = Entry("r", 1, "/v1/completions", "1.1", 0)
    made.model, made.stream, made.status, made.finish_reason = "m", stream, 200, "length"
    made.queued_ns, made.dequeued_ns, made.prefill_end_ns = 0, 300 * MS, 400 * MS
    made.chunk_ns = array("q", (400 * MS, 450 * MS, 500 * MS) if stream else ())
    made.ended_ns, made.end, made.completion_tokens = 500 * MS, "complete", 3
    return made


def figures(exposition: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#"))
    return {name.replace('{engine="0",model_name="m"}', ""): float(value) for name, value in lines}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("phase", "seconds"),
    [
        ("time_to_first_token", 0.4),
        ("request_queue_time", 0.3),
        ("request_prefill_time", 0.1),
        ("request_decode_time", 0.1),
        ("request_inference_time", 0.2),
        ("e2e_request_latency", 0.5),
        ("request_time_per_output_token", 0.05),
    ],
)
def test_each_phase_is_what_the_truth_says_of_it(phase: str, seconds: float, stream: bool):
    metrics = Metrics()
    metrics.observe(entry(stream=stream))
    told = figures(text([metrics.counts(Now(0))], ["m"]))
    assert told[f"vllm:{phase}_seconds_sum"] == pytest.approx(seconds)
    assert told[f"vllm:{phase}_seconds_count"] == 1


def test_processes_add_up_and_their_cache_usage_is_a_mean():
    one, other = Metrics(), Metrics()
    one.observe(entry(stream=True))
    for _ in range(2):
        other.observe(entry(stream=True))
    told = figures(text([one.counts(Now(3, 1, 0.2)), other.counts(Now(4, 0, 0.4))], ["m"]))
    assert told["vllm:num_requests_running"] == 7
    assert told["vllm:num_requests_waiting"] == 1
    assert told["vllm:kv_cache_usage_perc"] == pytest.approx(0.3)
    assert told["vllm:generation_tokens_total"] == 9
    assert told["vllm:request_queue_time_seconds_sum"] == pytest.approx(0.9)
    assert told['vllm:request_queue_time_seconds_bucket{engine="0",model_name="m",le="0.3"}'] == 3
    assert told['vllm:request_success_total{engine="0",model_name="m",finished_reason="length"}'] == 3


def test_being_asked_does_not_change_what_is_counted():
    metrics = Metrics()
    metrics.observe(entry(stream=True))
    counts = metrics.counts(Now(0))
    assert text([counts, counts], ["m"]) == text([counts, counts], ["m"])
