"""What is shown while a run is under way: one snapshot, as a line of text or as a live table."""

from __future__ import annotations

import msgspec
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.report import numbers


class Progress(msgspec.Struct, frozen=True):
    """The run at one moment. Counts are since the start; percentiles are of all requests so far."""

    elapsed_s: float
    remaining_s: float | None
    """Until the last arrival; None where that is not known: a count of arrivals, a trace, a run that has not
    begun or is being ended."""
    due: int
    """Arrivals: a batch, or a session of several turns, is one."""
    started: int
    """Arrivals."""
    in_flight: int
    """Arrivals."""
    done: int
    """Requests: of a batch or session, each."""
    errors: int
    """Requests."""
    response_p50_s: float | None
    response_p99_s: float | None
    ttft_p99_s: float | None
    tokens_per_s: float | None
    note: str = ""
    """What is being waited for, or what to mind: `2 dropped for want of an idle virtual user`."""


def line(progress: Progress) -> str:
    """The snapshot as one line of plain text, for logs and pipes; without a newline."""
    parts = [
        _time(progress),
        f"arrivals: due {numbers.count(progress.due)}",
        f"started {numbers.count(progress.started)}",
        f"in flight {numbers.count(progress.in_flight)}",
        f"requests: done {numbers.count(progress.done)}",
        f"errors {numbers.count(progress.errors)}",
        f"response P50 {numbers.quantity(progress.response_p50_s, 's')}",
        f"P99 {numbers.quantity(progress.response_p99_s, 's')}",
        f"TTFT P99 {numbers.quantity(progress.ttft_p99_s, 's')}",
        numbers.quantity(progress.tokens_per_s, "tokens/s"),
    ]
    return "  ".join([*parts, progress.note] if progress.note else parts)


def live(progress: Progress) -> Table:
    """The snapshot as something for rich.live.Live to show."""
    figures = Table.grid(padding=(0, 2))
    for _ in range(4):
        figures.add_column(no_wrap=True)
    figures.add_row(
        "arrivals",
        _fact("due", numbers.count(progress.due)),
        _fact("started", numbers.count(progress.started)),
        _fact("in flight", numbers.count(progress.in_flight)),
    )
    figures.add_row(
        "requests",
        _fact("done", numbers.count(progress.done)),
        _fact("errors", numbers.count(progress.errors), "bold red" if progress.errors else "bold"),
        _fact("", numbers.quantity(progress.tokens_per_s, "tokens/s")),
    )
    figures.add_row(
        "response",
        _fact("P50", numbers.quantity(progress.response_p50_s, "s")),
        _fact("P99", numbers.quantity(progress.response_p99_s, "s")),
        _fact("TTFT P99", numbers.quantity(progress.ttft_p99_s, "s")),
    )
    whole = Table.grid(padding=(0, 2))
    whole.add_row(_bar(progress))
    whole.add_row(figures)
    if progress.note:
        whole.add_row(Text(progress.note, style="yellow"))
    return whole


def _bar(progress: Progress) -> Table:
    known = progress.remaining_s is not None
    total = progress.elapsed_s + (progress.remaining_s or 0.0)
    bar = ProgressBar(total=total if known else None, completed=progress.elapsed_s, width=40, pulse=not known)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(bar, Text(_time(progress)))
    return grid


def _time(progress: Progress) -> str:
    elapsed = numbers.clock(progress.elapsed_s)
    return elapsed if progress.remaining_s is None else f"{elapsed} (-{numbers.clock(progress.remaining_s)})"


def _fact(name: str, value: str, style: str = "bold") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style)) if name else Text(value, style=style)
