"""Who ran what, where and with which versions: the run's header."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime

from harness import clock
from harness.record import Run
from harness.workload.scenario import Scenario, to_builtins

_DISTRIBUTIONS = (
    "llm-load-harness",
    "locust",
    "gevent",
    "httptools",
    "h2",
    "pyarrow",
    "numpy",
    "scipy",
    "granian",
    "opentelemetry-sdk",
)


def header(
    scenario: Scenario, *, target: str, workers: int, start: clock.Anchor, mock: bool, stamps: str
) -> Run:
    """Describe a run that is about to start."""
    return Run(
        name=scenario.name,
        run_id=os.urandom(8).hex(),
        scenario=to_builtins(scenario),
        seed=scenario.seed,
        target=target,
        workers=workers,
        start=start,
        started_at=datetime.fromtimestamp(start.wall_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        host={
            "name": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "boot_id": clock.boot_id(),
        },
        versions={name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
        git_commit=_git_commit(),
        stamps=stamps,
        mock=mock,
    )


def _git_commit() -> str:
    """The commit of the folder that the run was started in; empty outside a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
