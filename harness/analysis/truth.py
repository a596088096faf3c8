"""The harness's figures beside the mock's own: what was really sent and when, joined by request id.

    response, TTFT      truth counts from the same due time, to the mock's own stamp of that event
    service             truth is the mock's alone: last byte of the request to last byte of the answer
    ITL, TPOT           truth is of the mock's stamps of the same chunks
    error               the harness's value minus truth, request by request (gap by gap)

An error is what lies between the two stamps: the network, the kernel, and the harness itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.analysis.measures import Floats, Mask, Measures, Window, judged
from harness.analysis.stats import Distribution, distribution

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Answer:
    """One request as the mock saw it; stamps in nanoseconds of its monotonic clock."""

    request_id: str
    arrived_ns: int
    ended_ns: int
    chunk_ns: NDArray[np.int64]
    completion_tokens: int


class Beside(msgspec.Struct, frozen=True):
    """One measure."""

    truth: Distribution
    error: Distribution
    """Harness minus truth."""


class Truth(msgspec.Struct, frozen=True):
    """What the mock's truth log says of the requests that were judged and ended ok."""

    joined: int
    """Of those, the ones that the log has."""
    missing: int
    """Of those, the ones that it lacks."""
    unknown: int
    """Entries of the log, of the whole run, for which there is no record."""
    chunks: tuple[int, int]
    """As the harness counted them, and as the mock did; of the joined requests."""
    tokens: tuple[int, int]
    """Completion tokens, likewise."""
    kinds: dict[str, dict[str, Beside]]
    """By kind of traffic (`all` first) and measure."""


class _Line(msgspec.Struct, gc=False):
    request_id: str = ""
    arrived_ns: int = 0
    ended_ns: int | None = None
    chunk_ns: list[int] = []
    completion_tokens: int = 0


def read(lines: Iterable[bytes]) -> list[Answer]:
    """The entries of a truth log in its order; its first line, which tells the clock, is no entry.

    Raises:
        msgspec.MsgspecError: a line is not one of a truth log.
    """
    decode = msgspec.json.Decoder(_Line).decode
    entries = map(decode, filter(bytes.strip, lines))
    return [
        Answer(
            entry.request_id,
            entry.arrived_ns,
            entry.ended_ns,
            np.array(entry.chunk_ns, dtype=np.int64) if entry.chunk_ns else _NOTHING,
            entry.completion_tokens,
        )
        for entry in entries
        if entry.request_id and entry.ended_ns is not None
    ]


def compare(measures: Measures, window: Window, answers: Iterable[Answer], *, zero_ns: int) -> Truth:
    """Put truth beside what was measured.

    Args:
        measures: of the run.
        window: the judged part.
        answers: of the truth log; where a request id has several (attempts), the last one stands.
        zero_ns: the run's start on the monotonic clock, which the mock must share: the same boot.
    """
    log = {answer.request_id: answer for answer in answers}
    ids: list[str] = measures.requests.column("request_id").to_pylist()
    of_request = [log.get(each) for each in ids]
    known = np.array([each is not None for each in of_request], dtype=bool)
    wanted = judged(measures, window) & measures.ok
    chosen = wanted & known
    rows = np.flatnonzero(chosen)
    answered = [each for row in rows if (each := of_request[row]) is not None]
    own_chunks = pc.list_value_length(measures.requests.column("chunk_ns")).to_numpy()[chosen]
    own_tokens = measures.requests.column("completion_tokens").to_numpy().astype(np.float64)[chosen]
    true_chunks = np.array([len(each.chunk_ns) for each in answered], dtype=np.int64)
    values = _values(measures, rows, answered, zero_ns) | {
        "itl": _gaps(measures, rows, answered, own_chunks == true_chunks)
    }
    kinds = sorted(set(measures.kind[chosen]))
    masks = {"all": np.ones(len(measures), dtype=bool)} | {kind: measures.kind == kind for kind in kinds}
    return Truth(
        joined=len(rows),
        missing=int((wanted & ~known).sum()),
        unknown=len(log.keys() - set(ids)),
        chunks=(int(own_chunks.sum()), int(true_chunks.sum())),
        tokens=(int(np.nansum(own_tokens)), sum(each.completion_tokens for each in answered)),
        kinds={
            kind: _beside(values, mask) for kind, mask in masks.items() if len(kinds) > 1 or kind == "all"
        },
    )


_Values = tuple[NDArray[np.intp], Floats, Floats]
"""The requests' rows, truth, and what the harness measured; one element a value."""


def _values(
    measures: Measures, rows: NDArray[np.intp], answered: list[Answer], zero_ns: int
) -> dict[str, _Values]:
    arrived_s, ended_s, first_s, last_s = (
        np.array(stamps, dtype=np.float64) / 1e9
        for stamps in (
            [each.arrived_ns - zero_ns for each in answered],
            [each.ended_ns - zero_ns for each in answered],
            [each.chunk_ns[0] - zero_ns if len(each.chunk_ns) else np.nan for each in answered],
            [each.chunk_ns[-1] - zero_ns if len(each.chunk_ns) else np.nan for each in answered],
        )
    )
    more_tokens = np.array([each.completion_tokens - 1 for each in answered], dtype=np.float64)
    tpot = np.full(len(rows), np.nan)
    np.divide(last_s - first_s, more_tokens, out=tpot, where=more_tokens > 0)
    due_s = measures.arrival_s[rows]
    truth = {
        "response": ended_s - due_s,
        "service": ended_s - arrived_s,
        "ttft": first_s - due_s,
        "tpot": tpot,
    }
    return {name: (rows, values, measures.of(name)[rows]) for name, values in truth.items()}


def _gaps(measures: Measures, rows: NDArray[np.intp], answered: list[Answer], matched: Mask) -> _Values:
    """The gaps of the streams whose chunks are as many on both sides: the others cannot be paired."""
    paired = rows[matched]
    own = np.isin(measures.itl_owner, paired)
    gaps = [np.diff(each.chunk_ns) for each, same in zip(answered, matched, strict=True) if same]
    true = np.concatenate(gaps) / 1e9 if gaps else np.empty(0)
    return measures.itl_owner[own], true, measures.itl[own]


def _beside(values: dict[str, _Values], mask: Mask) -> dict[str, Beside]:
    found = {}
    for name, (rows, truth, own) in values.items():
        both = mask[rows] & ~np.isnan(truth) & ~np.isnan(own)
        if not both.any():
            continue
        independent = name != "itl"
        found[name] = Beside(
            distribution(truth[both], name, "s", independent=independent),
            distribution((own - truth)[both], f"{name}_error", "s", independent=independent),
        )
    return found
