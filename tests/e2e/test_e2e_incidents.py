"""The incidents of docs/mock.md, rehearsed end to end: a cold start, a slow spell, a fail-over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import CALM, assert_books_balance, harness, only_run, rows, summary, truth, write_scenario

from harness import runlog

pytestmark = pytest.mark.timeout(200)

RATE = 40
PROFILE = {
    "ttft": {"distribution": "fixed", "value": "40ms"},
    "itl": {"distribution": "fixed", "value": "4ms"},
}
INCIDENTS = [
    {"fault": "wait", "at": "0s..1s"},  # a cold start
    {"fault": "slow;factor=6", "at": "3s..5s"},
    {"fault": "refuse;open=reset", "at": "7s..8s"},  # a fail-over: nobody listens, open answers break,
    {"fault": "slow;factor=3", "at": "8s..9s"},  # and the one that takes over is cold
]
OBJECTIVES = ["response: p(90) < 250ms", "errors: rate < 5%"]
CALM_S, SLOW_S = 0.068, 0.408
"""How long an answer of eight tokens takes, and takes in the slow spell."""


def rehearse(place: Path, faults: list[dict[str, str]], **keys: Any) -> Path:
    """A run of streams at a constant rate against a mock with this script."""
    place.mkdir()
    (place / "profile.yaml").write_text(json.dumps(PROFILE))
    (place / "faults.yaml").write_text(json.dumps({"faults": faults}))
    scenario = write_scenario(
        place,
        traffic=[{"kind": "stream", "output": {"distribution": "fixed", "tokens": 8}}],
        arrivals={"process": "constant", "rate": RATE},
        warm_up="0s",
        max_in_flight=200,
        mock={"profile": "profile.yaml", "faults": "faults.yaml"},
        objectives=OBJECTIVES,
        budgets=CALM,
        **keys,
    )
    done = harness("run", scenario, "--no-telemetry", "--runs", place / "runs", cwd=place)
    folder = only_run(place / "runs")
    assert done.returncode == summary(folder)["verdict"]["exit_code"], done.stderr
    assert_books_balance(folder)
    return folder


@pytest.fixture(scope="module")
def incident_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rehearse(tmp_path_factory.mktemp("incidents") / "run", INCIDENTS, duration="11s")


def since_first_request(folder: Path) -> list[tuple[float, dict[str, Any]]]:
    """Each request with its due time in seconds on the script's clock, which its first request starts."""
    first_ns = min(entry["arrived_ns"] for entries in truth(folder).values() for entry in entries)
    zero_ns = first_ns - runlog.read_run(folder).start.monotonic_ns
    return [((row["due_ns"] - zero_ns) / 1e9, row) for row in rows(folder) if row["final"]]


def due_between(folder: Path, start_s: float, end_s: float) -> list[dict[str, Any]]:
    return [row for due_s, row in since_first_request(folder) if start_s <= due_s < end_s]


def p99_s(found: list[dict[str, Any]]) -> float:
    times = sorted((row["ended_ns"] - row["due_ns"]) / 1e9 for row in found)
    return times[int(0.99 * len(times))]


def test_p99_rises_inside_the_slow_spell_and_nowhere_else(incident_run: Path) -> None:
    before = due_between(incident_run, 1.1, 2.9)
    during = due_between(incident_run, 3.1, 4.9)
    after = due_between(incident_run, 5.1, 6.4)
    again = due_between(incident_run, 9.1, 11)
    assert all(len(found) > RATE for found in (before, during, after, again))
    assert {row["outcome"] for found in (before, during, after, again) for row in found} == {"ok"}
    assert min(p99_s(during), SLOW_S) == SLOW_S
    assert max(p99_s(found) for found in (before, after, again)) < SLOW_S / 2


def test_a_cold_start_holds_all_that_came_in_it_until_it_is_over(incident_run: Path) -> None:
    held = due_between(incident_run, -1.0, 0.9)
    assert len(held) > RATE / 2
    zero_ns = min(row["due_ns"] for row in held)
    first_s = [(row["first_token_ns"] - zero_ns) / 1e9 for row in held]
    assert {row["outcome"] for row in held} == {"ok"}
    assert 0.9 < min(first_s) <= max(first_s) < 2.5


def test_a_fail_over_breaks_what_is_open_refuses_what_comes_and_is_over(incident_run: Path) -> None:
    broken = [row for row in due_between(incident_run, 6.5, 7.1) if row["outcome"] == "cut"]
    assert broken
    refused = due_between(incident_run, 7.1, 7.9)
    assert {row["outcome"] for row in refused} == {"connect_error"}
    assert {row["error"] for row in refused} == {"connect: connection refused"}
    cold = due_between(incident_run, 8.2, 8.9)
    assert {row["outcome"] for row in cold} == {"ok"}
    assert all((row["ended_ns"] - row["due_ns"]) / 1e9 > 2.5 * CALM_S for row in cold)
    ends = {entry["end"] for entries in truth(incident_run).values() for entry in entries}
    assert ends == {"complete", "reset"}


def budgets_used(folder: Path) -> dict[str, float]:
    judged = summary(folder)["verdict"]["objectives"]
    return dict(zip(OBJECTIVES, (one["budget_used"] for one in judged), strict=True))


def test_the_error_budgets_are_spent_by_the_incidents_alone(incident_run: Path, tmp_path: Path) -> None:
    spent = budgets_used(incident_run)
    judged = [row for _, row in since_first_request(incident_run)]
    errors = sum(row["outcome"] != "ok" for row in judged) / len(judged)
    assert spent["errors: rate < 5%"] == pytest.approx(errors / 0.05)
    assert all(share > 1 for share in spent.values())
    assert summary(incident_run)["verdict"]["exit_code"] == 1
    calm = rehearse(tmp_path / "calm", [], duration="4s")
    assert budgets_used(calm)["errors: rate < 5%"] == 0
    assert budgets_used(calm)["response: p(90) < 250ms"] < 1
