"""Claims about which request meets which fault, and about limits."""

from __future__ import annotations

import json
import math
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.mock import api, faults, flavours, script
from harness.mock.limits import Buckets, Limits
from harness.mock.plan import Kind, Plan, Step
from harness.testing import mock_server

COMPLETION = {"model": "m", "prompt": "x", "max_tokens": 3}
WHOLE = Plan(200, [], [Step(0, b"{}", Kind.BODY)])


def loaded(tmp_path: Path, *entries: dict) -> script.Script:
    path = tmp_path / "faults.yaml"
    path.write_text(json.dumps({"faults": list(entries)}))
    return script.load_script(path)


@pytest.mark.parametrize(
    ("at", "inside", "outside"),
    [
        ("60s..80s", (60, 79.9), (0, 59.9, 80)),
        ("500ms..1m", (0.5, 59), (0.4, 60)),
        ("2m..", (120, 1e6), (119,)),
    ],
)
def test_a_time_is_met_from_its_start_until_its_end(
    tmp_path: Path, at: str, inside: tuple[float, ...], outside: tuple[float, ...]
):
    rules = loaded(tmp_path, {"fault": "reset", "at": at}).rules

    def met(elapsed_s: float) -> bool:
        return script.choose(rules, seed=0, request_id="r", number=1, elapsed_s=elapsed_s) is not None

    assert all(map(met, inside))
    assert not any(map(met, outside))


def test_a_time_confines_chance_and_numbers(tmp_path: Path):
    rules = loaded(tmp_path, {"fault": "reset", "at": "1s..2s", "probability": 0.5}).rules
    met = [
        script.choose(rules, seed=0, request_id=str(n), number=n, elapsed_s=1.5) is not None
        for n in range(1000)
    ]
    assert sum(met) == pytest.approx(500, abs=80)
    rules = loaded(tmp_path, {"fault": "reset", "at": "1s..2s", "requests": [7]}).rules
    assert script.choose(rules, seed=0, request_id="r", number=7, elapsed_s=1) is not None
    assert script.choose(rules, seed=0, request_id="r", number=8, elapsed_s=1) is None
    assert script.choose(rules, seed=0, request_id="r", number=7, elapsed_s=3) is None


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ({"fault": "reset", "at": "soon"}, "write a time"),
        ({"fault": "reset", "at": "5..6"}, "write a time"),
        ({"fault": "reset", "at": "..6s"}, "write a time"),
        ({"fault": "reset", "at": "6s..5s"}, "end later"),
        ({"fault": "refuse"}, "at: 60s..80s"),
        ({"fault": "refuse", "probability": 0.5}, "nothing else"),
        ({"fault": "wait", "at": "1s..2s", "requests": [1]}, "nothing else"),
    ],
)
def test_a_mistaken_time_is_blamed(tmp_path: Path, entry: dict, hint: str):
    with pytest.raises(ConfigError, match=hint):
        loaded(tmp_path, entry)


def test_the_scripts_clock_starts_with_the_first_request():
    clock = script.ScriptClock()
    assert clock.elapsed_s(5_000_000_000) is None
    clock.start(5_000_000_000)
    clock.start(6_000_000_000)
    assert clock.elapsed_s(7_000_000_000) == 2.0


def test_a_cold_start_ends_for_all_at_the_same_time(tmp_path: Path):
    (rule,) = loaded(tmp_path, {"fault": "wait", "at": "0s..8s"}).rules
    for elapsed_s in (0.0, 3.0, 7.9):
        moment = faults.Moment(0.0, rule.left_s(elapsed_s))
        changed = faults.apply(rule.fault, WHOLE, moment)
        assert changed is not None
        assert changed.steps[0].at_ns / 1e9 + elapsed_s == pytest.approx(8)


def test_an_incident_makes_everything_three_times_slower():
    plan = Plan(200, [], [Step(i * 10, b"x", Kind.TOKEN) for i in range(4)])
    slow = faults.apply(faults.parse("slow;factor=3", "test"), plan)
    assert slow is not None
    assert [step.at_ns for step in slow.steps] == [0, 30, 60, 90]


def test_nobody_listens_during_a_refusal_and_open_answers_go_on():
    profile = {
        "ttft": {"distribution": "fixed", "value": "0s"},
        "itl": {"distribution": "fixed", "value": "20ms"},
    }
    with (
        mock_server(profile, faults=[{"fault": "refuse", "at": "100ms..600ms"}]) as mock,
        httpx.Client(base_url=mock.url, trust_env=False) as http,
    ):
        question = COMPLETION | {"max_tokens": 40, "stream": True}
        with http.stream("POST", "/completions", json=question) as answer:
            deadline = time.monotonic() + 5
            while _listens(mock.url):
                assert time.monotonic() < deadline
            assert answer.read().endswith(b"data: [DONE]\n\n")
        while not _listens(mock.url):
            assert time.monotonic() < deadline
        assert http.post("/completions", json=COMPLETION).status_code == 200


def test_a_fail_over_breaks_what_is_under_way():
    profile = {
        "ttft": {"distribution": "fixed", "value": "0s"},
        "itl": {"distribution": "fixed", "value": "50ms"},
    }
    rules = [{"fault": "refuse;open=reset", "at": "100ms..200ms"}]
    with mock_server(profile, faults=rules) as mock:
        question = COMPLETION | {"max_tokens": 1000, "stream": True}
        with pytest.raises(httpx.TransportError):
            httpx.post(mock.url + "/completions", json=question, trust_env=False)
        deadline = time.monotonic() + 5
        while not _listens(mock.url):
            assert time.monotonic() < deadline
        assert mock.truth()[0]["end"] == "reset"


def _listens(url: str) -> bool:
    try:
        return httpx.get(url + "/health", trust_env=False).status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("code", sorted(api.ERRORS))
@pytest.mark.parametrize("flavour", ["deepseek", "openai"])
def test_every_status_has_a_body_in_each_flavour(code: int, flavour: str):
    plan = faults.apply(faults.parse(f"status;code={code};flavour={flavour}", "test"), WHOLE)
    assert plan is not None
    error = json.loads(plan.steps[0].payload)["error"]
    assert error["message"]
    assert error["type"]
    assert "code" in error


def test_a_429_of_openai_tells_its_limits():
    plan = faults.apply(faults.parse("status;code=429;flavour=openai;retry_after=20", "test"), WHOLE)
    assert plan is not None
    headers = dict(plan.headers)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "20s"
    assert json.loads(plan.steps[0].payload)["error"]["code"] == "rate_limit_exceeded"


def test_retry_after_as_a_date_is_at_least_as_late_as_asked():
    fault = faults.parse("status;code=503;retry_after=2.5;retry_as=date", "test")
    plan = faults.apply(fault, WHOLE, faults.Moment(wall_s=1_700_000_000.2))
    assert plan is not None
    told = parsedate_to_datetime(dict(plan.headers)["retry-after"])
    assert told.timestamp() == 1_700_000_003


def test_an_html_page_may_come_with_status_200():
    plan = faults.apply(faults.parse("html", "test"), WHOLE)
    assert plan is not None
    assert (plan.status, dict(plan.headers)["content-type"]) == (200, "text/html")
    assert plan.steps[0].payload.startswith(b"<html>")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0195, "20ms"), (1.5, "1.5s"), (20, "20s"), (360, "6m0s"), (61.5, "1m1.5s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str):
    assert flavours.go_duration(seconds) == text


# -- token buckets -----------------------------------------------------------------------------------------


def test_a_minutes_worth_may_come_at_once_and_then_at_the_rate():
    buckets = Buckets(Limits(requests_per_minute=60))
    assert [buckets.take("k", tokens=1, now_s=0).wait_s for _ in range(60)] == [0] * 60
    assert buckets.take("k", tokens=1, now_s=0).wait_s == pytest.approx(1)
    assert buckets.take("k", tokens=1, now_s=0.5).wait_s == pytest.approx(0.5)
    assert buckets.take("k", tokens=1, now_s=1).wait_s == 0


def test_each_key_has_limits_of_its_own():
    buckets = Buckets(Limits(requests_per_minute=1))
    assert buckets.take("a", tokens=1, now_s=0).wait_s == 0
    assert buckets.take("b", tokens=1, now_s=0).wait_s == 0
    assert buckets.take("a", tokens=1, now_s=0).wait_s == pytest.approx(60)


def test_a_request_that_is_refused_for_its_tokens_takes_no_request():
    buckets = Buckets(Limits(requests_per_minute=2, tokens_per_minute=100))
    assert buckets.take("k", tokens=90, now_s=0).wait_s == 0
    assert buckets.take("k", tokens=90, now_s=0).wait_s > 0
    assert dict(buckets.take("k", tokens=10, now_s=0).headers)["x-ratelimit-remaining-requests"] == "0"


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=60),
    st.integers(1, 100),
    st.integers(1, 900),
)
def test_no_more_passes_than_the_bucket_and_what_flowed_into_it(
    asked: list[tuple[float, int]], requests: int, tokens: int
):
    buckets = Buckets(Limits(requests_per_minute=requests, tokens_per_minute=tokens))
    now_s, passed = 0.0, 0
    for gap_s, cost in asked:
        now_s += gap_s
        passed += buckets.take("k", tokens=cost, now_s=now_s).wait_s == 0
    assert passed <= math.floor(requests * (1 + now_s / 60) + 1e-6)


def test_a_client_that_waits_as_told_gets_through(tmp_path: Path):
    path = tmp_path / "faults.yaml"
    path.write_text("limits: {requests_per_minute: 2}\n")
    with mock_server(faults=path) as mock, httpx.Client(base_url=mock.url, trust_env=False) as http:
        answers = [http.post("/completions", json=COMPLETION) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert 29 <= int(answers[2].headers["retry-after"]) <= 30
