"""Running figures for the progress line, while the run goes on. The verdict never uses them."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.record import Outcome

_NOT_ERRORS = (Outcome.OK, Outcome.CANCELLED)


class Figures(msgspec.Struct, frozen=True):
    """Of all requests that have ended so far. Times in seconds; None while there are none."""

    done: int
    errors: int
    completion_tokens: int
    response_p50_s: float | None
    response_p99_s: float | None
    ttft_p99_s: float | None


class Live:
    """Gathers final records as they reach the log."""

    def __init__(self) -> None:
        self._done = self._errors = self._tokens = 0
        self._response_s: list[NDArray[np.float64]] = []
        self._ttft_s: list[NDArray[np.float64]] = []

    def feed(self, records: pa.Table) -> None:
        """Take the next records (runlog.SCHEMA)."""
        final = records.filter(records["final"])
        since = pc.coalesce(final["due_ns"], final["started_ns"])
        outcome = final["outcome"]
        self._done += len(final)
        self._errors += pc.sum(pc.invert(pc.is_in(outcome, pa.array(_NOT_ERRORS)))).as_py() or 0
        self._tokens += pc.sum(final["completion_tokens"]).as_py() or 0
        self._response_s.append(_seconds(pc.subtract(final["ended_ns"], since)))
        self._ttft_s.append(_seconds(pc.subtract(final["first_token_ns"], since)))

    def figures(self) -> Figures:
        """What has been seen so far."""
        return Figures(
            done=self._done,
            errors=self._errors,
            completion_tokens=self._tokens,
            response_p50_s=_quantile(self._response_s, 0.5),
            response_p99_s=_quantile(self._response_s, 0.99),
            ttft_p99_s=_quantile(self._ttft_s, 0.99),
        )


def _seconds(ns: pa.ChunkedArray) -> NDArray[np.float64]:
    seconds: NDArray[np.float64] = ns.drop_null().to_numpy() / 1e9
    return seconds


def _quantile(pieces: list[NDArray[np.float64]], share: float) -> float | None:
    values = np.concatenate(pieces) if pieces else np.empty(0)
    return float(np.quantile(values, share, method="inverted_cdf")) if values.size else None
