from hypothesis import given
from hypothesis import strategies as st

from harness.clock import Anchor, FakeClock, anchor, now_ns

STAMPS = st.integers(min_value=0, max_value=2**62)


@given(STAMPS, STAMPS, STAMPS)
def test_an_anchor_maps_any_instant(wall_ns: int, monotonic_ns: int, moment_ns: int) -> None:
    bridge = Anchor(wall_ns=wall_ns, monotonic_ns=monotonic_ns)
    assert bridge.wall_of(moment_ns) - moment_ns == wall_ns - monotonic_ns


def test_an_anchor_is_taken_between_its_neighbours() -> None:
    before = now_ns()
    taken = anchor()
    assert before <= taken.monotonic_ns <= now_ns()


def test_a_fake_clock_moves_only_by_hand() -> None:
    clock = FakeClock(5)
    clock.advance(3)
    assert (clock(), clock()) == (8, 8)
