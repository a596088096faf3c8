"""The harness's completions with a listener of Locust's `request` event, for which it is fired each time."""

from locust import events

from harness.users import CompletionUser


@events.request.add_listener
def hear(**_: object) -> None:
    """Listen, and do nothing else."""


class Completion(CompletionUser):
    """Carries the scenario's completion entries."""
