"""One run that several claims are made about."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from launching import CALM, KEY, harness, only_run, write_scenario


class Ran(NamedTuple):
    """A `harness run` that has ended."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    scenario: Path


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Mixed traffic against the bundled mock, which wants a key, with telemetry on."""
    place = tmp_path_factory.mktemp("mixed")
    scenario = write_scenario(place, budgets=CALM)
    runs, keys = place / "runs", {"HARNESS_API_KEY": KEY, "HARNESS_MOCK_API_KEY": KEY}
    done = harness("run", scenario, "--runs", runs, cwd=place, **keys)
    return Ran(done, only_run(runs), scenario)
