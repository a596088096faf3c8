"""The report as text for a terminal: the verdict first, then what it rests on."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.report import facts, numbers
from harness.report.facts import Remedy, RunReport, printable
from harness.report.tables import Sheet, fitted, kept, lines, printed
from harness.slo.verdict import State

STYLES: dict[str, str] = {
    State.PASS: "bold green",
    State.FAIL: "bold red",
    State.INCONCLUSIVE: "bold yellow",
    State.INVALID: "bold magenta",
}
_QUANTILES = ("p50", "p90", "p99")
_NAMES = tuple(name.upper() for name in _QUANTILES)
_ROOM_FOR_LABELS = 60
"""Characters below which what a sentence is about stands above it, not beside it."""


def terminal(report: RunReport, width: int = 100, *, colour: bool = False) -> str:
    """Lay the report out.

    Args:
        report: what to say.
        width: of the terminal, in characters.
        colour: with ANSI escapes; the words say everything without them too.
    """
    sheets = [_objectives(report), _errors(report), _latency(report), _truth(report), _traffic(report)]
    laid_out = [fitted(*each, width=width, styles=STYLES) for each in sheets if each[0].rows]
    return printed([_banner(report, width), *laid_out, _facts(report, width)], width=width, colour=colour)


def _banner(report: RunReport, width: int) -> Panel:
    state = report.verdict.state
    said = [
        Text(kept(facts.headline(report))),
        *(_remedy(each) for each in facts.remedies(report.verdict)),
        *(Text(kept(each), style="bold") for each in facts.caveats(report)),
    ]
    title = Text(f" {state.value} ", style=f"reverse {STYLES[state]}")
    if marks := facts.marks(report):
        title.append(f" {marks} ", style="not reverse")
    name = printable(f" {report.run.name} → {report.run.target} ")
    beneath = cell_len(name) <= width - 6  # a panel cuts off what its border has no room for
    return Panel(
        Group(*said, *([] if beneath else [Text(name.strip(), overflow="fold")])),
        title=title,
        title_align="left",
        subtitle=Text(name) if beneath else None,
        subtitle_align="left",
        border_style=STYLES[state].removeprefix("bold "),
    )


def _remedy(remedy: Remedy) -> Text:
    action = (kept(f" Remedy: {remedy.action}"), "bold") if remedy.action else ""
    return Text.assemble(" ".join(map(kept, remedy.causes)), action)


def _objectives(report: RunReport) -> tuple[Sheet, ...]:
    found = facts.objective_rows(report)
    undecided = any(row.needed for row in found)
    rows = [
        (row.expression, row.state.value, row.observed, row.bad, row.bound, row.allowed, row.needed)
        for row in found
    ]
    right = ("observed", "bad / n", "shown", "allowed", "still needed")
    columns = ("objective", "verdict", *right)
    return (
        Sheet(
            "Objectives [95 % interval]",
            columns if undecided else columns[:-1],
            rows if undecided else [row[:-1] for row in rows],
            right=right,
            lead=2,
            spare=(("allowed",),),  # the objective says it too
        ),
    )


def _errors(report: RunReport) -> tuple[Sheet, ...]:
    return (Sheet("Errors", ("n", "error"), facts.error_rows(report.summary.total), right=("n",)),)


def _latency(report: RunReport) -> tuple[Sheet, ...]:
    """With the quantiles' intervals where there is room for them: summary.json has them in any case."""
    rows = facts.latency_rows(report)

    def sheet(title: str, *, intervals: bool) -> Sheet:
        cells = [[row.quantiles.get(name, numbers.NONE) for name in _QUANTILES] for row in rows]
        bare = [[cell.partition(" [")[0] for cell in each] for each in cells]
        return Sheet(
            title,
            ("kind", "measure", *_NAMES, "max", "n"),
            [
                (row.kind, row.measure, *quantiles, row.maximum, row.n)
                for row, quantiles in zip(rows, cells if intervals else bare, strict=True)
            ],
            right=(*_NAMES, "max", "n"),
            lead=2,
            spare=(("max",), ("P90",)),
            grouped=True,
        )

    return sheet("Latency [95 % interval]", intervals=True), sheet("Latency", intervals=False)


def _truth(report: RunReport) -> tuple[Sheet, ...]:
    names = ("P50", "true P50", "P99", "true P99", "error P50", "error P99", "n")
    rows = [
        (
            *(row.kind, row.measure, row.p50, row.true_p50, row.p99, row.true_p99),
            *(row.error_p50, row.error_p99, row.n),
        )
        for row in facts.truth_rows(report)
    ]
    return (
        Sheet(
            "Beside the mock's truth log",
            ("kind", "measure", *names),
            rows,
            right=names,
            lead=2,
            spare=(("P50", "P99"), ("n",), ("true P50", "true P99")),  # its own stand above
            grouped=True,
        ),
    )


def _traffic(report: RunReport) -> tuple[Sheet, ...]:
    right = ("rate", "goodput", "tokens", "errors", "n")
    rows = [
        (
            group.kind,
            numbers.quantity(group.rate.value, group.rate.unit),
            numbers.quantity(group.goodput.value, group.goodput.unit),
            numbers.quantity(group.tokens_per_s.value, group.tokens_per_s.unit),
            numbers.quantity(group.error_rate.value, group.error_rate.unit),
            numbers.count(group.requests),
            facts.outcomes_line(group),
        )
        for group in facts.groups(report.summary)
    ]
    return (
        Sheet("Traffic", ("kind", *right, "outcomes"), rows, right=right, spare=(("goodput",), ("rate",))),
    )


def _facts(report: RunReport, width: int) -> RenderableType:
    said = [
        ("Judged", facts.window_line(report.summary)),
        ("Instrument", facts.instrument_line(report.verdict)),
        ("Ledger", facts.ledger_line(report.manifest)),
        ("Telemetry", facts.telemetry_line(report.telemetry)),
    ]
    if report.floor is not None:
        said.append(("Noise floor", facts.floor_line(report.floor)))
    if report.truth is not None:
        said.append(("Truth", facts.truth_line(report.truth)))
    if report.folder:
        said.append(("Files", facts.files_line(report)))
    if width < _ROOM_FOR_LABELS:
        return lines(Sheet("", ("", ""), said), {label: "bold" for label, _ in said})
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, line in said:
        table.add_row(label, kept(line))
    return table
