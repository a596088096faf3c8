"""What a worker does with its arrivals, in a process of its own: importing harness.users monkey-patches."""

from __future__ import annotations

import itertools
import platform
import sys
from typing import Any

import aside
import pytest

from harness.workload.schedule import claims

SETUP = """
    import json, tempfile, gevent
    from pathlib import Path
    import harness.users
    from factories import record
    from harness.client.target import parse
    from harness.clock import now_ns
    from harness.record import Kind
    from harness.users.worker import Lease, Worker
    from harness.workload import scenario as scenarios

    class Line:
        '''Answers at once, and remembers what it was given.'''
        def __init__(self, sent): self.sent = sent
        def carry(self, calls, due_ns, origin_ns, log):
            gevent.sleep(0)
            (call,) = calls
            self.sent.append(call.request.seq)
            made = record(seq=call.request.seq)
            log(made)
            return (made,)
        def close(self): pass

    class Lines:
        target = parse("http://127.0.0.1:1")
        def __init__(self): self.sent = []
        def line(self, kind): return Line(self.sent)

    def run(plain, users, tell):
        '''Carry a scenario's arrivals with so many users of each kind; the lines and the books.'''
        lines = Lines()
        with tempfile.TemporaryDirectory() as folder:
            lease = Lease(folder, 0, shard=0, shards=1)
            worker = Worker(scenarios.from_builtins(plain), lease, lines, tell)
            for kind, count in users.items():
                for _ in range(count):
                    gevent.spawn(worker.serve, kind)
            worker.start(now_ns())
            worker.exhausted.wait(timeout=20)
            return lines.sent, worker.drain(1, lambda: False)
"""
CLOSED = {"arrivals": {"process": "closed", "users": 3}, "count": 50}


def said_by(*scripts: str) -> Any:
    """What scripts print after the set-up."""
    return aside.said_by(SETUP, *scripts)


def test_a_closed_loop_sends_each_of_its_arrivals_once_and_in_order() -> None:
    said = said_by(f"""
        sent, books = run({CLOSED!r}, {{Kind.COMPLETION: 3}}, lambda records: None)
        print(json.dumps([sent, books.planned, books.finished]))
    """)
    assert said == [list(range(50)), 50, 50]


@pytest.mark.parametrize("users", [(2, 1), (1, 5)])
def test_in_a_closed_loop_of_two_kinds_the_seed_says_what_each_of_them_sends(users: tuple[int, int]) -> None:
    """How much of it depends on how quick the answers are."""
    mix = {**CLOSED, "traffic": [{"kind": "completion"}, {"kind": "stream"}]}
    said = said_by(f"""
        sent, books = run({mix!r}, dict(zip((Kind.COMPLETION, Kind.STREAM), {users})), lambda records: None)
        print(json.dumps([sent, books.planned, books.finished]))
    """)
    sent, *counts = said
    assert counts == [50, 50]
    assert len(sent) == 50
    for number in range(2):
        own = list(itertools.islice(claims(0, 1, number, 2), 50))
        of_kind = [seq for seq in sent if seq in own]
        assert of_kind == own[: len(of_kind)]
        assert 0 < len(of_kind) < 50


def test_a_user_of_a_closed_loop_thinks_after_each_answer_and_never_past_the_end() -> None:
    said = said_by("""
        slept, sleep = [], gevent.sleep
        def quick(seconds=0):
            slept.append(seconds)
            sleep(0)
        gevent.sleep = quick
        thinking = {"arrivals": {"process": "closed", "users": 1, "think_time": "50s"}, "count": 3}
        sent, _ = run(thinking, {Kind.COMPLETION: 1}, lambda records: None)
        long, short = [], []
        for duration, thought in (("1h", long), ("20s", short)):
            slept.clear()
            run({**thinking, "duration": duration}, {Kind.COMPLETION: 1}, lambda records: None)
            thought.extend(seconds for seconds in slept if 1 < seconds < 100)
        print(json.dumps([sent, long, max(short)]))
    """)
    sent, long, short_s = said
    assert (sent, long) == ([0, 1, 2], [50, 50, 50])
    assert short_s < 20


def test_locust_is_told_of_every_record_in_order_even_by_a_listener_that_waits() -> None:
    said = said_by(f"""
        told = []
        def tell(records):
            gevent.sleep(0.001)
            told.extend(record.seq for record in records)
        run({CLOSED!r}, {{Kind.COMPLETION: 3}}, tell)
        print(json.dumps(told))
    """)
    assert said == list(range(50))


def test_a_closed_loop_prepares_ahead_no_longer_than_it_may() -> None:
    said = said_by(f"""
        from harness.users import worker as module

        folder = tempfile.TemporaryDirectory()
        scenario = scenarios.from_builtins({CLOSED!r})
        worker = Worker(scenario, Lease(folder.name, 0, 0, 1), Lines(), lambda records: None)
        (loop,), made = worker._loops.values(), []
        for took_ns in (4_000, 256_000, 256_000, 6_400_000, 900_000, 900_000, 100_000):
            module.now_ns = iter((0, took_ns)).__next__
            worker._prepare_ahead(loop)
            made.append(len(loop.stock))
            loop.stock.clear()
        print(json.dumps(made))
    """)
    assert said == [1, 64, 64, 64, 5, 2, 1]


OPEN = {"arrivals": {"process": "constant", "rate": 100}, "count": 40, "max_in_flight": 4}
FENCED = f"""
    from harness.users.tenure import Grant

    folder = tempfile.TemporaryDirectory()
    lines = Lines()
    scenario = scenarios.from_builtins({OPEN!r})
    lease = Lease(folder.name, 0, shard=1, shards=2, until_ns=0)
    worker = Worker(scenario, lease, lines, lambda records: None)
    for _ in range(4):
        gevent.spawn(worker.serve, Kind.COMPLETION)
    def turn():
        for _ in range(300):
            gevent.sleep(0)

    worker.start(now_ns() - 10**9)  # everything is overdue, as for one that was away
"""


def test_an_arrival_that_waits_for_an_idle_user_says_since_when() -> None:
    """Two at once and one user: the second waits for the first to end, and a third loses its patience."""
    said = said_by("""
        from harness import runlog

        burst = {"arrivals": {"process": "constant", "rate": 1}, "bursts": [{"at": "1ms", "count": 2}],
                 "count": 3, "max_in_flight": 1, "patience": "300ms"}
        class Slow(Line):
            def carry(self, calls, due_ns, origin_ns, log):
                began_ns = now_ns() - origin_ns
                (call,) = calls
                until_ns = began_ns + 50_000_000 if call.request.seq == 0 else due_ns + 400_000_000
                while now_ns() - origin_ns < until_ns:
                    gevent.sleep(0)
                made = record(seq=call.request.seq, due_ns=due_ns, started_ns=began_ns)
                log(made)
                return (made,)
        Lines.line = lambda self, kind: Slow(self.sent)
        folder = tempfile.TemporaryDirectory()
        lines = Lines()
        worker = Worker(scenarios.from_builtins(burst), Lease(folder.name, 0, 0, 1), lines, lambda _: None)
        gevent.spawn(worker.serve, Kind.COMPLETION)
        gevent.sleep(0)
        worker.start(now_ns() + 100_000_000)
        worker.exhausted.wait(timeout=20)
        worker.drain(1, lambda: False)
        table, _ = runlog.merge(Path(folder.name))
        print(json.dumps(table.select(["due_ns", "queued_ns", "started_ns", "outcome"]).to_pylist()))
    """)
    first, second, third = said
    assert first["queued_ns"] is None
    assert second["due_ns"] <= second["queued_ns"] < second["started_ns"]
    assert third["outcome"] == "dropped"
    assert third["due_ns"] <= third["queued_ns"]


def test_a_worker_that_was_away_sends_nothing_it_was_not_granted() -> None:
    said = said_by(
        FENCED,
        """
        turn()
        ungranted = list(lines.sent)
        worker.grant(Grant(200_000_000))
        turn()
        granted = list(lines.sent)
        worker.grant(Grant(10**9))
        worker.exhausted.wait(timeout=20)
        books = worker.drain(1, lambda: False)
        print(json.dumps([ungranted, granted, lines.sent, books.planned, books.finished]))
    """,
    )
    assert said == [[], list(range(1, 20, 2)), list(range(1, 40, 2)), 20, 20]


def test_what_a_spare_has_taken_over_is_no_longer_in_the_books_of_who_lost_it() -> None:
    said = said_by(
        FENCED,
        """
        worker.grant(Grant(200_000_000))
        turn()
        worker.grant(Grant(300_000_000, last=True))
        for late_ns in (100_000_000, 10**9):
            worker.grant(Grant(late_ns))
        worker.exhausted.wait(timeout=20)
        books = worker.drain(1, lambda: False)
        spares = Worker(scenario, Lease(folder.name, 1, 1, 2, since_ns=300_000_000), lines, lambda _: None)
        print(json.dumps([lines.sent, books.planned, books.started, books.not_started, len(spares._due_ns)]))
    """,
    )
    assert said == [list(range(1, 30, 2)), 15, 15, 0, 5]


def test_a_bug_that_ends_the_dispatcher_ends_the_run_and_has_a_name() -> None:
    said = said_by(
        FENCED,
        """
        prepare = worker._prepare
        def broken(due_ns, requests):
            if requests[0].seq == 7:
                raise LookupError("no such prompt")
            return prepare(due_ns, requests)
        worker._prepare = broken
        gevent.get_hub().print_exception = lambda *_: None
        worker.grant(Grant(10**9))
        ended = worker.exhausted.wait(timeout=20)
        books = worker.drain(1, lambda: False)
        print(json.dumps([ended, worker.failure, lines.sent, books.started, books.not_started]))
    """,
    )
    assert said == [True, "a bug, LookupError: no such prompt", [1, 3, 5], 3, 17]


@pytest.mark.parametrize("part", ["_hand_on", "_take_sample"])
def test_a_bug_beside_the_traffic_ends_the_run_and_has_a_name(part: str) -> None:
    said = said_by(
        FENCED,
        f"""
        def broken():
            raise LookupError("no such file")
        whole, worker.{part} = worker.{part}, broken
        gevent.get_hub().print_exception = lambda *_: None
        ended = worker.exhausted.wait(timeout=20)  # nothing has been granted: there is nothing else to end it
        worker.{part} = whole
        worker.drain(0, lambda: False)
        print(json.dumps([ended, worker.failure]))
    """,
    )
    assert said == [True, "a bug, LookupError: no such file"]


def test_a_log_that_is_full_ends_the_run_and_keeps_what_is_written() -> None:
    said = said_by(f"""
        import resource
        from harness import runlog

        held = tempfile.TemporaryDirectory()
        folder = Path(held.name)
        scenario = scenarios.from_builtins({{**{CLOSED!r}, "count": 100_000}})
        worker = Worker(scenario, Lease(str(folder), 0, 0, 1), Lines(), lambda records: None)
        for _ in range(3):
            gevent.spawn(worker.serve, Kind.COMPLETION)
        gevent.get_hub().print_exception = lambda *_: None
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # room for some batches, and for the books
        worker.start(now_ns())
        ended = worker.exhausted.wait(timeout=20)
        books = worker.drain(1, lambda: False)
        tail = runlog.Tail(runlog.records_path(folder, 0))
        read = sum(batch.num_rows for batch in tail.poll())
        short = 0 < books.records < books.finished
        print(json.dumps([ended, worker.failure, short, read == books.records, tail.torn_bytes]))
    """)
    assert said == [True, "File too large", True, True, 0]


TRACE = """
    trace = tempfile.NamedTemporaryFile(suffix=".csv", mode="w")
    trace.write("at,tokens\\n" + "".join(f"{row / 1e5},{row % 90}\\n" for row in range(300_000)))
    trace.flush()
    arrivals = {"process": "replay", "path": trace.name, "column": "at", "prompt_column": "tokens"}
"""
PROCESS = """
    arrivals = {"process": "poisson", "rate": 1e5}
"""


@pytest.mark.parametrize("arrivals", [PROCESS, TRACE], ids=["process", "trace"])
def test_the_event_loop_turns_while_a_long_schedule_is_computed(arrivals: str) -> None:
    """A worker whose heartbeats stop while it computes its share would be taken for lost."""
    said = said_by(
        arrivals,
        """
        long = scenarios.from_builtins({"arrivals": arrivals, "duration": "3s"})
        turns = []
        def beat():
            while True:
                turns.append(now_ns())
                gevent.sleep(0.001)
        gevent.spawn(beat)
        with tempfile.TemporaryDirectory() as folder:
            worker = Worker(long, Lease(folder, 0, shard=2, shards=3), Lines(), lambda records: None)
        longest = max(later - earlier for earlier, later in zip(turns, turns[1:]))
        print(json.dumps([longest / (turns[-1] - turns[0]), len(worker._due_ns)]))
    """,
    )
    longest, count = said
    assert longest < 0.5  # of the whole time: the thread gives way every 5 ms
    assert 99_000 < count < 101_000


def test_a_mistake_in_a_share_is_raised_and_nothing_is_printed() -> None:
    said = said_by("""
        import contextlib, io
        from harness.errors import HarnessError
        from harness.users.worker import apart
        printed = io.StringIO()
        def mistaken():
            raise HarnessError("not like that")
        with contextlib.redirect_stderr(printed):
            try:
                apart(mistaken)
            except HarnessError as error:
                said = str(error)
        print(json.dumps([said, printed.getvalue()]))
    """)
    assert said == ["not like that", ""]


def test_locusts_stop_finds_its_caller_without_a_stall() -> None:
    """Its first look at the stack takes longer than the event loop may be away: the start looks before."""
    said = said_by(f"""
        from locust.env import Environment
        from locust.runners import Runner
        from harness.users import worker as module

        look, took_ns = module._look_at_the_stack, []
        def timed(look=look):
            began_ns = now_ns()
            try:
                look()
            finally:
                took_ns.append(now_ns() - began_ns)
        module._look_at_the_stack = timed
        run({CLOSED!r}, {{Kind.COMPLETION: 3}}, lambda records: None)
        looks = len(took_ns)

        class Stopped(Exception): pass
        def stop(**_): raise Stopped
        environment = Environment(user_classes=[])
        environment.events.test_stopping.fire = stop  # the look comes before
        runner = Runner(environment)
        for _ in range(5):
            try:
                timed(runner.stop)
            except Stopped:
                pass
        print(json.dumps([looks, *took_ns]))
    """)
    looks, first_ns, *later_ns = said
    assert looks == 1
    assert 5 * min(later_ns) < first_ns


def test_open_files_are_counted_by_the_kernel_as_by_listing_them() -> None:
    said = said_by("""
        import os
        from harness.users import worker
        health = worker._Health()
        health.start()
        opened = []
        def count():
            ways = []
            for health._files_counted in {health._files_counted, False}:
                ways.append(health._open_files())
            return ways
        before = count()
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
        after = count()
        print(json.dumps([[b - a for a, b in zip(before, after)], max(before) - min(before)]))
    """)
    more, apart_by = said
    kernel = tuple(map(int, platform.release().split(".")[:2])) if sys.platform == "linux" else (0, 0)
    assert more == [50] * (2 if kernel >= (6, 2) else 1)
    assert apart_by <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows its table of files")
def test_a_worker_keeps_the_collector_and_the_table_of_files_out_of_its_way_and_gives_them_back() -> None:
    """What stands at the start is never collected, and no connection has to wait for room."""
    said = said_by("""
        import gc, os
        def room():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("FDSize:"))
        plain = {"arrivals": {"process": "constant", "rate": 1}, "count": 1, "max_in_flight": 2_000}
        folder = tempfile.TemporaryDirectory()
        lease = Lease(folder.name, 0, shard=0, shards=1)
        worker = Worker(scenarios.from_builtins(plain), lease, Lines(), lambda records: None)
        seen = []
        def look():
            seen.append([gc.get_freeze_count() > 10_000, gc.get_threshold()[0], room() > 2_000])
        look()
        worker.start(now_ns())
        look()
        worker.drain(0, lambda: False)
        look()
        print(json.dumps(seen))
    """)
    before, during, after = said
    assert before == [False, 700, False]
    assert during == [True, 10_000, True]
    assert after == [False, 700, True]


def test_arrivals_are_awaited_by_the_kernels_timer() -> None:
    """The event loop's own is up to a millisecond late."""
    said = said_by("""
        from harness.users.wait import Alarm
        awaited, sleep_until = [], Alarm.sleep_until
        def spy(alarm, instant_ns):
            awaited.append(instant_ns)
            sleep_until(alarm, instant_ns)
        Alarm.sleep_until = spy
        plain = {"arrivals": {"process": "constant", "rate": 20}, "count": 5}
        sent, _ = run(plain, {Kind.COMPLETION: 2}, lambda records: None)
        print(json.dumps([sent, [b - a for a, b in zip(awaited, awaited[1:])]]))
    """)
    sent, gaps_ns = said
    assert sent == [0, 1, 2, 3, 4]
    assert gaps_ns
    assert all(gap_ns % 50_000_000 == 0 for gap_ns in gaps_ns)
