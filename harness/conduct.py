"""One run from scenario to verdict: start the processes, watch them, close the books, judge.

The load is Locust's, in processes of its own: this process never imports it, so it is never
monkey-patched, and what it computes meanwhile (progress, percentiles) costs the measuring path nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
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
_CONNECTED = re.compile(r"(\d+) workers connected")
_MANY = 1_000_000
"""Arrivals whose schedule takes so long to compute that it is worth a word."""
_LOCUST = (sys.executable, "-m", "locust")


class Remote(msgspec.Struct, frozen=True):
    """Workers on other machines: they come to the master by `harness worker --master HOST`."""

    host: str
    """The address that the master listens on."""
    port: int
    workers: int

    @property
    def joining(self) -> str:
        """The command that brings a worker here."""
        host = _own_address() if self.host in {"*", "0.0.0.0", "::"} else self.host  # noqa: S104 - compared
        return f"harness worker --master {host}:{self.port}"


def check_listen(remote: Remote) -> None:
    """See that a master can listen where its workers are to find it.

    Raises:
        ConfigError: it cannot.
    """
    shown = f"{remote.host}:{remote.port}"
    try:
        host = None if remote.host == "*" else remote.host
        found = socket.getaddrinfo(host, remote.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # a name that is not known is one too
        why = getattr(error, "strerror", None) or "no name of a host"
        remedy = f"nobody can listen there ({why}): give an address of this machine and a free port"
        raise ConfigError("--listen", "", shown, remedy) from error


def check_master(host: str) -> None:
    """See that the name of a master's machine is known: Locust would ask for it again and again.

    Raises:
        ConfigError: it is not.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a host"
        raise ConfigError(
            "--master", "", host, f"is not known here ({why}): give its name or address"
        ) from error


def _own_address() -> str:
    """This machine's address on the way to others, as far as it is known; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # an address of nobody's (RFC 5737)
        address: str = probe.getsockname()[0]
        return address
    return socket.gethostname()


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
        KeyboardInterrupt: Ctrl-C or SIGTERM before anything was sent, and the folder is removed; or once all
            was recorded, and it says where.
    """
    folder = runlog.create(runs, scenario.name, datetime.now(UTC))
    try:
        fill(
            folder,
            scenario,
            workers=workers,
            remote=remote,
            web=web,
            sampled=sampled,
            on_progress=on_progress,
        )
    except KeyboardInterrupt:
        if (folder / "run.json").exists():
            raise KeyboardInterrupt(
                f"interrupted; `harness report {folder}` judges what was recorded"
            ) from None
        shutil.rmtree(folder, ignore_errors=True)
        raise KeyboardInterrupt("interrupted before the run began: nothing was sent") from None
    return folder


def fill(
    folder: Path,
    scenario: Scenario,
    *,
    workers: int = 1,
    remote: Remote | None = None,
    web: bool = False,
    sampled: bool = False,
    disposable: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Run a scenario into a folder that was made for it: see `conduct`.

    Half of a `disposable` run is worth nothing: Ctrl-C ends it at once, without a drain.
    """
    with _target(scenario, folder) as target:
        plan = {
            "scenario": scenarios.to_builtins(scenario),
            "target": target,
            "mock": scenario.target == "mock",
        }
        runlog.write_json(folder / "plan.json", plan)
        watch = Watch(folder, scenario, remote)
        with (folder / "locust.log").open("wb") as log:
            engine = subprocess.Popen(  # noqa: S603 - our own words
                _locust(folder, workers=workers, remote=remote, web=web, sampled=sampled),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone: we pass it on once
            )
        try:
            with contextlib.nullcontext() if disposable else _passed_on(engine, watch):
                _watch(engine, watch, on_progress)
        finally:  # whatever became of us, or of it, no process of its group stays
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
    if (folder / "run.json").exists():
        return
    if watch.interrupts:
        raise KeyboardInterrupt
    raise EngineError(_why(folder, engine.returncode))


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
    """Show progress until the engine ends."""
    shown = 0.0
    while engine.poll() is None:
        time.sleep(_POLL_S)
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            on_progress(watch.look())
    on_progress(watch.look())


@contextmanager
def _passed_on(engine: subprocess.Popen[bytes], watch: Watch) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the engine, which drains, and have the progress say so."""

    def pass_on(_number: int, _frame: object) -> None:
        watch.interrupts += 1
        engine.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Reads a run's progress from what its workers have written so far."""

    def __init__(self, folder: Path, scenario: Scenario, remote: Remote | None = None) -> None:
        self.interrupts = 0
        """How often the user has asked for the end."""
        self._folder = folder
        self._scenario = scenario
        self._remote = remote
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
        figures = self._live.figures()
        started = sum(sample.started for sample in now)
        under_way = sum(sample.in_flight for sample in now)
        dropped = sum(sample.dropped for sample in now)
        return Progress(
            elapsed_s=elapsed_s,
            remaining_s=self._remaining_s(elapsed_s),
            # A worker goes on counting what its schedule has: after the end, nothing is due.
            due=started + dropped if self.interrupts else sum(sample.due for sample in now),
            started=started,
            in_flight=under_way,
            done=figures.done,
            errors=figures.errors,
            response_p50_s=figures.response_p50_s,
            response_p99_s=figures.response_p99_s,
            ttft_p99_s=figures.ttft_p99_s,
            tokens_per_s=figures.completion_tokens / elapsed_s if elapsed_s > 0 else None,
            note=self._note(elapsed_s, under_way, dropped),
        )

    def _remaining_s(self, elapsed_s: float) -> float | None:
        """Until the last arrival; None before the first one, and once the user has ended them."""
        duration_s = self._scenario.duration_s
        if self._run is None or self.interrupts or duration_s is None:
            return None
        return max(0.0, duration_s - elapsed_s)

    def _note(self, elapsed_s: float, under_way: int, dropped: int) -> str:
        if self._run is None:
            return "ending" if self.interrupts else self._starting()
        if (self._folder / "end.json").exists():
            return "all have ended" + (", telemetry is being exported" if self._scenario.telemetry else "")
        if self.interrupts and not under_way:
            return "ending"
        if self.interrupts > 1:
            return f"cutting off {under_way:,} under way"
        if self.interrupts:
            drain_s = f"{self._scenario.drain_s:g} s"
            return f"draining, up to {drain_s}; Ctrl-C again cuts off {under_way:,} under way"
        notes = [f"{dropped:,} dropped for want of an idle virtual user"] if dropped else []
        if under_way and self._remaining_s(elapsed_s) == 0:
            notes.append("no more arrivals; waiting for the last answers")
        return "; ".join(notes)

    def _starting(self) -> str:
        """What the start waits for, as far as it is known."""
        if self._remote is not None and (here := self._connected()) < self._remote.workers:
            waits = f"waiting for workers, {here} of {self._remote.workers} connected"
            return f"{waits}; to join: {self._remote.joining}"
        arrivals = schedule.expected(self._scenario)
        if arrivals is not None and arrivals >= _MANY:
            return f"computing the schedule of some {round(arrivals):,} arrivals"
        return "starting"

    def _connected(self) -> int:
        """Workers that Locust has greeted."""
        log = self._folder / "locust.log"
        said = _CONNECTED.findall(log.read_text(errors="replace")) if log.exists() else []
        return int(said[-1]) if said else 0

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
    orphans = runlog.orphans(table, ledgers)
    claimed = sum(ledger.planned for ledger in ledgers) + sum(arrivals for _, arrivals in orphans.values())
    # The engine has counted its schedule; of a long one, to do so again would take seconds.
    planned = schedule.planned(scenarios.from_builtins(run.scenario)) if end is None else end.planned
    manifest = runlog.reconcile(
        ledgers,
        planned=claimed if planned is None else planned,
        rows=len(table),
        stop_reason="killed" if end is None else end.stop_reason,
        torn_bytes=torn_bytes,
        orphans=orphans,
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
    if by_hand is not None and by_hand[0] >= part.window[1]:
        remedy = f"must not begin after the last arrival, which came at {part.window[1]:g} s"
        raise ConfigError("--window", "", window, remedy)
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
    """Read a window that is given by hand; it is refused where one of the scenario's own would be."""
    try:
        low_s, high_s = map(scenarios.seconds, text.strip("[] ").split(","))
    except ValueError:
        raise ConfigError("--window", "", text, "write from and to, as `10s,40s`") from None
    try:
        asked = msgspec.structs.replace(scenario, window=(low_s, high_s), steady_state="none")
        scenarios.check(asked, "--window")
    except ConfigError as error:
        raise ConfigError("--window", "", text, error.remedy) from None
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
