"""Claims about calibration: who carries it, the search for limits, and one run against the mock."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import dropped, failure, table
from hypothesis import given
from hypothesis import strategies as st

from harness import calibrate as calibration
from harness.analysis.floor import LEAST, Floor
from harness.analysis.stats import distribution
from harness.calibrate import Limit, Trial, at_rate, at_streams, highest
from harness.errors import EngineError
from harness.mock.latency import load_profile, token_offsets_ns
from harness.report.facts import floor_line
from harness.report.tables import tables
from harness.workload import scenario as scenarios
from harness.workload import schedule
from harness.workload.scenario import Constant, Mock, Scenario, Seconds, Traffic


@pytest.mark.parametrize(
    ("asked", "carried", "said"),
    [
        ({"workers": 3}, (3, 60), " by 3 workers (n"),
        ({"remote": 4}, (1, 15), ", one worker's share of 4, on this machine instead of theirs (n"),
        ({}, (1, 60), "60 /s (n"),
    ],
)
def test_the_load_is_carried_as_the_run_will_carry_it(monkeypatch, tmp_path, asked, carried, said) -> None:
    """Or, where the workers are elsewhere, as one of them will; the floor says which."""
    driven: list[tuple[Scenario, int]] = []

    def drive(scenario: Scenario, _folder: Path, _: object, *, workers: int) -> list[object]:
        driven.append((scenario, workers))
        return []

    def measure(_folder, _truths, _window, _profile, share_of: int, unlike: tuple[str, ...]) -> Floor:
        return floor_of(400, workers=driven[0][1], share_of=share_of, unlike=unlike)

    monkeypatch.setattr(calibration, "_driven", drive)
    monkeypatch.setattr(calibration, "_floor", measure)
    found = calibration.calibrate(Scenario(arrivals=Constant(rate=60)), tmp_path, **asked)
    ((scenario, workers),) = driven
    assert isinstance(scenario.arrivals, Constant)
    assert (workers, scenario.arrivals.rate) == carried
    assert said in floor_line(found)


def test_a_calibration_without_an_answer_says_what_came_instead(monkeypatch, tmp_path) -> None:
    def drive(_scenario: Scenario, folder: Path, _: object, *, workers: int) -> list[object]:
        pq.write_table(
            table([failure(seq=0), failure(seq=1), dropped(seq=2)] * workers), folder / "requests.parquet"
        )
        return []

    monkeypatch.setattr(calibration, "_driven", drive)
    with pytest.raises(EngineError, match=r"no request .* was answered: 2 http_error, 1 dropped$"):
        calibration.calibrate(Scenario(arrivals=Constant(rate=60)), tmp_path)


@pytest.mark.parametrize("cause", [EngineError("the mock died"), OSError(28, "No space left on device")])
def test_a_run_goes_on_without_the_floor_that_could_not_be_measured(monkeypatch, cause) -> None:
    def drive(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr(calibration, "_driven", drive)
    found = calibration.beforehand(Scenario(arrivals=Constant(rate=60)), workers=1, remote=0)
    assert floor_line(found) == f"not measured, because {cause}"


def test_an_interrupted_calibration_leaves_no_folder(monkeypatch, tmp_path) -> None:
    def drive(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "_driven", drive)
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(Scenario(arrivals=Constant(rate=60)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def floor_of(n: int, **values) -> Floor:
    """A floor of 1 ms, but for the streams that there were none of."""
    spread = distribution(np.full(n, 0.001), "response", "s")
    none = distribution(np.empty(0), "ttft", "s")
    fields = {
        "run": "r",
        "profile": "demo",
        "window_s": (1.0, 5.0),
        "rate_per_s": 60.0,
        "requests": n,
        "unmatched": 0,
        "miscounted": 0,
        "added": {"ttft": none, "response": spread, "itl": none},
        "lateness": spread,
        "hub_lag_max_s": 0.004,
        "cpu_share": 0.1,
        "mock_lateness_max_s": 0.001,
    }
    return Floor(**(fields | values))


def test_the_tables_show_what_was_measured_and_nothing_else() -> None:
    text = tables(calibration.sheets(floor_of(105, hub_wait_p99_s=0.003)))
    assert "TTFT" not in text
    assert "ITL" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("response, added"))
    assert re.split(r"  +", line) == ["response, added", "1.00 ms", "1.00 ms (max of 105)", "1.00 ms", "105"]
    (line,) = (line for line in text.splitlines() if line.startswith("hub lag"))
    assert re.split(r"  +", line)[1:] == ["≤ 1 ms", "3.00 ms", "4.00 ms", "over 4.00 s"]


@pytest.mark.parametrize(("p99_s", "longest_s", "blamed"), [(0.004, 0.5, False), (0.03, 0.03, True)])
def test_one_late_write_does_not_make_the_mock_the_limit(p99_s, longest_s, blamed) -> None:
    measured = floor_of(400, mock_lateness_p99_s=p99_s, mock_lateness_max_s=longest_s)
    assert ("the mock was" in calibration._cause(measured, [])) is blamed


@given(limit=st.integers(1, 100_000), start=st.integers(1, 200))
def test_the_search_ends_within_a_tenth_below_the_limit(limit: int, start: int) -> None:
    asked: list[int] = []

    def within(load: int) -> bool:
        asked.append(load)
        return load <= limit

    found = highest(within, start=start, most=100_000)
    assert len(asked) == len(set(asked)) <= 40
    if found is None:
        assert start > limit
    else:
        assert found <= limit <= max(found + 1, 1.1 * found + 1)


def test_the_search_stops_at_its_own_bound() -> None:
    assert highest(lambda _: True, start=100, most=300) == 300


def test_streams_are_paced_so_that_as_many_are_open_as_was_asked_for(tmp_path) -> None:
    found = at_streams(Scenario(duration_s=Seconds(9)), 40, tmp_path)
    profile = load_profile(found.mock.profile)
    assert found.arrivals == Constant(rate=40.0)
    assert found.max_in_flight > 40
    offsets_ns = token_offsets_ns(profile, seed=1, request_id="r", tokens=50)
    assert list(offsets_ns) == [20_000_000 * token for token in range(1, 51)]
    assert found.traffic[0].output.tokens == 50
    scenarios.check(found, "streams")


def test_rates_are_tried_on_the_scenarios_own_mix_without_delay() -> None:
    mix = (Traffic(kind="stream"),)
    found = at_rate(Scenario(traffic=mix, duration_s=Seconds(9)), 200)
    assert ([entry.kind for entry in found.traffic], found.mock.profile) == (["stream"], "fast")
    assert schedule.planned(found) == 600


@pytest.mark.parametrize("rate", [100, 6400])
def test_sessions_are_tried_without_pauses_and_with_the_users_that_they_need(rate: int) -> None:
    """By Little's law: too small a pool, as the scenario's own may be, is no limit of the machine's."""
    chat = Traffic(kind="stream", weight=1, turns=6, think_time_s=Seconds(2), users=3)
    found = at_rate(Scenario(traffic=(chat, Traffic(kind="completion", weight=3)), max_in_flight=9), rate)
    sessions, completions = found.traffic
    assert sessions.think_time_s == 0
    assert sessions.users >= rate / 4 * 6 * 0.05
    assert completions.users >= rate * 3 / 4 * 0.05
    assert found.max_in_flight == sessions.users + completions.users < 1.5 * rate
    scenarios.check(found, "limits")


def test_a_limit_names_what_stops_the_next_trial() -> None:
    trials = [Trial(100, "", 0.4), Trial(200, "lateness P99 is 12 ms", 0.9)]
    limit = Limit("streams", "open at once", 100, False, trials[1].cause, trials)
    text = tables([calibration.limit_sheet([limit])])
    assert "100 open at once" in text
    rate = Limit("arrival rate", "1/s", 750, True, "", [Trial(750, "", 0.4)])
    assert "≥ 750 /s" in tables([calibration.limit_sheet([rate])])
    assert "lateness P99 is 12 ms" in text
    assert "40.0 %" in text


def test_a_calibration_finds_the_truth_of_every_request(tmp_path) -> None:
    scenario = Scenario(
        traffic=(Traffic(kind="completion"), Traffic(kind="stream"), Traffic(kind="batch", size=2)),
        arrivals=Constant(rate=60),
        duration_s=Seconds(60),
        mock=Mock(profile="fast"),
    )
    found = calibration.calibrate(scenario, tmp_path, seconds=2)
    assert found.unmatched == 0
    assert found.miscounted == 0
    assert found.added["response"].n == found.requests >= 60
    assert found.added["ttft"].minimum > 0
    assert found.added["response"].minimum > 0
    saved = (tmp_path / found.run / "calibration.json").read_bytes()
    assert msgspec.json.decode(saved, type=Floor) == found
    assert all(spread.n >= LEAST for spread in found.added.values())
    shown = tables(calibration.sheets(found))
    assert "TTFT, added" in shown
    assert "longest gap, error" in shown
