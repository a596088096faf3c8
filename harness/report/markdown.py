"""The report as GitHub-flavoured Markdown, short enough for a pull request's comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.report import facts, numbers
from harness.report.facts import RunReport

_QUANTILES = ("p50", "p90", "p99")
# Everything that Markdown or HTML could take for markup, and the bar that ends a table's cell.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&@!])")


def markdown(report: RunReport) -> str:
    """Lay the report out; texts from the run are escaped."""
    marks = facts.marks(report)
    parts = [
        f"## {report.verdict.state}{f' ({marks})' if marks else ''}: {_plain(report.run.name)}",
        _plain(facts.headline(report)),
        "\n".join(f"- {_plain(facts.remedy_line(each))}" for each in facts.remedies(report.verdict)),
        *(f"**{_plain(each)}**" for each in facts.caveats(report)),
        "### Objectives",
        _objectives(report),
        "### Errors" if report.summary.total.errors else "",
        _errors(report) if report.summary.total.errors else "",
        "### Latency" if facts.latency_rows(report) else "",
        _latency(report) if facts.latency_rows(report) else "",
        "### Beside the mock's truth log" if report.truth else "",
        _truth(report) if report.truth else "",
        "<details><summary>Traffic, instrument and how to repeat it</summary>",
        _traffic(report),
        _list(report),
        "</details>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(report: RunReport) -> str:
    run = report.run
    lines = {
        "Judged": facts.window_line(report.summary),
        "Instrument": facts.instrument_line(report.verdict),
        "Ledger": facts.ledger_line(report.manifest),
        "Telemetry": facts.telemetry_line(report.telemetry),
        "Run": f"{run.run_id}, target {run.target}",
        "Commit": facts.commit_line(run),
        "To repeat it": facts.repeat_command(report),
    }
    if report.floor is not None:
        lines["Noise floor"] = facts.floor_line(report.floor)
    if report.truth is not None:
        lines["Truth"] = facts.truth_line(report.truth)
    return "\n".join(f"- **{name}**: {_plain(line)}" for name, line in lines.items())


def _objectives(report: RunReport) -> str:
    rows = (
        (row.expression, f"**{row.state}**", row.observed, row.bad, row.bound, row.allowed, row.needed)
        for row in facts.objective_rows(report)
    )
    header = ("objective", "verdict", "observed [95 %]", "bad / n", "shown", "allowed", "still needed")
    return _table(header, "ll rrrr r", rows, plain={1})


def _errors(report: RunReport) -> str:
    return _table(("n", "error"), "rl", facts.error_rows(report.summary.total))


def _latency(report: RunReport) -> str:
    rows = (
        (row.kind, row.measure, *(row.quantiles.get(q, numbers.NONE) for q in _QUANTILES), row.maximum, row.n)
        for row in facts.latency_rows(report)
    )
    return _table(("kind", "measure", "P50", "P90", "P99", "max", "n"), "ll rrrrr", rows)


def _truth(report: RunReport) -> str:
    header = ("kind", "measure", "P50", "truth", "P99", "truth", "error P50", "error P99", "n")
    rows = (
        (
            row.kind,
            row.measure,
            row.p50,
            row.true_p50,
            row.p99,
            row.true_p99,
            row.error_p50,
            row.error_p99,
            row.n,
        )
        for row in facts.truth_rows(report)
    )
    return _table(header, "ll rrrrrrr", rows)


def _traffic(report: RunReport) -> str:
    rows = (
        (
            group.kind,
            numbers.figure_text(group.rate),
            numbers.figure_text(group.goodput),
            numbers.figure_text(group.tokens_per_s),
            numbers.figure_text(group.error_rate),
            numbers.count(group.requests),
            facts.outcomes_line(group),
        )
        for group in facts.groups(report.summary)
    )
    return _table(("kind", "rate", "goodput", "tokens", "errors", "n", "outcomes"), "l rrrrr l", rows)


def _table(
    header: Sequence[str],
    alignment: str,
    rows: Iterable[Sequence[str]],
    plain: frozenset[int] | set[int] = frozenset(),
) -> str:
    rule = [{"l": ":--", "r": "--:"}[side] for side in alignment.replace(" ", "")]
    lines = [_line(header), _line(rule)]
    lines += [_line([cell if at in plain else _plain(cell) for at, cell in enumerate(row)]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
