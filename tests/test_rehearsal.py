"""Claims about the load of a calibration: the run's own, as far as one can wait for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import poisson

from harness.analysis.floor import LEAST
from harness.mock.latency import load_profile
from harness.rehearsal import (
    ANSWER_S,
    ENOUGH,
    LONGEST_S,
    WARM_UP_S,
    Rehearsal,
    busiest,
    rehearse,
    shortened,
)
from harness.workload import prompts, schedule
from harness.workload import scenario as scenarios
from harness.workload.scenario import (
    Burst,
    Closed,
    Constant,
    Fixed,
    Gamma,
    LogNormal,
    Mock,
    Poisson,
    Replay,
    Retries,
    Scenario,
    Seconds,
    Step,
    Steps,
    Traffic,
    Uniform,
)

STREAM = Traffic(kind="stream")


def rehearsed(place: Path, seconds: float = 3, *, share_of: int = 1, **keys) -> Rehearsal:
    found = rehearse(Scenario(duration_s=Seconds(600), **keys), seconds, place, share_of=share_of)
    scenarios.check(found.scenario, "calibration")
    return found


def expected_comparisons(found: Scenario, per_arrival: float = 1) -> float:
    return found.arrivals.rate * (found.duration_s - WARM_UP_S) * per_arrival


def test_the_target_the_faults_and_the_retries_of_a_scenario_are_left_out(tmp_path) -> None:
    found = rehearsed(
        tmp_path,
        target="http://api.example.org",
        arrivals=Poisson(rate=70),
        warm_up_s=Seconds(30),
        retries=Retries(attempts=4),
        mock=Mock(profile="fast", faults="faults.yaml"),
    )
    load = found.scenario
    assert (load.target, load.mock, load.retries) == ("mock", Mock(profile="fast"), Retries())
    assert (load.arrivals, load.duration_s, load.warm_up_s) == (Poisson(rate=70), 3.0, 0.0)
    assert found.unlike == ()


def test_that_tls_is_not_measured_is_said(tmp_path) -> None:
    found = rehearsed(tmp_path, target="https://api.example.org", arrivals=Poisson(rate=70))
    assert found.unlike == ("over plain HTTP, the run over TLS",)


def test_a_changing_load_is_rehearsed_at_its_busiest(tmp_path) -> None:
    steps = Steps(steps=(Step(rate=1, for_s=Seconds(20)), Step(rate=50, for_s=Seconds(580))))
    found = rehearsed(tmp_path, arrivals=steps).scenario.arrivals
    assert isinstance(found, Poisson)
    assert 45 < found.rate < 90
    bursty = rehearsed(tmp_path, arrivals=Constant(rate=1), bursts=(Burst(at_s=Seconds(5), count=297),))
    assert bursty.scenario.arrivals == Poisson(rate=100)


@pytest.mark.parametrize(
    ("arrivals", "share"),
    [
        (Poisson(rate=400), Poisson(rate=100)),
        (Closed(users=99, think_time_s=Seconds(1)), Closed(25, Seconds(1))),
    ],
)
def test_one_worker_s_share_of_a_load_is_its_part_of_the_rate_or_the_users(tmp_path, arrivals, share) -> None:
    own = Traffic(kind="completion", users=50)
    found = rehearsed(tmp_path, 6, arrivals=arrivals, traffic=(own, own), max_in_flight=101, share_of=4)
    assert found.scenario.arrivals == share
    assert found.scenario.max_in_flight == 26
    assert [entry.users for entry in found.scenario.traffic] == [12, 12]


# -- enough requests for a floor ----------------------------------------------------------------------


def test_what_is_expected_is_enough_but_for_one_time_in_a_hundred() -> None:
    assert poisson.cdf(LEAST - 1, ENOUGH) < 0.01


@pytest.mark.parametrize("arrivals", [Constant(rate=20), Poisson(rate=15), Gamma(rate=15, cv=1)])
def test_a_low_rate_is_held_for_longer(tmp_path, arrivals) -> None:
    found = rehearsed(tmp_path, arrivals=arrivals)
    assert found.scenario.arrivals == arrivals
    assert expected_comparisons(found.scenario) == pytest.approx(ENOUGH)
    assert found.unlike == ()


def test_streams_are_counted_where_there_are_some_for_they_have_floors_of_their_own(tmp_path) -> None:
    mix = (Traffic(kind="completion", weight=3), STREAM)
    found = rehearsed(tmp_path, arrivals=Constant(rate=60), traffic=mix)
    assert expected_comparisons(found.scenario, 1 / 4) == pytest.approx(ENOUGH)


@pytest.mark.parametrize("rate", [0.001, 0.2, 5])
def test_too_low_a_rate_is_raised_and_that_is_said(tmp_path, rate: float) -> None:
    found = rehearsed(tmp_path, arrivals=Constant(rate=rate), max_in_flight=1)
    assert found.scenario.duration_s == LONGEST_S
    assert expected_comparisons(found.scenario) == pytest.approx(ENOUGH)
    (said,) = found.unlike
    assert said.startswith("with 12.9 arrivals/s instead of ")
    assert found.scenario.max_in_flight > 12.9 * 0.1  # Little's law, at the demo profile's 100 ms


def streams_share(load: Scenario) -> float:
    return sum(entry.weight for entry in load.traffic if entry.kind == "stream") / sum(
        entry.weight for entry in load.traffic
    )


@pytest.mark.parametrize("arrivals", [Constant(rate=100), Closed(users=20, think_time_s=Seconds(0.1))])
def test_where_streams_are_rare_there_are_more_of_them_and_not_more_arrivals(tmp_path, arrivals) -> None:
    mix = (Traffic(kind="completion", weight=99, users=50), Traffic(kind="stream", users=5))
    found = rehearsed(tmp_path, arrivals=arrivals, traffic=mix)
    assert found.scenario.arrivals == arrivals
    assert found.scenario.duration_s == LONGEST_S
    share = streams_share(found.scenario)
    assert 0.1 < share < 0.2
    assert found.unlike == (f"with {100 * share:.3g} % streams instead of 1.00 %, too few for a floor",)
    if isinstance(arrivals, Constant):
        assert expected_comparisons(found.scenario, share) == pytest.approx(ENOUGH)


@pytest.mark.parametrize("weight", [1, 1e-6])
def test_streams_are_no_more_than_half_however_rare_and_slow_they_were(tmp_path, weight: float) -> None:
    mix = (Traffic(kind="completion", weight=99), Traffic(kind="stream", weight=weight))
    found = rehearsed(tmp_path, arrivals=Constant(rate=5), traffic=mix)
    assert streams_share(found.scenario) == pytest.approx(0.5)
    assert found.scenario.arrivals.rate == pytest.approx(2 * ENOUGH / (LONGEST_S - WARM_UP_S))
    assert len(found.unlike) == 2


def test_who_asks_for_longer_waits_for_longer_before_anything_is_quicker(tmp_path) -> None:
    quick = rehearsed(tmp_path, 20, arrivals=Constant(rate=200))
    assert (quick.scenario.arrivals, quick.scenario.duration_s, quick.unlike) == (Constant(rate=200), 20, ())
    slow = rehearsed(tmp_path, 20, arrivals=Constant(rate=5))
    assert (slow.scenario.arrivals, slow.scenario.duration_s, slow.unlike) == (Constant(rate=5), 20, ())
    slower = rehearsed(tmp_path, 20, arrivals=Constant(rate=1))
    assert slower.scenario.arrivals.rate == pytest.approx(ENOUGH / 19)
    assert slower.scenario.duration_s == 20


def test_what_has_no_weight_has_no_say(tmp_path) -> None:
    idle = Traffic(kind="stream", weight=0, turns=50, think_time_s=Seconds(20), output=Fixed(tokens=10_000))
    found = rehearsed(tmp_path, arrivals=Constant(rate=70), traffic=(STREAM, idle))
    assert found.unlike == ()
    assert [entry.kind for entry in found.scenario.traffic] == ["stream"]


@pytest.mark.parametrize("closed", [Closed(users=1), Closed(users=3, think_time_s=Seconds(60))])
def test_a_closed_loop_that_is_too_slow_is_given_users_and_no_pauses(tmp_path, closed: Closed) -> None:
    found = rehearsed(tmp_path, arrivals=closed)
    assert found.scenario.arrivals.think_time_s == 0
    assert found.scenario.arrivals.users >= closed.users
    assert found.scenario.duration_s == LONGEST_S
    assert "instead of" in found.unlike[0]


def test_a_closed_loop_that_is_quick_enough_stays_as_it_is(tmp_path) -> None:
    closed = Closed(users=20, think_time_s=Seconds(0.1))
    assert rehearsed(tmp_path, arrivals=closed).scenario.arrivals == closed


# -- no longer than one waits -------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["demo", "vllm-h100-8b", "deepseek-v4-pro", "fast"])
def test_long_answers_are_shortened_to_what_comes_in_three_seconds(tmp_path, profile: str) -> None:
    long = Traffic(kind="stream", output=Fixed(tokens=10_000_000))
    found = rehearsed(tmp_path, arrivals=Constant(rate=50), traffic=(long,), mock=Mock(profile=profile))
    tokens = found.scenario.traffic[0].output.tokens
    assert found.unlike == (f"answers of {tokens:,} tokens at most",)
    if load_profile(profile).engine is None and profile == "demo":
        assert tokens == pytest.approx((ANSWER_S - 0.030) / 0.0041, rel=0.05)


def test_where_requests_are_quicker_answers_are_as_much_shorter(tmp_path) -> None:
    """So that no more are open at once than in the run."""
    long = Traffic(kind="stream", output=Fixed(tokens=10_000))
    planned, quicker = (
        rehearsed(tmp_path, arrivals=Constant(rate=rate), traffic=(long,)).scenario for rate in (13, 6.5)
    )
    shorter = quicker.traffic[0].output.tokens / planned.traffic[0].output.tokens
    assert shorter == pytest.approx(6.5 / quicker.arrivals.rate, rel=0.05)


def test_sessions_do_without_their_pauses_and_end_in_time(tmp_path) -> None:
    chat = Traffic(kind="stream", turns=50, think_time_s=Seconds(20), output=Fixed(tokens=500))
    found = rehearsed(tmp_path, arrivals=Constant(rate=20), traffic=(chat,))
    (entry,) = found.scenario.traffic
    assert (entry.turns, entry.think_time_s) == (8, 0)
    assert 8 * entry.output.tokens * 0.0041 < ANSWER_S
    assert "sessions without pauses" in found.unlike
    assert "sessions of 8 turns at most" in found.unlike


def test_the_turns_of_sessions_are_requests_too(tmp_path) -> None:
    chat = Traffic(kind="stream", turns=4)
    assert rehearsed(tmp_path, arrivals=Constant(rate=15), traffic=(chat,)).scenario.duration_s == 3


def test_an_answer_that_never_ends_does_not_hold_the_run_up(tmp_path) -> None:
    assert rehearsed(tmp_path, arrivals=Constant(rate=50)).scenario.timeouts.total_s <= 10


@pytest.mark.parametrize(
    ("length", "short"),
    [
        (Fixed(tokens=9), Fixed(tokens=5)),
        (Fixed(tokens=3), Fixed(tokens=3)),
        (Uniform(low=2, high=9), Uniform(low=2, high=5)),
        (Uniform(low=7, high=9), Uniform(low=5, high=5)),
        (LogNormal(median=4, sigma=1), LogNormal(median=4, sigma=1, high=5)),
    ],
)
def test_a_length_is_shortened_in_its_own_kind(length, short) -> None:
    assert shortened(length, 5) == short


# -- traces -------------------------------------------------------------------------------------------


def written(place: Path, rows: list[dict[str, object]]) -> str:
    path = place / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lengths_of(scenario: Scenario) -> list[tuple[int, int]]:
    asks = prompts.workload(scenario)
    requests = [asks(arrival.seq)[0] for arrival in schedule.arrivals(scenario)]
    return [(request.prompt_tokens, request.max_tokens) for request in requests]


def test_a_trace_is_rehearsed_with_its_own_lengths_from_its_busiest_seconds_on(tmp_path) -> None:
    """One request a second of 7 and 3 tokens, but from the hundredth second on 50 a second, of 40 and 20."""
    calm = [{"at": second, "prompt": 7, "answer": 3} for second in range(100)]
    busy = [{"at": 100 + place / 50, "prompt": 40 + place % 2, "answer": 20} for place in range(300)]
    given = Replay(
        path=written(tmp_path, calm + busy), column="at", prompt_column="prompt", output_column="answer"
    )
    found = rehearsed(tmp_path, arrivals=given, traffic=(STREAM,))
    lengths = lengths_of(found.scenario)
    assert 100 < len(lengths) < 200
    assert lengths[:4] == [(40, 20), (41, 20), (40, 20), (41, 20)]
    assert found.unlike == ()


def test_a_trace_that_is_short_begins_anew_and_its_answers_are_bounded(tmp_path) -> None:
    rows = [{"timestamp": 0, "input_length": 9, "output_length": 9_000, "hash_ids": [5]}]
    given = Replay(path=written(tmp_path, rows), format="mooncake")
    found = rehearsed(tmp_path, arrivals=given, traffic=(STREAM,))
    lengths = lengths_of(found.scenario)
    assert len(lengths) >= LEAST
    assert {prompt for prompt, _ in lengths} == {9}
    assert max(answer for _, answer in lengths) < 200
    assert found.unlike[-1].startswith("answers of ")


def test_a_trace_without_lengths_leaves_them_to_the_scenario(tmp_path) -> None:
    given = Replay(path=written(tmp_path, [{"timestamp": place / 50} for place in range(300)]))
    found = rehearsed(tmp_path, arrivals=given, traffic=(Traffic(kind="stream", output=Fixed(tokens=5)),))
    assert isinstance(found.scenario.arrivals, Poisson)
    assert {answer for _, answer in lengths_of(found.scenario)} == {5}


@pytest.mark.parametrize(
    ("due_s", "seconds", "expected"),
    [
        ([], 1, (0.0, 1)),
        ([5.0], 1, (5.0, 1)),
        ([0, 0.5, 1.0], 1, (0, 2)),
        ([0, 1, 2, 2.1, 2.2, 9], 1, (2, 3)),
        ([0, 0, 0], 1, (0, 3)),
    ],
)
def test_the_busiest_window_is_found(due_s: list[float], seconds: float, expected: tuple[float, int]) -> None:
    assert busiest(due_s, seconds) == expected
