"""Claims about who may send what when workers are lost, come back or come late."""

from typing import Any

import aside
from hypothesis import given
from hypothesis import strategies as st

tenure = aside.module("tenure")
S = 1_000_000_000
STEPS = st.sampled_from(["heartbeat", "deliver", "deliver", "work", "wait", "wait", "hang", "take over"])
"""Of one of the workers, whichever, but for the waiting."""


class Share:
    """A worker that walks its share as far as its tenure lets it, late or not."""

    def __init__(self, since_ns: int = 0) -> None:
        self.tenure = tenure.Tenure(0)
        self.mail: list[Any] = []
        self.sent: list[int] = []
        self.next_ns = -(-since_ns // S) * S

    def work(self, now_ns: int) -> None:
        while self.next_ns <= now_ns and self.tenure.covers(self.next_ns):
            self.sent.append(self.next_ns)
            self.next_ns += S

    def deliver(self) -> None:
        for grant in self.mail:
            self.tenure.take(grant)
        self.mail.clear()


@given(st.lists(STEPS, max_size=60), st.randoms(use_true_random=False))
def test_no_arrival_is_sent_twice_whatever_hangs_heals_or_comes_late(steps: list[str], random: Any) -> None:
    """And once all is delivered, none is left out."""
    tenures, shares, now_ns = tenure.Tenures(), [Share()], 0  # each the spare of the one before
    for step in steps:
        number = random.randrange(len(shares))
        share = shares[number]
        match step:
            case "heartbeat":
                share.mail.append(tenures.grant(str(number), now_ns))
            case "deliver":
                random.shuffle(share.mail)  # a new connection may overtake the old one's messages
                share.deliver()
            case "work":
                share.work(now_ns)
            case "wait":
                now_ns += random.randrange(2 * S)
            case "hang":
                now_ns += random.randrange(30 * S)
            case "take over":
                last = len(shares) - 1
                tenures.miss(str(last))
                shares.append(Share(tenures.end(str(last), str(last + 1), now_ns)))
        sent = [due_ns for share in shares for due_ns in share.sent]
        assert len(sent) == len(set(sent))
    for number, share in enumerate(shares):
        share.mail.append(tenures.grant(str(number), now_ns))
        share.deliver()
        share.work(now_ns)
    assert sorted(due_ns for share in shares for due_ns in share.sent) == list(range(0, now_ns + 1, S))


def test_a_spare_begins_where_the_last_grant_ended_and_never_in_the_past() -> None:
    tenures = tenure.Tenures()
    granted = tenures.grant("a", 3 * S)
    assert granted == tenure.Grant(3 * S + int(tenure.TERM_S * 1e9))
    assert tenures.end("a", "c", 8 * S) == granted.until_ns
    assert tenures.end("c", "d", 9 * S) == granted.until_ns
    assert tenures.end("never heard", "e", 8 * S) == 8 * S + int(tenure.TAKE_OVER_S * 1e9)
    tenures.grant("b", 3 * S)
    assert tenures.end("b", "f", 60 * S) == 60 * S + int(tenure.TAKE_OVER_S * 1e9)


def test_a_worker_that_was_taken_over_is_told_so_at_each_sign_of_life() -> None:
    tenures = tenure.Tenures()
    tenures.grant("a", 0)
    since_ns = tenures.end("a", "b", 5 * S)
    assert [tenures.grant("a", at * S) for at in (6, 7)] == [tenure.Grant(since_ns, last=True)] * 2
    assert tenures.silences["a"] == tenure.Silence(heard_ns=0, since_ns=since_ns, returned_ns=6 * S)


def test_a_worker_without_a_spare_keeps_its_share() -> None:
    tenures = tenure.Tenures()
    tenures.grant("a", 2 * S)
    for _ in range(3):
        tenures.miss("a")
    assert tenures.silences == {"a": tenure.Silence(heard_ns=2 * S)}
    assert tenures.grant("a", 9 * S) == tenure.Grant(9 * S + int(tenure.TERM_S * 1e9))
    assert tenures.silences == {"a": tenure.Silence(heard_ns=2 * S, returned_ns=9 * S)}
    tenures.miss("a")
    assert tenures.silences == {"a": tenure.Silence(heard_ns=9 * S)}
    assert tenures.end("a", "b", 15 * S) == 9 * S + int(tenure.TERM_S * 1e9)


def test_an_older_grant_has_no_effect() -> None:
    held = tenure.Tenure(0)
    held.take(tenure.Grant(30))
    held.take(tenure.Grant(20))
    assert held.covers(29)


def test_after_the_last_grant_no_other_counts() -> None:
    held = tenure.Tenure(0)
    held.take(tenure.Grant(20, last=True))
    held.take(tenure.Grant(30))
    assert held.over
    assert [held.covers(due_ns) for due_ns in (19, 20, 29)] == [True, False, False]


def test_without_a_master_all_is_granted_for_good() -> None:
    assert tenure.Tenure(None).covers(10**18)


def test_the_verdict_can_say_who_was_silent_and_who_took_over() -> None:
    lost = tenure.Silence(since_ns=12 * S, heard_ns=2 * S)
    said = tenure.told(0, 2, lost)
    assert "worker 0 hung or was cut off at 2.0 s" in said
    assert "worker 2 took its share over from 12.0 s on" in said
    assert "never came back" in said
    healed = tenure.Silence(since_ns=12 * S, heard_ns=2 * S, returned_ns=8 * S)
    assert "came back after 6.0 s" in tenure.told(0, 2, healed)
    free = tenure.told(0, None, tenure.Silence(heard_ns=2 * S), fenced=False)
    assert free == "worker 0 hung or was cut off at 2.0 s; what it sent since is not known"
    back = tenure.Silence(heard_ns=2 * S, returned_ns=8 * S)
    assert tenure.told(0, None, back, fenced=False).endswith("it came back")
    alone = tenure.told(0, None, tenure.Silence(heard_ns=2 * S))
    assert "worker 0 hung or was cut off at 2.0 s, and no spare took its share over; it never came" in alone
