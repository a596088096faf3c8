"""The report as text for a terminal: the verdict first, then what it rests on."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.report import facts, numbers
from harness.report.facts import Remedy, RunReport, printable
from harness.report.tables import printed
from harness.slo.verdict import State

STYLES = {State.PASS: "green", State.FAIL: "red", State.INCONCLUSIVE: "yellow", State.INVALID: "magenta"}
_QUANTILES = ("p50", "p90", "p99")
_ROOM_FOR_INTERVALS = 100
"""Characters below which the latencies' intervals would be a thicket; summary.json has them."""


def terminal(report: RunReport, width: int = 100, *, colour: bool = False) -> str:
    """Lay the report out.

    Args:
        report: what to say.
        width: of the terminal, in characters.
        colour: with ANSI escapes; the words say everything without them too.
    """
    return printed(_parts(report, width), width=width, colour=colour)


def _parts(report: RunReport, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = [_banner(report), _objectives(report)]
    if report.summary.total.errors:
        parts.append(_errors(report))
    if facts.latency_rows(report):
        parts.append(_latency(report, intervals=width >= _ROOM_FOR_INTERVALS))
    if report.truth:
        parts.append(_truth(report))
    return [*parts, _traffic(report), _facts(report)]


def _banner(report: RunReport) -> Panel:
    state = report.verdict.state
    style = STYLES[state]
    lines = [
        Text(printable(facts.headline(report))),
        *(_remedy(each) for each in facts.remedies(report.verdict)),
        *(Text(printable(each), style="bold") for each in facts.caveats(report)),
    ]
    title = Text(f" {state.value} ", style=f"bold reverse {style}")
    if marks := facts.marks(report):
        title.append(f" {marks} ", style="not reverse")
    name = Text(printable(f" {report.run.name} → {report.run.target} "))
    return Panel(
        Group(*lines),
        title=title,
        title_align="left",
        subtitle=name,
        subtitle_align="left",
        border_style=style,
    )


def _remedy(remedy: Remedy) -> Text:
    action = (f" Remedy: {remedy.action}", "bold") if remedy.action else ""
    return Text.assemble(" ".join(map(printable, remedy.causes)), action)


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        # A word that is cut in two is not read as the verdict it is.
        whole = column in {"verdict", "kind", "measure", "n"}
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=whole
        )
    return table


def _objectives(report: RunReport) -> Table:
    rows = facts.objective_rows(report)
    undecided = any(row.needed for row in rows)
    right = ("observed", "bad / n", "shown", "allowed", "still needed")
    columns = ["objective", "observed", "bad / n", "shown", "allowed", "verdict"]
    table = _table("Objectives [95 % interval]", *columns, *["still needed"] * undecided, right=right)
    for row in rows:
        state = Text(row.state.value, style=f"bold {STYLES[row.state]}")
        cells = [printable(row.expression), row.observed, row.bad, row.bound, row.allowed]
        table.add_row(*cells, state, *[row.needed] * undecided)
    return table


def _errors(report: RunReport) -> Table:
    table = _table("Errors", "n", "error", right=("n",))
    for n, text in facts.error_rows(report.summary.total):
        table.add_row(n, printable(text))
    return table


def _latency(report: RunReport, *, intervals: bool) -> Table:
    names = [name.upper() for name in _QUANTILES]
    title = "Latency [95 % interval]" if intervals else "Latency"
    table = _table(title, "kind", "measure", *names, "max", "n", right=(*names, "max", "n"))
    before = ""
    for row in facts.latency_rows(report):
        if before and row.kind != before:
            table.add_section()
        cells = [row.quantiles.get(name, numbers.NONE) for name in _QUANTILES]
        quantiles = cells if intervals else [cell.partition(" [")[0] for cell in cells]
        table.add_row("" if row.kind == before else row.kind, row.measure, *quantiles, row.maximum, row.n)
        before = row.kind
    return table


def _truth(report: RunReport) -> Table:
    names = ("P50", "truth", "P99", "truth ", "error P50", "error P99", "n")
    table = _table("Beside the mock's truth log", "kind", "measure", *names, right=names)
    before = ""
    for row in facts.truth_rows(report):
        if before and row.kind != before:
            table.add_section()
        figures = (row.p50, row.true_p50, row.p99, row.true_p99, row.error_p50, row.error_p99, row.n)
        table.add_row("" if row.kind == before else row.kind, row.measure, *figures)
        before = row.kind
    return table


def _traffic(report: RunReport) -> Table:
    right = ("rate", "goodput", "tokens", "errors", "n")
    table = _table("Traffic", "kind", *right, "outcomes", right=right)
    for group in facts.groups(report.summary):
        table.add_row(
            group.kind,
            numbers.quantity(group.rate.value, group.rate.unit),
            numbers.quantity(group.goodput.value, group.goodput.unit),
            numbers.quantity(group.tokens_per_s.value, group.tokens_per_s.unit),
            numbers.quantity(group.error_rate.value, group.error_rate.unit),
            numbers.count(group.requests),
            facts.outcomes_line(group),
        )
    return table


def _facts(report: RunReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("Judged", facts.window_line(report.summary))
    table.add_row("Instrument", facts.instrument_line(report.verdict))
    table.add_row("Ledger", facts.ledger_line(report.manifest))
    table.add_row("Telemetry", facts.telemetry_line(report.telemetry))
    if report.floor is not None:
        table.add_row("Noise floor", facts.floor_line(report.floor))
    if report.truth is not None:
        table.add_row("Truth", facts.truth_line(report.truth))
    if report.folder:
        table.add_row("Files", facts.files_line(report))
    return table
