"""What a worker does with its arrivals, in a process of its own: importing harness.users monkey-patches."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

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
        def carry(self, calls, *, due_ns, origin_ns, log):
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


def said_by(script: str) -> Any:
    """What a script prints as JSON; a failing one fails the test."""
    command = [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": "tests"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_closed_loop_sends_each_of_its_arrivals_once_and_in_order() -> None:
    said = said_by(f"""
        sent, books = run({CLOSED!r}, {{Kind.COMPLETION: 3}}, lambda record: None)
        print(json.dumps([sent, books.planned, books.finished]))
    """)
    assert said == [list(range(50)), 50, 50]


def test_two_kinds_in_a_closed_loop_share_the_arrivals() -> None:
    mix = {**CLOSED, "traffic": [{"kind": "completion"}, {"kind": "stream"}]}
    said = said_by(f"""
        sent, books = run({mix!r}, {{Kind.COMPLETION: 2, Kind.STREAM: 1}}, lambda record: None)
        print(json.dumps([sorted(sent), books.planned, books.finished]))
    """)
    assert said == [list(range(50)), 50, 50]


def test_locust_is_told_of_every_record_in_order_even_by_a_listener_that_waits() -> None:
    said = said_by(f"""
        told = []
        def tell(record):
            gevent.sleep(0.001)
            told.append(record.seq)
        run({CLOSED!r}, {{Kind.COMPLETION: 3}}, tell)
        print(json.dumps(told))
    """)
    assert said == list(range(50))
