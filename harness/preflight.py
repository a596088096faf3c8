"""What a scenario asks for, looked at before any load is sent, so that a mistake in it costs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import ConfigError, together
from harness.mock.latency import load_profile
from harness.mock.script import load_script
from harness.slo import objectives
from harness.workload import schedule
from harness.workload.prompts import workload
from harness.workload.scenario import Closed, Scenario

MOST_ARRIVALS = 100_000_000
"""Every worker computes the whole schedule: of so many, in one to two minutes (docs/scaling.md)."""
MOST_A_SECOND = 1_000_000
"""Some hundred workers' worth: whoever asks for more means something else."""


def check(scenario: Scenario, source: str, given: Sequence[str] = ()) -> None:
    """Read all files that it names, and see that its schedule can be sent and has arrivals to judge.

    The files are objectives, traces and data sets, and the bundled mock's where that is the target.

    Args:
        scenario: as loaded: what lies between its own keys is not checked again.
        source: where it stands, for the error.
        given: those of its objectives that came by `--threshold`.

    Raises:
        ConfigError: one of them cannot be read, an objective speaks of traffic that will not be sent, or no
            arrival is due in what is to be judged; all such mistakes together.
    """
    checks: list[Callable[[], object]] = [
        lambda: _check_objectives(scenario, source, given),
        lambda: _check_traffic(scenario, source),
    ]
    if scenario.target == "mock":
        checks.append(lambda: _check_mock(scenario, source))
    mistakes = []
    for each in checks:
        try:
            each()
        except ConfigError as mistake:
            mistakes.append(mistake)
    if mistakes:
        raise together(mistakes)


def _check_objectives(scenario: Scenario, source: str, given: Sequence[str]) -> None:
    kinds = {entry.kind for entry in scenario.traffic}
    for each in objectives.load(scenario.objectives, source=source, base=Path.cwd(), given=given):
        if each.kind is not None and each.kind not in kinds:
            remedy = f"no traffic of kind {each.kind} will be sent; add an entry, or leave the objective out"
            by_flag = each.expression in map(str.strip, given)
            place = ("--threshold", "") if by_flag else (source, "objectives")
            raise ConfigError(*place, each.expression, remedy)


def _check_traffic(scenario: Scenario, source: str) -> None:
    """One after the other: a schedule without end is not to be walked, nor a trace blamed twice."""
    _check_size(scenario, source)
    workload(scenario)
    _check_window(scenario, source)


def _check_window(scenario: Scenario, source: str) -> None:
    """A count, a trace or steps may end before the judged part begins: it is seen before all that is sent."""
    if isinstance(scenario.arrivals, Closed):
        return  # the answers decide when it ends
    key, low_s, high_s = "warm_up", float(scenario.warm_up_s), math.inf
    if scenario.window != "auto":
        key, low_s, high_s = "window", *map(float, scenario.window)
    last_s = None
    for arrival in schedule.arrivals(scenario):
        last_s = arrival.due_ns / 1e9
        if last_s >= low_s:
            break
    if last_s is not None and low_s <= last_s < high_s:
        return
    stated = f"{low_s:g}s" if key == "warm_up" else f"[{low_s:g}s, {high_s:g}s]"
    if last_s is None:
        raise ConfigError(source, "arrivals", None, "not one is due: make it last longer, or raise the rate")
    due = "the last" if last_s < low_s else "the next"
    raise ConfigError(source, key, stated, f"no arrival would be judged: {due} is due at {last_s:.3g}s")


def _check_mock(scenario: Scenario, source: str) -> None:
    try:
        load_profile(scenario.mock.profile)
    except ConfigError as error:
        if error.source == "--profile":  # the name is the scenario's, not a flag's
            raise ConfigError(source, "mock.profile", error.value, error.remedy) from None
        raise
    if scenario.mock.faults:
        load_script(Path(scenario.mock.faults))


def _check_size(scenario: Scenario, source: str) -> None:
    rate = getattr(scenario.arrivals, "rate", 0.0)
    if rate > MOST_A_SECOND:
        remedy = f"no more than {MOST_A_SECOND:,} arrivals a second can be planned: lower it (--rate)"
        raise ConfigError(source, "arrivals.rate", rate, remedy)
    arrivals = schedule.expected(scenario)
    if arrivals is not None and arrivals > MOST_ARRIVALS:
        remedy = f"some {arrivals:,.0f}; plan {MOST_ARRIVALS:,} at most: shorten the run, or lower its rate"
        raise ConfigError(source, "arrivals", None, remedy)
