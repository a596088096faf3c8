"""Deadlines: what is overdue is given up, what is not costs nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.client import exchange as exchanges
from harness.client.exchange import Deadlines, Exchange, Limits
from harness.clock import FakeClock
from harness.record import Outcome


class Timer:
    """Runs while it is started."""

    def __init__(self, *_: object, **__: object) -> None:
        self.runs = False

    def start(self, _call: object) -> None:
        self.runs = True

    def stop(self) -> None:
        self.runs = False


class Carrier:
    """Carries exchanges, and counts how often it is asked for them."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.carried: list[Exchange] = []
        self.given_up: list[tuple[Exchange, Outcome, str]] = []
        self.asked = 0

    def begin(self, **limits_ns: int) -> Exchange:
        spans_ns = {"connect_ns": 10, "idle_ns": 100, "total_ns": 1_000} | limits_ns
        bounds = Limits(**spans_ns, first_ns=min(spans_ns["idle_ns"], spans_ns["total_ns"]))
        begun = Exchange(bounds, exchanges.now_ns())
        begun.sent_ns = begun.started_ns
        self.carried.append(begun)
        self.deadlines.first_ns = min(self.deadlines.first_ns, begun.check_ns)
        return begun

    def under_way(self) -> tuple[Exchange, ...]:
        self.asked += 1
        return tuple(self.carried)

    def give_up(self, exchange: Exchange, outcome: Outcome, text: str) -> None:
        self.carried.remove(exchange)
        self.given_up.append((exchange, outcome, text))


@pytest.fixture
def clock(monkeypatch):
    made = FakeClock(1_000)
    monkeypatch.setattr(exchanges, "now_ns", made)
    return made


@pytest.fixture
def deadlines():
    return Deadlines(SimpleNamespace(loop=SimpleNamespace(timer=Timer)), lambda: None)


def test_the_timer_runs_while_a_connection_is_open(deadlines):
    one, other = Carrier(deadlines), Carrier(deadlines)
    runs = []
    for change in (deadlines.forget, deadlines.watch, deadlines.watch, deadlines.forget):
        change(one)
        runs.append(deadlines._timer.runs)
    deadlines.watch(one)
    deadlines.watch(other)
    deadlines.forget(one)
    runs.append(deadlines._timer.runs)
    deadlines.forget(other)
    runs.append(deadlines._timer.runs)
    assert runs == [False, True, True, False, True, False]


def test_each_is_given_up_by_its_own_connection_when_it_is_overdue(deadlines, clock):
    one, other = Carrier(deadlines), Carrier(deadlines)
    deadlines.watch(one)
    deadlines.watch(other)
    slow, quick = one.begin(idle_ns=500), other.begin()
    for now in (1_099, 1_100, 1_499, 1_500):
        clock.now = now
        deadlines.sweep()
        ended = [each for carrier in (one, other) for each in carrier.given_up]
        assert (quick in [each[0] for each in ended]) is (now >= 1_100)
        assert (slow in [each[0] for each in ended]) is (now >= 1_500)
    assert one.given_up == [(slow, Outcome.STALLED, "idle timeout before the response")]
    assert other.given_up == [(quick, Outcome.STALLED, "idle timeout before the response")]


def test_what_came_while_the_client_was_away_is_read_before_anybody_is_given_up(deadlines, clock):
    carrier, second = Carrier(deadlines), 10**9
    deadlines.watch(carrier)
    exchange = carrier.begin(idle_ns=second, total_ns=60 * second)
    clock.advance(3 * second)
    deadlines.sweep()
    assert carrier.given_up == []
    exchange.pieces, exchange.stamps = [b"data: a\n\n"], [clock.now]
    clock.advance(second // 20)
    deadlines.sweep()
    assert carrier.given_up == []
    for _ in range(20):
        clock.advance(second // 20)
        deadlines.sweep()
    assert carrier.given_up == [(exchange, Outcome.STALLED, "idle timeout before the response")]


def test_a_client_that_is_always_away_still_gives_up(deadlines, clock):
    carrier, second = Carrier(deadlines), 10**9
    deadlines.watch(carrier)
    exchange = carrier.begin(idle_ns=second, total_ns=60 * second)
    for _ in range(2):
        assert carrier.given_up == []
        clock.advance(2 * second)
        deadlines.sweep()
    assert carrier.given_up == [(exchange, Outcome.STALLED, "idle timeout before the response")]


def test_nobody_is_asked_before_the_first_deadline(deadlines, clock):
    carrier = Carrier(deadlines)
    deadlines.watch(carrier)
    exchange = carrier.begin()
    clock.now = 1_099
    deadlines.sweep()
    assert carrier.asked == 0
    exchange.pieces, exchange.stamps = [b"data: a\n\n"], [1_090]
    clock.now = 1_100
    deadlines.sweep()
    asked = carrier.asked
    clock.now = 1_189
    deadlines.sweep()
    assert (asked > 0, carrier.asked - asked, carrier.given_up) == (True, 0, [])
    later = carrier.begin(idle_ns=1, total_ns=2)
    clock.now = 1_190
    deadlines.sweep()
    assert [each[0] for each in carrier.given_up] == [exchange, later]


def test_a_request_that_is_still_being_sent_has_only_its_total_deadline(deadlines, clock):
    carrier = Carrier(deadlines)
    deadlines.watch(carrier)
    exchange = carrier.begin()
    exchange.sent_ns = None
    for clock.now in range(1_000, 2_000, 50):
        deadlines.sweep()
    assert carrier.given_up == []
    clock.now = 2_000
    deadlines.sweep()
    assert carrier.given_up == [(exchange, Outcome.TIMEOUT, "total timeout")]
