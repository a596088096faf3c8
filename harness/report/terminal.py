"""The report as text for a terminal: the verdict first, then what it rests on."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.report import facts, numbers
from harness.report.facts import RunReport, printable
from harness.slo.verdict import State

STYLES = {State.PASS: "green", State.FAIL: "red", State.INCONCLUSIVE: "yellow", State.INVALID: "magenta"}
_QUANTILES = ("p50", "p90", "p99")


def terminal(report: RunReport, width: int = 100, *, colour: bool = False) -> str:
    """Lay the report out.

    Args:
        report: what to say.
        width: of the terminal, in characters.
        colour: with ANSI escapes; the words say everything without them too.
    """
    paper = io.StringIO()
    console = Console(
        file=paper,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in _parts(report):
        console.print(part)
    return "\n".join(line.rstrip() for line in paper.getvalue().splitlines()) + "\n"


def _parts(report: RunReport) -> list[RenderableType]:
    return [_banner(report), _objectives(report), _latency(report), _traffic(report), _facts(report)]


def _banner(report: RunReport) -> Panel:
    state = report.verdict.state
    style = STYLES[state]
    early = facts.stopped_early(report.manifest)
    lines = [
        Text(printable(facts.headline(report))),
        *(Text(f"Remedy: {each}", style="bold") for each in facts.remedies(report.verdict)),
    ]
    if early:
        lines.append(Text(early, style="bold"))
    title = Text(f" {state.value} ", style=f"bold reverse {style}")
    name = Text(printable(f" {report.run.name} → {report.run.target} "))
    return Panel(
        Group(*lines),
        title=title,
        title_align="left",
        subtitle=name,
        subtitle_align="left",
        border_style=style,
    )


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        expand=False,
    )
    for column in columns:
        # A word that is cut in two is not read as the verdict it is.
        whole = column in {"verdict", "kind", "measure", "n"}
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=whole
        )
    return table


def _objectives(report: RunReport) -> Table:
    table = _table(
        "Objectives",
        "objective",
        "observed [95 %]",
        "bad / n",
        "shown",
        "allowed",
        "verdict",
        "needed",
        right=("observed [95 %]", "bad / n", "shown", "allowed"),
    )
    for row in facts.objective_rows(report.verdict):
        state = Text(row.state.value, style=f"bold {STYLES[row.state]}")
        table.add_row(
            printable(row.expression), row.observed, row.bad, row.bound, row.allowed, state, row.needed
        )
    return table


def _latency(report: RunReport) -> Table:
    names = [name.upper() for name in _QUANTILES]
    table = _table(
        "Latency [95 % interval]", "kind", "measure", *names, "max", "n", right=(*names, "max", "n")
    )
    before = ""
    for row in facts.latency_rows(report):
        if before and row.kind != before:
            table.add_section()
        quantiles = [row.quantiles.get(name, numbers.NONE) for name in _QUANTILES]
        table.add_row("" if row.kind == before else row.kind, row.measure, *quantiles, row.maximum, row.n)
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
    if report.folder:
        table.add_row("Files", f"{report.folder}/report.html, summary.json, junit.xml, requests.parquet")
    return table
