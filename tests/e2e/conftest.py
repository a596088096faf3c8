"""One run that several claims are made about."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from launching import KEY, harness, until_quiet, write_scenario


class Ran(NamedTuple):
    """A `harness run` that has ended."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    scenario: Path


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Mixed traffic against the bundled mock, which wants a key, with telemetry on."""
    place = tmp_path_factory.mktemp("mixed")
    scenario = write_scenario(place)

    def run(runs: Path) -> subprocess.CompletedProcess[str]:
        return harness(
            "run", scenario, "--runs", runs, cwd=place, HARNESS_API_KEY=KEY, HARNESS_MOCK_API_KEY=KEY
        )

    done, folder = until_quiet(run, place / "runs")
    return Ran(done, folder, scenario)
