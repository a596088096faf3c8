"""The tenure module is loaded by its path: its package would import Locust, which patches the process."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st


def load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "harness" / "users" / "tenure.py"
    spec = importlib.util.spec_from_file_location("tenure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tenure = load()
S = 1_000_000_000
STEPS = st.sampled_from(["heartbeat", "deliver", "deliver", "work", "wait", "wait", "hang", "take over"])


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
    tenures, worker, now_ns = tenure.Tenures(), Share(), 0
    spare: Share | None = None
    for step in steps:
        match step:
            case "heartbeat":
                worker.mail.append(tenures.grant("worker", now_ns))
            case "deliver":
                random.shuffle(worker.mail)  # a new connection may overtake the old one's messages
                worker.deliver()
            case "work":
                worker.work(now_ns)
            case "wait":
                now_ns += random.randrange(2 * S)
            case "hang":
                now_ns += random.randrange(30 * S)
            case "take over" if spare is None:
                spare = Share(tenures.end("worker", now_ns))
        if spare is not None:
            spare.mail.append(tenures.grant("spare", now_ns))
            spare.deliver()
            spare.work(now_ns)
            assert not set(spare.sent) & set(worker.sent)
    for share, name in ((worker, "worker"), (spare, "spare")):
        if share is not None:
            share.mail.append(tenures.grant(name, now_ns))
            share.deliver()
            share.work(now_ns)
    sent = worker.sent + (spare.sent if spare is not None else [])
    assert sorted(sent) == list(range(0, now_ns + 1, S))


def test_a_spare_begins_where_the_last_grant_ended_and_never_in_the_past() -> None:
    tenures = tenure.Tenures()
    granted = tenures.grant("a", 3 * S)
    assert granted == tenure.Grant(3 * S + int(tenure.TERM_S * 1e9))
    assert tenures.end("a", 8 * S) == granted.until_ns
    assert tenures.end("never heard", 8 * S) == 8 * S + int(tenure.TAKE_OVER_S * 1e9)
    tenures.grant("b", 3 * S)
    assert tenures.end("b", 60 * S) == 60 * S + int(tenure.TAKE_OVER_S * 1e9)


def test_a_worker_that_was_taken_over_is_told_so_at_each_sign_of_life() -> None:
    tenures = tenure.Tenures()
    tenures.grant("a", 0)
    since_ns = tenures.end("a", 5 * S)
    assert [tenures.grant("a", at * S) for at in (6, 7)] == [tenure.Grant(since_ns, last=True)] * 2
    assert tenures.silences["a"] == tenure.Silence(since_ns, heard_ns=0, returned_ns=6 * S)


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
    said = tenure.taken_over(0, 2, lost)
    assert "worker 0 hung or was cut off at 2.0 s" in said
    assert "worker 2 took its share over from 12.0 s on" in said
    assert "never came back" in said
    healed = tenure.Silence(since_ns=12 * S, heard_ns=2 * S, returned_ns=8 * S)
    assert "came back after 6.0 s" in tenure.taken_over(0, 2, healed)
