"""Keeps Locust, whose import patches the process, out of the tests': other processes, and modules by path."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any


def module(name: str) -> ModuleType:
    """A module of harness.users without its package."""
    path = Path(__file__).resolve().parents[2] / "harness" / "users" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def said_by(*scripts: str) -> Any:
    """What scripts print as JSON, run one after the other; a failing one fails the test."""
    command = [sys.executable, "-c", "".join(map(textwrap.dedent, scripts))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": "tests"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
