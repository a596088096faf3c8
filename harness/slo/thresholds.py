"""Threshold strings -> Objective.

A threshold string (docs/objectives.md) says what must hold of one run:

    objective = subject ":" claim
    subject   = measure | kind "." measure | measure "{kind=" kind "}"
    measure   = response | service | ttft | ... | tokens_per_s | errors
    claim     = "p(" percent ")" operator quantity    of any measure but errors
              | "rate" operator share                 of errors
    operator  = "<" | "<="                            where lower is better
              | ">" | ">="                            of tokens_per_s
    quantity  = number unit                           us, ms, s or min; none or tokens/s of tokens_per_s
    share     = number "%" | number                   0.1 % is 0.001

`p(99) < T` says that at least 99 % of the requests lie below T; `p(5) > T`, that at least 95 % lie
above. The unit of the test is the request, so `itl` stands for `itl_longest`, each stream's longest
gap: the gaps of one stream are no independent samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches

import msgspec

from harness.analysis.names import ERRORS, KINDS, MEASURES, OWN, STREAMING_KINDS
from harness.errors import ConfigError


class Objective(msgspec.Struct, frozen=True):
    """A proportion that must hold: at least `target` of the requests are good.

    A request is good if its outcome is not an error and, where `measure` is a time, that time
    compares by `operator` with `threshold`.
    """

    name: str
    """Unique within the run, as printed."""
    expression: str
    """As the user wrote it: `response: p(99) < 500ms`."""
    measure: str
    """Name in analysis/names.py, or `errors`."""
    operator: str
    """On the request's own value; for `errors` it stands for the rate."""
    threshold: float | None
    """In the measure's base unit (s, tokens/s); None for `errors`."""
    target: float
    """Share of good requests wanted: 0.99 for P99, 0.999 for an error rate below 0.1 %."""
    kind: str | None = None
    """Only requests of this kind; None: of all kinds that have the measure."""
    confidence: float = 0.95
    """Of the one-sided bound."""


ALIASES = {"itl": "itl_longest"}
JUDGEABLE = [name for name in MEASURES if name not in OWN]
"""What is the instrument's own is judged as such (analysis/validity.py)."""

_UNITS = {
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
}
_SUBJECT = re.compile(
    r"(?:(?P<before>\w+)\.)?(?P<measure>\w+)(?:\{\s*kind\s*=\s*[\"']?(?P<after>\w+)[\"']?\s*\})?"
)
_CLAIM = re.compile(
    r"(?P<how>p\(\s*(?P<percent>[^)]*?)\s*\)|\w+)\s*(?P<operator><=|>=|<|>)\s*(?P<number>[\d.]+)\s*(?P<unit>\S*)"
)
_EXAMPLE = "write it like `ttft: p(99) < 500ms`, `stream.tpot: p(95) <= 40ms` or `errors: rate < 0.1%`"


def parse(text: str, *, source: str = "--threshold", key: str = "") -> Objective:
    """Read one threshold string.

    Raises:
        ConfigError: with source, key, value and remedy.
    """
    try:
        return _parse(text)
    except _Mistake as mistake:
        raise ConfigError(source, key, text, mistake.remedy) from None


class _Mistake(Exception):  # noqa: N818 - never leaves this module
    """What to write instead, raised where it is found and given its place further up."""

    def __init__(self, remedy: str) -> None:
        super().__init__(remedy)
        self.remedy = remedy


def _parse(text: str) -> Objective:
    subject_text, colon, claim_text = text.partition(":")
    subject, claim = _SUBJECT.fullmatch(subject_text.strip()), _CLAIM.fullmatch(claim_text.strip())
    if not colon or subject is None:
        raise _Mistake(_EXAMPLE)
    if subject["before"] and subject["after"]:
        raise _Mistake("name the kind once")
    measure, kind = _subject(subject["measure"], subject["before"] or subject["after"])
    if claim is None:
        raise _Mistake(_EXAMPLE)
    name = f"{kind}.{measure}" if kind else measure
    if measure == ERRORS:
        target = _error_target(claim)
        return Objective(f"{name} rate", text.strip(), ERRORS, claim["operator"], None, target, kind)
    percent = _percent(claim)
    higher = MEASURES[measure].higher_is_better
    _check_direction(measure, claim["operator"])
    return Objective(
        name=f"{name} p({percent.normalize():f})",
        expression=text.strip(),
        measure=measure,
        operator=claim["operator"],
        threshold=_threshold(claim["number"], claim["unit"], measure),
        target=float((100 - percent if higher else percent) / 100),
        kind=kind,
    )


def _subject(measure: str, kind: str | None) -> tuple[str, str | None]:
    """The measure and the kind, aliases resolved, if they exist and go together."""
    measure = ALIASES.get(measure, measure)
    if measure != ERRORS and measure not in JUDGEABLE:
        raise _Mistake(nearest("measure", measure, [ERRORS, *ALIASES, *JUDGEABLE]))
    if kind is not None and kind not in KINDS:
        raise _Mistake(nearest("kind", kind, KINDS))
    if (
        kind is not None
        and kind not in STREAMING_KINDS
        and measure != ERRORS
        and MEASURES[measure].streams_only
    ):
        raise _Mistake(f"requests of kind {kind} do not stream, so they have no {measure}")
    return measure, kind


def nearest(what: str, found: str, known: Sequence[str]) -> str:
    """The remedy for a name that does not exist."""
    close = get_close_matches(found, known, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    return f"unknown {what} {found}: {suggestion}known are {', '.join(known)}"


def _check_direction(measure: str, operator: str) -> None:
    higher = MEASURES[measure].higher_is_better
    if operator[0] != (">" if higher else "<"):
        better = "higher" if higher else "lower"
        raise _Mistake(f"a {better} {measure} is better: use {'> or >=' if higher else '< or <='}")


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise _Mistake(f"{text!r} is not a number") from None


def _percent(claim: re.Match[str]) -> Decimal:
    if claim["percent"] is None:
        raise _Mistake("ask for a percentile: `p(99)`; means and maxima are not proportions")
    percent = _number(claim["percent"])
    if not 0 < percent < 100:
        raise _Mistake("a percentile lies between 0 and 100, both excluded: no sample proves p(100)")
    return percent


def _threshold(number: str, unit: str, measure: str) -> float:
    base = MEASURES[measure].unit
    if base == "s":
        if unit not in _UNITS:
            raise _Mistake(f"give the time its unit, one of {', '.join(_UNITS)}: `500ms`")
        threshold = _number(number) * _UNITS[unit]
    else:
        if unit not in {"", base}:
            raise _Mistake(f"{measure} is in {base}: leave the unit out")
        threshold = _number(number)
    if threshold <= 0:
        raise _Mistake("the threshold must be above 0")
    return float(threshold)


def _error_target(claim: re.Match[str]) -> float:
    if claim["how"] != "rate":
        raise _Mistake("errors have a rate: `errors: rate < 0.1%`")
    if claim["operator"][0] != "<":
        raise _Mistake("a lower error rate is better: use < or <=")
    if claim["unit"] not in {"", "%"}:
        raise _Mistake("an error rate is a share: `0.1%` or `0.001`")
    rate = _number(claim["number"]) / (100 if claim["unit"] else 1)
    if not 0 < rate < 1:
        raise _Mistake("the rate must lie between 0 and 1 (100 %), both excluded: no sample proves 0")
    return float(1 - rate)
