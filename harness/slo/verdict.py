"""Objective + records -> Verdict."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from harness.analysis.summary import Figure
from harness.analysis.validity import Validity
from harness.slo.objectives import Objective


class State(StrEnum):
    """PASS and FAIL are proven; INCONCLUSIVE wants more samples; INVALID blames the instrument."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


EXIT_CODES = {State.PASS: 0, State.FAIL: 1, State.INCONCLUSIVE: 3, State.INVALID: 4}
"""2 is for bad usage or configuration."""


class Judged(msgspec.Struct, frozen=True):
    """One objective and what the records say of it."""

    objective: Objective
    state: State
    """PASS, FAIL or INCONCLUSIVE."""
    n: int
    """Requests judged."""
    bad: int
    """Of them, those that are not good."""
    bad_share: Figure
    """bad / n with the exact one-sided 95 % bounds, lower and upper, as its interval."""
    observed: Figure
    """What people call it by: the percentile asked for (s), or the error rate (1)."""
    budget_used: float | None
    """bad share over the allowed share; 1 is all of the error budget."""
    more_needed: int | None
    """Further good requests that would make it PASS; only where INCONCLUSIVE."""
    reason: str
    """One sentence for people."""


class Verdict(msgspec.Struct, frozen=True):
    """What the run proves."""

    state: State
    exit_code: int
    objectives: list[Judged]
    validity: Validity
