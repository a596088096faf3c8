"""Each fault of the mock, through the whole pipe, becomes its outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from launching import (
    assert_books_balance,
    failed_checks,
    free_port,
    harness,
    only_run,
    rows,
    summary,
    truth,
    write_scenario,
)

pytestmark = pytest.mark.timeout(200)

REFUSALS = {
    f"status;code={status}": {"outcome": "http_error", "status": status, "final": True}
    for status in (401, 402, 422, 500, 503, 504)
} | {
    "status;code=429;retry_after=2": {"outcome": "refused_by_server", "status": 429, "retry_after_s": 2.0},
}
BREAKS = {
    "reset": {"outcome": "cut", "status": None},
    "cut;after=3;how=reset": {"outcome": "cut", "status": 200, "finish_reason": None},
    "cut;after=3;how=close": {"outcome": "cut", "status": 200, "finish_reason": None},
    "stall;after=3;seconds=3": {"outcome": "stalled", "status": 200},
    "hang;seconds=3": {"outcome": "stalled", "status": None},
    "malformed;after=3": {"outcome": "malformed", "status": 200},
    "error_event;after=3": {"outcome": "in_band_error", "status": 200},
    "finish": {"outcome": "in_band_error", "finish_reason": "insufficient_system_resource"},
    "finish;reason=aborted": {"outcome": "in_band_error", "finish_reason": "aborted"},
}
OF_STREAMS = {
    "no_done": {"outcome": "cut", "status": 200},
    "keepalive;seconds=0.2;every=0.05": {"outcome": "ok", "status": 200},
    "keepalive;seconds=3;every=0.1": {"outcome": "stalled", "status": 200},
}
TRAFFIC = {
    "completion": ({"kind": "completion"}, REFUSALS | BREAKS),
    "stream": ({"kind": "stream"}, REFUSALS | BREAKS | OF_STREAMS),
    "stream of lines": ({"kind": "stream", "dialect": "completions-lines"}, REFUSALS | BREAKS | OF_STREAMS),
    "batch": ({"kind": "batch", "size": 1, "dialect": "completions"}, REFUSALS | BREAKS),
}


def run_with_faults(place: Path, faults: Mapping[str, list[int]], **scenario: Any) -> Path:
    """A short run without delays, whose requests meet these faults by number in order of arrival."""
    script = [{"fault": fault, "requests": numbers} for fault, numbers in faults.items()]
    (place / "faults.yaml").write_text(json.dumps({"faults": script}))
    path = write_scenario(place, warm_up="0s", mock={"profile": "fast", "faults": "faults.yaml"}, **scenario)
    done = harness("run", path, "--no-telemetry", "--runs", place / "runs", cwd=place)
    folder = only_run(place / "runs")
    assert done.returncode == summary(folder)["verdict"]["exit_code"], done.stderr
    return folder


@pytest.mark.parametrize("kind", TRAFFIC)
def test_each_fault_becomes_its_outcome(kind: str, tmp_path: Path) -> None:
    traffic, expected = TRAFFIC[kind]
    folder = run_with_faults(
        tmp_path,
        {fault: [2 * position] for position, fault in enumerate(expected, 1)},
        traffic=[traffic | {"output": {"distribution": "fixed", "tokens": 8}}],
        arrivals={"process": "constant", "rate": 25},
        count=2 * len(expected) + 1,
        timeouts={"connect": "5s", "idle": "1s", "total": "20s"},
    )
    known = truth(folder)
    seen = {}
    for row in rows(folder):
        (true,) = known[row["request_id"]]
        if not true["fault"]:
            assert (row["outcome"], row["error"]) == ("ok", ""), row
            continue
        wanted = expected[true["fault"]]
        assert {name: row[name] for name in wanted} == wanted, true["fault"]
        assert bool(row["error"]) == (row["outcome"] != "ok")
        if row["kind"] == "stream":
            assert len(row["chunk_ns"]) == len(true["chunk_ns"])
        seen[true["fault"]] = row
    assert seen.keys() == expected.keys()
    if "no_done" in expected:
        assert seen["keepalive;seconds=0.2;every=0.05"]["held_ns"] >= 0.15e9
    assert_books_balance(folder)


def test_a_fault_of_one_request_spares_the_others_of_its_batch(tmp_path: Path) -> None:
    """Statuses are one stream's own; only what breaks the connection breaks the batch."""
    folder = run_with_faults(
        tmp_path,
        {"status;code=503": [2], "error_event;after=1": [5]},
        traffic=[{"kind": "batch", "size": 4}],
        arrivals={"process": "constant", "rate": 4},
        count=3,
    )
    outcomes = sorted(row["outcome"] for row in rows(folder))
    assert outcomes == ["http_error", "in_band_error", *10 * ["ok"]]
    assert summary(folder)["summary"]["batch"]["batches"] == 3


def test_a_refused_connection_is_a_connect_error_and_fails_the_run(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, warm_up="0s", duration="1s")
    target = f"http://127.0.0.1:{free_port()}"
    done = harness(
        "run", scenario, "--target", target, "--no-telemetry", "--runs", tmp_path / "runs", cwd=tmp_path
    )
    folder = only_run(tmp_path / "runs")
    assert {row["outcome"] for row in rows(folder)} == {"connect_error"}
    assert {row["trace_id"] for row in rows(folder)} == {""}  # nothing was sent
    verdict = summary(folder)["verdict"]
    assert {each["state"] for each in verdict["objectives"]} == {"FAIL"}
    assert done.returncode == verdict["exit_code"]
    assert_books_balance(folder)


def test_retries_are_attempts_of_one_request_and_its_response_spans_them_all(tmp_path: Path) -> None:
    """A second lies between arrivals, and all attempts of a request well within it."""
    folder = run_with_faults(
        tmp_path,
        {
            "status;code=503": [1, 2, 7, 8, 9],
            "status;code=429;retry_after=0.3": [4],
            "hang": [6],
        },
        traffic=[{"kind": "completion"}],
        arrivals={"process": "constant", "rate": 1},
        count=4,
        duration="10s",
        timeouts={"connect": "5s", "idle": "5s", "total": "600ms"},
        retries={"attempts": 3, "backoff": "10ms"},
    )
    requests: dict[int, list[dict[str, Any]]] = {}
    for row in rows(folder):
        requests.setdefault(row["seq"], []).append(row)
    outcomes = {seq: [row["outcome"] for row in attempts] for seq, attempts in requests.items()}
    assert outcomes == {
        0: ["http_error", "http_error", "ok"],
        1: ["refused_by_server", "ok"],
        2: ["timeout"],  # the scenario does not ask for another try
        3: ["http_error", "http_error", "http_error"],
    }
    known = truth(folder)
    for attempts in requests.values():
        assert [row["attempt"] for row in attempts] == list(range(len(attempts)))
        assert [row["final"] for row in attempts] == [False] * (len(attempts) - 1) + [True]
        assert len({row["request_id"] for row in attempts}) == len({row["trace_id"] for row in attempts}) == 1
        assert len({row["span_id"] for row in attempts}) == len(attempts)
        assert [row["status"] for row in attempts] == [
            entry["status"] for entry in known[attempts[0]["request_id"]]
        ]
        for earlier, later in pairwise(attempts):
            waited_ns = later["started_ns"] - earlier["ended_ns"]
            assert waited_ns >= (earlier["retry_after_s"] or 0) * 1e9
    assert requests[1][0]["retry_after_s"] == 0.3
    timed_out = requests[2][0]
    assert 0.6e9 <= timed_out["ended_ns"] - timed_out["started_ns"] < 5e9
    assert_books_balance(folder)

    group = summary(folder)["summary"]["total"]
    assert group["error_rate"]["value"] == 2 / 4
    assert group["first_attempt_error_rate"]["value"] == 4 / 4
    shown = {slow["seq"]: slow["response_s"] for slow in summary(folder)["summary"]["slowest"]}
    for seq in (0, 1):
        first, last = requests[seq][0], requests[seq][-1]
        assert shown[seq] == pytest.approx((last["ended_ns"] - first["due_ns"]) / 1e9)
    assert not failed_checks(folder) & {"ledger", "completed", "recorded"}
