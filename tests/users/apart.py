"""Scripts in a process of their own: importing Locust monkey-patches."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any


def said_by(*scripts: str) -> Any:
    """What scripts print as JSON, run one after the other; a failing one fails the test."""
    command = [sys.executable, "-c", "".join(map(textwrap.dedent, scripts))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": "tests"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
