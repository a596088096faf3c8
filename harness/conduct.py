"""One run from scenario to verdict: start the processes, watch them, close the books, judge.

The load is Locust's, in processes of its own: this process never imports it, so it is never
monkey-patched, and what it computes meanwhile (progress, percentiles) costs the measuring path nothing.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import msgspec
import pyarrow as pa

from harness import runlog
from harness.analysis.budgets import budgets
from harness.analysis.fit import fit, profile_text
from harness.analysis.floor import Floor
from harness.analysis.live import Live
from harness.analysis.measures import Measures, Window, measure
from harness.analysis.steady import judged_part
from harness.analysis.summary import summarise
from harness.analysis.truth import Truth
from harness.analysis.truth import compare as beside_truth
from harness.analysis.truth import read as read_truth
from harness.analysis.validity import validate
from harness.errors import ConfigError, EngineError, RunLogError
from harness.record import Manifest, Run, Sample
from harness.report import machine
from harness.report.facts import RunReport, scenario_yaml
from harness.report.html import html
from harness.report.junit import junit
from harness.report.markdown import markdown
from harness.report.progress import Progress
from harness.slo import objectives as slo_objectives
from harness.slo.verdict import judge
from harness.workload import scenario as scenarios
from harness.workload import schedule
from harness.workload.scenario import Closed, Scenario

MOCK_START_S = 20.0
_MOCK_STOP_S = 60.0
"""For its drain, and for writing the truth log."""
_POLL_S = 0.1
_TRUTH = "truth.jsonl"
_TRUTH_REQUESTS = 5_000_000
_OURS = "harness: "
"""So begins what the engine has to say itself, among Locust's own lines."""
_WAITING = re.compile(r"Waiting for workers to be ready, (\d+ of \d+ connected)")
_LOCUST = (sys.executable, "-m", "locust")


class Remote(msgspec.Struct, frozen=True):
    """Workers on other machines: they come to the master by `harness worker --master HOST`."""

    host: str
    """The address that the master listens on."""
    port: int
    workers: int


def conduct(
    scenario: Scenario,
    *,
    runs: Path,
    workers: int = 1,
    remote: Remote | None = None,
    web: bool = False,
    sampled: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Run a scenario to its end, however it ends, and give its folder.

    Args:
        scenario: with `target: mock`, the bundled mock is started and stopped around the run.
        runs: where the run folder is made.
        workers: processes on this machine that carry the load.
        remote: workers on other machines to wait for.
        web: serve Locust's web UI meanwhile.
        sampled: note where the load generator's CPU time goes, in ticks.json (harness/sampling.py).
        on_progress: called about once a second.

    Raises:
        EngineError: the mock or Locust could not start.
    """
    folder = runlog.create(runs, scenario.name, datetime.now(UTC))
    with _target(scenario, folder) as target:
        plan = {
            "scenario": scenarios.to_builtins(scenario),
            "target": target,
            "mock": scenario.target == "mock",
        }
        runlog.write_json(folder / "plan.json", plan)
        with (folder / "locust.log").open("wb") as log:
            engine = subprocess.Popen(  # noqa: S603 - our own words
                _locust(folder, workers=workers, remote=remote, web=web, sampled=sampled),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone: we pass it on once
            )
        _watch(engine, Watch(folder, scenario), on_progress)
    if not (folder / "run.json").exists():
        raise EngineError(_why(folder, engine.returncode))
    return folder


@contextmanager
def _target(scenario: Scenario, folder: Path) -> Iterator[str]:
    """The URL to load; where it is the bundled mock's, the mock lives as long as the context."""
    if scenario.target != "mock":
        yield scenario.target
        return
    command = [sys.executable, "-m", "harness", "mock", "--port", "0", "--print-url", "--die-with-parent"]
    command += ["--profile", scenario.mock.profile, "--seed", str(scenario.seed)]
    # The log is written when the mock ends, whole: memory holds as many entries as we could ever send it.
    command += ["--truth", str(folder / _TRUTH), "--truth-requests", str(_TRUTH_REQUESTS), "--drain", "5"]
    if scenario.mock.faults:
        command += ["--faults", scenario.mock.faults]
    with (folder / "mock.log").open("wb") as log:
        mock = subprocess.Popen(  # noqa: S603 - our own words
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    assert mock.stdout is not None
    try:
        url = mock.stdout.readline().decode().strip()
        if not url:
            mock.wait()
            raise EngineError(f"the mock did not start: {_tail(folder / 'mock.log')}")
        yield url
    finally:
        mock.terminate()
        try:
            mock.wait(timeout=_MOCK_STOP_S)
        except subprocess.TimeoutExpired:
            mock.kill()
            mock.wait()
        mock.communicate()


def _locust(folder: Path, *, workers: int, remote: Remote | None, web: bool, sampled: bool) -> list[str]:
    sampling = (sys.executable, "-m", "harness.sampling", str(folder / "ticks.json"), "locust")
    command = [*(sampling if sampled else _LOCUST), "-f", str(_locustfile("mixed.py"))]
    command += ["--run-folder", str(folder), "--only-summary"]
    command += ["--autostart", "--autoquit", "0", "--web-host", "127.0.0.1"] if web else ["--headless"]
    if remote is not None:
        command += ["--master", "--master-bind-host", remote.host, "--master-bind-port", str(remote.port)]
        command += ["--expect-workers", str(remote.workers)]
    elif workers > 1:
        port = str(_free_port())
        command += ["--processes", str(workers), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return command


def work(host: str, port: int, folder: Path) -> NoReturn:
    """Become a worker of a master on another machine, until it says that all is over.

    Args:
        host: where the master runs.
        port: of the master.
        folder: where this worker keeps its own copy of what it sends to the master.
    """
    command = [*_LOCUST, "-f", str(_locustfile("mixed.py")), "--worker", "--worker-folder", str(folder)]
    os.execv(sys.executable, [*command, "--master-host", host, "--master-port", str(port)])  # noqa: S606 - our own words


def _locustfile(name: str) -> Path:
    """A shipped locustfile: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "locustfiles" / name
    return inside if inside.exists() else package.parent / "locustfiles" / name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _watch(engine: subprocess.Popen[bytes], watch: Watch, on_progress: Callable[[Progress], None]) -> None:
    """Show progress until the engine ends; pass Ctrl-C and SIGTERM on to it."""

    def pass_on(_number: int, _frame: object) -> None:
        engine.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        shown = 0.0
        while engine.poll() is None:
            time.sleep(_POLL_S)
            if time.monotonic() - shown >= 1:
                shown = time.monotonic()
                on_progress(watch.look())
        on_progress(watch.look())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Reads a run's progress from what its workers have written so far."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self._folder = folder
        self._planned = schedule.planned(scenario)
        self._duration_s = scenario.duration_s
        self._tails: dict[int, runlog.Tail] = {}
        self._live = Live()
        self._run: Run | None = None

    def look(self) -> Progress:
        """Where the run stands now."""
        for worker in runlog.workers_of(self._folder):
            tail = self._tails.setdefault(worker, runlog.Tail(runlog.records_path(self._folder, worker)))
            for batch in tail.poll():
                self._live.feed(pa.Table.from_batches([batch]))
        latest: dict[int, Sample] = {s.worker: s for s in runlog.read_samples(self._folder)}
        now = list(latest.values())
        elapsed_s = self._elapsed_s()
        remaining_s = None if self._duration_s is None else max(0.0, self._duration_s - elapsed_s)
        figures = self._live.figures()
        return Progress(
            elapsed_s=elapsed_s,
            remaining_s=remaining_s,
            due=sum(sample.due for sample in now),
            started=sum(sample.started for sample in now),
            in_flight=sum(sample.in_flight for sample in now),
            done=figures.done,
            errors=figures.errors,
            response_p50_s=figures.response_p50_s,
            response_p99_s=figures.response_p99_s,
            ttft_p99_s=figures.ttft_p99_s,
            tokens_per_s=figures.completion_tokens / elapsed_s if elapsed_s > 0 else None,
            note="" if self._run else self._starting(),
        )

    def _starting(self) -> str:
        """What the start waits for, as far as Locust says."""
        log = self._folder / "locust.log"
        last = _tail(log, 1) if log.exists() else ""
        waits = _WAITING.search(last)
        return f"waiting for workers: {waits[1]}" if waits else "starting"

    def _elapsed_s(self) -> float:
        if self._run is None and (self._folder / "run.json").exists():
            self._run = runlog.read_run(self._folder)
        return 0.0 if self._run is None else max(0.0, (time.time_ns() - self._run.start.wall_ns) / 1e9)


def _why(folder: Path, code: int | None) -> str:
    log = folder / "locust.log"
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(_OURS)]
    why = said[-1].removeprefix(_OURS) if said else _tail(log)
    return f"the load generator ended with code {code} before the run began: {why}"


def _tail(path: Path, lines: int = 5) -> str:
    text = path.read_text(errors="replace").strip().splitlines()
    return " | ".join(text[-lines:]) if text else f"{path.name} is empty"


# -- after the run -----------------------------------------------------------------------------------------


def close(folder: Path) -> Manifest:
    """Merge the workers' logs and write the manifest, once; a killed run is closed as such.

    Raises:
        RunLogError: the folder is not a run folder.
    """
    run = runlog.read_run(folder)
    if (folder / "manifest.json").exists() and (folder / "requests.parquet").exists():
        return runlog.read_manifest(folder)
    # Once the engine has ended, a worker that still writes has been given up for lost.
    if runlog.read_end(folder) is None and (writing := runlog.being_written(folder)):
        names = ", ".join(map(str, writing))
        raise RunLogError(f"{folder} is still being written by worker {names}: wait for the run's end")
    table, torn_bytes = runlog.merge(folder)
    ledgers = runlog.read_ledgers(folder)
    end = runlog.read_end(folder)
    claimed = sum(ledger.planned for ledger in ledgers)
    planned = schedule.planned(scenarios.from_builtins(run.scenario))
    manifest = runlog.reconcile(
        ledgers,
        planned=claimed if planned is None else planned,
        rows=len(table),
        stop_reason="killed" if end is None else end.stop_reason,
        torn_bytes=torn_bytes,
        orphans=runlog.orphans(table, ledgers),
        repeated=runlog.repeated(table),
        faults=() if end is None else end.faults,
    )
    runlog.write_json(folder / "manifest.json", manifest)
    return manifest


def judged(folder: Path, thresholds: tuple[str, ...] = (), *, window: str = "") -> RunReport:
    """Compute everything that is said about a closed run.

    Args:
        folder: the run folder; closed first if it was not.
        thresholds: objectives to judge by besides the scenario's, or in place of those they replace there.
        window: the part to judge instead of the scenario's, as `10s,40s`; empty for that.

    Raises:
        RunLogError: the folder is not a run folder.
        ConfigError: an objective or the window cannot be read.
    """
    manifest = close(folder)
    run = runlog.read_run(folder)
    scenario = scenarios.from_builtins(run.scenario)
    records = runlog.read_requests(folder)
    samples = runlog.read_samples(folder)
    telemetry = runlog.read_telemetry(folder)
    wanted = scenarios.override(scenario, thresholds=thresholds).objectives
    objectives = slo_objectives.load(wanted, source=f"run {folder.name}", base=Path.cwd(), given=thresholds)
    measures = measure(records)
    ends_by_the_clock = manifest.stop_reason == "completed" and scenario.count is None
    duration_s = scenario.duration_s if ends_by_the_clock else None
    by_hand = _window(window, scenario) if window else None
    by_scenario = None if scenario.window == "auto" else scenario.window
    part = judged_part(
        measures,
        warm_up_s=float(scenario.warm_up_s),
        duration_s=None if duration_s is None else float(duration_s),
        fixed=by_hand or by_scenario,
        fixed_by="hand" if by_hand else "the scenario",
        mser5=scenario.steady_state == "mser5",
    )
    planned = _planned_within(scenario, part.window)
    validity = validate(
        measures,
        objectives,
        part.window,
        run=run,
        manifest=manifest,
        samples=samples,
        planned=planned,
        telemetry=telemetry,
        budgets=budgets(msgspec.structs.asdict(scenario.budgets)),
    )
    return RunReport(
        run=run,
        summary=summarise(measures, objectives, part.window, planned=planned, window_rule=part.rule),
        verdict=judge(measures, objectives, validity, part.window),
        manifest=manifest,
        samples=samples,
        records=records,
        telemetry=telemetry,
        folder=_short(folder),
        truth=_truth(folder, run, measures, part.window),
        floor=_floor(folder),
        by_hand=(*(f"--threshold {each!r}" for each in thresholds), *([f"--window {window}"] * bool(window))),
    )


def _window(text: str, scenario: Scenario) -> Window:
    """Read a window that is given by hand."""
    try:
        low_s, high_s = map(scenarios.seconds, text.strip("[] ").split(","))
    except ValueError:
        raise ConfigError("--window", "", text, "write from and to, as `10s,40s`") from None
    if low_s >= high_s:
        raise ConfigError("--window", "", text, "must end after it begins")
    if low_s < scenario.warm_up_s:
        remedy = f"must not begin in the warm-up, which takes {scenario.warm_up_s:g} s"
        raise ConfigError("--window", "", text, remedy)
    return float(low_s), float(high_s)


def _floor(folder: Path) -> Floor | None:
    """The noise floor, if the run was calibrated."""
    path = folder / "calibration.json"
    return msgspec.json.decode(path.read_bytes(), type=Floor) if path.exists() else None


def _truth(folder: Path, run: Run, measures: Measures, window: Window) -> Truth | None:
    """The bundled mock's own figures; None for other targets, and where the mock died before its log."""
    path = folder / _TRUTH
    if not run.mock or not path.exists():
        return None
    with path.open("rb") as lines:
        return beside_truth(measures, window, read_truth(lines), zero_ns=run.start.monotonic_ns)


def _planned_within(scenario: Scenario, window: tuple[float, float]) -> int | None:
    """Arrivals that the schedule holds in the window; None in a closed loop."""
    if isinstance(scenario.arrivals, Closed):
        return None
    low_ns, high_ns = (round(edge_s * 1e9) for edge_s in window)
    due_ns = (arrival.due_ns for arrival in schedule.arrivals(scenario))
    return sum(1 for each_ns in due_ns if low_ns <= each_ns < high_ns)


def write_reports(folder: Path, report: RunReport) -> None:
    """Write what people and machines open: the report as HTML, Markdown, JUnit, JSON; the scenario."""
    runlog.write_bytes(folder / "scenario.yaml", scenario_yaml(report.run).encode())
    runlog.write_bytes(folder / "summary.json", machine.to_json(report))
    runlog.write_bytes(folder / "report.md", markdown(report).encode())
    runlog.write_bytes(folder / "junit.xml", junit(report).encode())
    runlog.write_bytes(folder / "report.html", html(report).encode())


def _short(folder: Path) -> str:
    """The folder as the reader would type it."""
    relative = os.path.relpath(folder)
    return relative if not relative.startswith("..") else str(folder)


_FORMS: dict[str, Callable[[RunReport], str]] = {
    "html": html,
    "markdown": markdown,
    "junit": junit,
    "json": lambda report: machine.to_json(report).decode(),
}


def fitted_profile(folder: Path) -> str:
    """A profile of the mock, as a YAML file, that behaves like the run.

    Raises:
        ConfigError: the run has too few finished streams to tell.
    """
    return profile_text(fit(runlog.read_requests(folder), str(folder)), folder.resolve().name)


def rendered(report: RunReport, form: str) -> str:
    """One form of the report as text: `html`, `markdown`, `junit` or `json`."""
    return _FORMS[form](report)
