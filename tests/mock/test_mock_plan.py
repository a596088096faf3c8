"""A stream's events are made in their turn, and are a sequence of steps like any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.mock.plan import Events, Kind, Run, Step

ROLE, FINISH = Step(5, b"role", Kind.FRAME), Step(90, b"finish", Kind.FRAME)
EVENTS = Events(
    [ROLE],
    [Run(b"<", (b"a", b"b"), b">"), Run(b"[", (), b"]"), Run(b"(", (b"c",), b")")],
    (5, 6, 7, 8),
    [FINISH],
)
MADE = [ROLE, Step(5, b"<a>", Kind.TOKEN), Step(6, b"<b>", Kind.TOKEN), Step(7, b"(c)", Kind.TOKEN), FINISH]


def test_each_token_is_due_in_its_turn_whatever_run_it_is_of() -> None:
    assert list(EVENTS) == MADE


def test_there_are_as_many_events_as_are_made() -> None:
    assert len(EVENTS) == len(MADE)


def test_events_can_be_made_again() -> None:
    assert list(EVENTS) == list(EVENTS)


@given(st.slices(len(MADE)))
def test_a_slice_is_that_of_the_list_of_all(part: slice) -> None:
    assert EVENTS[part] == MADE[part]


@given(st.integers(-len(MADE), len(MADE) - 1))
def test_a_step_is_that_of_the_list_of_all(index: int) -> None:
    assert EVENTS[index] == MADE[index]
