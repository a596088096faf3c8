"""The pacer calls what is due, in order, and again when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from harness.mock import pacer
from harness.mock.pacer import Pacer

MS = 1_000_000


class Clockwork:
    """An event loop of timers alone, on a clock that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append((self.now_ns + delay_s * 1e9, call))
        return Timer(self, self.timers[-1])

    def run_until(self, end_ns: int) -> None:
        while self.timers and min(self.timers)[0] <= end_ns:
            due_ns, call = timer = min(self.timers)
            self.timers.remove(timer)
            self.now_ns = max(self.now_ns, round(due_ns))
            call()
        self.now_ns = end_ns


class Timer:
    def __init__(self, clockwork: Clockwork, timer: tuple[float, Callable[[], None]]) -> None:
        self.cancel = lambda: clockwork.timers.remove(timer)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    made = Clockwork()
    monkeypatch.setattr(pacer, "now_ns", lambda: made.now_ns)
    return made


def paced(clockwork: Clockwork) -> Pacer:
    return Pacer(cast("asyncio.AbstractEventLoop", clockwork))


def test_what_is_due_first_is_called_first_and_nothing_early(clockwork: Clockwork) -> None:
    called: list[tuple[str, int]] = []
    pace = paced(clockwork)
    for name, due_ms in (("late", 9), ("early", 3), ("middle", 5)):
        pace.at(due_ms * MS, lambda name=name: called.append((name, clockwork.now_ns)))  # type: ignore[misc]  # a default, not an argument
    clockwork.run_until(20 * MS)
    assert [name for name, _ in called] == ["early", "middle", "late"]
    assert all(at_ns >= due_ms * MS for (_, at_ns), due_ms in zip(called, (3, 5, 9), strict=True))


def test_what_gives_a_time_is_called_again_then_and_else_never(clockwork: Clockwork) -> None:
    called_ns: list[int] = []

    def each_20_ms() -> int | None:
        called_ns.append(clockwork.now_ns)
        return len(called_ns) * 20 * MS if len(called_ns) < 4 else None

    paced(clockwork).at(0, each_20_ms)
    clockwork.run_until(1000 * MS)
    assert called_ns == [0, 20 * MS, 40 * MS, 60 * MS]


def test_what_is_due_at_once_is_called_in_order_of_asking(clockwork: Clockwork) -> None:
    called: list[int] = []
    pace = paced(clockwork)
    for number in range(5):
        pace.at(7 * MS, lambda number=number: called.append(number))  # type: ignore[misc]  # as above
    clockwork.run_until(10 * MS)
    assert called == [0, 1, 2, 3, 4]
