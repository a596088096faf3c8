"""Claims about a mock of several processes, and about its spans on disk."""

from __future__ import annotations

import json
import os
import signal
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
