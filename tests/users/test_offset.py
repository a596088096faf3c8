"""Claims about the clocks of a master and its workers."""

import aside
from hypothesis import given
from hypothesis import strategies as st

offset = aside.module("offset")
MS = 1_000_000
WAYS = st.integers(min_value=0, max_value=500 * MS)


def asked(ahead_ns: int, ways: list[tuple[int, int]]) -> "offset.Offset":
    """After questions that took so long on their ways there and back."""
    found, now_ns = offset.Offset(), 7_000 * MS
    for there_ns, back_ns in ways:
        found.hear(now_ns, now_ns + there_ns + ahead_ns, now_ns + there_ns + back_ns)
        now_ns += there_ns + back_ns
    return found


@given(st.integers(min_value=-(10**18), max_value=10**18), st.lists(st.tuples(WAYS, WAYS), min_size=1))
def test_the_masters_instant_is_known_to_the_quickest_round_trip(
    ahead_ns: int, ways: list[tuple[int, int]]
) -> None:
    found = asked(ahead_ns, ways)
    assert found.tries == len(ways)
    assert found.error_ns == min((sum(way) + 1) // 2 for way in ways)
    ours_ns = 9_000 * MS
    assert abs(found.ours(ours_ns + ahead_ns) - ours_ns) <= 2 * found.error_ns


def test_on_one_machine_both_have_one_clock() -> None:
    assert asked(0, [(3 * MS, MS), (MS, 0)]).ours(123) == 123


def test_one_slow_answer_spoils_nothing() -> None:
    assert asked(10**15, [(2, 2), (900 * MS, 0)]).ours(10**15 + 5) == 5
