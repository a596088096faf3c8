"""Did the instrument do its job? Judged before the numbers are."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One question about the instrument, and its answer."""

    name: str
    """Stable identifier: `lateness`, `ledger`, `hub_lag`, ..."""
    passed: bool
    observed: float | None
    budget: float | None
    unit: str
    n: int
    cause: str
    """One sentence for people, passed or not."""
    remedy: str = ""
    """What to do, where it failed: `raise max_in_flight to 400`."""


class Validity(msgspec.Struct, frozen=True):
    """The instrument's judgement of itself."""

    checks: list[Check]

    @property
    def valid(self) -> bool:
        """No check failed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """The causes of the failed checks, each with its remedy."""
        return [f"{c.cause}. {c.remedy}".rstrip() for c in self.checks if not c.passed]
