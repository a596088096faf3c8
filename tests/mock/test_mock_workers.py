"""Claims about a mock of several processes, and about its spans on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harness.errors import EngineError
from harness.mock.process import mock_process

COMPLETION = {"model": "m", "prompt": "x", "max_tokens": 3}
WORKERS = 2


def ask(url: str, request_id: str) -> int:
    """One request on a connection of its own; gives the process that a second one finds there."""
    with httpx.Client(base_url=url, trust_env=False) as http:
        headers = {"x-request-id": request_id, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        assert http.post("/completions", json=COMPLETION, headers=headers).status_code == 200
        return int(http.get("/health").json()["pid"])


def test_the_truth_is_one_whichever_process_is_asked(tmp_path: Path):
    truth, spans = tmp_path / "truth.jsonl", tmp_path / "spans.jsonl"
    arguments = ("--profile", "fast", "--workers", str(WORKERS), "--truth", str(truth), "--spans", str(spans))
    asked = []
    with mock_process(*arguments) as mock:
        found: set[int] = set()
        while len(found) < WORKERS:  # The kernel spreads connections by chance.
            asked.append(f"r{len(asked)}")
            found.add(ask(mock.url, asked[-1]))
        page = httpx.get(mock.url + "/__truth", trust_env=False)
        told = [json.loads(line) for line in page.content.splitlines()]
        after = httpx.get(
            mock.url + "/__truth", params={"since": page.headers["x-truth-next"]}, trust_env=False
        )
        mistaken = httpx.get(mock.url + "/__truth", params={"since": "7"}, trust_env=False)
    assert mock.pid not in found
    assert sorted(entry["request_id"] for entry in told) == sorted(asked)
    assert len({entry["number"] for entry in told}) == len(asked)
    assert after.content == b""
    assert mistaken.status_code == 400
    head, *kept = (json.loads(line) for line in truth.read_text().splitlines())
    assert head["forgotten"] == 0
    assert kept == told
    assert set(tmp_path.iterdir()) == {spans, truth}
    written = [
        span
        for line in spans.read_text().splitlines()
        for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]
    servers = [span for span in written if span["kind"] == 2]
    assert len(servers) == len(asked)
    assert {(span["traceId"], span["parentSpanId"]) for span in servers} == {("a" * 32, "b" * 16)}


@contextlib.contextmanager
def one_connection_to_each(url: str) -> Iterator[list[httpx.Client]]:
    """A connection to each process: the kernel spreads them by chance."""
    with contextlib.ExitStack() as opened:
        found: dict[int, httpx.Client] = {}
        while len(found) < WORKERS:
            http = opened.enter_context(httpx.Client(base_url=url, trust_env=False))
            found.setdefault(http.get("/health").json()["pid"], http)
        yield list(found.values())


def until(status: str, url: str, https: list[httpx.Client]) -> list[dict]:
    """What each process says of a thing, once all say that it has come so far."""
    deadline_s = time.monotonic() + 10
    while True:
        told = [http.get(url).raise_for_status().json() for http in https]
        if all(each["status"] == status for each in told):
            return told
        assert time.monotonic() < deadline_s, told


def test_a_file_and_its_batch_are_known_to_every_process():
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": COMPLETION}
    with (
        mock_process("--profile", "fast", "--workers", str(WORKERS)) as mock,
        one_connection_to_each(mock.url) as https,
    ):
        for one, other in (https, https[::-1]):
            form = {"files": {"file": ("in.jsonl", json.dumps(line))}, "data": {"purpose": "batch"}}
            file = one.post("/v1/files", **form).raise_for_status().json()
            wish = {
                "input_file_id": file["id"],
                "endpoint": line["url"],
                "completion_window": "24h",
            }
            batch = other.post("/v1/batches", json=wish).raise_for_status().json()
            told = until("completed", f"/v1/batches/{batch['id']}", https)
            assert told[0] == told[1]
            outputs = [http.get(f"/v1/files/{told[0]['output_file_id']}/content").content for http in https]
            assert json.loads(outputs[0])["response"]["status_code"] == 200
            assert outputs[0] == outputs[1]
        listed = [http.get("/v1/batches", params={"limit": 10}).json()["data"] for http in https]
        assert [len(batches) for batches in listed] == [2, 2]
        assert [http.get("/v1/batches/none").status_code for http in https] == [404, 404]
        assert [http.delete(f"/v1/files/{file['id']}").status_code for http in https] == [200, 404]


def test_a_task_is_known_to_every_process():
    with (
        mock_process("--profile", "fast", "--workers", str(WORKERS)) as mock,
        one_connection_to_each(mock.url) as https,
    ):
        for http in https:
            answer = http.post("/v1/completions", json=COMPLETION, headers={"prefer": "respond-async"})
            assert answer.status_code == 202
            told = until("completed", answer.headers["location"], https)
            assert told[0] == told[1]
            assert told[0]["result"]["usage"]["completion_tokens"] == COMPLETION["max_tokens"]


def test_metrics_are_those_of_all_processes():
    with (
        mock_process("--profile", "fast", "--workers", str(WORKERS)) as mock,
        one_connection_to_each(mock.url) as https,
    ):
        for http, times in zip(https, (1, 2), strict=True):
            for _ in range(times):
                assert http.post("/completions", json=COMPLETION | {"stream": True}).status_code == 200
        exposed = [http.get("/metrics").text.splitlines() for http in https]
    assert exposed[0] == exposed[1]
    figures = dict(line.rsplit(" ", 1) for line in exposed[0] if not line.startswith("#"))
    of_model = 'engine="0",model_name="m"'
    assert float(figures[f"vllm:generation_tokens_total{{{of_model}}}"]) == 3 * COMPLETION["max_tokens"]
    assert float(figures[f"vllm:time_to_first_token_seconds_count{{{of_model}}}"]) == 3
    assert float(figures[f'vllm:request_success_total{{{of_model},finished_reason="length"}}']) == 3
    assert [name for name in figures if name.startswith("vllm:num_requests_running")] == [
        'vllm:num_requests_running{engine="0",model_name="deepseek-flash,deepseek-v4-pro"}'
    ]


def test_a_key_is_asked_for_by_every_process():
    with (
        mock_process("--profile", "fast", "--workers", str(WORKERS), "--api-key", "k") as mock,
        one_connection_to_each(mock.url) as https,
    ):
        assert [http.get("/v1/files").status_code for http in https] == [401, 401]
        allowed = {"authorization": "Bearer k"}
        assert [http.get("/v1/files", headers=allowed).json()["data"] for http in https] == [[], []]


def test_a_mock_that_lost_a_process_says_so():
    def lose_one() -> None:
        with mock_process("--profile", "fast", "--workers", str(WORKERS)) as mock:
            os.kill(ask(mock.url, "r"), signal.SIGKILL)

    with pytest.raises(EngineError, match="died"):
        lose_one()


def test_an_answer_under_way_is_drained_by_its_process(tmp_path: Path):
    profile = tmp_path / "slow.yaml"
    profile.write_text("ttft: {distribution: fixed, value: 50ms}\nitl: {distribution: fixed, value: 10ms}\n")
    with mock_process("--profile", str(profile), "--workers", str(WORKERS)) as mock:
        question = COMPLETION | {"max_tokens": 30, "stream": True}
        with httpx.stream("POST", mock.url + "/completions", json=question, trust_env=False) as answer:
            os.kill(mock.pid, signal.SIGTERM)
            assert answer.read().endswith(b"data: [DONE]\n\n")
