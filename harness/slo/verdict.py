"""Objective + records -> Verdict.

Each objective is a proportion, tested by exact one-sided binomial (Clopper-Pearson) bounds, 95 % each:

    PASS           the upper bound of the bad share is below the allowed share
    FAIL           the lower bound is above it
    INCONCLUSIVE   neither: more samples are needed

A run proves no more than its weakest part: INVALID if the instrument failed, else FAIL if any objective
is, else INCONCLUSIVE if any is or if there is none, else PASS.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from harness.analysis.goodness import ERRORS, concerned, good, observed_quantile
from harness.analysis.measures import Measures, Window, judged
from harness.analysis.stats import allowed_share, lower_bound, more_needed, share, upper_bound
from harness.analysis.steady import emptiness
from harness.analysis.summary import Figure
from harness.analysis.validity import Validity
from harness.slo.objectives import Objective


class State(StrEnum):
    """PASS and FAIL are proven; INCONCLUSIVE wants more samples; INVALID blames the instrument."""

    PASS = "PASS"  # noqa: S105 - a verdict, no password
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
    reason: str = ""
    """One sentence for people: why it is not PASS, or that it is."""


def judge(measures: Measures, objectives: Sequence[Objective], validity: Validity, window: Window) -> Verdict:
    """Judge the requests of the window by each objective, and the run by all of them."""
    verdicts = [judge_one(measures, objective, window) for objective in objectives]
    state, reason = _overall(verdicts, validity, emptiness(measures, window))
    return Verdict(state, EXIT_CODES[state], verdicts, validity, reason)


def judge_one(measures: Measures, objective: Objective, window: Window) -> Judged:
    """Judge the requests of the window by one objective."""
    mask = judged(measures, window) & concerned(measures, objective)
    n = int(mask.sum())
    bad = int((mask & ~good(measures, objective)).sum())
    allowed = allowed_share(objective.target)
    bad_share = Figure(
        value=bad / n if n else None,
        unit="1",
        n=n,
        low=lower_bound(bad, n, objective.confidence),
        high=upper_bound(bad, n, objective.confidence),
        note="" if n else "no samples",
    )
    state = _state(bad_share, allowed)
    more = (
        more_needed(bad, n, objective.target, objective.confidence) if state is State.INCONCLUSIVE else None
    )
    return Judged(
        objective=objective,
        state=state,
        n=n,
        bad=bad,
        bad_share=bad_share,
        observed=share(bad, n)
        if objective.measure == ERRORS
        else observed_quantile(measures, objective, mask),
        budget_used=bad / n / allowed if n else None,
        more_needed=more,
        reason=emptiness(measures, window) or _reason(objective, state, bad, bad_share, more),
    )


def _state(bad_share: Figure, allowed: float) -> State:
    assert bad_share.low is not None
    assert bad_share.high is not None
    if bad_share.high < allowed:
        return State.PASS
    if bad_share.low > allowed:
        return State.FAIL
    return State.INCONCLUSIVE


def _reason(objective: Objective, state: State, bad: int, bad_share: Figure, more: int | None) -> str:
    n, low, high = bad_share.n, bad_share.low or 0.0, bad_share.high or 0.0
    if not n:
        which = f"no request{f' of kind {objective.kind}' if objective.kind else ''} was judged"
        told = which if objective.measure == ERRORS else f"{which} that has a value of {objective.measure}"
        return f"{told}; {more:,} good ones would prove it"
    allowed = f"{_share(allowed_share(objective.target))} are allowed"
    sure = f"at {100 * objective.confidence:g} % confidence"
    seen = f"{bad:,} of {n:,} requests are bad"
    if state is State.PASS:
        return f"{seen}: at most {_share(high)} {sure}, {allowed}"
    if state is State.FAIL:
        return f"{seen}: at least {_share(low)} {sure}, {allowed}"
    return (
        f"{seen}: between {_share(low)} and {_share(high)}, {allowed}; {more:,} more good ones would prove it"
    )


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _overall(verdicts: Sequence[Judged], validity: Validity, empty: str) -> tuple[State, str]:
    failed = [check for check in validity.checks if not check.passed]
    if failed:
        return State.INVALID, "the instrument failed: " + "; ".join(check.cause for check in failed)
    if not verdicts:
        return State.INCONCLUSIVE, "there is no objective to judge by"
    if empty:
        return State.INCONCLUSIVE, empty
    for state in (State.FAIL, State.INCONCLUSIVE):
        named = [each for each in verdicts if each.state is state]
        if named:
            return state, "; ".join(f"{each.objective.name}: {each.reason}" for each in named)
    return State.PASS, "every objective is proven to be met"
