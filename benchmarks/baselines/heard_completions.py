"""The harness's completions with a listener of Locust's `request` event, which only counts what it hears."""

from itertools import count

from locust import events

from harness.users import CompletionUser

heard = count()


@events.request.add_listener
def hear(**_: object) -> None:
    """Count, and do nothing else."""
    next(heard)


@events.quitting.add_listener
def say(**_: object) -> None:
    """For `ratios.py`, which finds it in the log."""
    print(f"heard {next(heard)}")


class Completion(CompletionUser):
    """Carries the scenario's completion entries."""
