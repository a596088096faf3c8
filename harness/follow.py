"""The side process that follows a run log and hands it to telemetry, beside the measuring path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import runlog
from harness.analysis.measures import MEASURES
from harness.record import Run
from harness.slo import objectives as slo_objectives
from harness.telemetry.emit import Emitter

_FOLLOW_S = 0.5


def follow(folder: Path, environ: Mapping[str, str], *, ready: Callable[[], None]) -> None:
    """Make spans and metrics from a run's records until the run has ended.

    The death of the process that started this one ends the run too: what reached the log by then is
    exported. A run that has ended already is exported at once.

    Args:
        folder: the run folder; its header may still be missing.
        environ: the OTEL_* variables.
        ready: called once everything is loaded, so that the start of the load need not share the CPU.

    Raises:
        ConfigError: an OTEL_* variable cannot be used.
    """
    parent = os.getppid()
    ready()
    while not (folder / "run.json").exists():
        if os.getppid() != parent:
            return
        time.sleep(_FOLLOW_S / 10)
    run = runlog.read_run(folder)
    emitter = Emitter(run, folder, environ=environ, thresholds_s=_thresholds_s(run))
    tails: dict[int, runlog.Tail] = {}
    while True:
        # Asked before reading: what was written before the end is then sure to be read below.
        ended = runlog.read_end(folder) is not None or os.getppid() != parent
        for worker in runlog.workers_of(folder):
            tail = tails.setdefault(worker, runlog.Tail(runlog.records_path(folder, worker)))
            for batch in tail.poll():
                emitter.feed(batch)
        if ended:
            break
        time.sleep(_FOLLOW_S)
    runlog.write_json(folder / "telemetry.json", emitter.finish())


def _thresholds_s(run: Run) -> list[float]:
    """The judged times: each becomes a bucket's edge, so that dashboards can decide it exactly."""
    objectives = slo_objectives.load(run.scenario["objectives"], source=f"run {run.name}", base=Path.cwd())
    return [
        each.threshold
        for each in objectives
        if each.threshold is not None and MEASURES[each.measure].unit == "s"
    ]
