"""What the exit code says, and when nothing is sent at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from conftest import Ran
from launching import (
    CALM,
    KEY,
    assert_books_balance,
    failed_checks,
    harness,
    only_run,
    rows,
    schedule_of,
    summary,
    write_scenario,
)

from harness.testing import MockServer, mock_server

pytestmark = pytest.mark.timeout(400)

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}


def test_a_server_that_misses_an_objective_fails_with_exit_code_1_and_its_run_can_be_repeated(
    mixed_run: Ran, tmp_path: Path
) -> None:
    threshold = "stream.tokens_per_s: p(50) > 100000"
    flags = ("--threshold", threshold, "--no-telemetry", "--runs", tmp_path / "runs")
    done = harness("run", mixed_run.scenario, *flags, cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    verdict = summary(folder)["verdict"]
    assert verdict["state"] == "FAIL", verdict["reason"]
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert ET.parse(folder / "junit.xml").getroot().get("failures") == "1"

    # The same scenario and seed: the same requests at the same times, to the nanosecond.
    assert schedule_of(folder) == schedule_of(mixed_run.folder)


def test_an_impossible_limit_is_disproven_whether_or_not_the_instrument_is_fine_enough(
    mixed_run: Ran,
) -> None:
    """A limit of 1 ms leaves the instrument a tenth of that, which a busy machine exceeds: then INVALID."""
    threshold = ("--threshold", "response: p(99) < 1ms")
    kept = (mixed_run.folder / "junit.xml").read_bytes()
    done = harness("report", mixed_run.folder, *threshold, cwd=mixed_run.folder.parent)
    report = harness("report", mixed_run.folder, *threshold, "--json", cwd=mixed_run.folder.parent)
    assert '"state": "FAIL"' in report.stdout
    state = "FAIL" if "FAIL  by hand  ─" in done.stdout else "INVALID"
    assert f"{state}  by hand  ─" in done.stdout
    assert (mixed_run.folder / "junit.xml").read_bytes() == kept  # the evidence stays as it was
    assert done.returncode == report.returncode == EXIT_CODES[state]


def test_too_few_samples_are_inconclusive_and_the_report_says_how_many_more(tmp_path: Path) -> None:
    """The key comes from a `.env` file in the folder that the run is started in."""
    (tmp_path / ".env").write_text(f"HARNESS_API_KEY={KEY}\n")
    scenario = write_scenario(
        tmp_path,
        objectives=["response: p(99) < 5s"],
        warm_up="0s",
        traffic=[{"kind": "completion"}],
        budgets=CALM,
    )
    with mock_server("fast", api_key=KEY) as mock:
        flags = ("--count", "20", "--target", mock.url, "--no-telemetry", "--runs", tmp_path / "runs")
        done = harness("run", scenario, *flags, cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    assert {row["outcome"] for row in rows(folder)} == {"ok"}
    verdict = summary(folder)["verdict"]
    assert verdict["state"] == "INCONCLUSIVE", verdict["reason"]
    assert done.returncode == 3
    (objective,) = verdict["objectives"]
    assert objective["n"] == 20
    assert objective["more_needed"] == 299 - 20
    assert "279 more good ones would prove it" in verdict["reason"]


def test_too_few_virtual_users_are_the_instruments_fault(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path,
        traffic=[{"kind": "completion"}],
        arrivals={"process": "constant", "rate": 100},
        duration="2s",
        warm_up="0s",
        max_in_flight=1,
    )
    done = harness("run", scenario, "--no-telemetry", "--runs", tmp_path / "runs", cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    verdict = summary(folder)["verdict"]
    assert verdict["state"] == "INVALID"
    assert done.returncode == 4
    assert "dropped" in failed_checks(folder)
    (check,) = (each for each in summary(folder)["validity"]["checks"] if each["name"] == "dropped")
    assert "for want of an idle virtual user" in check["cause"]
    advised = int(check["remedy"].removeprefix("raise max_in_flight to "))

    books = assert_books_balance(folder)
    assert books.dropped > books.started > 0
    records = rows(folder)
    busy_s = [(row["ended_ns"] - row["started_ns"]) / 1e9 for row in records if row["outcome"] == "ok"]
    assert advised > 100 * sum(busy_s) / len(busy_s)  # Little's law: fewer could not carry the load
    assert all(row["started_ns"] is None for row in records if row["outcome"] == "dropped")


def test_an_arrival_waits_for_an_idle_user_as_long_as_the_scenarios_patience(tmp_path: Path) -> None:
    """Two users, answers of 80 ms or so, 50 arrivals a second: all wait, and none is dropped."""
    scenario = write_scenario(
        tmp_path,
        traffic=[{"kind": "completion"}],
        arrivals={"process": "constant", "rate": 50},
        count=40,
        max_in_flight=2,
        patience="30s",
        warm_up="0s",
    )
    done = harness("run", scenario, "--no-telemetry", "--runs", tmp_path / "runs", cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    books = assert_books_balance(folder)
    assert (books.finished, books.dropped) == (40, 0)
    late_ns = [row["started_ns"] - row["due_ns"] for row in rows(folder)]
    assert late_ns[-1] > 100e6 > late_ns[0]
    assert not [row["seq"] for row in rows(folder)[:2] if row["queued_ns"]]
    assert all(row["due_ns"] <= row["queued_ns"] < row["started_ns"] for row in rows(folder)[-30:])
    assert "dropped" in failed_checks(folder)
    assert "achieved_rate" not in failed_checks(folder)
    assert "raise max_in_flight to" in (folder / "summary.json").read_text()
    assert done.returncode == 4


def test_a_closed_loop_of_two_workers_claims_each_arrival_once(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path,
        arrivals={"process": "closed", "users": 6, "think_time": "50ms"},
        count=60,
        duration="20s",
        warm_up="0s",
    )
    done = harness("run", scenario, "--workers", "2", "--runs", tmp_path / "runs", cwd=tmp_path)
    folder = only_run(tmp_path / "runs")
    assert done.returncode == summary(folder)["verdict"]["exit_code"]
    books = assert_books_balance(folder)
    assert books.planned == books.finished == 60
    assert len(books.workers) == 2
    records = rows(folder)
    # Each kind has numbers of its own, of which the quicker one takes more: 60 of them, and none twice.
    assert len({row["seq"] for row in records}) == 60
    claimed = [(row["seq"], row["index"]) for row in records]
    assert len(claimed) == len(set(claimed))
    assert {row["due_ns"] for row in records} == {None}
    assert {row["outcome"] for row in records} == {"ok"}
    assert "telemetry" not in failed_checks(folder)


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a rate below zero": (
        {"arrivals": {"process": "poisson", "rate": -5}},
        ["scenario.yaml", "arrivals.rate", "-5", "0"],
    ),
    "an unknown key": (
        {"max_in_fligth": 5},
        ["scenario.yaml", "max_in_fligth", "did you mean `max_in_flight`?"],
    ),
    "a bare number for a duration": ({"duration": 3}, ["scenario.yaml", "duration", "did you mean `3s`?"]),
    "an objective that cannot be read": (
        {"objectives": ["responze: p(99) < 1s"]},
        ["objectives[0]", "responze", "did you mean response?"],
    ),
    "a key in the file": ({"api_key": KEY}, ["scenario.yaml", "api_key", "HARNESS_API_KEY"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_scenario_is_named_with_its_remedy_and_nothing_is_sent(
    mistake: str, tmp_path: Path, mock: MockServer
) -> None:
    keys, named = MISTAKES[mistake]
    scenario = write_scenario(tmp_path, **keys)
    before = mock.position()
    done = harness("run", scenario, "--target", mock.url, "--runs", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    for part in named:
        assert part in done.stderr
    assert KEY not in done.stderr
    assert "Traceback" not in done.stderr
    assert mock.position() == before
    assert not (tmp_path / "runs").exists()
