"""Each benchmark starts: what it takes from the product is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_it_says_how_it_is_used(program: Path) -> None:
    asked = subprocess.run(
        [sys.executable, program, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("usage: ")
