"""Claims about answers that come out of an engine, seen by httpx and checked against the mock's truth log."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from harness.mock.drive import gated
from harness.mock.plan import Framing, Kind, Plan, Step
from harness.testing import MockServer, mock_server

MS = 1_000_000
ENGINE = {
    "engine": {
        "step": {"base": "20ms", "prefill_token": "1ms"},
        "batch": 2,
        "queue": 1,
        "prefix_unit": 16,
    }
}


@pytest.fixture(scope="module")
def engine() -> Iterator[MockServer]:
    with mock_server(ENGINE) as server:
        yield server


def post(
    mock: MockServer, *, max_tokens: int = 3, stream: bool = True, prompt: str = "hi", **headers: str
) -> tuple[httpx.Response, str]:
    request_id = uuid.uuid4().hex
    body = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "stream": stream}
    named = {"x-request-id": request_id, **{key.replace("_", "-"): value for key, value in headers.items()}}
    answer = httpx.post(mock.url + "/v1/completions", json=body, headers=named, timeout=20, trust_env=False)
    return answer, request_id


def since_arrival_ms(truth: dict[str, Any], name: str) -> float:
    return (truth[name] - truth["arrived_ns"]) / MS


def test_tokens_come_when_the_engines_steps_end(engine: MockServer):
    _, request_id = post(engine, max_tokens=4)
    truth = engine.truth_of(request_id)
    due_ms = [21 + 20 * i for i in range(4)]  # "hi" is a prompt of one token
    late_ms = [
        (stamp - truth["arrived_ns"]) / MS - due for stamp, due in zip(truth["chunk_ns"], due_ms, strict=True)
    ]
    assert all(late >= 0 for late in late_ms)
    assert min(late_ms) < 15
    assert truth["queued_ns"] == truth["arrived_ns"]
    assert since_arrival_ms(truth, "dequeued_ns") < 15
    assert since_arrival_ms(truth, "prefill_end_ns") == pytest.approx(
        since_arrival_ms(truth, "dequeued_ns") + 21
    )


def test_an_answer_that_is_not_streamed_comes_with_its_last_token(engine: MockServer):
    answer, request_id = post(engine, max_tokens=5, stream=False)
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert since_arrival_ms(engine.truth_of(request_id), "headers_ns") >= 101


def test_a_cached_prefix_brings_the_first_token_earlier(engine: MockServer):
    prompt = "tell me about latency " * 30  # 198 tokens
    truths = [engine.truth_of(post(engine, prompt=prompt)[1]) for _ in range(2)]
    assert [truth["cached_tokens"] for truth in truths] == [0, 192]
    cold_ms, warm_ms = (since_arrival_ms(truth, "prefill_end_ns") for truth in truths)
    assert cold_ms - warm_ms > 170


def test_several_choices_are_generated_side_by_side(engine: MockServer):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "n": 3}
    asked_s = time.monotonic()
    answer = httpx.post(engine.url + "/v1/chat/completions", json=body, timeout=20, trust_env=False)
    assert len(answer.json()["choices"]) == 3
    assert 0.08 < time.monotonic() - asked_s < 0.2


def test_a_slow_answer_is_slow_from_its_arrival(engine: MockServer):
    _, request_id = post(engine, x_mock_fault="slow;factor=3")
    assert since_arrival_ms(engine.truth_of(request_id), "ended_ns") >= 183


def test_a_refusal_by_fault_takes_no_place_in_the_engine(engine: MockServer):
    answer, request_id = post(engine, x_mock_fault="status;code=500")
    assert answer.status_code == 500
    assert engine.truth_of(request_id)["queued_ns"] is None


def gauges(mock: MockServer) -> dict[str, float]:
    lines = httpx.get(mock.url + "/metrics", trust_env=False).text.splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("vllm:num_")}


def waiting_and_running(mock: MockServer) -> tuple[float, float]:
    found = gauges(mock)
    return found["vllm:num_requests_waiting"], found["vllm:num_requests_running"]


def until(mock: MockServer, expected: tuple[float, float]) -> None:
    deadline_s = time.monotonic() + 10
    while waiting_and_running(mock) != expected:
        assert time.monotonic() < deadline_s, waiting_and_running(mock)


def test_a_client_that_leaves_frees_its_place_for_the_next_and_a_full_queue_refuses(engine: MockServer):
    until(engine, (0, 0))
    leavers = [httpx.Client(trust_env=False, timeout=20) for _ in range(2)]
    body = {"model": "m", "prompt": "hi", "max_tokens": 100_000, "stream": True}
    streams = []
    for client in leavers:
        request = client.build_request("POST", engine.url + "/v1/completions", json=body)
        streams.append(client.send(request, stream=True))
    until(engine, (0, 2))
    found: list[httpx.Response] = []
    third = threading.Thread(target=lambda: found.append(post(engine)[0]))
    third.start()
    until(engine, (1, 2))
    refused, _ = post(engine)
    assert refused.status_code == 503
    assert "1 requests are waiting" in refused.json()["error"]["message"]
    for client in leavers:
        client.close()
    third.join(10)
    assert found[0].status_code == 200
    until(engine, (0, 0))
    assert {stream.status_code for stream in streams} == {200}


def plan(*kinds: Kind) -> Plan:
    return Plan(200, [], [Step(0, b"", kind) for kind in kinds], Framing.SSE)


@pytest.mark.parametrize(
    ("kinds", "tokens", "awaits"),
    [
        ([Kind.FRAME, Kind.TOKEN, Kind.TOKEN, Kind.FRAME], 2, [1, 1, 2, 2]),
        ([Kind.BODY], 7, [7]),
        ([Kind.FRAME, Kind.FRAME], 1, [1, 1]),
        ([Kind.TOKEN] * 4, 2, [1, 1, 2, 2]),
    ],
)
def test_each_step_awaits_its_token_and_frames_the_one_before(
    kinds: list[Kind], tokens: int, awaits: list[int]
):
    assert [step.awaits for step in gated(plan(*kinds), tokens).steps] == awaits
