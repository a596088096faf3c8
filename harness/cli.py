"""The command line: one function a verb; stdout is the product, stderr the progress.

Exit codes: 0 PASS, 1 FAIL, 2 bad usage or configuration, or a file that cannot be read or written,
3 INCONCLUSIVE, 4 INVALID, 70 a bug of ours (EX_SOFTWARE of sysexits.h), 130 interrupted before there was a
verdict (128 + SIGINT, as shells say). Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, TypedDict

import click

from harness import __version__
from harness.errors import ConfigError, HarnessError
from harness.mock.command import mock

if TYPE_CHECKING:
    from harness.calibrate import Trial
    from harness.conduct import Remote
    from harness.report.facts import RunReport
    from harness.report.progress import Progress

_PLAIN_EVERY_S = 5.0
_THRESHOLD = (
    "An objective: `ttft: p(99) < 500ms`. It replaces the scenario's with the same left side, or is added. "
    "May be repeated."
)
_EXIT_CODES = (
    "Exit codes: 0 PASS, 1 FAIL, 2 bad usage or configuration, 3 INCONCLUSIVE, 4 INVALID, "
    "70 a bug of the harness, 130 interrupted before there was a verdict."
)
_BUG, _INTERRUPTED = 70, 130
_LISTEN = "127.0.0.1:5557"
_FOLDER = click.Path(file_okay=False, path_type=Path)
_RUN = click.Path(exists=True, file_okay=False, path_type=Path)


class _Verbs(click.Group):
    """A group whose verbs may raise what the exit codes above are for: a line on stderr for each mistake."""

    def invoke(self, ctx: click.Context) -> object:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that knows no `≥` still shows the verdict
        try:
            return super().invoke(ctx)
        except HarnessError as error:
            for each in (error, *(error.others if isinstance(error, ConfigError) else ())):
                _tell(f"harness: {each}")
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            _tell(f"harness: {str(stop) or 'interrupted'}")
            ctx.exit(_INTERRUPTED)
        except OSError as error:
            _close(sys.stdout)
            where = f"{error.filename}: " if error.filename else ""
            _tell(f"harness: {where}{error.strerror or error}")
            ctx.exit(2)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception:  # noqa: BLE001 - as Python would show it, but for its exit code, which says FAIL
            _tell(f"{traceback.format_exc()}harness: this is a bug: please report it, with the lines above")
            ctx.exit(_BUG)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="harness")
def main() -> None:
    """Load-test LLM HTTP APIs, and tell the truth about them."""


@main.command(short_help="Run a scenario, judge it, and report.")
@click.argument("scenario_file", metavar="[SCENARIO]", required=False)
@click.option("--target", metavar="mock|URL", help="What to load: the bundled mock, or an API's base URL.")
@click.option(
    "--slo", "slo_file", type=click.Path(dir_okay=False), help="Objectives: an OpenSLO v1 file (YAML)."
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="TEXT",
    help=_THRESHOLD,
)
@click.option("--users", type=click.IntRange(min=1), help="Virtual users: the most arrivals in flight.")
@click.option("--rate", type=float, help="Arrivals per second.")
@click.option("--duration", metavar="TIME", help="How long arrivals go on: `30s`, `5m`.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many arrivals.")
@click.option("--seed", type=int, help="Same seed and scenario: the same requests at the same times.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that carry the load.",
)
@click.option(
    "--remote",
    type=click.IntRange(min=1),
    help="Wait for this many `harness worker`s instead; with a mock, on loopback only.",
)
@click.option("--listen", metavar="HOST:PORT", help=f"Where they find this run.  [default: {_LISTEN}]")
@click.option("--web", is_flag=True, help="Serve Locust's web UI on loopback meanwhile.")
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    show_default=True,
    help="First measure the harness's own error at this load, against the mock: some ten seconds.",
)
@click.option("--no-telemetry", is_flag=True, help="Make no spans and metrics.")
@click.option(
    "--runs",
    type=_FOLDER,
    default=Path("runs"),
    show_default=True,
    help="Where the run folder is made.",
)
def run(
    scenario_file: str | None,
    target: str | None,
    slo_file: str | None,
    thresholds: tuple[str, ...],
    users: int | None,
    rate: float | None,
    duration: str | None,
    count: int | None,
    seed: int | None,
    workers: int,
    remote: int | None,
    listen: str | None,
    web: bool,
    calibrate: bool,
    no_telemetry: bool,
    runs: Path,
) -> None:
    """Run a scenario and judge it; without one, a 30-second mix against the bundled mock.

    SCENARIO is a YAML file (`harness scenario` says more), or the name of a shipped one: default, smoke,
    deepseek, stream-heavy, ramp, steps, sine, bursts, sessions, mooncake, closed.

    The API's key is read from HARNESS_API_KEY (or DEEPSEEK_API_KEY, OPENAI_API_KEY), in the
    environment or in a `.env` file; never from a flag.
    """
    _heed_signals()
    import msgspec
    from dotenv import find_dotenv, load_dotenv

    from harness import calibrate as calibration
    from harness import conduct, preflight, runlog
    from harness.client.target import api_key, key_variables
    from harness.report.facts import floor_line
    from harness.workload import scenario as scenarios

    load_dotenv(find_dotenv(usecwd=True))
    scenario = scenarios.override(
        scenarios.load(Path(scenario_file) if scenario_file else None),
        target=target,
        users=users,
        rate=rate,
        duration=duration,
        count=count,
        seed=seed,
        thresholds=(*thresholds, *((slo_file,) if slo_file else ())),
    )
    if no_telemetry:
        scenario = msgspec.structs.replace(scenario, telemetry=False)
    preflight.check(scenario, scenario_file or f"scenario {scenario.name!r}", given=thresholds)
    elsewhere = _remote(remote, listen, workers)
    if elsewhere is not None:
        conduct.check_listen(elsewhere)
    runlog.check_root(runs)
    if scenario.target.startswith("https:") and not api_key(scenario.target, os.environ):
        names = " or ".join(key_variables(scenario.target))
        _tell(f"harness: no API key: set {names} in the environment or in .env")
    if web:
        _tell("harness: Locust's web UI is at http://127.0.0.1:8089")
    floor = None
    if calibrate:
        _tell("harness: measuring the harness's own error first; --no-calibrate skips it")
        floor = calibration.beforehand(scenario, workers=workers, remote=remote or 0)
        if floor.why_not:
            _tell(f"harness: noise floor: {floor_line(floor)}")
    with _shown_progress() as show:
        folder = conduct.conduct(
            scenario, runs=runs, workers=workers, remote=elsewhere, web=web, on_progress=show
        )
    _tell(f"harness: judging {folder}")
    try:
        if floor is not None:
            calibration.keep(floor, folder)
        report = conduct.judged(folder)
        conduct.write_reports(folder, report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; `harness report {folder}` judges what was recorded") from None
    _finish(report)


def _remote(workers: int | None, listen: str | None, local: int) -> Remote | None:
    """The workers on other machines, if there are to be any."""
    from harness.conduct import Remote

    if workers is None:
        if listen is not None:
            raise ConfigError("--listen", "", listen, "give --remote too: nobody is waited for")
        return None
    if local > 1:
        raise ConfigError("--workers", "", local, "with --remote, all workers are elsewhere: leave it out")
    return Remote(*_address("--listen", listen or _LISTEN), workers)


def _heed_signals() -> None:
    """Have SIGTERM end this process as Ctrl-C does, with all that it has started.

    Both are set: what a shell starts in the background ignores SIGINT.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@main.command(short_help="Judge a recorded run again; print one form of the report.")
@click.argument("folder", metavar="[RUN]", type=_RUN, required=False)
@click.option(
    "--runs", type=_FOLDER, default=Path("runs"), show_default=True, help="Where the newest is looked for."
)
@click.option("--threshold", "thresholds", multiple=True, metavar="TEXT", help=_THRESHOLD)
@click.option("--window", metavar="FROM,TO", default="", help="Judge this part instead: `10s,40s`.")
@click.option("--html", is_flag=True, help="Print the page.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@click.option("--junit", is_flag=True, help="Print JUnit XML.")
@click.option("--json", is_flag=True, help="Print summary.json.")
def report(folder: Path | None, runs: Path, thresholds: tuple[str, ...], window: str, **forms: bool) -> None:
    """Judge a recorded run again, from its records; print one form of the report.

    RUN is a run folder; without it, the newest run below ./runs is taken, and named on stderr.

    Without a form, the reports in the run folder are written anew and the table is printed. With
    --threshold or --window the verdict is marked as one by hand, and the files are left as they are:
    `--html > FILE` keeps it. A run that was killed is closed first: what reached the disk is judged, as
    INVALID.
    """
    from harness import conduct

    asked = [form for form, wanted in forms.items() if wanted]
    if len(asked) > 1:
        raise click.UsageError(f"give one of {' and '.join(f'--{form}' for form in asked)}")
    folder = folder or _newest(runs)
    judged = conduct.judged(folder, thresholds, window=window)
    if not asked:
        if not judged.by_hand:
            conduct.write_reports(folder, judged)
        _finish(judged)
    _print(conduct.rendered(judged, asked[0]).encode())  # UTF-8, as these forms say of themselves
    sys.exit(judged.verdict.exit_code)


def _newest(runs: Path) -> Path:
    """The run that began last, by its folder's name; a calibration and a profile have tables of their own."""
    found = sorted(
        header.parent
        for header in runs.glob("*/run.json")
        if not header.parent.name.endswith("-calibration") and not header.with_name("ticks.json").exists()
    )
    if not found:
        raise ConfigError("RUN", "", None, f"there is no run below {runs}; give the folder of one")
    _tell(f"harness: RUN is {found[-1]}, the newest below {runs}")
    return found[-1]


@main.command(short_help="Look for what would make a run worthless.")
@click.argument("scenario_file", metavar="[SCENARIO]", required=False)
@click.option("--target", metavar="mock|URL", help="What to examine. Default: the scenario's target.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(scenario_file: str | None, target: str | None, as_json: bool) -> None:
    """Look for what would make a run worthless, in ten seconds and at most 20 requests.

    Name, connections, TLS, key, models, a tiny completion, streaming, clocks, this machine's limits; each
    with a remedy. Exit code 1 if a check failed. With a SCENARIO, its models and its batches are asked for.
    """
    import msgspec
    from dotenv import find_dotenv, load_dotenv

    from harness import doctor as surgery
    from harness.client.target import api_key, parse
    from harness.mock.process import mock_process
    from harness.report.tables import tables
    from harness.workload import scenario as scenarios

    load_dotenv(find_dotenv(usecwd=True))
    scenario = scenarios.load(Path(scenario_file) if scenario_file else None)
    url = target or scenario.target
    given = scenario_file is not None
    with ExitStack() as stack:
        show = stack.enter_context(_shown_question())
        if url == "mock":
            show("the mock to start")
            url = stack.enter_context(mock_process("--profile", "demo")).url
        examined = parse(url, key=api_key(url, os.environ))
        findings = list(surgery.examine(examined, scenario, os.environ, given=given, on_ask=show))
    if as_json:
        _print(msgspec.json.format(msgspec.json.encode(findings), indent=2) + b"\n")
    else:
        sheet = surgery.sheet(examined.url, findings)
        _print(tables([sheet], **_paper(), styles=surgery.STYLES))
    sys.exit(surgery.exit_code(findings))


@main.command(short_help="Say where the load generator's CPU time goes.")
@click.argument("scenario_file", metavar="[SCENARIO]", required=False)
@click.option("--target", metavar="mock|URL", help="What to load: the bundled mock, or an API's base URL.")
@click.option("--rate", type=float, help="Arrivals per second.")
@click.option("--seconds", type=click.FloatRange(min=1), default=10.0, show_default=True, help="How long.")
@click.option(
    "--runs", type=_FOLDER, default=Path("runs"), show_default=True, help="Where the run folder is made."
)
def profile(
    scenario_file: str | None, target: str | None, rate: float | None, seconds: float, runs: Path
) -> None:
    """Say where the load generator's CPU time goes, by phase and by function.

    Runs the scenario for a short time under a sampling profiler, and measures the way to the target and
    what JSON costs. profile.json and profile.prof (for pstats, snakeviz) are left in the run folder.
    Exit code 1 if the target gave no answer on the way, or not one attempt succeeded.
    """
    from dotenv import find_dotenv, load_dotenv

    from harness import profiling
    from harness.report.tables import tables
    from harness.workload import scenario as scenarios

    load_dotenv(find_dotenv(usecwd=True))
    loaded = scenarios.load(Path(scenario_file) if scenario_file else None)
    scenario = scenarios.override(loaded, target=target, rate=rate)
    _tell("harness: measuring the way to the target first, for 15 s at most")
    with _shown_progress() as show:
        found, folder = profiling.profile(scenario, runs, os.environ, seconds=seconds, on_progress=show)
    _print(tables(profiling.sheets(found), **_paper()))
    _print(f"\nFiles  {folder}/profile.json, profile.prof, ticks.json\n")
    sys.exit(profiling.exit_code(found))


@main.command(short_help="Measure the harness's own error at a scenario's load.")
@click.argument("scenario_file", metavar="[SCENARIO]", required=False)
@click.option("--rate", type=float, help="Arrivals per second.")
@click.option("--users", type=click.IntRange(min=1), help="Virtual users.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option(
    "--seconds", type=click.FloatRange(min=2), default=5.0, show_default=True, help="How long at least."
)
@click.option("--limits", is_flag=True, help="Search the highest rate and stream count too: some minutes.")
@click.option(
    "--runs", type=_FOLDER, default=Path("runs"), show_default=True, help="Where the run folder is made."
)
def calibrate(
    scenario_file: str | None,
    rate: float | None,
    users: int | None,
    workers: int,
    seconds: float,
    limits: bool,
    runs: Path,
) -> None:
    """Measure the harness's own error at a scenario's planned load, against the mock's truth log.

    What is below three times that error cannot be resolved on this machine at this load. Ctrl-C ends it, and
    leaves nothing of what was not yet measured.
    """
    _heed_signals()
    from harness import calibrate as calibration
    from harness import preflight, runlog
    from harness.report.tables import tables
    from harness.workload import scenario as scenarios

    loaded = scenarios.load(Path(scenario_file) if scenario_file else None)
    scenario = scenarios.override(loaded, rate=rate, users=users)
    preflight.check(scenario, scenario_file or f"scenario {scenario.name!r}")
    runlog.check_root(runs)
    with _shown_progress() as show:
        floor = calibration.calibrate(scenario, runs, workers=workers, seconds=seconds, on_progress=show)
    _print(tables(calibration.sheets(floor), **_paper()))
    if limits:
        found = calibration.limits(scenario, on_trial=_shown_trial)
        runlog.write_json(runs / floor.run / "limits.json", found)
        _print("\n" + tables([calibration.limit_sheet(found)], **_paper()))
    _print(f"\nFiles  {runs / floor.run}/calibration.json{', limits.json' if limits else ''}\n")


main.add_command(mock)


@mock.command("fit", short_help="Print a profile that behaves like a recorded run.")
@click.argument("folder", metavar="RUN", type=_RUN)
def mock_fit(folder: Path) -> None:
    """Print a latency profile that makes the mock behave like a recorded run: `… > mine.yaml`."""
    from harness import conduct

    _print(conduct.fitted_profile(folder).encode())


@main.command(short_help="Carry a share of a run that another machine conducts.")
@click.option("--master", required=True, metavar="HOST[:PORT]", help="Where `harness run --remote` listens.")
@click.option(
    "--runs", type=_FOLDER, default=Path("runs"), show_default=True, help="Where its own copy stays."
)
def worker(master: str, runs: Path) -> None:
    """Carry a share of a run that another machine conducts; the records are sent there as they come."""
    from harness import conduct, runlog

    host, port = _address("--master", master)
    conduct.check_master(host)
    runlog.check_root(runs)
    conduct.work(host, port, runs)


@main.group(short_help="Check scenario files; print their schema.")
def scenario() -> None:
    """Scenario files: what to send, when, to whom, and what must hold.

    They are YAML; docs/scenarios.md says what every key means. Whatever verb takes a SCENARIO takes a file,
    or the name of a shipped one: `harness scenario check smoke > mine.yaml` begins a file of your own.
    """


@scenario.command("schema")
def scenario_schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    import msgspec

    from harness.workload.scenario import schema

    _print(msgspec.json.format(msgspec.json.encode(schema()), indent=2) + b"\n")


@scenario.command("check", short_help="Print a file whole, or all that is wrong with it.")
@click.argument("scenario_file", metavar="SCENARIO")
def scenario_check(scenario_file: str) -> None:
    """Read a scenario file and print it whole, defaults filled in; exit code 2 if it has a mistake."""
    import yaml

    from harness import preflight
    from harness.workload import scenario as scenarios

    checked = scenarios.load(Path(scenario_file))
    preflight.check(checked, scenario_file)
    _print(yaml.safe_dump(scenarios.to_builtins(checked), sort_keys=False, allow_unicode=True).encode())


@main.command(hidden=True)
@click.argument("folder", metavar="RUN", type=_RUN)
def emit(folder: Path) -> None:
    """Make spans and metrics from a run's records, as the OTEL_* variables say, until it has ended."""
    from harness.follow import follow

    follow(folder, os.environ, ready=lambda: click.echo("ready"))


@contextmanager
def _shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr: a live panel on a terminal, else a plain line every few seconds."""
    from rich.console import Console
    from rich.live import Live

    from harness.report import progress

    if not _obeys_escapes(sys.stderr):
        yield _plain_progress(progress.line)
        return
    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        yield lambda now: live.update(progress.live(now))


@contextmanager
def _shown_question() -> Iterator[Callable[[str], None]]:
    """What is asked for now, on stderr while it lasts; nothing where that is no terminal."""
    from rich.console import Console

    if not _obeys_escapes(sys.stderr):
        yield lambda _: None
        return
    with Console(stderr=True).status("harness doctor") as status:
        yield lambda what: status.update(f"asking for {what} …")


def _plain_progress(line: Callable[[Progress], str]) -> Callable[[Progress], None]:
    shown_s = -math.inf

    def show(now: Progress) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= _PLAIN_EVERY_S:
            shown_s = time.monotonic()
            _tell(line(now))

    return show


def _address(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "5557")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(flag, "", text, "write HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _shown_trial(what: str, trial: Trial) -> None:
    _tell(f"{what} {trial.load:,}: {trial.cause or 'within budget'}")


def _tell(text: str) -> None:
    """A line on stderr, for as long as somebody reads it: nothing that is said there is worth a run."""
    try:
        click.echo(text, err=True)
    except OSError:
        _close(sys.stderr)


def _print(text: str | bytes) -> None:
    """Something on stdout; a reader who has gone, like `head`, has had enough, and all else is an error."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        _close(sys.stdout)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


def _close(stream: TextIO) -> None:
    """Let what is left in a stream that takes nothing go nowhere: at the exit, Python would try it again."""
    try:
        stream.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class _Paper(TypedDict):
    width: int
    colour: bool


def _paper() -> _Paper:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return {"width": width, "colour": _obeys_escapes(sys.stdout)}


def _obeys_escapes(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}


def _finish(report: RunReport) -> NoReturn:
    from harness.report.terminal import terminal

    _print(terminal(report, **_paper()))
    sys.exit(report.verdict.exit_code)
