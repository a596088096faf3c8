"""The error tree: every exception that a user of the harness may see.

    HarnessError
    ├── ConfigError      the user's mistake: names the source, the key, the value and the remedy
    ├── RunLogError      a run folder that cannot be read or written
    └── EngineError      the load generator itself could not do its job

A remote fault is never an exception: it is an `Outcome` on a `Record`. Our own bug is not in this
tree either: it propagates as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence


class HarnessError(Exception):
    """Anything the harness raises on purpose."""


class ConfigError(HarnessError):
    """A mistake in a file, a flag or the environment.

    Args:
        source: where it stands: a path, a flag (`--rate`), an environment variable.
        key: the dotted path of the key inside the source; empty when the whole source is meant.
        value: what was found there; never a secret.
        remedy: what to write instead.
    """

    def __init__(self, source: str, key: str, value: object, remedy: str) -> None:
        self.source = source
        self.key = key
        self.value = value
        self.remedy = remedy
        self.others: tuple[ConfigError, ...] = ()
        """Further mistakes that were found with it."""
        where = f"{source}: {key}" if key else source
        found = "" if value is None else f" is {value!r}"
        super().__init__(f"{where}{found}: {remedy}")


def together(mistakes: Sequence[ConfigError]) -> ConfigError:
    """The first of at least one mistake, which has the others with it."""
    first, *rest = (each for found in mistakes for each in (found, *found.others))
    first.others = tuple(rest)
    return first


class RunLogError(HarnessError):
    """A run folder that is missing, torn beyond recovery or not writable."""


class EngineError(HarnessError):
    """The load generator could not start, or died."""
