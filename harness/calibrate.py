"""Drive the bundled mock at a scenario's planned load, to learn the instrument's own error and limits."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from harness import conduct, runlog
from harness.analysis.floor import Floor, Truth, floor, unmeasured
from harness.analysis.measures import Window
from harness.analysis.stats import Distribution
from harness.errors import EngineError, HarnessError
from harness.mock.process import mock_process
from harness.rehearsal import WARM_UP_S, middle, rehearse
from harness.report.facts import carried_by
from harness.report.numbers import NONE, count, quantity, share
from harness.report.progress import Progress
from harness.report.tables import Sheet
from harness.workload.scenario import Constant, Fixed, Mock, Scenario, Seconds, Traffic

SECONDS = 3.0
_TRIAL_S = 3.0
_TRIES = 2
"""A load is over the limit if it fails this often: something else may have had the machine for a moment."""
_ANSWER_S = 0.1
"""Longer than an answer of a mock without delay takes, until the machine is at its limit."""
_STREAM_S = 1.0
_GAP_S = 0.020
_HIGHEST = 65_536
_MOCK_LATE_S = 0.020
"""A mock that is later than this at P99 is itself the limit."""

Show = Callable[[Progress], None]


def calibrate(
    scenario: Scenario,
    runs: Path,
    *,
    workers: int = 1,
    remote: int = 0,
    seconds: float = SECONDS,
    on_progress: Show = lambda _: None,
) -> Floor:
    """Measure the noise floor at a scenario's planned load; it is left as calibration.json in a run folder.

    Workers on other machines cannot be had for it: one process here is given one worker's share of the
    load then, and the floor says so.

    Args:
        scenario: whose traffic and load are taken, whatever its target.
        runs: where the run folder is made.
        workers: processes on this machine that will carry the load.
        remote: workers on other machines that will carry it instead; 0: none.
        seconds: how long the mock is driven at least, a second of warm-up included (harness/rehearsal.py).
        on_progress: called about once a second.

    Raises:
        EngineError: the mock or Locust could not start, or no request was answered.
        ConfigError: the mock's profile cannot be used.
        KeyboardInterrupt: it was interrupted; its folder is removed.
    """
    share_of = max(1, remote)
    folder = runlog.create(runs, "calibration", datetime.now(UTC))
    try:
        load = rehearse(scenario, seconds, folder, share_of=share_of)
        truths = _driven(load.scenario, folder, on_progress, workers=1 if remote else workers)
        window = (WARM_UP_S, float(load.scenario.duration_s or seconds))
        measured = _floor(folder, truths, window, scenario.mock.profile, share_of, load.unlike)
        if not measured.requests:
            raise EngineError(f"no request of the calibration was answered: {_outcomes(folder)}")
        keep(measured, folder)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return measured


def beforehand(scenario: Scenario, *, workers: int, remote: int) -> Floor:
    """The noise floor for a run that is about to begin; where it cannot be measured, what says why.

    A run without a floor is worth more than no run: only the user can end it here.

    Raises:
        KeyboardInterrupt: who did so, by Ctrl-C or SIGTERM.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="harness-calibration-") as aside:
            return calibrate(scenario, Path(aside), workers=workers, remote=remote)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted in the calibration: nothing was sent to the target") from None
    except (HarnessError, OSError) as error:
        return unmeasured(str(error))


def _outcomes(folder: Path) -> str:
    """How the requests of a run ended, the most frequent first."""
    ended = Counter(runlog.read_requests(folder).column("outcome").to_pylist())
    return ", ".join(f"{count(n)} {outcome}" for outcome, n in ended.most_common()) or "none was sent"


def keep(measured: Floor, folder: Path) -> None:
    """Store a noise floor in a run folder."""
    runlog.write_json(folder / "calibration.json", measured)


def _driven(scenario: Scenario, folder: Path, on_progress: Show, *, workers: int = 1) -> list[Truth]:
    """Run a scenario into its folder against a mock of its own, and give the whole truth."""
    with tempfile.TemporaryDirectory(prefix="harness-truth-") as place:
        log = Path(place, "truth.jsonl")
        arguments = ("--profile", scenario.mock.profile, "--seed", str(scenario.seed), "--truth", str(log))
        with mock_process(*arguments) as mock:
            aimed = replace(scenario, target=mock.url)
            conduct.fill(folder, aimed, workers=workers, disposable=True, on_progress=on_progress)
        stop_reason = conduct.close(folder).stop_reason
        if stop_reason != "completed":
            raise EngineError(f"the calibration was {stop_reason}")
        return list(_truths(log))


def _truths(log: Path) -> Iterator[Truth]:
    decoder = msgspec.json.Decoder(Truth)
    for line in log.read_bytes().splitlines()[1:]:  # the first line is the clock
        yield decoder.decode(line)


def _floor(  # noqa: PLR0917 - what `floor` is given, in its order
    folder: Path,
    truths: Sequence[Truth],
    window: Window,
    profile: str,
    share_of: int = 1,
    unlike: tuple[str, ...] = (),
) -> Floor:
    return floor(
        runlog.read_requests(folder),
        truths,
        runlog.read_samples(folder),
        window,
        run=folder.name,
        profile=Path(profile).stem,
        share_of=share_of,
        unlike=unlike,
    )


_TITLES = {
    "ttft": "TTFT, added",
    "ttft_from_start": "the same from start",
    "response": "response, added",
    "service": "the same from start",
    "itl": "ITL, error of a gap",
    "itl_longest": "longest gap, error",
    "tpot": "TPOT, error",
}


def sheets(measured: Floor) -> list[Sheet]:
    """The noise floor as tables."""
    spreads = [(_TITLES[name], spread) for name, spread in measured.added.items() if spread.n]
    if measured.lateness.n:
        spreads.append(("timer lateness", measured.lateness))
    right = ("P50", "P99", "max", "n")
    rows = [
        (
            title,
            *(_at(each, name) for name in ("p50", "p99")),
            quantity(each.maximum, "s"),
            count(each.n),
        )
        for title, each in spreads
    ]
    low_s, high_s = measured.window_s
    waits = (_wait(measured.hub_wait_p50_s), _wait(measured.hub_wait_p99_s))
    span = f"over {quantity(high_s - low_s, 's')}"
    rows.append(("hub lag at any moment", *waits, quantity(measured.hub_lag_max_s, "s"), span))
    facts = [
        ("load", f"{quantity(measured.rate_per_s, '1/s')}{carried_by(measured)}"),
        *(("unlike the run", each) for each in measured.unlike),
        ("profile", measured.profile),
        ("requests", f"{count(measured.requests)} compared, {count(measured.unmatched)} without a match"),
        ("chunks", f"{count(measured.miscounted)} streams with a chunk too few or too many"),
        ("bytes unread, longest", quantity(measured.read_lag_max_s or None, "s")),
        ("CPU", f"{share(measured.cpu_share)} of a core"),
        ("mock's own lateness, P99", quantity(measured.mock_lateness_p99_s, "s")),
        ("mock's own lateness, longest", quantity(measured.mock_lateness_max_s, "s")),
    ]
    return [
        Sheet("The instrument's own error", ("figure", *right), rows, right),
        Sheet("Measured at", ("", "value"), facts),
    ]


def _at(spread: Distribution, name: str) -> str:
    """A quantile; where n is too small for it, the largest seen, which is a measurement too."""
    value = spread.quantiles[name].value
    if value is None:
        return f"{quantity(spread.maximum, 's')} (max of {count(spread.n)})"
    return quantity(value, "s")


def _wait(wait_s: float) -> str:
    return quantity(wait_s, "s") if wait_s else "≤ 1 ms"


# -- limits ---------------------------------------------------------------------------------------------


class Trial(msgspec.Struct, frozen=True):
    """One short run at one load."""

    load: int
    cause: str
    """What went over its budget first; empty if nothing did."""
    cpu_share: float


class Limit(msgspec.Struct, frozen=True):
    """The highest load that one worker process carries within every budget."""

    what: str
    unit: str
    highest: int | None
    """None if not even the lowest trial was within budget."""
    ceiling: bool
    """The search ended at its own bound: the true limit is higher."""
    cause: str
    """What stopped the next one."""
    trials: list[Trial]


def limits(scenario: Scenario, *, on_trial: Callable[[str, Trial], None] = lambda _, __: None) -> list[Limit]:
    """Search the highest rate (the scenario's mix, no delay) and stream count (a chunk each 20 ms).

    Each trial is a run of three seconds with a mock of its own; some twenty to thirty, two to four minutes.

    Args:
        scenario: whose traffic is taken.
        on_trial: told of each trial.

    Raises:
        EngineError: the mock or Locust could not start.
    """
    searches: list[tuple[str, str, Callable[[int, Path], Scenario], int]] = [
        ("arrival rate", "1/s", lambda load, _: at_rate(scenario, load), 100),
        ("streams", "open at once", lambda load, place: at_streams(scenario, load, place), 50),
    ]
    return [_search(*search, on_trial) for search in searches]


def _search(
    what: str,
    unit: str,
    scenario_at: Callable[[int, Path], Scenario],
    start: int,
    on_trial: Callable[[str, Trial], None],
) -> Limit:
    tried: dict[int, Trial] = {}

    def within(load: int) -> bool:
        for _ in range(_TRIES):
            with tempfile.TemporaryDirectory(prefix="harness-limits-") as place:
                tried[load] = _trial(load, scenario_at(load, Path(place)), Path(place))
            on_trial(what, tried[load])
            if not tried[load].cause:
                return True
        return False

    best = highest(within, start=start, most=_HIGHEST)
    above = min((load for load, trial in tried.items() if trial.cause), default=None)
    cause = "" if above is None else tried[above].cause
    return Limit(what, unit, best, above is None, cause, list(tried.values()))


def highest(within: Callable[[int], bool], *, start: int, most: int, resolution: float = 0.1) -> int | None:
    """The highest load that is within budget, by doubling, then by bisection.

    Args:
        within: asked once a load.
        start: the lowest load tried.
        most: no load above is tried.
        resolution: the search ends when the gap is at most this share of the lower bound.
    """
    if not within(start):
        return None
    low, high = start, min(2 * start, most)
    while low < most and within(high):
        low, high = high, min(2 * high, most)
    while low < most and high - low > max(1, resolution * low):
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def at_rate(scenario: Scenario, rate: int) -> Scenario:
    """The scenario's mix at a rate, against a mock that adds no delay; sessions without their pauses.

    Each entry has as many virtual users as Little's law asks for while the machine keeps up: an arrival that
    finds none is the machine's doing.
    """
    weight = sum(entry.weight for entry in scenario.traffic)

    def users(entry: Traffic) -> int:
        arrivals = rate * entry.weight / weight
        return 16 + math.ceil(arrivals * min(_TRIAL_S, _ANSWER_S * middle(entry.turns)))

    traffic = tuple(replace(entry, think_time_s=Seconds(0), users=users(entry)) for entry in scenario.traffic)
    return replace(
        _trial_of(scenario),
        traffic=traffic,
        arrivals=Constant(rate=rate),
        max_in_flight=sum(map(users, scenario.traffic)),
        mock=Mock(profile="fast"),
    )


def _trial_of(scenario: Scenario) -> Scenario:
    """What all trials have in common."""
    return Scenario(
        name="limits",
        dialect=scenario.dialect,
        models=scenario.models,
        duration_s=Seconds(_TRIAL_S),
        seed=scenario.seed,
        budgets=scenario.budgets,
        telemetry=False,
    )


def at_streams(scenario: Scenario, streams: int, place: Path) -> Scenario:
    """So many streams open at once, each a second long, begun one after the other."""
    profile = place / "paced.yaml"
    gap = f"{{distribution: fixed, value: {round(_GAP_S * 1000)}ms}}"
    profile.write_text(f"description: paced\nttft: {gap}\nitl: {gap}\noutput_tokens: 50\n", encoding="utf-8")
    tokens = round(_STREAM_S / _GAP_S)
    return replace(
        _trial_of(scenario),
        traffic=(Traffic(kind="stream", output=Fixed(tokens=tokens)),),
        arrivals=Constant(rate=streams / _STREAM_S),
        max_in_flight=math.ceil(1.5 * streams) + 50,
        mock=Mock(profile=str(profile)),
    )


def _trial(load: int, scenario: Scenario, place: Path) -> Trial:
    folder = runlog.create(place, scenario.name, datetime.now(UTC))
    truths = _driven(scenario, folder, lambda _: None)
    measured = _floor(folder, truths, (WARM_UP_S, _TRIAL_S), scenario.mock.profile)
    checks = conduct.judged(folder).verdict.validity.checks
    return Trial(
        load, _cause(measured, [each.cause for each in checks if not each.passed]), measured.cpu_share
    )


def _cause(measured: Floor, failed: Sequence[str]) -> str:
    """What stands in the way of a higher load: the mock's own failing is told from the instrument's."""
    if measured.mock_lateness_p99_s > _MOCK_LATE_S:
        late = quantity(measured.mock_lateness_p99_s, "s")
        return f"the mock was {late} late at P99: it is the limit, not the client"
    if failed:
        return failed[0]
    if measured.unmatched or measured.miscounted:
        return f"{measured.unmatched} requests unanswered, {measured.miscounted} streams not whole"
    return ""


def limit_sheet(found: Sequence[Limit]) -> Sheet:
    """The limits as a table."""
    right = ("highest", "CPU")
    rows = []
    for limit in found:
        at = next((trial for trial in limit.trials if trial.load == limit.highest), None)
        number = f"{'≥ ' if limit.ceiling else ''}{quantity(limit.highest, limit.unit)}"
        cpu = NONE if at is None else share(at.cpu_share)
        rows.append((limit.what, number, cpu, limit.cause or "the search's own bound"))
    return Sheet("Limits of one worker process", ("what", *right, "what stops the next"), rows, right)
