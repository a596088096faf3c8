"""Waiting under gevent, in a process of its own: importing harness.users monkey-patches the process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any


def said_by(script: str) -> Any:
    """What a script prints as JSON; a failing one fails the test."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_alarm_is_never_early_and_lets_others_run() -> None:
    said = said_by("""
        import json, gevent
        from harness.clock import now_ns
        from harness.users.wait import Alarm

        turns = []
        others = gevent.spawn(lambda: [turns.append(gevent.sleep(0.001)) for _ in range(5)])
        alarm = Alarm()
        late_ns = []
        for wait_ns in (1, 50_000, 500_000, 2_000_000, 20_000_000):
            due_ns = now_ns() + wait_ns
            alarm.sleep_until(due_ns)
            late_ns.append(now_ns() - due_ns)
        alarm.sleep_until(0)
        alarm.close()
        alarm.close()
        print(json.dumps([late_ns, len(turns)]))
    """)
    late_ns, turns = said
    assert min(late_ns) >= 0
    assert turns == 5
